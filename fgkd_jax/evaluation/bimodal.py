"""Where a network looked, and what it knows with a text, without it, and with a wrong one."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fgkd_jax.evaluation.classification import (
    ClassificationCounts,
    ClassificationEvaluator,
    label_rank,
)
from fgkd_jax.typing import Array, Batch, Bool, Float, Int, Leaf

TEXTS = ("without_text", "with_other_text")
"""What is given in place of an image's own text."""


def holds_point(
    boxes: Float[Array, "b n 4"], points: Float[Array, "b p 2"], visible: Bool[Array, "b p"]
) -> Bool[Array, "b n"]:
    """Says which boxes hold a visible point.

    Args:
      boxes: (x_min, y_min, x_max, y_max).
      points: (x, y) in the same unit; a point on the upper border of a box is outside.
      visible: which points count.

    Returns:
      Whether any of them is inside.
    """
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    x0, y0, x1, y1 = (boxes[:, :, i, None] for i in range(4))
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return jnp.any(inside & visible[:, None, :], axis=-1)


CELLS = 32
"""Cells along a side of an image, by which places of blocks are told apart."""


def cell_of(boxes: Float[Array, "b n 4"]) -> Int[Array, "b n"]:
    """Numbers the cell of the image that the middle of a box lies in.

    Args:
      boxes: (x_min, y_min, x_max, y_max) as shares of the image, in [0, 1].

    Returns:
      0 to `CELLS`^2 - 1, from left to right and top to bottom.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    column, row = jnp.moveaxis(jnp.clip(jnp.floor(middle * CELLS), 0, CELLS - 1), -1, 0)
    return (row * CELLS + column).astype(jnp.int32)


@struct.dataclass
class BlockCounts:
    """Counts over the examples seen so far.

    Attributes:
      classification: those of the classification.
      correct: int32 scalar by kind of text, examples whose largest logit is the label's.
      hits: float32 scalar, located blocks with a visible part.
      chance: float32 scalar, how many of them a random block would have been.
      located_at: float32 [cells], located blocks by place.
      held_at: float32 [cells], images whose block at the place has a visible part.
    """

    classification: ClassificationCounts
    correct: dict[str, Leaf]
    hits: Leaf
    chance: Leaf
    located_at: Leaf
    held_at: Leaf


@dataclasses.dataclass(frozen=True)
class BlockEvaluator:
    """Classification, what the text is worth, and whether located blocks hold parts.

    `accuracy_without_text` and `accuracy_with_other_text` are what remains when the text is removed
    and when it is that of another image; of a network that reads no text, its accuracy.

    `block_gain` = located blocks with a visible part / those that blocks drawn evenly would be:
    1 for blocks at random.

    `place_gain` = located blocks with a visible part / those that blocks at the same places have in
    all images on average: 1 for blocks that are the same in every image. Where objects are in the
    middle of their images, `block_gain` is large for blocks that are always there, `place_gain` is
    not. Blocks are told apart by the `CELLS` x `CELLS` cells that their middles lie in.

    Reads `logits` of the predictions and, where they are there, `logits_without_text`,
    `logits_with_other_text`, `located_box` and `block_boxes`; `label`, `mask`, `image` and `parts`
    of the batch.

    Attributes:
      classification: the evaluator of the logits.
      with_text: whether batches have a text.
      with_parts: whether batches have `parts`, so that blocks can be judged.
    """

    classification: ClassificationEvaluator
    with_text: bool = False
    with_parts: bool = False

    @property
    def _texts(self) -> tuple[str, ...]:
        return TEXTS if self.with_text else ()

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        texts = tuple(f"accuracy_{name}" for name in self._texts)
        blocks = ("block_gain", "place_gain") if self.with_parts else ()
        return (*self.classification.figures, *texts, *blocks)

    def empty(self) -> BlockCounts:
        """Returns the counts before the first batch.

        Returns:
          Zeros.
        """
        return BlockCounts(
            classification=self.classification.empty(),
            correct=dict.fromkeys(self._texts, np.zeros((), np.int32)),
            hits=np.zeros((), np.float32),
            chance=np.zeros((), np.float32),
            located_at=np.zeros(CELLS**2, np.float32),
            held_at=np.zeros(CELLS**2, np.float32),
        )

    def update(
        self, counts: BlockCounts, predictions: Mapping[str, Array], batch: Batch
    ) -> BlockCounts:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: see above.
          batch: see above.

        Returns:
          The new counts.
        """
        mask = batch["mask"]
        labels = jnp.where(mask, batch["label"], 0)
        correct = dict(counts.correct)
        for name in self._texts:
            logits = predictions.get(f"logits_{name}", predictions["logits"])
            right = mask & (label_rank(logits.astype(jnp.float32), labels) == 0)
            correct[name] = correct[name] + jnp.sum(right, dtype=jnp.int32)
        classification = self.classification.update(counts.classification, predictions, batch)
        counts = dataclasses.replace(counts, classification=classification, correct=correct)
        if not self.with_parts or "located_box" not in predictions:
            return counts
        return _count_blocks(counts, predictions["located_box"], predictions["block_boxes"], batch)

    def by_class(self, counts: BlockCounts) -> list[dict[str, float]]:
        """Returns the figures of every class.

        Args:
          counts: after the last batch.

        Returns:
          Rows as of `ClassificationEvaluator.by_class`.
        """
        return self.classification.by_class(counts.classification)

    def finalise(self, counts: BlockCounts) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          Those of the classification; `accuracy_without_text` and `accuracy_with_other_text` in
          [0, 1]; `block_gain` and `place_gain`, NaN where no block could hold a part.

        Raises:
          UserError: no example was counted.
        """
        figures = self.classification.finalise(counts.classification)
        counts = jax.device_get(counts)
        for name in self._texts:
            figures[f"accuracy_{name}"] = float(counts.correct[name] / figures["examples"])
        if self.with_parts:
            same_places = np.sum(counts.located_at * counts.held_at) / figures["examples"]
            for name, chance in (("block_gain", counts.chance), ("place_gain", same_places)):
                figures[name] = float(counts.hits / chance) if chance else float("nan")
        return figures


def _count_blocks(
    counts: BlockCounts,
    located: Float[Array, "b s 4"],
    boxes: Float[Array, "b n 4"],
    batch: Batch,
) -> BlockCounts:
    """Adds located blocks with a part, how many there would be by chance, and where they are."""
    height, width = batch["image"].shape[1:3]
    points = batch["parts"][..., :2] / jnp.array([width, height], jnp.float32).reshape(1, 1, 2)
    visible = (batch["parts"][..., 2] > 0) & batch["mask"][:, None]
    # An empty box where no block was left.
    there = jnp.any(located > 0, axis=-1) & batch["mask"][:, None]
    hit = holds_point(located, points, visible) & there
    held = holds_point(boxes, points, visible)
    share = jnp.mean(held, axis=1)
    at_place = jnp.zeros(CELLS**2, jnp.float32)
    return dataclasses.replace(
        counts,
        hits=counts.hits + jnp.sum(hit, dtype=jnp.float32),
        chance=counts.chance + jnp.sum(share * jnp.sum(there, axis=1)),
        located_at=counts.located_at + at_place.at[cell_of(located)].add(there),
        held_at=counts.held_at + at_place.at[cell_of(boxes)].add(held),
    )
