"""Where a sampler put its pixels, measured against what is known to be there."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.classification import ClassificationCounts, ClassificationEvaluator
from fgkd_jax.typing import Array, Batch, Bool, Float, Leaf

PART_SIDE = 0.2
"""Side of the square around a part, in multiples of the longer side of the object's box."""


def share_inside(
    rows: Float[Array, "b oh"], columns: Float[Array, "b ow"], boxes: Float[Array, "b 4"]
) -> Float[Array, "b"]:
    """Returns the share of the sampled pixels that lie inside a box.

    Args:
      rows: `[b oh]`, in pixels of the image; 0 is the centre of the first.
      columns: `[b ow]`, likewise.
      boxes: `[b 4]`, (x_min, y_min, x_max, y_max); pixel i covers [i, i + 1).

    Returns:
      `[b]`, in [0, 1].

    Example:
      >>> grid = jnp.array([[0.0, 1.0, 2.0, 3.0]])
      >>> share_inside(grid, grid, jnp.array([[0.0, 0.0, 2.0, 2.0]])).tolist()
      [0.25]
    """
    x0, y0, x1, y1 = (boxes[:, i : i + 1] for i in range(4))
    down = (rows + 0.5 >= y0) & (rows + 0.5 < y1)
    across = (columns + 0.5 >= x0) & (columns + 0.5 < x1)
    return jnp.mean(down, axis=1) * jnp.mean(across, axis=1)


@struct.dataclass
class SamplingCounts:
    """Counts over the examples seen so far.

    Attributes:
      classification: those of the classification.
      sampled: float32 scalar per region, sum of the shares of sampled pixels inside.
      uniform: float32 scalar per region, sum of the shares of the image's area inside.
    """

    classification: ClassificationCounts
    sampled: dict[str, Leaf]
    uniform: dict[str, Leaf]


@dataclasses.dataclass(frozen=True)
class SamplingEvaluator:
    """Classification, and how many more pixels the object and its telling parts were given.

    `box_gain` = sum of the shares of sampled pixels inside the object's box / sum of the shares of
    the image inside it: 1 for uniform sampling. `part_gain` is the same for squares around the
    visible parts that separate an example's class from its neighbours; the squares' side is
    `PART_SIDE` times the longer side of the box.

    Reads `logits`, `sampled_rows` and `sampled_columns` of the predictions; `image`, `label`,
    `mask` and, for the gains, `bbox` and `parts` of the batch.

    Attributes:
      classification: the evaluator of the logits.
      with_boxes: whether batches have `bbox`.
      separating_parts: rows of `parts` that tell a class from its neighbours, by class; empty
        where nothing is known or batches have no `parts`.
    """

    classification: ClassificationEvaluator
    with_boxes: bool = False
    separating_parts: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        known = len(self.separating_parts)
        if known and known != self.classification.num_classes:
            raise UserError(
                f"separating_parts has {known} entries; expected one for each of "
                f"{self.classification.num_classes} classes"
            )

    @property
    def _regions(self) -> tuple[str, ...]:
        parts = ("part",) if self.with_boxes and self.separating_parts else ()
        return (*(("box",) if self.with_boxes else ()), *parts)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        return (*self.classification.figures, *(f"{name}_gain" for name in self._regions))

    def empty(self) -> SamplingCounts:
        """Returns the counts before the first batch.

        Returns:
          Zeros.
        """
        zero = np.zeros((), np.float32)
        return SamplingCounts(
            classification=self.classification.empty(),
            sampled=dict.fromkeys(self._regions, zero),
            uniform=dict.fromkeys(self._regions, zero),
        )

    def update(
        self, counts: SamplingCounts, predictions: Mapping[str, Array], batch: Batch
    ) -> SamplingCounts:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: see above.
          batch: see above.

        Returns:
          The new counts.
        """
        sampled, uniform = dict(counts.sampled), dict(counts.uniform)
        for name in self._regions:
            boxes, valid = self._boxes(name, batch)
            ours, even = self._shares(predictions, batch, boxes, valid)
            sampled[name], uniform[name] = sampled[name] + ours, uniform[name] + even
        return SamplingCounts(
            classification=self.classification.update(counts.classification, predictions, batch),
            sampled=sampled,
            uniform=uniform,
        )

    def by_class(self, counts: SamplingCounts) -> list[dict[str, float]]:
        """Returns the figures of every class.

        Args:
          counts: after the last batch.

        Returns:
          Rows as of `ClassificationEvaluator.by_class`.
        """
        return self.classification.by_class(counts.classification)

    def finalise(self, counts: SamplingCounts) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          Those of the classification, `box_gain` and `part_gain`; NaN where no such region was
          ever visible.
        """
        figures = self.classification.finalise(counts.classification)
        sampled, uniform = jax.device_get((counts.sampled, counts.uniform))
        for name in self._regions:
            area = float(uniform[name])
            figures[f"{name}_gain"] = float(sampled[name]) / area if area else float("nan")
        return figures

    def _boxes(self, name: str, batch: Batch) -> tuple[Float[Array, "b r 4"], Bool[Array, "b r"]]:
        """The regions of each example, and which of them are there."""
        box, mask = batch["bbox"], batch["mask"]
        if name == "box":
            return box[:, None, :], mask[:, None]
        table = np.zeros((len(self.separating_parts), batch["parts"].shape[1]), bool)
        for row, parts in enumerate(self.separating_parts):
            table[row, list(parts)] = True
        labels = jnp.where(mask, batch["label"], 0)
        x, y, visible = jnp.moveaxis(batch["parts"], -1, 0)
        half = PART_SIDE / 2 * jnp.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])[:, None]
        valid = jnp.asarray(table)[labels] & (visible > 0) & mask[:, None]
        return jnp.stack([x - half, y - half, x + half, y + half], axis=-1), valid

    def _shares(
        self, predictions: Mapping[str, Array], batch: Batch, boxes: Array, valid: Array
    ) -> tuple[Array, Array]:
        """Sums over all regions: the share of sampled pixels inside, and that of the image."""
        height, width = batch["image"].shape[1:3]
        limit = jnp.asarray([width, height, width, height], boxes.dtype).reshape(1, 1, 4)
        boxes = jnp.clip(boxes, 0.0, limit)
        shares = jax.vmap(share_inside, in_axes=(None, None, 1), out_axes=1)(
            predictions["sampled_rows"], predictions["sampled_columns"], boxes
        )
        sides = boxes[..., 2:] - boxes[..., :2]
        area = sides[..., 0] * sides[..., 1] / (height * width)
        return jnp.sum(jnp.where(valid, shares, 0.0)), jnp.sum(jnp.where(valid, area, 0.0))
