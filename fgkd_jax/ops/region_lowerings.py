"""The lowerings of `pyramid_roi_align` and of its transpose.

Each is right on every platform; `fgkd_jax.ops.regions` knows which one is fast where.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.typing import Array, Float, Int, PyTree

ROWS, COLUMNS = 8, 32
"""A window of the CPU's lowering. It is as wide as most boxes on the level they belong to."""

CHUNK = 64
"""Boxes per matrix product elsewhere: bounds the memory of what lies between two products."""

REACH = 6
"""Samples that may be nearer than 1 to a cell, where there are as many as the bin has cells."""


class Regions(NamedTuple):
    """Boxes in cells of their level, rows before columns.

    Attributes:
      level: int32 `[b p]`.
      start: `[b p 2]`, upper left corner.
      bin: `[b p 2]`, sides of a bin.
      samples: `[b p 2]`, samples per bin, as whole numbers; 0 makes the result 0.
    """

    level: Int[Array, "*p"]
    start: Float[Array, "*p 2"]
    bin: Float[Array, "*p 2"]
    samples: Float[Array, "*p 2"]


def axis_weights(
    start: Float[Array, ""],
    step: Float[Array, ""],
    samples: Float[Array, ""],
    cells: Float[Array, "h"],
    *,
    size: int,
    ratio: int,
    extent: int,
) -> Float[Array, "oh h"]:
    """Returns the weight of every cell in every bin, along one axis of one region.

    Sample k of bin i is at y = start + (i + (k + 1/2) / samples) step, and gives the cell h
    max(0, 1 - |y - h|) / samples, after y is clamped to [0, extent - 1]; outside [-1, extent] it
    gives nothing.

    Args:
      start: of the region, in cells.
      step: side of a bin.
      samples: per bin.
      cells: `[h]`, which cells, as floating numbers.
      size: bins.
      ratio: the number of samples where it is the same for all, else 0.
      extent: cells of the whole map.

    Returns:
      `[size h]`, in the dtype of the region.

    Source:
      He et al., "Mask R-CNN", ICCV 2017, section 3, with the border of the released operators.
    """
    part = step / jnp.maximum(samples, 1.0)
    edge = start + jnp.arange(size, dtype=start.dtype).reshape(-1, 1, 1) * step
    cell = cells.reshape(1, -1, 1)
    k = jnp.arange(ratio or REACH, dtype=start.dtype).reshape(1, 1, -1)
    if not ratio:
        # The first sample that can be nearer than 1. One spare on each side covers rounding.
        nearest = jnp.ceil((cell - 1.0 - edge) / jnp.where(part > 0, part, 1.0) - 0.5)
        k = k + jnp.maximum(nearest - 1.0, 0.0)
    y = edge + (k + 0.5) * part
    counts = (k >= 0) & (k < samples) & (y >= -1.0) & (y <= extent)
    near = jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(y, 0.0, extent - 1.0) - cell))
    return jnp.sum(jnp.where(counts, near, 0.0), axis=2) / jnp.maximum(samples, 1.0)


def align_by_products(
    regions: PyTree[Array], features: tuple[Array, ...], *, size: int, ratio: int
) -> Float[Array, "b p oh ow c"]:
    """RoIAlign as two matrix products per level, with the weights of whole rows and columns.

    Args:
      regions: a `Regions`: boxes in cells of their level.
      features: of every level `[b h w c]`.
      size: rows and columns of the result.
      ratio: samples per bin and axis, or 0.

    Returns:
      `[b p size size c]`, of at least float32.

    Source:
      As `axis_weights`.
    """

    def image(regions: Regions, features: tuple[Array, ...]) -> Array:
        def chunk(region: Regions) -> Array:
            parts = []
            for index, level in enumerate(features):
                down, across = _whole_weights(region, index, _extent(level), size, ratio)
                wide = level.astype(jnp.promote_types(level.dtype, jnp.float32))
                rows = jnp.einsum("ih,hwc->iwc", down, wide, precision="highest")
                parts.append(jnp.einsum("jw,iwc->ijc", across, rows, precision="highest"))
            return sum(parts[1:], parts[0])

        return lax.map(chunk, regions, batch_size=CHUNK)

    return jax.vmap(image)(regions, features)


def transpose_by_products(
    regions: PyTree[Array], grad: Array, *, ratio: int, sizes: tuple[tuple[int, int], ...]
) -> tuple[Array, ...]:
    """The transpose of `align_by_products`.

    Args:
      regions: a `Regions`: boxes in cells of their level.
      grad: `[b p size size c]`.
      ratio: samples per bin and axis, or 0.
      sizes: rows and columns of every level.

    Returns:
      Of every level `[b h w c]`.

    Source:
      As `axis_weights`.
    """
    size = grad.shape[2]

    def image(regions: Regions, grad: Array) -> tuple[Array, ...]:
        count = len(grad)
        chunk = min(CHUNK, max(count, 1))
        pad = -count % chunk
        padded = jnp.pad(grad, ((0, pad), *((0, 0),) * 3)).reshape(-1, chunk, *grad.shape[1:])
        groups = jax.tree.map(
            lambda x: jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1))).reshape(
                -1, chunk, *x.shape[1:]
            ),
            regions,
        )

        def add(total: tuple[Array, ...], item: tuple[Regions, Array]) -> tuple:
            region, cotangent = item
            new = []
            for index, (extent, before) in enumerate(zip(sizes, total, strict=True)):
                weights = partial(
                    _whole_weights, index=index, extent=extent, size=size, ratio=ratio
                )
                down, across = jax.vmap(weights)(region)
                rows = jnp.einsum("pjw,pijc->piwc", across, cotangent, precision="highest")
                new.append(before + jnp.einsum("pih,piwc->hwc", down, rows, precision="highest"))
            return tuple(new), None

        zeros = tuple(jnp.zeros((*extent, grad.shape[-1]), grad.dtype) for extent in sizes)
        return lax.scan(add, zeros, (groups, padded))[0]

    return jax.vmap(image)(regions, grad)


def _extent(level: Array) -> tuple[int, int]:
    """Rows and columns of a map without its batch."""
    height, width, _ = level.shape
    return height, width


def _whole_weights(
    region: Regions, index: int, extent: tuple[int, int], size: int, ratio: int
) -> tuple[Array, Array]:
    """Weights of a box over all rows and all columns of a level; 0 if it belongs to another."""
    down, across = (
        axis_weights(
            region.start[axis],
            region.bin[axis],
            region.samples[axis],
            jnp.arange(extent[axis], dtype=region.start.dtype),
            size=size,
            ratio=ratio,
            extent=extent[axis],
        )
        for axis in (0, 1)
    )
    return jnp.where(region.level == index, down, 0.0), across


@partial(jax.jit, static_argnames=("size", "ratio"))
def align_by_windows(
    regions: PyTree[Array], features: tuple[Array, ...], *, size: int, ratio: int
) -> Float[Array, "b p oh ow c"]:
    """RoIAlign box after box, reading no more of a map than a few windows. Meant for CPU.

    Args:
      regions: a `Regions`: boxes in cells of their level.
      features: of every level `[b h w c]`.
      size: rows and columns of the result.
      ratio: samples per bin and axis, or 0.

    Returns:
      `[b p size size c]`, of at least float32.

    Source:
      As `axis_weights`.
    """

    @jax.custom_batching.sequential_vmap
    def run(regions: Regions, features: tuple[Array, ...]) -> Array:
        batch, count = regions.level.shape
        channels = features[0].shape[-1]
        wide = jnp.promote_types(features[0].dtype, jnp.float32)
        out = jnp.zeros((batch * count, size, size, channels), wide)

        def one(level: Array, place: Array, region: Regions, out: Array) -> Array:
            def add(window: _Window, total: Array) -> Array:
                corner = place // count, *window.corner, jnp.int32(0)
                patch = lax.dynamic_slice(level, corner, (1, *window.size, channels))[0]
                patch = patch.astype(wide).reshape(window.size[0], -1)
                rows = jnp.dot(window.weights[0], patch, precision="highest")
                rows = rows.reshape(size, window.size[1], channels)
                return total + jnp.einsum(
                    "jw,iwc->ijc", window.weights[1], rows, precision="highest"
                )

            zeros = jnp.zeros((size, size, channels), wide)
            found = _over_windows(region, _extent(level[0]), size, ratio, add, zeros)
            return lax.dynamic_update_slice_in_dim(out, found[None], place, 0)

        for level, visit in zip(features, _by_level(regions, len(features)), strict=True):
            out = visit(partial(one, level), out)
        return out.reshape(batch, count, size, size, channels)

    return run(regions, features)


@partial(jax.jit, static_argnames=("ratio", "sizes"))
def transpose_by_windows(
    regions: PyTree[Array], grad: Array, *, ratio: int, sizes: tuple[tuple[int, int], ...]
) -> tuple[Array, ...]:
    """The transpose of `align_by_windows`. Meant for CPU.

    Args:
      regions: a `Regions`: boxes in cells of their level.
      grad: `[b p size size c]`.
      ratio: samples per bin and axis, or 0.
      sizes: rows and columns of every level.

    Returns:
      Of every level `[b h w c]`.

    Source:
      As `axis_weights`.
    """
    size = grad.shape[2]

    @jax.custom_batching.sequential_vmap
    def run(regions: Regions, grad: Array) -> tuple[Array, ...]:
        batch, count = regions.level.shape
        channels = grad.shape[-1]
        flat = grad.reshape(-1, size, size, channels)

        def one(place: Array, region: Regions, level: Array) -> Array:
            cotangent = lax.dynamic_index_in_dim(flat, place, keepdims=False)

            def add(window: _Window, level: Array) -> Array:
                corner = place // count, *window.corner, jnp.int32(0)
                rows = jnp.einsum("jw,ijc->iwc", window.weights[1], cotangent, precision="highest")
                patch = jnp.dot(window.weights[0].T, rows.reshape(size, -1), precision="highest")
                before = lax.dynamic_slice(level, corner, (1, *window.size, channels))
                return lax.dynamic_update_slice(level, before + patch.reshape(before.shape), corner)

            return _over_windows(region, _extent(level[0]), size, ratio, add, level)

        levels = []
        for extent, visit in zip(sizes, _by_level(regions, len(sizes)), strict=True):
            levels.append(visit(one, jnp.zeros((batch, *extent, channels), grad.dtype)))
        return tuple(levels)

    return run(regions, grad)


class _Window(NamedTuple):
    """Part of a map: its corner, its weights along both axes, and its size."""

    corner: tuple[Array, Array]
    weights: tuple[Array, Array]
    size: tuple[int, int]


def _by_level(regions: Regions, num_levels: int) -> list[Callable]:
    """For every level, a loop over its boxes: `visit(one, state)`, `one(place, region, state)`."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), regions)
    order = jnp.argsort(flat.level, stable=True).astype(jnp.int32)
    ends = jnp.sum(flat.level[None] <= jnp.arange(num_levels)[:, None], axis=1, dtype=jnp.int32)

    def visit(index: int, one: Callable, state: Array) -> Array:
        def body(position: Array, state: Array) -> Array:
            place = order[position]
            region = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), flat
            )
            return one(place, region, state)

        start = ends[index - 1] if index else jnp.zeros((), jnp.int32)
        return lax.fori_loop(start, ends[index], body, state)

    return [partial(visit, index) for index in range(num_levels)]


def _over_windows(
    region: Regions,
    extent: tuple[int, int],
    size: int,
    ratio: int,
    add: Callable[[_Window, Array], Array],
    state: Array,
) -> Array:
    """Goes over the windows that a region touches. The last ones may reach back over others."""
    shape = min(ROWS, extent[0]), min(COLUMNS, extent[1])
    one_end = region.start, region.start + size * region.bin
    low, high = jnp.minimum(*one_end), jnp.maximum(*one_end)
    limit = jnp.array(extent, low.dtype) - 1.0
    # One cell on each side: samples inside the region reach no further.
    first = jnp.clip(jnp.floor(low), 0.0, limit).astype(jnp.int32)
    last = jnp.clip(jnp.floor(high) + 1.0, 0.0, limit).astype(jnp.int32)
    outside = jnp.any((high < -1.0) | (low > limit + 1.0)) | jnp.any(region.samples < 1)
    counts = (last - first) // jnp.array(shape, jnp.int32) + 1
    total = jnp.where(outside, 0, counts[0] * counts[1])

    def body(index: Array, state: Array) -> Array:
        corners, weights = [], []
        for axis, tile in enumerate((index // counts[1], index % counts[1])):
            begin = first[axis] + tile * shape[axis]
            corner = jnp.minimum(begin, extent[axis] - shape[axis])
            cells = corner + jnp.arange(shape[axis], dtype=jnp.int32)
            found = axis_weights(
                region.start[axis],
                region.bin[axis],
                region.samples[axis],
                cells.astype(region.start.dtype),
                size=size,
                ratio=ratio,
                extent=extent[axis],
            )
            corners.append(corner)
            weights.append(jnp.where((cells >= begin)[None], found, 0.0))
        return add(_Window((corners[0], corners[1]), (weights[0], weights[1]), shape), state)

    return lax.fori_loop(0, total, body, state)
