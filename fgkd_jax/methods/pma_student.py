"""The student of PMA, which needs no text.

    image and text -> PMA, frozen -> probabilities: the student's target
    image -> a standard backbone -> probabilities

Song et al., TIP 2020: the student learns from the teacher's probabilities alone, without labels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.distillation import soft_target_cross_entropy
from fgkd_jax.methods.bimodal import check_shares
from fgkd_jax.methods.classifier import ClassifierNetwork, check_network, exported_classifier
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.methods.mutual import loss_term, masked
from fgkd_jax.methods.pma import PMA
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.protocols import FROZEN, Exported, LossOutput, split_variables
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True)
class PMAStudent(ImageOptions):
    """A standard network that learns what a bi-modal PMA says of image and text.

    loss = distill_weight T^2 H(softmax(teacher / T), softmax(student / T))
    + label_weight CE(student)

    H(p, q) = -sum p log q. The defaults, no labels and T = 1, are the paper. The teacher sees the
    same images, after the same change of colours, and the caption of this epoch; it runs in
    evaluation mode, and nothing moves it.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      vocabulary_size: numbers of words that the teacher reads; taken from the data set where None.
      backbone: `name` and options of the student's backbone.
      teacher: options of the teacher, a `PMA`; those of colour and normalisation that it has not
        are the student's. Its weights are the file `pretrained.teacher`.
      distill_weight: weight of the distillation.
      label_weight: weight of the cross-entropy with the labels.
      temperature: T.
      dropout: rate on the student's pooled features, in [0, 1).
      label_smoothing: of the cross-entropy with the labels, in [0, 1).
    """

    task: ClassVar[str] = "bimodal"

    num_classes: int | None = None
    vocabulary_size: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "resnet50"})
    teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    distill_weight: float = 1.0
    label_weight: float = 0.0
    temperature: float = 1.0
    dropout: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "dropout", "label_smoothing")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; expected a number above 0")
        backbone_from(self.backbone)
        names = {field.name for field in dataclasses.fields(PMA)}
        for name in self.teacher:
            if name not in names:
                raise UserError(f"teacher.{name} is not an option{nearest(name, names)}")
        _ = self.teacher_method  # a wrong option is told at once

    @property
    def network(self) -> ClassifierNetwork:
        """The Linen module of the student."""
        return ClassifierNetwork(
            backbone=backbone_from(self.backbone),
            num_classes=self.num_classes or 1,
            dropout=self.dropout,
        )

    @property
    def teacher_method(self) -> PMA:
        """The teacher's method."""
        return PMA(
            **{
                "image_mean": self.image_mean,
                "image_std": self.image_std,
                **self.teacher,
                "num_classes": self.num_classes,
                "vocabulary_size": self.vocabulary_size,
            }
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
        return {**student, FROZEN: self.teacher_method.init(teacher_key, batch)}

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes both terms of each example.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `phrases`, `phrase_lengths`, `label` int [b], `id`
            int [b] and `mask` bool [b].
          key: a typed PRNG key for this step.
          train: whether colour jitter, dropout and the student's batch statistics are in training
            mode; the teacher never is.

        Returns:
          The terms `distillation` and, with a weight, `cross_entropy`; the student's new batch
          statistics; and the figures `accuracy` and `teacher_accuracy`.
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
        taught = self.teacher_method.teach(variables[FROZEN], image, batch)
        labels, t = batch["label"], self.temperature
        soft = t * t * soft_target_cross_entropy(logits, taught, temperature=t)
        losses = {"distillation": loss_term(soft, weight=self.distill_weight)}
        if self.label_weight:
            hard = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            losses["cross_entropy"] = loss_term(hard, weight=self.label_weight)
        mask = batch["mask"].astype(jnp.float32)
        figures = {
            name: ((jnp.argmax(value, axis=-1) == labels) * mask, mask)
            for name, value in (("accuracy", logits), ("teacher_accuracy", taught))
        }
        return masked(losses, batch["mask"]), {**state, **new}, figures

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predicts the class of each image by the student; neither teacher nor text is needed.

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
