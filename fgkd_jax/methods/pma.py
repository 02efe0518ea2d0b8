"""PMA: bi-modal progressive mask attention, and its form for images alone.

Song, Wei, Shu, Song and Lu, "Bi-modal progressive mask attention for fine-grained recognition",
IEEE Transactions on Image Processing, 2020.

    image -> backbone -> X: the block that matters most, then the next, then the next
    text  -> phrases -> LSTM: those that the block asks for, then what they leave over
    [GAP(X); stage 1; stage 2; stage 3] -> classifier

`fgkd_jax.models.progressive_attention` has the equations, and what the paper leaves open.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.methods.bimodal import check_counts, check_shares, label_loss, text_of
from fgkd_jax.methods.classifier import check_network
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.methods.pma_network import PMANetwork, Text, no_text
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.models.phrases import PhraseEncoder
from fgkd_jax.models.progressive_attention import ProgressiveAttention, ProgressiveStages, block_box
from fgkd_jax.protocols import Exported, LossOutput, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, Variables


@dataclasses.dataclass(frozen=True)
class PMAVision(ImageOptions):
    """Progressive mask attention over an image alone: the paper's row of one modality.

    loss = CE(classifier([GAP(X); f_1; ...; f_S]))

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      backbone: `name` and options of the backbone.
      stages: how many blocks are located, one after the other; the paper has three.
      reduction: r, by which the attention's layers narrow.
      local_features: width of a located block's feature; 0: that of the feature map.
      stage_features: width of a stage's feature.
      pad_blocks: keep the last row and column of an odd feature map, as halves of blocks.
      dropout: rate on what is classified, in [0, 1).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    task: ClassVar[str] = "block_classification"
    _training: ClassVar[tuple[str, ...]] = (
        *("brightness", "contrast", "saturation", "dropout", "label_smoothing"),
    )

    num_classes: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "resnet50"})
    stages: int = 3
    reduction: int = 16
    local_features: int = 0
    stage_features: int = 512
    pad_blocks: bool = True
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "dropout", "label_smoothing")
        check_counts(self, "stages", "reduction", "stage_features")
        if self.local_features < 0:
            raise UserError(f"local_features is {self.local_features}; expected at least 0")
        backbone_from(self.backbone)  # a wrong name or option is told at once

    @property
    def network(self) -> PMANetwork:
        """The Linen module behind the method."""
        return self._network(encoder=None, masked_phrases=0)

    def _network(self, *, encoder: PhraseEncoder | None, masked_phrases: int) -> PMANetwork:
        return PMANetwork(
            backbone=backbone_from(self.backbone),
            attention=ProgressiveAttention(
                stages=self.stages,
                reduction=self.reduction,
                local_features=self.local_features,
                stage_features=self.stage_features,
                masked_phrases=masked_phrases,
                pad_blocks=self.pad_blocks,
            ),
            num_classes=self.num_classes or 1,
            encoder=encoder,
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
          batch: with `image` [b, h, w, 3]; the shapes of variables do not depend on a text's.

        Returns:
          `params` and, where the backbone normalises by batch statistics, `batch_stats`.
        """
        images = self.normalize(batch["image"])
        network: Any = self.network
        return network.init(key, images, no_text(len(images)), train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the cross-entropy of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b], `mask` bool [b] and,
            where the method reads them, `phrases` and `phrase_lengths`.
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and batch statistics are in training mode.

        Returns:
          The term `cross_entropy`, the new batch statistics, and the figure `accuracy`.
        """
        jitter_key, dropout_key, text_key = jax.random.split(key, 3)
        _, model_state, _ = split_variables(variables)
        network: Any = self.network
        (logits, _), new_state = network.apply(
            variables,
            self.images(batch, jitter_key, train=train),
            self.text(batch, text_key, train=train),
            train=train,
            mutable=list(model_state) if train else [],
            rngs={"dropout": dropout_key},
        )
        terms, figures = label_loss(logits, batch, label_smoothing=self.label_smoothing)
        return terms, {**model_state, **new_state}, figures

    def text(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Text | None:
        """Returns what is read of a batch's text: nothing, by this method.

        Args:
          batch: any batch.
          key: a typed PRNG key.
          train: whether parts of it may be left out.

        Returns:
          None.
        """
        del batch, key, train
        return None

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image, and says where it looked.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3].

        Returns:
          `logits` and `probabilities` [b, k]; `located` int [b, s], the block of each stage, -1
          where none was left; `located_box` [b, s, 4], where it lies, (x_min, y_min, x_max, y_max)
          as shares of the image; `block_boxes` [b, n, 4], those of all blocks.
        """
        maps = self._look(variables, batch)
        logits, stages = self._attend(variables, maps, None)
        return self._told(logits, stages, maps)

    def explain(self, variables: Variables, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Shows what the network looks at.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3].
          key: nothing is drawn by chance.

        Returns:
          What `predict` returns.
        """
        del key
        return self.predict(variables, batch)

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
        off: dict[str, Any] = dict.fromkeys(self._training, 0.0)
        plain = dataclasses.replace(self, **off)
        return Exported(plain, {name: tree for name, tree in variables.items() if tree})

    def _look(self, variables: Variables, batch: Batch) -> Float[Array, "b h w c"]:
        network: Any = self.network
        images = self.normalize(batch["image"])
        return network.apply(variables, images, train=False, method="look")

    def _attend(
        self, variables: Variables, maps: Float[Array, "b h w c"], text: Text | None
    ) -> tuple[Array, ProgressiveStages]:
        network: Any = self.network
        return network.apply(variables, maps, text, train=False, method="attend")

    def _told(
        self, logits: Array, stages: ProgressiveStages, maps: Float[Array, "b h w c"]
    ) -> dict[str, Array]:
        size, pad = (maps.shape[1], maps.shape[2]), self.pad_blocks
        every = jnp.arange(stages.block_weights.shape[-1])
        boxes = block_box(every, map_size=size, pad=pad)
        return {
            "logits": logits,
            "probabilities": jax.nn.softmax(logits),
            "located": stages.located,
            "located_box": block_box(stages.located, map_size=size, pad=pad),
            "block_boxes": jnp.broadcast_to(boxes[None], (len(logits), *boxes.shape)),
        }


@dataclasses.dataclass(frozen=True)
class PMA(PMAVision):
    """Progressive mask attention over image and text.

    Attributes, besides those of `PMAVision`:
      vocabulary_size: numbers of words; taken from the data set where None.
      word_features: width of a word's embedding.
      phrase_features: width of a phrase's embedding, the LSTM's state.
      masked_phrases: how many phrases a stage masks at most.
      text_dropout: probability that an example's text is left out in training, in [0, 1). 0 is the
        paper; more prepares the network for images without a text.
    """

    task: ClassVar[str] = "bimodal"
    _training: ClassVar[tuple[str, ...]] = (*PMAVision._training, "text_dropout")

    vocabulary_size: int | None = None
    word_features: int = 256
    phrase_features: int = 512
    masked_phrases: int = 3
    text_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "text_dropout")
        check_counts(self, "word_features", "phrase_features", "masked_phrases")

    @property
    def network(self) -> PMANetwork:
        """The Linen module behind the method."""
        encoder = PhraseEncoder(
            # Two numbers there are in any vocabulary.
            vocabulary_size=self.vocabulary_size or 2,
            word_features=self.word_features,
            features=self.phrase_features,
        )
        return self._network(encoder=encoder, masked_phrases=self.masked_phrases)

    def text(self, batch: Batch, key: Key[Array, ""], *, train: bool) -> Text:
        """Returns the phrases of a batch, those of some examples left out in training.

        Args:
          batch: with `phrases` int [b, p, t] and `phrase_lengths` int [b, p], or without, which is
            no text; and, in training, `id` int [b].
          key: a typed PRNG key.
          train: whether to leave texts out.

        Returns:
          Phrases and their lengths.
        """
        return text_of(batch, key, dropout=self.text_dropout if train else 0.0)

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image with its text, without it, and with another's.

        The backbone runs once.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3]; `phrases` and `phrase_lengths`, without which no image
            has a text; `other_phrases` and `other_phrase_lengths`, if another text is to be tried.

        Returns:
          As for images alone; besides, `phrase_weights` and `global_phrase_weights` [b, s, p], by
          which each stage attends to phrases; `logits_without_text` [b, k]; and, where there is
          another text, `logits_with_other_text` [b, k].
        """
        maps = self._look(variables, batch)
        logits, stages = self._attend(variables, maps, self._given(batch, ""))
        told = self._told(logits, stages, maps)
        without, _ = self._attend(variables, maps, no_text(len(maps)))
        told["logits_without_text"] = without
        if "other_phrases" in batch:
            other, _ = self._attend(variables, maps, self._given(batch, "other_"))
            told["logits_with_other_text"] = other
        return {
            **told,
            "phrase_weights": stages.phrase_weights,
            "global_phrase_weights": stages.global_phrase_weights,
        }

    def teach(self, variables: Variables, image: Array, batch: Batch) -> Float[Array, "b k"]:
        """Computes the logits that a student learns from.

        Args:
          variables: as `init` returns them.
          image: [b, h, w, 3] in 0..255, the images as the student sees them.
          batch: with the phrases.

        Returns:
          Logits in evaluation mode, cut from the gradient.
        """
        maps = self._look(variables, {"image": image})
        logits, _ = self._attend(variables, maps, self._given(batch, ""))
        return jax.lax.stop_gradient(logits)

    def _given(self, batch: Batch, prefix: str) -> Text:
        if f"{prefix}phrases" not in batch:
            return no_text(len(batch["image"]))
        return batch[f"{prefix}phrases"], batch[f"{prefix}phrase_lengths"]
