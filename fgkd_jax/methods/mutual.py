"""What methods that train several networks together have in common."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.contrastive import MutualContrastive
from fgkd_jax.methods.classifier import check_network, exported_classifier
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.protocols import Exported, LossTerm
from fgkd_jax.typing import Array, Batch, Float, Int, Variables


@dataclasses.dataclass(frozen=True)
class SeveralNetworks(ImageOptions, abc.ABC):
    """Options of methods that train networks together, and what they predict by.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      networks: `name` and options of each backbone, at least two, alike or not.
      logit_temperature: of the distillation of logits.
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    task: ClassVar[str] = "mutual_classification"

    num_classes: int | None = None
    networks: tuple[Mapping[str, Any], ...] = (
        {"name": "cifar_resnet32"},
        {"name": "cifar_resnet32"},
    )
    logit_temperature: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if len(self.networks) < 2:
            raise UserError(
                f"networks has {len(self.networks)} of them; expected at least two, which learn "
                "from each other"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; expected it in [0, 1)")
        if not self.logit_temperature > 0:
            raise UserError(
                f"logit_temperature is {self.logit_temperature}; expected a number above 0"
            )
        _ = self.backbones  # a wrong name or option is told at once

    @property
    def num_networks(self) -> int:
        """How many networks there are."""
        return len(self.networks)

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The Linen module behind the method, with a function `classify` of images."""

    @property
    def backbones(self) -> tuple[Any, ...]:
        """The networks' backbones, without variables."""
        return tuple(
            backbone_from(options, owner=f"networks[{i}]")
            for i, options in enumerate(self.networks)
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names no parameters: all are trained.

        Returns:
          Nothing.
        """
        return ()

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image by every network's own output.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3].

        Returns:
          `network_logits` [n, b, k]; `probabilities` [b, k], their mean over networks, and
          `logits` [b, k], its logarithm; float32.
        """
        network: Any = self.network
        images = self.images(batch, jax.random.key(0), train=False)
        logits = network.apply(variables, images, method="classify")
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(float(len(logits)))
        return {"network_logits": logits, "logits": mean, "probabilities": jnp.exp(mean)}

    def classifier_name(self, network: int) -> str:
        """Says where the classifier that a network predicts by is among the parameters.

        Args:
          network: which one, counted from 0.

        Returns:
          The name of its module.
        """
        return f"classifier{network}"

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes one network out, without the others and without what only training needs.

        Args:
          variables: as `init` returns them.
          network: which one, counted from 0.

        Returns:
          The network, as a classifier.

        Raises:
          UserError: there is no such network.
        """
        check_network(network, count=self.num_networks)
        return exported_classifier(
            self,
            variables,
            backbone=self.networks[network],
            parts={"backbone": f"networks_{network}", "head": self.classifier_name(network)},
        )

    def label_term(self, logits: Float[Array, "n b k"], batch: Batch) -> LossTerm:
        """Makes the term in which every network learns from the labels.

        Args:
          logits: of each network.
          batch: with `label` int [b].

        Returns:
          The cross-entropies, summed over networks.
        """
        labels = jnp.broadcast_to(batch["label"], logits.shape[:2])
        losses = jax.vmap(
            lambda one, label: cross_entropy(one, label, label_smoothing=self.label_smoothing)
        )(logits, labels)
        return loss_term(jnp.sum(losses, axis=0))

    def figures(
        self, logits: Float[Array, "n b k"], batch: Batch
    ) -> dict[str, tuple[Array, Array]]:
        """Counts what the networks get right.

        Args:
          logits: of each network.
          batch: `label` int [b] and `mask` bool [b].

        Returns:
          `accuracy` (mean over networks) and `network<i>_accuracy`.
        """
        mask = batch["mask"].astype(jnp.float32)
        right = (jnp.argmax(logits, axis=-1) == batch["label"][None]) * mask[None]
        single = {f"network{i}_accuracy": (right[i], mask) for i in range(self.num_networks)}
        return {"accuracy": (jnp.mean(right, axis=0), mask), **single}


@dataclasses.dataclass(frozen=True)
class MutualOptions(SeveralNetworks):
    """Options of methods in which networks contrast their embeddings.

    Attributes, besides those of `SeveralNetworks`:
      embedding_size: dimensions of the embeddings.
      vcl_weight: weight of the contrast within each network.
      icl_weight: weight of the contrast between networks.
      soft_vcl_weight: weight of the distillation between the contrasts within.
      soft_icl_weight: weight of the distillation between the contrasts to and fro.
      temperature: of the contrasts.
      soft_temperature: further temperature of their distillation.
      contrast_groups: 1 contrasts over the global batch; g > 1 within each of g contiguous parts of
        it, as many as devices for a contrast that stays on each.
    """

    contrasts_batch: ClassVar[bool] = True
    """Whether positives and negatives are examples of the batch."""

    embedding_size: int = 128
    vcl_weight: float = 0.1
    icl_weight: float = 0.1
    soft_vcl_weight: float = 1.0
    soft_icl_weight: float = 1.0
    temperature: float = 0.1
    soft_temperature: float = 3.0
    contrast_groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "soft_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("embedding_size", "contrast_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.contrasts_batch:
            if self.contrast_groups != 1:
                raise UserError(
                    f"contrast_groups is {self.contrast_groups}; expected 1, as no example is "
                    "contrasted with others of the batch"
                )
            if not any(self.contrast_weights.values()):
                raise UserError("all weights of the contrast are 0; expected one of them above 0")

    @property
    def contrast_weights(self) -> dict[str, float]:
        """The weights of the terms of the contrast, by name."""
        return {name: getattr(self, f"{name}_weight") for name in MutualContrastive._fields}

    def contrast_terms(
        self, losses: MutualContrastive, *, accumulable: bool = False
    ) -> dict[str, LossTerm]:
        """Weighs the terms of a contrast, and leaves those of weight 0 out.

        Args:
          losses: each [b].
          accumulable: whether they take each example by itself, and can be accumulated over
            micro-batches.

        Returns:
          Terms by name.
        """
        return {
            name: loss_term(getattr(losses, name), weight=weight, accumulable=accumulable)
            for name, weight in self.contrast_weights.items()
            if weight
        }

    def figures(
        self, logits: Float[Array, "n b k"], batch: Batch
    ) -> dict[str, tuple[Array, Array]]:
        """Counts what the networks get right.

        Args:
          logits: of each network.
          batch: `label` int [b] and `mask` bool [b].

        Returns:
          Those of `SeveralNetworks` and, with contrast in the batch, `with_positive`: the share of
          examples with another one of their class in it.
        """
        figures = super().figures(logits, batch)
        if self.contrasts_batch and any(self.contrast_weights.values()):
            mask = batch["mask"].astype(jnp.float32)
            alike = contrast_labels(batch).reshape(self.contrast_groups, -1)
            count = jnp.sum(alike[:, :, None] == alike[:, None, :], axis=-1).reshape(-1)
            figures["with_positive"] = ((count > 1) * mask, mask)
        return figures


def contrast_labels(batch: Batch) -> Int[Array, "b"]:
    """The labels of a batch, those of masked examples being different from all others.

    Args:
      batch: `label` int [b], at least 0, and `mask` bool [b].

    Returns:
      Labels by which a masked example is nobody's positive.
    """
    return jnp.where(batch["mask"], batch["label"], -1 - jnp.arange(len(batch["label"])))


def loss_term(
    loss: Float[Array, "b"], *, weight: float = 1.0, accumulable: bool = True
) -> LossTerm:
    """Makes a term of a loss that every example counts once in.

    Args:
      loss: of each example.
      weight: of the term.
      accumulable: whether it takes each example by itself.

    Returns:
      The term.
    """
    return LossTerm(sum=loss, count=jnp.ones_like(loss), weight=weight, accumulable=accumulable)


def masked(terms: Mapping[str, LossTerm], mask: Array) -> dict[str, LossTerm]:
    """Leaves out the examples that do not count.

    Args:
      terms: by name, one entry per example.
      mask: bool [b].

    Returns:
      The terms, with zeros for the examples where `mask` is False.
    """
    count = mask.astype(jnp.float32)
    return {
        name: dataclasses.replace(term, sum=jnp.where(mask, term.sum, 0.0), count=count)
        for name, term in terms.items()
    }
