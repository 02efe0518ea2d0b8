"""The plain classifier: a backbone, global average pooling and one linear layer.

It is the baseline of the other methods, and the shortest example of what a method is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.methods.frozen import frozen_patterns
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.protocols import Exported, LossOutput, LossTerm, split_variables
from fgkd_jax.typing import Array, Batch, Float, Key, Variables


class ClassifierNetwork(nn.Module):
    """Backbone and head.

    Attributes:
      backbone: maps images to a tuple of feature maps, one per stage.
      num_classes: number of logits.
      frozen_stages: leading stages that run in evaluation mode and get no gradient.
      dropout: rate on the pooled features.
    """

    backbone: nn.Module
    num_classes: int
    frozen_stages: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, from_features: bool = False
    ) -> Float[Array, "b k"]:
        """Computes the logits.

        Args:
          x: normalised images [b, h, w, 3], or the output of `features`.
          train: whether dropout and batch statistics are in training mode.
          from_features: whether `x` is the output of `features`.

        Returns:
          float32 logits of shape [b, num_classes].
        """
        if not from_features:
            x = self.features(x)
        x = self.backbone(x, train=train, start=self.frozen_stages)[-1]
        return LinearHead(self.num_classes, dropout=self.dropout, name="head")(x, train=train)

    def features(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow co"]:
        """Runs the frozen stages; without any, returns its input.

        Args:
          x: normalised images [b, h, w, 3].

        Returns:
          The output of the last frozen stage, cut from the gradient.
        """
        if self.frozen_stages == 0:
            return x
        frozen = self.backbone(x, train=False, stop=self.frozen_stages)[-1]
        return jax.lax.stop_gradient(frozen)


@dataclasses.dataclass(frozen=True)
class Classifier(ImageOptions):
    """Plain classification by cross-entropy.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      backbone: `name` of a backbone and its options, see `fgkd_jax.models.backbones`.
      frozen_stages: leading backbone stages that are not trained and keep their statistics. Their
        output may be given as `features` in place of `image`, computed once for a whole run.
      dropout: rate on the pooled features, in [0, 1).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    task: ClassVar[str] = "classification"

    num_classes: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "resnet50"})
    frozen_stages: int = 0
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected it in [0, 1)")
        if self.frozen_stages < 0:
            raise UserError(f"frozen_stages is {self.frozen_stages}; expected at least 0")
        backbone_from(self.backbone)  # a wrong name or option is told at once

    @property
    def network(self) -> ClassifierNetwork:
        """The Linen module behind the method."""
        return ClassifierNetwork(
            backbone=backbone_from(self.backbone),
            num_classes=self.num_classes or 1,
            frozen_stages=self.frozen_stages,
            dropout=self.dropout,
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names the parameters of the frozen stages.

        Returns:
          One regular expression per parameter.
        """
        if not self.frozen_stages:
            return ()
        return frozen_patterns(self.network, "features")

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the network.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params` and, where the backbone normalises by batch statistics, `batch_stats`.
        """
        images = self.normalize(batch["image"])
        return self.network.init(key, images, train=False)

    def features(self, variables: Variables, batch: Batch) -> Float[Array, "b h w c"]:
        """Computes what the frozen stages make of the images.

        Args:
          variables: as `init` returns them.
          batch: with `image` [b, h, w, 3].

        Returns:
          Feature maps; as `features` of a batch they replace `image` in `loss` and `predict`.
        """
        network: Any = self.network
        return network.apply(variables, self.normalize(batch["image"]), method="features")

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the cross-entropy of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3] or `features`, `label` int [b], `id` int [b] and
            `mask` bool [b].
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and batch statistics are in training mode.

        Returns:
          The term `cross_entropy`, the new batch statistics, and the figure `accuracy`.
        """
        jitter_key, dropout_key = jax.random.split(key)
        if "features" in batch:
            inputs = self._features(batch)
        else:
            inputs = self.images(batch, jitter_key, train=train)
        _, model_state, _ = split_variables(variables)
        logits, new_state = self.network.apply(
            variables,
            inputs,
            train=train,
            from_features="features" in batch,
            mutable=list(model_state) if train else [],
            rngs={"dropout": dropout_key},
        )
        mask = batch["mask"].astype(jnp.float32)
        losses = cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]) * mask
        terms = {"cross_entropy": LossTerm(sum=jnp.where(batch["mask"], losses, 0.0), count=mask)}
        return terms, {**model_state, **new_state}, {"accuracy": (correct, mask)}

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3] or `features`.

        Returns:
          `logits` and `probabilities`, float32 of shape [b, k].
        """
        cached = "features" in batch
        inputs = self._features(batch) if cached else self.normalize(batch["image"])
        network: Any = self.network
        logits = network.apply(variables, inputs, train=False, from_features=cached)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the network out of its training.

        Args:
          variables: as `init` returns them.
          network: 0, the only one.

        Returns:
          The network, as a classifier without any option of training.

        Raises:
          UserError: `network` is not 0.
        """
        check_network(network, count=1)
        return exported_classifier(
            self, variables, backbone=self.backbone, parts={"backbone": "backbone", "head": "head"}
        )

    def _features(self, batch: Batch) -> Float[Array, "b h w c"]:
        return batch["features"].astype(jnp.float32)


def check_network(network: int, *, count: int) -> None:
    """Checks the number of a network.

    Args:
      network: as a user gave it.
      count: how many networks there are.

    Raises:
      UserError: there is no such network.
    """
    if not 0 <= network < count:
        expected = f"0 to {count - 1}" if count > 1 else "0, the only one"
        raise UserError(f"network is {network}; expected {expected}")


def exported_classifier(
    method: Any,
    variables: Variables,
    *,
    backbone: Mapping[str, Any],
    parts: Mapping[str, str],
    image_size: tuple[int, int] | None = None,
) -> Exported:
    """Makes a plain classifier of a backbone and a head that were trained among others.

    Args:
      method: with `num_classes`, `image_mean` and `image_std`.
      variables: of the method.
      backbone: `name` and options of the backbone.
      parts: where the variables of `backbone` and of `head` are among those of the method.
      image_size: of the images that the network sees, where these are not those of the batch.

    Returns:
      The classifier, without any option of training, and its variables.
    """
    taken = {
        collection: {part: tree[place] for part, place in parts.items() if place in tree}
        for collection, tree in variables.items()
    }
    alone = Classifier(
        num_classes=method.num_classes,
        backbone=backbone,
        image_mean=method.image_mean,
        image_std=method.image_std,
    )
    return Exported(alone, {name: tree for name, tree in taken.items() if tree}, image_size)
