"""Classification accuracy: exact counts whatever the sharding, the padding and the batch size."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.typing import Array, Batch, Bool, Float, Int, Leaf


@struct.dataclass
class ClassificationCounts:
    """Counts over the examples seen so far.

    Attributes:
      examples: int32 [k], examples per true class.
      correct: int32 [k], examples per true class whose largest logit is the label's.
      top5: int32 scalar, examples whose label is among the five largest logits.
      grouped: int32 scalar per grouping, examples whose predicted class is in the label's group.
      loss: float32 scalar, sum of the cross-entropies in nats.
    """

    examples: Leaf
    correct: Leaf
    top5: Leaf
    grouped: dict[str, Leaf]
    loss: Leaf


def label_rank(logits: Float[Array, "b k"], labels: Int[Array, "b"]) -> Int[Array, "b"]:
    """Counts the classes that are ranked before the label.

    Ties go to the lower class index, as in `argmax`; a class with a NaN logit is ranked before
    every other, so that a broken network is never counted as right.

    Args:
      logits: shape [b, k].
      labels: shape [b], in [0, k).

    Returns:
      Ranks of shape [b], 0 where the label has the largest logit.

    Example:
      >>> label_rank(jnp.array([[0.1, 0.7, 0.2]]), jnp.array([2])).tolist()
      [1]
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    index = jnp.arange(logits.shape[1])[None, :]
    before = jnp.where(index < labels[:, None], ~(logits < own), ~(logits <= own))
    return jnp.sum(before & (index != labels[:, None]), axis=1)


@dataclasses.dataclass(frozen=True)
class ClassificationEvaluator:
    """Counts top-1, top-5, per-class and per-group accuracy.

    Reads `logits` of the predictions, `label` and `mask` of the batch.

    Attributes:
      num_classes: number of classes k.
      groupings: group of each class, by name of the grouping: `{"genus": (0, 0, 1, ...)}`.
    """

    num_classes: int
    groupings: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, groups in self.groupings.items():
            if len(groups) != self.num_classes:
                raise UserError(
                    f"grouping '{name}' has {len(groups)} entries; expected one for each of "
                    f"{self.num_classes} classes"
                )

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        top5 = ("top5_accuracy",) if self.num_classes > 5 else ()
        grouped = tuple(f"{name}_accuracy" for name in self.groupings)
        return ("accuracy", "mean_class_accuracy", *top5, *grouped, "loss", "examples")

    def empty(self) -> ClassificationCounts:
        """Returns the counts before the first batch.

        Returns:
          Zeros.
        """
        zero = np.zeros((), np.int32)
        return ClassificationCounts(
            examples=np.zeros(self.num_classes, np.int32),
            correct=np.zeros(self.num_classes, np.int32),
            top5=zero,
            grouped=dict.fromkeys(self.groupings, zero),
            loss=np.zeros((), np.float32),
        )

    def update(
        self, counts: ClassificationCounts, predictions: Mapping[str, Array], batch: Batch
    ) -> ClassificationCounts:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: `logits` of shape [b, k].
          batch: `label` int [b], in [0, k) where `mask` is True; `mask` bool [b].

        Returns:
          The new counts.

        Raises:
          UserError: the number of logits is not the number of classes.
        """
        logits, mask = predictions["logits"].astype(jnp.float32), batch["mask"]
        if logits.shape[-1] != self.num_classes:
            raise UserError(
                f"logits have shape {logits.shape}; expected {self.num_classes} classes"
            )
        labels = jnp.where(mask, batch["label"], 0)
        rank = label_rank(logits, labels)
        predicted = jnp.argmax(logits, axis=1)
        sane = mask & ~jnp.any(jnp.isnan(logits), axis=1)
        return ClassificationCounts(
            examples=counts.examples + self._per_class(labels, mask),
            correct=counts.correct + self._per_class(labels, mask & (rank == 0)),
            top5=counts.top5 + jnp.sum(mask & (rank < 5), dtype=jnp.int32),
            grouped={
                name: counts.grouped[name] + _same_group(groups, predicted, labels, sane)
                for name, groups in self.groupings.items()
            },
            loss=counts.loss + jnp.sum(jnp.where(mask, cross_entropy(logits, labels), 0.0)),
        )

    def finalise(self, counts: ClassificationCounts) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          `accuracy`, `mean_class_accuracy` (over the classes that occur), `top5_accuracy` (with
          more than five classes), `<grouping>_accuracy`, all in [0, 1]; `loss` in nats;
          `examples`.

        Raises:
          UserError: no example was counted.
        """
        counts = jax.device_get(counts)
        total = int(counts.examples.sum())
        if total == 0:
            raise UserError("no example was evaluated; expected at least one with mask True")
        seen = counts.examples > 0
        figures = {
            "accuracy": float(counts.correct.sum() / total),
            "mean_class_accuracy": float(np.mean(counts.correct[seen] / counts.examples[seen])),
        }
        if self.num_classes > 5:
            figures["top5_accuracy"] = float(counts.top5 / total)
        for name, right in counts.grouped.items():
            figures[f"{name}_accuracy"] = float(right / total)
        return {**figures, "loss": float(counts.loss / total), "examples": total}

    def by_class(self, counts: ClassificationCounts) -> list[dict[str, float]]:
        """Returns the figures of every class.

        Args:
          counts: after the last batch.

        Returns:
          A row for each class, in order: `examples`, and `accuracy` in [0, 1] where there are some.
        """
        examples, correct = (np.asarray(x).tolist() for x in (counts.examples, counts.correct))
        return [
            {"examples": n, **({"accuracy": right / n} if n else {})}
            for n, right in zip(examples, correct, strict=True)
        ]

    def _per_class(self, labels: Int[Array, "b"], where: Bool[Array, "b"]) -> Int[Array, "k"]:
        zeros = jnp.zeros(self.num_classes, jnp.int32)
        return zeros.at[labels].add(where.astype(jnp.int32))


def _same_group(
    groups: tuple[int, ...],
    predicted: Int[Array, "b"],
    labels: Int[Array, "b"],
    mask: Bool[Array, "b"],
) -> Int[Array, ""]:
    table = jnp.asarray(groups, jnp.int32)
    return jnp.sum(mask & (table[predicted] == table[labels]), dtype=jnp.int32)
