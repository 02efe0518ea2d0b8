"""Separable bilinear resampling, with a lowering per platform and an exact gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.ops.resample_lowerings import (
    resample_by_gathers,
    resample_by_products,
    slopes_by_gathers,
    slopes_by_products,
    slopes_in_one_kernel,
    transpose_by_loops,
    transpose_by_products,
    transpose_by_scatters,
)
from fgkd_jax.typing import Array, Float, Num


def separable_resample(
    image: Num[Array, "b h w c"],
    rows: Float[Array, "b oh"],
    cols: Float[Array, "b ow"],
    *,
    exact: bool = False,
) -> Float[Array, "b oh ow c"]:
    """Reads images at the crossings of given rows and columns, bilinearly.

    y[b, i, j] = sum over (u, v) of hat(rows[b, i] - u) hat(cols[b, j] - v) image[b, u, v] with
    hat(d) = max(0, 1 - |d|), and positions clamped to the image first. Rows and columns need not
    be sorted.

    One lowering per platform. On CPU and GPU neighbouring rows, then columns, are gathered and
    mixed. On TPU, where a gather runs element by element, it is two matrix products with the
    hat functions as weights. The gradient is written out: to the image the transpose of the
    resample, to the positions the slope of the interpolant (0 where a position was clamped). On
    GPU that to the image is made of atomic additions: its last bits may differ from run to run.

    Args:
      image: `[b h w c]`, uint8 in 0..255 or floating.
      rows: `[b oh]`, in pixels: 0 is the centre of the first row, h - 1 that of the last.
      cols: `[b ow]`, in pixels, likewise.
      exact: on TPU, multiply in float32 at the highest precision instead of bfloat16, whose error
        is at most 1.5 of 255 grey levels. Elsewhere the computation is always in float32.

    Returns:
      `[b oh ow c]`, float32 from uint8, otherwise in the dtype of `image`.

    Raises:
      UserError: ranks or batch sizes differ, or something is empty.

    Source:
      The bilinear sampler of Jaderberg et al., "Spatial transformer networks", NIPS 2015,
      equation 5, for grids that are the product of two axes.

    Example:
      >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1)
      >>> separable_resample(ramp, jnp.zeros((1, 1)), jnp.array([[0.25, 2.5, 9.0]])).ravel()
      Array([0.25, 2.5 , 3.  ], dtype=float32)
    """
    _check(image, rows, cols)
    return _resample(exact, image, rows, cols)


def corner_aligned_resize(
    image: Num[Array, "b h w c"], *, size: tuple[int, int]
) -> Float[Array, "b oh ow c"]:
    """Resizes bilinearly so that the centres of the corner pixels stay where they are.

    Output row i reads row i (h - 1) / (oh - 1), without anti-aliasing; a single output row reads
    the first. The released TASN resizes so (`align_corners`); anything new should prefer
    half-pixel resizing, which does not depend on where the corners are.

    Args:
      image: `[b h w c]`, uint8 or floating.
      size: (rows, columns) of the result.

    Returns:
      `[b oh ow c]`, float32 from uint8, otherwise in the dtype of `image`.

    Raises:
      UserError: `image` is not of rank 4, or something is empty.

    Source:
      `align_corners=True` of PyTorch's `interpolate`.

    Example:
      >>> corner_aligned_resize(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), size=(1, 3)).ravel()
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    if image.ndim != 4:
        raise UserError(f"corner_aligned_resize: image of shape {image.shape}; expected [b,h,w,c]")
    rows, cols = (
        jnp.broadcast_to(jnp.linspace(0.0, extent - 1.0, max(0, out)), (len(image), max(0, out)))
        for extent, out in zip(image.shape[1:3], size, strict=True)
    )
    return separable_resample(image, rows, cols, exact=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _resample(exact: bool, image: Array, rows: Array, cols: Array) -> Array:
    products = partial(resample_by_products, exact=exact)
    gathers = partial(resample_by_gathers, promised=True)
    return lax.platform_dependent(
        image, rows, cols, cpu=resample_by_gathers, tpu=products, default=gathers
    )


def _forward(exact: bool, image: Array, rows: Array, cols: Array) -> tuple[Array, Any]:
    return _resample(exact, image, rows, cols), (image, rows, cols)


def _backward(exact: bool, saved: Any, grad: Array) -> tuple[Any, Array, Array]:
    image, rows, cols = saved
    wide = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    split = _is_split(wide)
    by_rows, by_cols = lax.platform_dependent(
        image,
        rows,
        cols,
        wide,
        cpu=slopes_by_gathers if split else slopes_in_one_kernel,
        tpu=partial(slopes_by_products, exact=exact),
        default=partial(slopes_by_gathers, promised=True),
    )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        by_image = np.zeros(image.shape, jax.dtypes.float0)
    else:
        size = image.shape[1:3]
        by_image = lax.platform_dependent(
            wide,
            rows,
            cols,
            cpu=partial(transpose_by_products if split else transpose_by_loops, size=size),
            tpu=partial(transpose_by_products, size=size, exact=exact),
            default=partial(transpose_by_products if split else transpose_by_scatters, size=size),
        ).astype(image.dtype)
    return by_image, by_rows.astype(rows.dtype), by_cols.astype(cols.dtype)


_resample.defvjp(_forward, _backward)


def _is_split(x: Array) -> bool:
    """Whether examples lie on several devices of an explicit mesh, where no loop may take them."""
    spec = jax.typeof(x).sharding.spec
    return len(spec) > 0 and spec[0] is not None


def _check(image: Array, rows: Array, cols: Array) -> None:
    shapes = image.shape, rows.shape, cols.shape
    ranks = tuple(len(shape) for shape in shapes)
    if ranks != (4, 2, 2) or len({shape[0] for shape in shapes}) != 1:
        raise UserError(
            f"image has shape {shapes[0]}, rows {shapes[1]} and cols {shapes[2]}; expected "
            "[b, h, w, c], [b, oh] and [b, ow] with the same b"
        )
    if any(0 in shape[1:] for shape in shapes):
        raise UserError(
            f"image has shape {shapes[0]}, rows {shapes[1]} and cols {shapes[2]}; expected at "
            "least one pixel, channel, row and column"
        )
