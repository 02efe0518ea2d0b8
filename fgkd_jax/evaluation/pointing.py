"""The pointing game: whether the attention of an attribute is largest where its part is."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Batch, Bool, Float, Leaf

TOLERANCE = 0.5
"""How far from a region a point may lie and still be met, as a share of the region's side."""


def regions_near(
    points: Float[Array, "b n 2"], *, grid: tuple[int, int], tolerance: float = TOLERANCE
) -> Bool[Array, "b n h w"]:
    """Says which regions of a grid hold a point, or almost do.

    Region (row, column) covers [column, column + 1] x [row, row + 1]. A point is near where neither
    of its coordinates is further than `tolerance` from these.

    Args:
      points: (x, y) in regions.
      grid: (h, w), rows and columns.
      tolerance: at least 0, in regions.

    Returns:
      Whether each region is near each point.

    Example:
      >>> regions_near(jnp.array([[[1.7, 0.5]]]), grid=(1, 4), tolerance=0.4)[0, 0].tolist()
      [[False, True, True, False]]
    """
    height, width = grid

    def near(coordinates: Array, count: int) -> Array:
        start = jnp.arange(count, dtype=jnp.float32).reshape(1, 1, count)
        x = coordinates[:, :, None]
        return (x >= start - tolerance) & (x <= start + 1 + tolerance)

    columns, rows = near(points[..., 0], width), near(points[..., 1], height)
    return rows[:, :, :, None] & columns[:, :, None, :]


def pointing_hits(
    attention: Float[Array, "b n h w"],
    points: Float[Array, "b n 2"],
    *,
    tolerance: float = TOLERANCE,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """Plays the pointing game with each map of each image.

    Args:
      attention: maps over regions.
      points: what each is to point at, (x, y) in regions.
      tolerance: see `regions_near`.

    Returns:
      Whether the region with the largest attention is near the point, in [0, 1]: of several that
      are largest, the share that is near, so that an even map hits as often as chance does; 0 for a
      map with a NaN. And what a region drawn evenly would hit, in [0, 1].

    Raises:
      UserError: there is another number of points than of maps.

    Source:
      Zhang, Lin, Brandt, Shen and Sclaroff, "Top-down neural attention by excitation backprop",
      ECCV 2016, section 4.1; there the tolerance is 15 pixels, and a tie is not shared.
    """
    if attention.ndim != 4 or points.shape != (*attention.shape[:2], 2):
        raise UserError(
            f"attention has shape {attention.shape} and points {points.shape}; expected "
            "[b, n, h, w] and [b, n, 2]"
        )
    height, width = attention.shape[2:]
    near = regions_near(points, grid=(height, width), tolerance=tolerance)
    # With a NaN the maximum is one, and no region equals it.
    largest = attention == jnp.max(attention, axis=(2, 3), keepdims=True)
    count = jnp.sum(largest, axis=(2, 3), dtype=jnp.float32)
    met = jnp.sum(largest & near, axis=(2, 3), dtype=jnp.float32)
    return met / jnp.maximum(count, 1.0), jnp.mean(near, axis=(2, 3), dtype=jnp.float32)


@struct.dataclass
class PointingCounts:
    """Sums over pairs of an image and an attribute whose part is visible.

    Attributes:
      pairs: int32 scalar, how many.
      hits: float32 scalar, those whose attention points at the part.
      chance: float32 scalar, how many of them evenly drawn regions would hit on average.
    """

    pairs: Leaf
    hits: Leaf
    chance: Leaf


def no_pointing() -> PointingCounts:
    """Returns the counts before the first batch.

    Returns:
      Zeros.
    """
    zero = np.zeros((), np.float32)
    return PointingCounts(np.zeros((), np.int32), zero, zero)


def add_pointing(
    counts: PointingCounts,
    attention: Float[Array, "b a h w"],
    batch: Batch,
    *,
    attribute_parts: tuple[int, ...],
) -> PointingCounts:
    """Adds one batch to the counts; runs under jit.

    Args:
      counts: so far.
      attention: of each attribute over regions.
      batch: `features` [b, h, w, f], `parts` [b, p, 3] in regions of them, and `mask` bool [b].
      attribute_parts: row of `parts` at which each attribute shows; -1 for none, which is left out.

    Returns:
      The new counts.

    Raises:
      UserError: there are fewer parts, or another number of attributes.
    """
    parts, told = batch["parts"], np.array(attribute_parts)
    if attention.ndim != 4 or attention.shape[1] != len(told):
        raise UserError(
            f"attention has shape {attention.shape}; expected [b, {len(told)}, h, w], a map for "
            "each attribute"
        )
    if told.max(initial=-1) >= parts.shape[1]:
        raise UserError(
            f"an attribute shows at part {told.max()}; expected one of {parts.shape[1]} parts"
        )
    shown = np.flatnonzero(told >= 0)
    own = parts[:, told[shown]]
    # A network that convolves without padding has fewer regions, in the middle of those given.
    lost = np.subtract(batch["features"].shape[1:3], attention.shape[2:])[::-1]
    points = own[..., :2] - jnp.asarray(lost / 2, jnp.float32).reshape(1, 1, 2)
    hits, chance = pointing_hits(attention[:, shown], points)
    counted = (own[..., 2] > 0) & batch["mask"][:, None]
    return PointingCounts(
        pairs=counts.pairs + jnp.sum(counted, dtype=jnp.int32),
        hits=counts.hits + jnp.sum(jnp.where(counted, hits, 0.0)),
        chance=counts.chance + jnp.sum(jnp.where(counted, chance, 0.0)),
    )


def pointing_figures(counts: PointingCounts) -> dict[str, float]:
    """Turns the counts of a whole split into figures.

    Args:
      counts: after the last batch.

    Returns:
      `pointing`, the share of pairs that hit, in [0, 1], and `pointing_gain`, that share over what
      evenly drawn regions would hit: 1 at random. Nothing where no pair was counted, or none could
      be hit.
    """
    counts = jax.device_get(counts)
    if not counts.pairs or not counts.chance:
        return {}
    return {
        "pointing": float(counts.hits / counts.pairs),
        "pointing_gain": float(counts.hits / counts.chance),
    }
