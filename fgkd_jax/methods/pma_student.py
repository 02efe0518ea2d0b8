"""The student of PMA, which needs no text.

    image and text -> PMA, frozen -> probabilities: the student's target
    image -> a standard backbone -> probabilities

Song et al., TIP 2020: the student learns from the teacher's probabilities alone, without labels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.losses.distillation import soft_target_cross_entropy
from fgkd_jax.methods.pma import PMA
from fgkd_jax.methods.taught import TaughtOptions
from fgkd_jax.typing import Array, Batch, Float, Key, Variables


@dataclasses.dataclass(frozen=True)
class PMAStudent(TaughtOptions):
    """A standard network that learns what a bi-modal PMA says of image and text.

    loss = distill_weight T^2 H(softmax(teacher / T), softmax(student / T))
    + label_weight CE(student)

    H(p, q) = -sum p log q. The defaults, no labels and T = 1, are the paper. The teacher reads the
    caption of this epoch.

    Attributes, besides those of `TaughtOptions`:
      vocabulary_size: numbers of words that the teacher reads; taken from the data set where None.
      teacher: options of the teacher, a `PMA`; those of colour and normalisation that it has not
        are the student's.
      label_weight: weight of the cross-entropy with the labels.
    """

    task: ClassVar[str] = "bimodal"

    vocabulary_size: int | None = None
    teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {field.name for field in dataclasses.fields(PMA)}
        for name in self.teacher:
            if name not in names:
                raise UserError(f"teacher.{name} is not an option{nearest(name, names)}")
        _ = self.teaching  # a wrong option is told at once

    @property
    def teaching(self) -> PMA:
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

    def init_teacher(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the teacher; trained weights replace them.

        Args:
          key: a typed PRNG key.
          batch: `image` [b, h, w, 3], `phrases` and `phrase_lengths`.

        Returns:
          Its collections.
        """
        return self.teaching.init(key, batch)

    def teach(self, frozen: Variables, image: Array, batch: Batch) -> Array:
        """Asks the teacher.

        Args:
          frozen: its collections.
          image: [b, h, w, 3] in 0..255, in the colours that the student sees.
          batch: `phrases` and `phrase_lengths`.

        Returns:
          Its logits, float32 [b, k], through which no gradient passes.
        """
        return self.teaching.teach(frozen, image, batch)

    def distillation(
        self, logits: Float[Array, "b k"], taught: Float[Array, "b k"]
    ) -> Float[Array, "b"]:
        """T^2 H(softmax(taught / T), softmax(logits / T)).

        Args:
          logits: the student's.
          taught: the teacher's.

        Returns:
          The loss of each example.
        """
        t = self.temperature
        return t * t * soft_target_cross_entropy(logits, taught, temperature=t)
