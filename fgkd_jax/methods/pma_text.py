"""A classifier of texts: the control of PMA that sees no image."""

import dataclasses
from typing import Any, ClassVar

import jax

from fgkd_jax.methods.bimodal import check_counts, check_shares, label_loss, text_of
from fgkd_jax.methods.classifier import check_network
from fgkd_jax.methods.pma_network import TextNetwork, no_text
from fgkd_jax.models.phrases import PhraseEncoder, PhrasePooling
from fgkd_jax.protocols import Exported, LossOutput
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True)
class PMAText:
    """The control that reads the text and sees no image: how much the text alone gives away.

    loss = CE(classifier(sum_i softmax_i(SAM_t(z_i)) z_i)), z_i as in `PMA`.

    Attributes:
      num_classes: number of classes; taken from the data set where None.
      vocabulary_size: numbers of words; taken from the data set where None.
      word_features: width of a word's embedding.
      phrase_features: width of a phrase's embedding, the LSTM's state.
      reduction: r, by which the attention's layer narrows.
      dropout: rate on the pooled phrases, in [0, 1).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    task: ClassVar[str] = "bimodal"

    num_classes: int | None = None
    vocabulary_size: int | None = None
    word_features: int = 256
    phrase_features: int = 512
    reduction: int = 16
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "dropout", "label_smoothing")
        check_counts(self, "word_features", "phrase_features", "reduction")

    @property
    def network(self) -> TextNetwork:
        """The Linen module behind the method."""
        return TextNetwork(
            encoder=PhraseEncoder(
                vocabulary_size=self.vocabulary_size or 2,
                word_features=self.word_features,
                features=self.phrase_features,
            ),
            pooling=PhrasePooling(reduction=self.reduction),
            num_classes=self.num_classes or 1,
            dropout=self.dropout,
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names no parameters: all are trained.

        Returns:
          Nothing.
        """
        return ()

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the network.

        Args:
          key: a typed PRNG key.
          batch: any batch; the shapes of variables do not depend on it.

        Returns:
          `params`.
        """
        del batch
        return self.network.init(key, no_text(1), train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the cross-entropy of each example.

        Args:
          variables: as `init` returns them.
          batch: `phrases`, `phrase_lengths`, `label` int [b] and `mask` bool [b].
          key: a typed PRNG key for this step.
          train: whether dropout is in training mode.

        Returns:
          The term `cross_entropy`, no model state, and the figure `accuracy`.
        """
        network: Any = self.network
        text = text_of(batch, key, dropout=0.0)
        logits, _ = network.apply(variables, text, train=train, rngs={"dropout": key})
        terms, figures = label_loss(logits, batch, label_smoothing=self.label_smoothing)
        return terms, {}, figures

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each text, of none, and of another.

        Args:
          variables: as `init` returns them.
          batch: `phrases` and `phrase_lengths`, and perhaps `other_phrases` and
            `other_phrase_lengths`.

        Returns:
          `logits`, `probabilities`, `logits_without_text` and, where there is another text,
          `logits_with_other_text`, [b, k]; `phrase_weights` [b, p].
        """
        network: Any = self.network
        text = text_of(batch, jax.random.key(0), dropout=0.0)
        logits, weights = network.apply(variables, text, train=False)
        without, _ = network.apply(variables, no_text(len(logits)), train=False)
        told = {"logits": logits, "logits_without_text": without, "phrase_weights": weights}
        if "other_phrases" in batch:
            other = (batch["other_phrases"], batch["other_phrase_lengths"])
            told["logits_with_other_text"], _ = network.apply(variables, other, train=False)
        return {**told, "probabilities": jax.nn.softmax(logits)}

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the network out of its training.

        Args:
          variables: as `init` returns them.
          network: 0, the only one.

        Returns:
          The network, without any option of training.

        Raises:
          UserError: `network` is not 0.
        """
        check_network(network, count=1)
        plain = dataclasses.replace(self, dropout=0.0, label_smoothing=0.0)
        return Exported(plain, {"params": variables["params"]})
