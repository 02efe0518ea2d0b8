"""The lowerings of `separable_resample`: its value, its transpose, and its slopes.

Each is right on every platform; `fgkd_jax.ops.resample` knows which one is fast where.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from fgkd_jax.typing import Array, Float


def resample_by_gathers(image: Array, rows: Array, cols: Array, *, promised: bool = False) -> Array:
    """`separable_resample` by reading the four neighbours of every position.

    Args:
      image: `[b h w c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      promised: tell XLA that no index is out of bounds. On GPU that saves a mask, and time.

    Returns:
      `[b oh ow c]`.

    Source:
      Jaderberg et al., NIPS 2015, equation 5.
    """
    quad = _Neighbours.of(image, rows, cols, read=_read_promised if promised else _read)
    top = quad.upper_left + (quad.upper_right - quad.upper_left) * quad.across
    bottom = quad.lower_left + (quad.lower_right - quad.lower_left) * quad.across
    return (top + (bottom - top) * quad.down).astype(_out_dtype(image))


def resample_by_products(image: Array, rows: Array, cols: Array, *, exact: bool = True) -> Array:
    """`separable_resample` as two matrix products with the hat functions as weights.

    Args:
      image: `[b h w c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      exact: multiply in float32 at the highest precision instead of bfloat16.

    Returns:
      `[b oh ow c]`.

    Source:
      Jaderberg et al., NIPS 2015, equation 5.
    """
    down, across = _hats(rows, image.shape[1]), _hats(cols, image.shape[2])
    return _two_products(image, down, across, exact=exact).astype(_out_dtype(image))


def transpose_by_loops(grad: Array, rows: Array, cols: Array, *, size: tuple[int, int]) -> Array:
    """The transpose of `separable_resample` by adding to neighbours, one line after the other.

    Examples are taken one by one: meant for CPU, where it is several times faster than XLA's
    scatter and than matrix products.

    Args:
      grad: `[b oh ow c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      size: (rows, columns) of the image.

    Returns:
      `[b h w c]`.

    Source:
      Jaderberg et al., NIPS 2015, equation 6.
    """
    height, width = size
    out_height, _, channels = grad.shape[1:]

    def one(item: tuple[Array, Array, Array]) -> Array:
        grad, rows, cols = item
        columns_first = grad.transpose(1, 0, 2).reshape(cols.shape[0], -1)
        spread = _spread_lines(columns_first, cols, width).reshape(width, out_height, channels)
        lines = spread.transpose(1, 0, 2).reshape(out_height, -1)
        return _spread_lines(lines, rows, height).reshape(height, width, channels)

    return lax.map(one, (grad, rows, cols))


def transpose_by_scatters(grad: Array, rows: Array, cols: Array, *, size: tuple[int, int]) -> Array:
    """The transpose of `separable_resample` by adding every value to four pixels.

    Meant for GPU, where the additions are atomic: their order, and with it the last bits of a sum,
    may differ from run to run.

    Args:
      grad: `[b oh ow c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      size: (rows, columns) of the image.

    Returns:
      `[b h w c]`.

    Source:
      Jaderberg et al., NIPS 2015, equation 6.
    """

    def one(grad: Array, rows: Array, cols: Array) -> Array:
        upper, lower, down = _taps(rows, size[0], grad.dtype)
        left, right, across = _taps(cols, size[1], grad.dtype)
        total = jnp.zeros((*size, grad.shape[2]), grad.dtype)
        for i, vertical in ((upper, 1.0 - down), (lower, down)):
            for j, horizontal in ((left, 1.0 - across), (right, across)):
                weights = vertical[:, None, None] * horizontal[None, :, None]
                place = total.at[i[:, None], j[None, :]]
                total = place.add(grad * weights, mode="promise_in_bounds")
        return total

    return jax.vmap(one)(grad, rows, cols)


def transpose_by_products(
    grad: Array, rows: Array, cols: Array, *, size: tuple[int, int], exact: bool = True
) -> Array:
    """The transpose of `separable_resample` as two matrix products.

    Args:
      grad: `[b oh ow c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      size: (rows, columns) of the image.
      exact: multiply in float32 at the highest precision instead of bfloat16.

    Returns:
      `[b h w c]`.

    Source:
      Jaderberg et al., NIPS 2015, equation 6.
    """
    down, across = _hats(rows, size[0]), _hats(cols, size[1])
    return _two_products(grad, down.swapaxes(1, 2), across.swapaxes(1, 2), exact=exact)


def slopes_by_gathers(
    image: Array, rows: Array, cols: Array, grad: Array, *, promised: bool = False
) -> tuple[Array, Array]:
    """Gradients to the positions from the four neighbours of every position.

    Args:
      image: `[b h w c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      grad: `[b oh ow c]`, gradient to the output.
      promised: as of `resample_by_gathers`.

    Returns:
      Gradients to `rows` and `cols`, 0 where a position was clamped.

    Source:
      Jaderberg et al., NIPS 2015, equation 7.
    """
    quad = _Neighbours.of(image, rows, cols, read=_read_promised if promised else _read)
    by_rows = jnp.sum(grad * quad.row_slopes, axis=(2, 3))
    by_cols = jnp.sum(grad * quad.col_slopes, axis=(1, 3))
    return _inside(by_rows, rows, image.shape[1]), _inside(by_cols, cols, image.shape[2])


def slopes_in_one_kernel(
    image: Array, rows: Array, cols: Array, grad: Array
) -> tuple[Array, Array]:
    """Gradients to the positions, as real and imaginary part of one array of complex numbers.

    Meant for CPU, where XLA takes ten times as long for `slopes_by_gathers`: a gather that is fused
    into a sum, or whose pixels are used twice, no longer runs on several cores. Here every pixel is
    used once, times a complex weight, and windows take the sums, which nothing is fused into. Up to
    four channels are added up before anything is written. The pixels are read in another way than
    by `resample_by_gathers`, so that one program with both doesn't share them.

    Args:
      image: `[b h w c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      grad: `[b oh ow c]`, gradient to the output.

    Returns:
      Gradients to `rows` and `cols`, 0 where a position was clamped.

    Source:
      Jaderberg et al., NIPS 2015, equation 7.
    """
    _, out_height, out_width, channels = grad.shape
    parts: list[tuple[Array, _Read]] = [(grad, _read_flat)]
    if channels <= 4:
        parts = [(grad[..., k : k + 1], partial(_read_channel, k)) for k in range(channels)]
    slopes = [_complex_slopes(image, rows, cols, part, read) for part, read in parts]
    total = reduce(operator.add, slopes)
    by_rows = _sum_windows(total, (1, out_width, total.shape[3])).real.reshape(-1, out_height)
    by_cols = _sum_windows(total, (out_height, 1, total.shape[3])).imag.reshape(-1, out_width)
    return _inside(by_rows, rows, image.shape[1]), _inside(by_cols, cols, image.shape[2])


def slopes_by_products(
    image: Array, rows: Array, cols: Array, grad: Array, *, exact: bool = True
) -> tuple[Array, Array]:
    """Gradients to the positions as matrix products.

    Args:
      image: `[b h w c]`.
      rows: `[b oh]`, in pixels.
      cols: `[b ow]`, in pixels.
      grad: `[b oh ow c]`, gradient to the output.
      exact: multiply in float32 at the highest precision instead of bfloat16.

    Returns:
      Gradients to `rows` and `cols`, 0 where a position was clamped.

    Source:
      Jaderberg et al., NIPS 2015, equation 7.
    """
    height, width = image.shape[1:3]
    down, across = _hats(rows, height), _hats(cols, width)
    vertical = _two_products(image, _steps(rows, height), across, exact=exact)
    horizontal = _two_products(image, down, _steps(cols, width), exact=exact)
    by_rows, by_cols = jnp.sum(grad * vertical, axis=(2, 3)), jnp.sum(grad * horizontal, (1, 3))
    return _inside(by_rows, rows, height), _inside(by_cols, cols, width)


_Read = Callable[[Array, Array, Array], Array]
"""Reads `[h w c]` at rows `[oh]` and columns `[ow]`: `[oh ow c]`."""


def _read(image: Array, rows: Array, cols: Array) -> Array:
    return image[rows[:, None], cols[None, :]]


def _read_promised(image: Array, rows: Array, cols: Array) -> Array:
    return image.at[rows[:, None], cols[None, :]].get(mode="promise_in_bounds")


def _read_flat(image: Array, rows: Array, cols: Array) -> Array:
    height, width, channels = image.shape
    return image.reshape(height * width, channels)[rows[:, None] * width + cols[None, :]]


def _read_channel(channel: int, image: Array, rows: Array, cols: Array) -> Array:
    _, width, channels = image.shape
    pixels = rows[:, None] * width + cols[None, :]
    return image.reshape(-1)[pixels * channels + channel][..., None]


class _Neighbours(NamedTuple):
    """The four pixels around each position, `[b oh ow c]` each.

    Attributes:
      upper_left: of the pair of rows, and of the pair of columns.
      upper_right: likewise.
      lower_left: likewise.
      lower_right: likewise.
      down: how far below the upper row, in [0, 1], `[b oh 1 1]`.
      across: how far right of the left column, in [0, 1], `[b 1 ow 1]`.
    """

    upper_left: Array
    upper_right: Array
    lower_left: Array
    lower_right: Array
    down: Array
    across: Array

    @classmethod
    def of(cls, image: Array, rows: Array, cols: Array, *, read: _Read = _read) -> "_Neighbours":
        """Gathers them."""
        upper, lower, down = _taps(rows, image.shape[1], _wide_dtype(image))
        left, right, across = _taps(cols, image.shape[2], _wide_dtype(image))

        def at(i: Array, j: Array) -> Array:
            return jax.vmap(read)(image, i, j).astype(down.dtype)

        return cls(
            upper_left=at(upper, left),
            upper_right=at(upper, right),
            lower_left=at(lower, left),
            lower_right=at(lower, right),
            down=down[:, :, None, None],
            across=across[:, None, :, None],
        )

    @property
    def row_slopes(self) -> Array:
        """Derivative of the interpolant along the rows."""
        left, right = self.lower_left - self.upper_left, self.lower_right - self.upper_right
        return left * (1.0 - self.across) + right * self.across

    @property
    def col_slopes(self) -> Array:
        """Derivative of the interpolant along the columns."""
        upper, lower = self.upper_right - self.upper_left, self.lower_right - self.lower_left
        return upper * (1.0 - self.down) + lower * self.down


def _complex_slopes(image: Array, rows: Array, cols: Array, grad: Array, read: _Read) -> Array:
    """Slopes times `grad`, along the rows as real and along the columns as imaginary part."""
    quad = _Neighbours.of(image, rows, cols, read=read)
    across, down = jnp.broadcast_arrays(quad.across, quad.down)
    slopes = (
        quad.upper_left * lax.complex(across - 1.0, down - 1.0)
        + quad.upper_right * lax.complex(-across, 1.0 - down)
        + quad.lower_left * lax.complex(1.0 - across, -down)
        + quad.lower_right * lax.complex(across, down)
    )
    return slopes * grad


def _sum_windows(x: Array, window: tuple[int, int, int]) -> Array:
    """Sums disjoint windows of `[b h w c]`."""
    shape = (1, *window)
    return lax.reduce_window(x, x.dtype.type(0), lax.add, shape, shape, "VALID")


def _taps(positions: Array, extent: int, dtype: DTypeLike) -> tuple[Array, Array, Array]:
    """Indices of the two neighbours and the weight of the second."""
    inside = jnp.clip(positions, 0, extent - 1)
    low = jnp.clip(jnp.floor(inside).astype(jnp.int32), 0, max(extent - 2, 0))
    return low, jnp.minimum(low + 1, extent - 1), (inside - low).astype(dtype)


def _hats(positions: Array, extent: int) -> Float[Array, "b o extent"]:
    """Weight of each pixel at each position: max(0, 1 - distance)."""
    inside = jnp.clip(positions, 0, extent - 1)[:, :, None]
    pixels = jnp.arange(extent, dtype=inside.dtype).reshape(1, 1, extent)
    return jnp.maximum(0.0, 1.0 - jnp.abs(inside - pixels))


def _steps(positions: Array, extent: int) -> Float[Array, "b o extent"]:
    """Derivative of the weights: 1 at the pixel after each position, -1 at the one before."""
    low, high, _ = _taps(positions, extent, positions.dtype)
    return jax.nn.one_hot(high, extent, dtype=positions.dtype) - jax.nn.one_hot(
        low, extent, dtype=positions.dtype
    )


def _inside(gradient: Array, positions: Array, extent: int) -> Array:
    return jnp.where((positions >= 0) & (positions <= extent - 1), gradient, 0.0)


def _two_products(x: Array, down: Array, across: Array, *, exact: bool) -> Array:
    """y[b, o, p, c] = sum over (u, v) of down[b, o, u] across[b, p, v] x[b, u, v, c]."""
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    dtype = _wide_dtype(x)
    narrow = dtype if exact else jnp.bfloat16
    product = partial(jnp.einsum, precision=precision, preferred_element_type=dtype)
    # Bytes by way of float32: TPU's compiler fuses that into the product, and copies the image
    # twice for a direct conversion (37 against 11.8 MB accessed for 8 images of 512 x 512).
    mixed = product("bou,buvc->bovc", down.astype(narrow), x.astype(dtype).astype(narrow))
    return product("bpv,bovc->bopc", across.astype(narrow), mixed.astype(narrow))


def _spread_lines(lines: Array, positions: Array, extent: int) -> Array:
    """Adds line i of `[o, k]` to its two neighbours of `[extent, k]`, by their weights."""
    low, _, part = _taps(positions, max(extent, 2), lines.dtype)
    part = jnp.where(extent > 1, part, 0.0)

    def add(i: Array, total: Array) -> Array:
        pair = lax.dynamic_slice_in_dim(total, low[i], 2)
        weights = jnp.stack([1.0 - part[i], part[i]])[:, None]
        return lax.dynamic_update_slice_in_dim(total, pair + weights * lines[i][None], low[i], 0)

    start = jnp.zeros((max(extent, 2), lines.shape[1]), lines.dtype)
    return lax.fori_loop(0, len(lines), add, start)[:extent]


def _wide_dtype(image: Array) -> jnp.dtype:
    return jnp.promote_types(
        image.dtype if jnp.issubdtype(image.dtype, jnp.floating) else jnp.float32, jnp.float32
    )


def _out_dtype(image: Array) -> jnp.dtype:
    return image.dtype if jnp.issubdtype(image.dtype, jnp.floating) else jnp.dtype(jnp.float32)
