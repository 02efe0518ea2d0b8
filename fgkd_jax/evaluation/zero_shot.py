"""Zero-shot accuracy: among unseen classes, among all, and calibrated between the two groups."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.pointing import (
    PointingCounts,
    add_pointing,
    no_pointing,
    pointing_figures,
)
from fgkd_jax.evaluation.seen_unseen import (
    NO_CLASS,
    Decisions,
    SeenUnseenCurve,
    check_classes,
    difference,
    seen_unseen_curve,
    zero_shot_figures,
)
from fgkd_jax.protocols import Evaluator
from fgkd_jax.typing import Array, Batch, Float, Int, Leaf


@struct.dataclass
class ZeroShotCounts:
    """What is kept of each example, in the order of evaluation; rows behind `examples` are empty.

    Attributes:
      examples: int32 scalar, examples so far.
      labels: int32 [capacity].
      best_seen: int32 [capacity], the seen class with the largest score; -1 where one is NaN.
      best_unseen: int32 [capacity], likewise of the unseen classes.
      top_seen: float32 [capacity], the score of `best_seen`.
      top_unseen: float32 [capacity], that of `best_unseen`.
      pointing: where attention fell; zeros where parts are not known.
    """

    examples: Leaf
    labels: Leaf
    best_seen: Leaf
    best_unseen: Leaf
    top_seen: Leaf
    top_unseen: Leaf
    pointing: PointingCounts


@dataclasses.dataclass(frozen=True)
class ZeroShotEvaluator:
    """Per-class accuracies with seen and unseen classes.

    | figure | images of | among | offset |
    |---|---|---|---|
    | `zero_shot_accuracy` | unseen classes | unseen classes | any |
    | `seen_accuracy` (S), `unseen_accuracy` (U), `harmonic_mean` (H) | each | all | 0 |
    | `calibrated_...` of these three, where `offset` is not 0 | each | all | `offset` |
    | `best_harmonic_mean`, `best_offset` | both | all | that with the largest H |
    | `ausuc` | both | all | every one |
    | `pointing`, `pointing_gain` | any | | |

    The best offset is chosen on the split itself: on validation classes it is the one to use, on a
    test split its H is an upper bound and no result. A figure is left out where the split has no
    image of a group it needs; a single class without an image, where others of its group have some,
    is refused.

    An image is kept as its best seen and its best unseen class and their scores, so that figures do
    not depend on batches, padding or devices, and every offset is exact.

    Where parts are known, `pointing` is the share of visible parts, counted once for each attribute
    that shows there, at which the attention of the attribute is largest, to within
    `fgkd_jax.evaluation.pointing.TOLERANCE`; `pointing_gain` is that over what regions drawn evenly
    would hit. All attributes count, also those that the image does not show.

    Reads `scores` [b, k] of the predictions, `label` and `mask` of the batch; with parts also
    `attention` [b, a, h, w], where a method has it, and `features` and `parts` of the batch.

    Attributes:
      seen: whether training has images of each class.
      class_names: one name per class.
      capacity: most examples that one evaluation may have.
      offset: added to the scores of unseen classes, chosen on validation classes.
      attribute_parts: row of `parts` at which each attribute shows, -1 for none; empty where
        batches have no parts.
    """

    seen: tuple[bool, ...]
    class_names: tuple[str, ...]
    capacity: int
    offset: float = 0.0
    attribute_parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.seen) != len(self.class_names):
            raise UserError(
                f"seen has {len(self.seen)} entries for {len(self.class_names)} classes"
            )
        if all(self.seen) or not any(self.seen):
            raise UserError("all classes are of one kind; expected seen and unseen ones")
        if not np.isfinite(self.offset):
            raise UserError(f"offset is {self.offset}; expected a finite number")

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns for a split with both groups."""
        three = ("seen_accuracy", "unseen_accuracy", "harmonic_mean")
        calibrated = tuple(f"calibrated_{name}" for name in three) if self.offset else ()
        more = ("best_harmonic_mean", "best_offset", "ausuc", "examples")
        pointing = ("pointing", "pointing_gain") if self.attribute_parts else ()
        return ("zero_shot_accuracy", *three, *calibrated, *more, *pointing)

    def empty(self) -> ZeroShotCounts:
        """Returns the counts before the first batch.

        Returns:
          Zeros.
        """
        whole, real = np.zeros(self.capacity, np.int32), np.zeros(self.capacity, np.float32)
        none = np.zeros((), np.int32)
        return ZeroShotCounts(none, whole, whole, whole, real, real, no_pointing())

    def update(
        self, counts: ZeroShotCounts, predictions: Mapping[str, Array], batch: Batch
    ) -> ZeroShotCounts:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: `scores` of shape [b, k]; see above.
          batch: `label` int [b], in [0, k) where `mask` is True; `mask` bool [b]; see above.

        Returns:
          The new counts.

        Raises:
          UserError: the number of scores is not the number of classes, or parts do not fit.
        """
        scores, mask = predictions["scores"].astype(jnp.float32), batch["mask"]
        if scores.ndim != 2 or scores.shape[1] != len(self.seen):
            raise UserError(f"scores have shape {scores.shape}; expected {len(self.seen)} classes")
        broken = jnp.any(jnp.isnan(scores), axis=1)
        scores = jnp.where(broken[:, None], 0.0, scores)
        best_seen, top_seen = _best(scores, self._classes(seen=True))
        best_unseen, top_unseen = _best(scores, self._classes(seen=False))
        # Rows that do not count are written behind the end, where they are dropped.
        order = counts.examples + jnp.cumsum(mask, dtype=jnp.int32) - 1
        rows = jnp.where(mask, order, self.capacity)

        def put(kept: Array, new: Array) -> Array:
            return kept.at[rows].set(new.astype(kept.dtype), mode="drop")

        pointing = counts.pointing
        if self.attribute_parts and "attention" in predictions:
            pointing = add_pointing(
                pointing, predictions["attention"], batch, attribute_parts=self.attribute_parts
            )
        return ZeroShotCounts(
            examples=counts.examples + jnp.sum(mask, dtype=jnp.int32),
            labels=put(counts.labels, batch["label"]),
            best_seen=put(counts.best_seen, jnp.where(broken, NO_CLASS, best_seen)),
            best_unseen=put(counts.best_unseen, jnp.where(broken, NO_CLASS, best_unseen)),
            top_seen=put(counts.top_seen, top_seen),
            top_unseen=put(counts.top_unseen, top_unseen),
            pointing=pointing,
        )

    def decisions(self, counts: ZeroShotCounts) -> Decisions:
        """Reads what was kept, on the host.

        Args:
          counts: after the last batch.

        Returns:
          One decision per example.

        Raises:
          UserError: no example was counted, more than `capacity`, or a class of a group is without
            an image.
        """
        counts = jax.device_get(counts)
        size = int(counts.examples)
        if size == 0:
            raise UserError("no example was evaluated; expected at least one with mask True")
        if size > self.capacity:
            raise UserError(f"{size} examples were evaluated; expected at most {self.capacity}")
        seen = np.array(self.seen)
        labels = counts.labels[:size]
        check_classes(labels, seen=seen, class_names=self.class_names)
        return Decisions(
            labels=labels,
            best_seen=counts.best_seen[:size],
            best_unseen=counts.best_unseen[:size],
            margins=difference(counts.top_seen[:size], counts.top_unseen[:size]),
            seen=seen,
        )

    def curve(self, counts: ZeroShotCounts) -> SeenUnseenCurve:
        """Returns S and U of a whole split over all offsets.

        Args:
          counts: after the last batch.

        Returns:
          The curve.

        Raises:
          UserError: as `decisions`, or the split has images of one group only.
        """
        return seen_unseen_curve(self.decisions(counts))

    def finalise(self, counts: ZeroShotCounts) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          The figures of the table above; all but `best_offset`, `examples` and `pointing_gain` in
          [0, 1].

        Raises:
          UserError: as `decisions`.
        """
        figures = zero_shot_figures(self.decisions(counts), offset=self.offset)
        return {**figures, **pointing_figures(counts.pointing)}

    def _classes(self, *, seen: bool) -> np.ndarray:
        return np.flatnonzero(np.array(self.seen) == seen)


def calibrated(evaluator: Evaluator, *, offset: float) -> Evaluator:
    """Lets an evaluator report figures at an offset as well.

    Args:
      evaluator: of zero-shot recognition.
      offset: added to the scores of unseen classes.

    Returns:
      The evaluator.

    Raises:
      UserError: it knows no unseen classes, or the offset is not finite.
    """
    if not isinstance(evaluator, ZeroShotEvaluator):
        raise UserError(f"unseen_offset is {offset}, but there are no unseen classes; expected 0")
    return dataclasses.replace(evaluator, offset=offset)


def _best(
    scores: Float[Array, "b k"], classes: np.ndarray
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """The class with the largest score among some of them, the first of several, and its score."""
    among = scores[:, classes]
    place = jnp.argmax(among, axis=1)
    return jnp.asarray(classes, jnp.int32)[place], jnp.max(among, axis=1)
