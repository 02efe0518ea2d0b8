"""The attention sampler: attention in, a picture of what was attended to out."""

import operator
from collections.abc import Sequence
from typing import Any

from fgkd_jax.errors import UserError
from fgkd_jax.ops.density import attention_densities, inverse_cdf, limit_density
from fgkd_jax.ops.resample import separable_resample
from fgkd_jax.typing import Array, Float, Num


def attention_sample(
    image: Num[Array, "b h w c"],
    attention: Float[Array, "b ah aw"],
    *,
    out_size: int | tuple[int, int],
    max_density: float = 4.0,
    exact: bool = False,
) -> Float[Array, "b oh ow c"]:
    """Resamples each image so that attended regions get more pixels.

    attention -> density per axis (`attention_densities`) -> limited (`limit_density`) -> positions
    (`inverse_cdf`) -> pixels read there (`separable_resample`).

    Constant attention is a half-pixel bilinear resize. Flipping image and attention flips the
    result. Image and attention may have any two shapes: both cover the same field of view.
    Examples do not influence each other. Differentiable in both arguments.

    Args:
      image: `[b h w c]`, uint8 in 0..255 or floating.
      attention: `[b ah aw]`, any finite numbers; negative ones count as 0, a map of zeros as
        uniform.
      out_size: side of the result, or (rows, columns); at least 1.
      max_density: the most that any part is magnified along an axis, over a plain resize; at
        least 1.
      exact: see `separable_resample`.

    Returns:
      `[b oh ow c]`, float32 from uint8, otherwise in the dtype of `image`.

    Raises:
      UserError: batch sizes or ranks differ, something is empty, or an option is out of range.

    Source:
      Zheng et al., CVPR 2019, equations 5 to 8, on a grid of our own: see `inverse_cdf` and
      `limit_density` for how it differs, and `reference_positions` for the authors'.

    Example:
      >>> import jax.numpy as jnp
      >>> image, attention = jnp.zeros((2, 64, 48, 3), jnp.uint8), jnp.ones((2, 7, 7))
      >>> attention_sample(image, attention, out_size=(32, 24)).shape
      (2, 32, 24, 3)
    """
    if image.ndim != 4 or attention.ndim != 3 or image.shape[0] != attention.shape[0]:
        raise UserError(
            f"image has shape {image.shape} and attention {attention.shape}; expected "
            "[b, h, w, c] and [b, ah, aw] with the same b"
        )
    size = _two(out_size)
    densities = attention_densities(attention)
    rows, cols = (
        fractions_to_pixels(
            inverse_cdf(limit_density(density, max_density=max_density), size=out), extent=extent
        )
        for density, out, extent in zip(densities, size, image.shape[1:3], strict=True)
    )
    return separable_resample(image, rows, cols, exact=exact)


def fractions_to_pixels(
    positions: Float[Array, "b size"], *, extent: int
) -> Float[Array, "b size"]:
    """Turns fractions of an axis into pixels by the half-pixel rule: fraction x extent - 1/2.

    Args:
      positions: `[b size]`, fractions of the axis; 0 and 1 are its ends.
      extent: pixels along the axis, at least 1.

    Returns:
      `[b size]`, where 0 is the centre of the first pixel and extent - 1 that of the last;
      fractions next to the ends lie up to half a pixel outside.

    Raises:
      UserError: `extent` is below 1.

    Source:
      The half-pixel rule of PyTorch's `interpolate(align_corners=False)` and of OpenCV's `resize`.

    Example:
      >>> import jax.numpy as jnp
      >>> fractions_to_pixels(jnp.array([[0.125, 0.5]]), extent=4)
      Array([[0. , 1.5]], dtype=float32)
    """
    _check_extent(extent)
    return positions * extent - 0.5


def corners_to_pixels(positions: Float[Array, "b size"], *, extent: int) -> Float[Array, "b size"]:
    """Turns corner-aligned positions, -1 to 1, into pixels: (position + 1) (extent - 1) / 2.

    Args:
      positions: `[b size]`; -1 and 1 are the centres of the first and the last pixel, as
        `reference_positions` returns them.
      extent: pixels along the axis, at least 1.

    Returns:
      `[b size]`, where 0 is the centre of the first pixel.

    Raises:
      UserError: `extent` is below 1.

    Source:
      The convention of PyTorch's `grid_sample(align_corners=True)`.

    Example:
      >>> import jax.numpy as jnp
      >>> corners_to_pixels(jnp.array([[-1.0, 0.0]]), extent=5)
      Array([[0., 2.]], dtype=float32)
    """
    _check_extent(extent)
    # In this order, as the released code rounds.
    return (positions + 1.0) * (extent - 1) / 2


def _two(out_size: Any) -> tuple[int, int]:
    """Rows and columns, from one number or two."""
    pair = tuple(out_size) if isinstance(out_size, Sequence) else (out_size, out_size)
    try:
        rows, columns = map(operator.index, pair)
    except (TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise UserError(f"out_size is {out_size}; expected at least 1, or two such integers")
    return rows, columns


def _check_extent(extent: int) -> None:
    if extent < 1:
        raise UserError(f"extent is {extent}; expected at least 1")
