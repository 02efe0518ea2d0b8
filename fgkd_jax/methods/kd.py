"""Plain knowledge distillation: one network learns from the logits of a frozen teacher.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.

    image -> student -> logits: cross-entropy with the label
          -> teacher, frozen -> logits: the student's target, softened

It is what learning together, without a teacher, is compared with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from fgkd_jax.losses.distillation import knowledge_distillation
from fgkd_jax.methods.classifier import Classifier, ClassifierNetwork
from fgkd_jax.methods.taught import TaughtOptions
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.ops.preprocess import normalize_image
from fgkd_jax.typing import Array, Batch, Float, Key, Variables


@dataclasses.dataclass(frozen=True)
class KD(TaughtOptions):
    """Distillation from a frozen teacher.

    loss = label_weight CE(student) + distill_weight T^2 KL(softmax(teacher / T) ||
    softmax(student / T))

    Attributes, besides those of `TaughtOptions`:
      backbone: `name` and options of the student's backbone.
      teacher: `name` and options of the teacher's backbone.
      teacher_mean: per channel, the mean that the teacher's images are to have been normalised by;
        None where it is `image_mean`.
      teacher_std: likewise, `image_std`.
      temperature: T, above 0.
    """

    task: ClassVar[str] = "classification"

    backbone: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "cifar_resnet32"}
    )
    teacher: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "cifar_resnet110"}
    )
    teacher_mean: tuple[float, float, float] | None = None
    teacher_std: tuple[float, float, float] | None = None
    temperature: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        backbone_from(self.teacher, owner="teacher")  # a wrong option is told at once

    @property
    def teaching(self) -> Classifier:
        """The teacher's method."""
        return Classifier(
            num_classes=self.num_classes,
            backbone=self.teacher,
            image_mean=self.teacher_mean or self.image_mean,
            image_std=self.teacher_std or self.image_std,
        )

    @property
    def teacher_network(self) -> ClassifierNetwork:
        """The Linen module of the teacher."""
        return ClassifierNetwork(
            backbone=backbone_from(self.teacher, owner="teacher"),
            num_classes=self.num_classes or 1,
        )

    def init_teacher(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the teacher; trained weights replace them.

        Args:
          key: a typed PRNG key.
          batch: `image` [b, h, w, 3].

        Returns:
          Its collections.
        """
        return self.teacher_network.init(key, self.normalize(batch["image"]), train=False)

    def teach(self, frozen: Variables, image: Array, batch: Batch) -> Array:
        """Asks the teacher.

        Args:
          frozen: its collections.
          image: [b, h, w, 3] in 0..255, in the colours that the student sees.
          batch: not read.

        Returns:
          Its logits, float32 [b, k], through which no gradient passes.
        """
        del batch
        images = normalize_image(
            image, mean=self.teacher_mean or self.image_mean, std=self.teacher_std or self.image_std
        )
        network: Any = self.teacher_network
        return jax.lax.stop_gradient(network.apply(frozen, images, train=False))

    def distillation(
        self, logits: Float[Array, "b k"], taught: Float[Array, "b k"]
    ) -> Float[Array, "b"]:
        """T^2 KL(softmax(taught / T) || softmax(logits / T)).

        Args:
          logits: the student's.
          taught: the teacher's.

        Returns:
          The loss of each example.
        """
        return knowledge_distillation(logits, taught, temperature=self.temperature)
