"""Plain knowledge distillation: one network learns from the logits of a frozen teacher.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.

    image -> student -> logits: cross-entropy with the label
          -> teacher, frozen -> logits: the student's target, softened

It is what learning together, without a teacher, is compared with. The teacher's weights are a file,
`pretrained.teacher`; of them a checkpoint holds nothing but the hash.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.distillation import knowledge_distillation
from fgkd_jax.methods.classifier import ClassifierNetwork, check_network, exported_classifier
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.methods.mutual import loss_term, masked
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.ops.preprocess import normalize_image
from fgkd_jax.protocols import FROZEN, Exported, LossOutput, split_variables
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True)
class KD(ImageOptions):
    """Distillation from a frozen teacher.

    loss = label_weight CE(student) + distill_weight T^2 KL(softmax(teacher / T) ||
    softmax(student / T))

    The teacher sees the same images, after the same change of colours, and runs in evaluation mode.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      backbone: `name` and options of the student's backbone.
      teacher: `name` and options of the teacher's backbone.
      teacher_mean: per channel, the mean that the teacher's images are to have been normalised by;
        None where it is `image_mean`.
      teacher_std: likewise, `image_std`.
      label_weight: weight of the cross-entropy.
      distill_weight: weight of the distillation.
      temperature: T.
      dropout: rate on the student's pooled features, in [0, 1).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    task: ClassVar[str] = "classification"

    num_classes: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "cifar_resnet32"}
    )
    teacher: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "cifar_resnet110"}
    )
    teacher_mean: tuple[float, float, float] | None = None
    teacher_std: tuple[float, float, float] | None = None
    label_weight: float = 1.0
    distill_weight: float = 1.0
    temperature: float = 3.0
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected it in [0, 1)")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; expected a number above 0")
        for name in ("backbone", "teacher"):
            backbone_from(getattr(self, name), owner=name)  # a wrong option is told at once

    @property
    def network(self) -> ClassifierNetwork:
        """The Linen module of the student."""
        return ClassifierNetwork(
            backbone=backbone_from(self.backbone),
            num_classes=self.num_classes or 1,
            dropout=self.dropout,
        )

    @property
    def teacher_network(self) -> ClassifierNetwork:
        """The Linen module of the teacher."""
        return ClassifierNetwork(
            backbone=backbone_from(self.teacher, owner="teacher"),
            num_classes=self.num_classes or 1,
        )

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names no parameters: the teacher's are none of `params`.

        Returns:
          Nothing.
        """
        return ()

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises both networks.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3].

        Returns:
          `params`, where the backbone normalises by batch statistics `batch_stats`, and `frozen`,
          the teacher's collections, to be replaced by trained ones.
        """
        student_key, teacher_key = jax.random.split(key)
        images = self.normalize(batch["image"])
        student = self.network.init(student_key, images, train=False)
        return {**student, FROZEN: self.teacher_network.init(teacher_key, images, train=False)}

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes both terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `label` int [b], `id` int [b] and `mask` bool [b].
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and the student's batch statistics are in training
            mode; the teacher never is.

        Returns:
          The terms `cross_entropy` and `distillation`, the student's new batch statistics, and the
          figures `accuracy` and `teacher_accuracy`.
        """
        jitter_key, dropout_key = jax.random.split(key)
        image = batch["image"]
        if train:
            image = self.recolour(jitter_key, image, batch["id"])
        _, state, _ = split_variables(variables)
        logits, new = self.network.apply(
            {name: value for name, value in variables.items() if name != FROZEN},
            self.normalize(image),
            train=train,
            mutable=list(state) if train else [],
            rngs={"dropout": dropout_key},
        )
        taught = self._teach(variables[FROZEN], image)
        labels = batch["label"]
        losses = {
            "cross_entropy": loss_term(
                cross_entropy(logits, labels, label_smoothing=self.label_smoothing),
                weight=self.label_weight,
            ),
            "distillation": loss_term(
                knowledge_distillation(logits, taught, temperature=self.temperature),
                weight=self.distill_weight,
            ),
        }
        mask = batch["mask"].astype(jnp.float32)
        figures = {
            name: ((jnp.argmax(value, axis=-1) == labels) * mask, mask)
            for name, value in (("accuracy", logits), ("teacher_accuracy", taught))
        }
        return masked(losses, batch["mask"]), {**state, **new}, figures

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image by the student; the teacher is not needed.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3].

        Returns:
          `logits` and `probabilities`, float32 of shape [b, k].
        """
        own = {name: value for name, value in variables.items() if name != FROZEN}
        network: Any = self.network
        logits = network.apply(own, self.normalize(batch["image"]), train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the student out.

        Args:
          variables: as `init` returns them.
          network: 0, the only one that is trained.

        Returns:
          The student, as a classifier.

        Raises:
          UserError: `network` is not 0.
        """
        check_network(network, count=1)
        return exported_classifier(
            self, variables, backbone=self.backbone, parts={"backbone": "backbone", "head": "head"}
        )

    def _teach(self, frozen: Variables, image: Array) -> Array:
        """The teacher's logits; images are in 0..255."""
        images = normalize_image(
            image, mean=self.teacher_mean or self.image_mean, std=self.teacher_std or self.image_std
        )
        network: Any = self.teacher_network
        return jax.lax.stop_gradient(network.apply(frozen, images, train=False))
