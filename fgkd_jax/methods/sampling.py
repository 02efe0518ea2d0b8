"""Where a sampling method puts its pixels: sources of density, and grids made from it."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.ops.density import (
    attention_densities,
    inverse_cdf,
    limit_density,
    reference_positions,
)
from fgkd_jax.ops.resample import corner_aligned_resize
from fgkd_jax.ops.sampler import corners_to_pixels, fractions_to_pixels
from fgkd_jax.typing import Array, Batch, Float

Positions = tuple[Float[Array, "b oh"], Float[Array, "b ow"]]
"""Rows and columns, in pixels of the image."""


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How a map becomes positions.

    Attributes:
      size: positions per axis.
      max_density: cap of the density along an axis, in multiples of uniform.
      iterations: rounds of the limiter of the `reference` grid.
      squared: square the map first.
    """

    size: int
    max_density: float = 4.0
    iterations: int = 5
    squared: bool = False


def half_pixel_grid(
    maps: Float[Array, "b ah aw"], extent: tuple[int, int], options: SamplingOptions
) -> Positions:
    """Our grid: exact limits per axis, unbiased positions.

    Args:
      maps: attention.
      extent: (rows, columns) of the image.
      options: size, cap, squaring.

    Returns:
      Rows and columns in pixels.
    """
    densities = attention_densities(jnp.square(maps) if options.squared else maps)
    rows, columns = (
        fractions_to_pixels(
            inverse_cdf(limit_density(density, max_density=options.max_density), size=options.size),
            extent=pixels,
        )
        for density, pixels in zip(densities, extent, strict=True)
    )
    return rows, columns


def reference_grid(
    maps: Float[Array, "b ah aw"], extent: tuple[int, int], options: SamplingOptions
) -> Positions:
    """The released grid: the map is resized to the image first, then squared.

    Args:
      maps: attention.
      extent: (rows, columns) of the image, which must be square.
      options: size, cap, rounds, squaring.

    Returns:
      Rows and columns in pixels.

    Raises:
      UserError: the image is not square.
    """
    if extent[0] != extent[1]:
        raise UserError(f"grid 'reference' got an image of {extent}; expected a square one")
    large = corner_aligned_resize(maps[..., None], size=extent)[..., 0]
    densities = attention_densities(jnp.square(large) if options.squared else large)
    positions = reference_positions(
        *densities,
        size=options.size,
        max_density=options.max_density,
        iterations=options.iterations,
    )
    rows, columns = (corners_to_pixels(p, extent=extent[0]) for p in positions)
    return rows, columns


GRIDS: Mapping[
    str, Callable[[Float[Array, "b ah aw"], tuple[int, int], SamplingOptions], Positions]
] = {"half_pixel": half_pixel_grid, "reference": reference_grid}
"""Grids by the name that a config gives."""


def box_map(
    batch: Batch, maps: Float[Array, "b ah aw"], *, cells: int = 64
) -> Float[Array, "b cells cells"]:
    """A map of 1 inside the annotated box and 0 outside: the oracle.

    Args:
      batch: `image` [b, h, w, c] and `bbox` [b, 4] in its pixels.
      maps: attention, which is not looked at.
      cells: side of the result; a cell that the box covers in part counts by that part.

    Returns:
      The maps.

    Raises:
      UserError: the batch has no boxes.
    """
    del maps
    if "bbox" not in batch:
        raise UserError(
            "sampling 'box' needs the boxes of the data set; expected data.extra_keys with 'bbox'"
        )
    height, width = batch["image"].shape[1:3]
    edges = jnp.arange(cells + 1, dtype=jnp.float32)[None] / cells

    def covered(low: Array, high: Array, extent: int) -> Array:
        low, high = low[:, None] / extent, high[:, None] / extent
        part = jnp.minimum(edges[:, 1:], high) - jnp.maximum(edges[:, :-1], low)
        return jnp.maximum(0.0, part) * cells

    x0, y0, x1, y1 = batch["bbox"].T
    down, across = covered(y0, y1, height), covered(x0, x1, width)
    return down[:, :, None] * across[:, None, :]


SOURCES: Mapping[str, Callable[[Batch, Float[Array, "b ah aw"]], Float[Array, "b h w"]]] = {
    "attention": lambda batch, maps: maps,
    "uniform": lambda batch, maps: jnp.ones_like(maps),
    "box": box_map,
}
"""Where density comes from, by the name that a config gives."""
