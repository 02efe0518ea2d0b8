"""From attention to sampling positions: densities per axis, their limit, the inverse CDF."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from fgkd_jax.errors import UserError
from fgkd_jax.ops.masking import first_max
from fgkd_jax.typing import Array, Float

_LEAST = 1e-30
"""Maps of nothing larger count as zero: the gradient to them, 1 / largest, would overflow."""


def attention_densities(
    attention: Float[Array, "b ah aw"], *, reduce: Callable[..., Array] = jnp.max
) -> tuple[Float[Array, "b ah"], Float[Array, "b aw"]]:
    """Returns the density along each axis: the maximum over the other one, made to sum to 1.

    Negative attention counts as 0. A map without an entry above 1e-30 gives uniform densities. NaN
    counts as 0, and infinity as the largest number that is told apart (2e37 in float32), so that
    positions stay finite; under `checkify` with `user_checks` both are errors, and a training loss
    should be made NaN by its caller, so that the run stops and names the example (`methods.TASN`
    does).

    Args:
      attention: `[b ah aw]`, any finite numbers.
      reduce: `jnp.max`, or `jnp.sum` as in the paper's ablation: called as `reduce(maps, axis)`.

    Returns:
      `density_y` `[b ah]` and `density_x` `[b aw]`, float32 (float64 for float64), each row
      summing to 1.

    Raises:
      UserError: `attention` is not of rank 3, or has no cell.

    Source:
      Zheng et al., CVPR 2019, equation 5 and section 3.2 (maximum against sum).

    Example:
      >>> attention_densities(jnp.array([[[0.0, 3.0], [1.0, 0.0]]]))[0]
      Array([[0.75, 0.25]], dtype=float32)
    """
    if attention.ndim != 3 or 0 in attention.shape[1:]:
        raise UserError(
            f"attention has shape {attention.shape}; expected [b, ah, aw] with at least one cell"
        )
    wide = attention.astype(jnp.promote_types(attention.dtype, jnp.float32))
    checkify.debug_check(jnp.all(jnp.isfinite(wide)), "attention is not finite")
    # A sixteenth of the largest number, so that its reciprocal is not flushed to 0.
    limit = float(jnp.finfo(wide.dtype).max) / 16
    wide = jnp.clip(jnp.nan_to_num(wide, nan=0.0, posinf=limit, neginf=0.0), 0.0, limit)
    # Scaled to a maximum of 1 first, since sums of large entries would overflow. The densities do
    # not depend on the scale, so that it needs no gradient, whose square would underflow.
    top = jax.lax.stop_gradient(jnp.max(wide, axis=(1, 2), keepdims=True))
    some = top > _LEAST
    scaled = jnp.where(some, wide / jnp.where(some, top, 1.0), 1.0)
    return _normalized(reduce(scaled, axis=2)), _normalized(reduce(scaled, axis=1))


def limit_density(density: Float[Array, "b n"], *, max_density: float = 4.0) -> Float[Array, "b n"]:
    """Caps a density at a multiple of the uniform one and spreads what was cut evenly.

    `min(density + level, max_density / n)`, with the one `level >= 0` for which the sum is 1: no
    cell is sampled more than `max_density` times as densely as uniform sampling would.

    With the cells in falling order, the sum for a given level is the least over k of
    `k cap + sum over i > k of (density_i + level)`, so the level is the largest of those that
    solve each for 1: exact, without iterations.

    Args:
      density: `[b n]`, not negative, each row summing to 1.
      max_density: at least 1; 1 gives the uniform density, n and more change nothing.

    Returns:
      `[b n]`, in the dtype of `density`, each row summing to 1.

    Raises:
      UserError: `density` is not of rank 2 or has no cell, or `max_density` is below 1.

    Source:
      Zheng et al., CVPR 2019, section 3.2, bound the density of their sampler; the released code
      clips both axes at a common cap for some rounds and ends above it (`reference_positions`).

    Example:
      >>> limit_density(jnp.array([[1.0, 0.0, 0.0, 0.0]]), max_density=2.5)
      Array([[0.625, 0.125, 0.125, 0.125]], dtype=float32)
    """
    _check_density(density, "limit_density")
    _check_max_density(max_density)
    n = density.shape[1]
    wide = density.astype(jnp.promote_types(density.dtype, jnp.float32))
    cap = min(max_density, n) / n
    rising = jnp.sort(wide, axis=1)
    # tail[j]: sum of the j + 1 smallest cells, the others being capped.
    tail = jnp.cumsum(rising, axis=1)
    free = jnp.arange(1, n + 1, dtype=wide.dtype)[None]
    levels = (1.0 - (n - free) * cap - tail) / free
    level = first_max(levels, axis=1)
    return jnp.minimum(wide + jnp.maximum(level, 0.0), cap).astype(density.dtype)


def inverse_cdf(density: Float[Array, "b n"], *, size: int) -> Float[Array, "b size"]:
    """Returns the positions below which (i + 1/2) / size of a density lies, i = 0 ... size - 1.

    The density is constant within each of n equal cells, so its CDF is linear between the n + 1
    cell edges, from 0 at the first to 1 at the last, and the inverse is

        position(t) = (1/n) sum over cells k of clip((t - CDF_k) / density_k, 0, 1)

    a sum without any search. A cell of density 0 is stepped over; a target that hits such a gap
    exactly lands in its middle.

    Args:
      density: `[b n]`, not negative, each row summing to 1 (a row is divided by its sum; zeros
        alone count as uniform).
      size: number of positions, at least 1.

    Returns:
      `[b size]`, fractions of the axis in (0, 1), never falling; float32 (float64 for float64).

    Raises:
      UserError: `density` is not of rank 2 or has no cell, or `size` is below 1.

    Source:
      Zheng et al., CVPR 2019, equations 6 and 7. Theirs looks up t = i / size on a CDF that
      leaves out the first cell (`reference_positions`); this one is unbiased: a constant density
      gives the centres of `size` equal cells.

    Example:
      >>> inverse_cdf(jnp.array([[0.75, 0.25]]), size=2)
      Array([[0.16666667, 0.5       ]], dtype=float32)
    """
    _check_density(density, "inverse_cdf")
    _check_size(size)
    wide = density.astype(jnp.promote_types(density.dtype, jnp.float32))
    edges = jnp.pad(jnp.cumsum(wide, axis=1), ((0, 0), (1, 0)))
    total = edges[:, -1:]
    even = jnp.arange(edges.shape[1], dtype=wide.dtype)[None] / density.shape[1]
    edges = jnp.where(total > 0, edges / jnp.where(total > 0, total, 1.0), even)
    targets = (jnp.arange(size, dtype=wide.dtype) + 0.5) / size
    cells = _cells_below(edges, jnp.broadcast_to(targets, (len(wide), size)), at_gap=0.5)
    return cells / density.shape[1]


def reference_positions(
    density_y: Float[Array, "b n"],
    density_x: Float[Array, "b n"],
    *,
    size: int,
    max_density: float = 4.0,
    iterations: int = 5,
) -> tuple[Float[Array, "b size"], Float[Array, "b size"]]:
    """Returns the positions of the authors' PyTorch sampler, with its conventions.

    Both densities are multiplied by `size`. Then, `iterations` times, both are clipped at one
    common cap, the smaller of their two maxima (in the first round no more than
    `size max_density / n`), and each gets the cut mass back in equal parts. The CDF leaves out
    the first cell, c_0 = 0, c_j = c_{j-1} + p_j; output i looks up i c_{n-1} / size in it and
    lands at 2 j / (n - 1) - 1 for the (fractional) index j.

    What follows from it: the cap is applied once and exceeded afterwards (a single peak ends at
    about 4.9 times uniform), a flat axis flattens the other, the first sample lies on the left
    edge and the right edge is never reached. Prefer `limit_density` and `inverse_cdf`, unless
    published numbers are to be reproduced.

    Args:
      density_y: `[b n]`, over rows. Rows that sum to 0 give uniform positions.
      density_x: `[b n]`, over columns; as many cells as `density_y`.
      size: number of positions per axis, at least 1.
      max_density: cap of the first round, in multiples of uniform.
      iterations: rounds of clipping, at least 0.

    Returns:
      Positions of rows and of columns, each `[b size]` in [-1, 1), where -1 and 1 are the centres
      of the first and the last pixel (corner-aligned); float32 (float64 for float64). No gradient
      reaches the densities, as in the released code.

    Raises:
      UserError: shapes differ (attention must be square), fewer than two cells, or an option is
        out of range.

    Source:
      The CUDA kernel of the PyTorch port in github.com/researchmm/tasn. Where the density of
      leading cells is 0 that kernel divides 0 by 0; here the position is then -1. The MXNet
      operators differ in the first cell; they depend on the order of the batch or start outside
      the image, and are not reproduced.

    Example:
      >>> flat = jnp.full((1, 4), 0.25)
      >>> reference_positions(flat, flat, size=4)[0]
      Array([[-1. , -0.5,  0. ,  0.5]], dtype=float32)
    """
    _check_density(density_y, "reference_positions")
    if density_x.shape != density_y.shape or density_y.shape[1] < 2:
        raise UserError(
            f"reference_positions: densities of shape {density_y.shape} and {density_x.shape}; "
            "expected the same [b, n] with n at least 2 (the attention must be square)"
        )
    _check_size(size)
    _check_max_density(max_density)
    if iterations < 0:
        raise UserError(f"iterations is {iterations}; expected at least 0")
    n = density_y.shape[1]
    dtype = jnp.promote_types(jnp.result_type(density_y, density_x), jnp.float32)
    both = jax.lax.stop_gradient(jnp.stack([density_y, density_x], axis=1)).astype(dtype)

    def clip(index: Array, shaped: Array) -> Array:
        cap = jnp.min(jnp.max(shaped, axis=2), axis=1)[:, None, None]
        first = jnp.minimum(cap, jnp.asarray(size * max_density / n, dtype))
        shaped = jnp.minimum(shaped, jnp.where(index == 0, first, cap))
        return shaped + (size - jnp.sum(shaped, axis=2, keepdims=True)) / n

    shaped = jax.lax.fori_loop(0, iterations, clip, size * both).reshape(-1, n)
    cdf = jnp.cumsum(shaped.at[:, 0].set(0.0), axis=1)
    targets = jnp.arange(size, dtype=dtype)[None] * cdf[:, -1:] / size
    index = _cells_below(cdf, targets, at_gap=0.0).reshape(-1, 2, size)
    positions = index * (2.0 / (n - 1)) - 1.0
    return positions[:, 0], positions[:, 1]


def _cells_below(
    edges: Float[Array, "b m"], targets: Float[Array, "b size"], *, at_gap: float
) -> Array:
    """Where piecewise linear CDFs reach the targets, counted in cells from the first edge.

    A target on a run of empty cells is put `at_gap` of the way through them.
    """
    low, width = edges[:, None, :-1], jnp.diff(edges)[:, None, :]
    # Not 0: the gradient holds 1 / width^2, which must not overflow.
    empty = width <= jnp.finfo(edges.dtype).eps ** 2
    part = (targets[:, :, None] - low) / jnp.where(empty, 1.0, width)
    above, on = targets[:, :, None] > low, targets[:, :, None] == low
    step = jnp.where(above, 1.0, jnp.where(on, at_gap, 0.0)).astype(edges.dtype)
    return jnp.sum(jnp.where(empty, step, jnp.clip(part, 0.0, 1.0)), axis=2)


def _normalized(density: Array) -> Array:
    return density / jnp.sum(density, axis=1, keepdims=True)


def _check_density(density: Array, name: str) -> None:
    if density.ndim != 2 or density.shape[1] == 0:
        raise UserError(
            f"{name}: a density of shape {density.shape}; expected [b, n] with at least one cell"
        )


def _check_size(size: int) -> None:
    if size < 1:
        raise UserError(f"size is {size}; expected at least 1")


def _check_max_density(max_density: float) -> None:
    if not max_density >= 1:
        raise UserError(f"max_density is {max_density}; expected at least 1")
