"""RoIAlign: features of boxes, as an average over a grid of bilinear samples."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.ops.division import ceil_divide
from fgkd_jax.ops.region_lowerings import (
    Regions,
    align_by_products,
    align_by_windows,
    transpose_by_products,
    transpose_by_windows,
)
from fgkd_jax.typing import Array, Float, Int


class RoiOptions(NamedTuple):
    """How boxes become regions and regions are sampled.

    Attributes:
      size: rows and columns of the result.
      sampling_ratio: samples per bin along each axis; 0 for as many as the bin has cells, rounded
        up, box by box.
      aligned: whether the centre of the first cell is at half a stride, as everywhere in this
        library. Otherwise it is at 0, and a region is at least one cell wide and high.
      inclusive: whether boxes end with the pixel that they name, so that x2 + 1 is their edge, and
        a region may be of any size. It goes with `aligned=False`.
    """

    size: int = 7
    sampling_ratio: int = 0
    aligned: bool = True
    inclusive: bool = False


DEFAULT_ROI_OPTIONS = RoiOptions()
"""7 by 7 bins, sampled as finely as the map is, on aligned cells."""


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "b p 4"],
    *,
    stride: float,
    options: RoiOptions = DEFAULT_ROI_OPTIONS,
) -> Float[Array, "b p oh ow c"]:
    """Reads the features of boxes, without rounding anything to cells.

    A box is cut into `size` x `size` bins. A bin is the mean of a grid of samples at the centres of
    its parts, each read bilinearly. A sample beyond one cell outside the map counts as 0; one less
    far outside reads the border. The gradient to the features is exact; boxes get none.

    The grid is a product of rows and columns, so a bin is `sum_h sum_w Y[i, h] X[j, w] f[h, w]`
    with few weights that are not 0, and with as many samples as the box asks for: there is no
    largest grid. A cell gets weight from samples nearer than 1 to it, and an adaptive grid is never
    finer than half a cell in a bin with more than one sample, so no more than five samples can
    reach a cell, and six candidates are tried whatever the size of the box.

    Args:
      features: `[b h w c]`.
      boxes: `[b p 4]`, in pixels of the image, any size and place.
      stride: pixels of the image per cell, above 0.
      options: size, samples and conventions.

    Returns:
      `[b p size size c]`, in the dtype of `features`, computed in at least float32. A box of no
      size is 0 with an adaptive grid (with `inclusive` the reference divides 0 by 0 there).

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      He et al., "Mask R-CNN", ICCV 2017, section 3. `aligned` and the adaptive grid as mmdet 2.0
      and Detectron2 have them; `aligned=False, inclusive=True` is what mmdet 2.0 runs on a GPU for
      its configurations of that age.

    Example:
      >>> ramp = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> box = jnp.array([[[0.0, 0.0, 4.0, 4.0]]])
      >>> roi_align(ramp, box, stride=1.0, options=RoiOptions(size=2)).ravel()
      Array([ 2.5,  4.5, 10.5, 12.5], dtype=float32)
    """
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    return pyramid_roi_align((features,), boxes, levels, strides=(stride,), options=options)


def pyramid_roi_align(
    features: Sequence[Float[Array, "b _ _ c"]],
    boxes: Float[Array, "b p 4"],
    levels: Int[Array, "b p"],
    *,
    strides: Sequence[float],
    options: RoiOptions = DEFAULT_ROI_OPTIONS,
) -> Float[Array, "b p oh ow c"]:
    """Reads the features of boxes, each from its own level of a pyramid.

    One lowering per platform. On CPU the boxes of a level are taken one after the other, and of the
    map only the window that the box covers is touched. Elsewhere it is two matrix products, with
    the weights of whole rows and columns.

    Args:
      features: of every level `[b h w c]`.
      boxes: `[b p 4]`, in pixels of the image.
      levels: `[b p]`, as `pyramid_levels` makes them, clipped to the levels there are.
      strides: pixels of the image per cell of every level.
      options: size, samples and conventions.

    Returns:
      `[b p size size c]`, as `roi_align`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Lin et al., "Feature pyramid networks", CVPR 2017, section 4.2.

    Example:
      >>> maps = jnp.ones((1, 8, 8, 1)), jnp.zeros((1, 4, 4, 1))
      >>> boxes = jnp.array([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 30.0, 30.0]]])
      >>> levels = jnp.array([[0, 1]])
      >>> options = RoiOptions(size=1)
      >>> pyramid_roi_align(maps, boxes, levels, strides=(4.0, 8.0), options=options).ravel()
      Array([1., 0.], dtype=float32)
    """
    _check(features, boxes, levels, strides, options)
    if not levels.size:
        shape = (*levels.shape, options.size, options.size, features[0].shape[-1])
        return jnp.zeros(shape, features[0].dtype)
    wide = jnp.promote_types(features[0].dtype, jnp.float32)
    region = partial(_region, strides=jnp.asarray(strides, wide), options=options)
    levels = jnp.clip(levels, 0, len(strides) - 1).astype(jnp.int32)
    regions = jax.vmap(jax.vmap(region))(boxes.astype(wide), levels)
    return _align(options.size, options.sampling_ratio, regions, tuple(features))


def pyramid_levels(
    boxes: Float[Array, "*p 4"],
    *,
    num_levels: int,
    base_size: float = 56.0,
    inclusive: bool = False,
) -> Int[Array, "*p"]:
    """Assigns boxes to the levels of a pyramid by the root of their area.

    level = floor(log2(root / base_size + 1e-6)), clipped to [0, num_levels): boxes of less than
    twice `base_size` go to the first level, and each level further on has boxes twice as large.

    A Faster R-CNN whose RoIs come from strides 4 to 32 has base 56 and four levels. RetinaNet's
    anchors at its first level have the sizes 32, 40 and 51: base 32 / 2^(1/6) puts a box on the
    level whose anchors are nearest to it in size.

    Args:
      boxes: `[*p 4]`.
      num_levels: how many levels there are.
      base_size: pixels, above 0.
      inclusive: whether sides count as x2 - x1 + 1, as DeFeat's released masks have it.

    Returns:
      int32 `[*p]`.

    Raises:
      UserError: the shape or an option does not fit.

    Source:
      Lin et al., "Feature pyramid networks", CVPR 2017, equation 1, with k0 = 4 at 224 pixels and
      the first level k = 2; the 1e-6 is mmdet's.

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 112.0, 112.0]])
      >>> pyramid_levels(boxes, num_levels=4)
      Array([0, 1], dtype=int32)
    """
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise UserError(f"boxes have the shape {boxes.shape}; expected 4 numbers at the end")
    if num_levels < 1 or not base_size > 0:
        raise UserError(
            f"num_levels is {num_levels} and base_size {base_size}; expected at least 1 and above 0"
        )
    wide = boxes.astype(jnp.float32)
    width, height = (wide[..., i + 2] - wide[..., i] + float(inclusive) for i in (0, 1))
    root = jnp.sqrt(jnp.maximum(width * height, 0.0))
    level = jnp.floor(jnp.log2(root / base_size + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def _region(box: Array, level: Array, *, strides: Array, options: RoiOptions) -> Regions:
    """Start and extent of a box in cells of its level, and the number of samples per bin."""
    scale = 1.0 / strides[level]
    box = lax.stop_gradient(box)
    first = box[:2] * scale - (0.5 if options.aligned else 0.0)
    last = (box[2:] + float(options.inclusive)) * scale - (0.5 if options.aligned else 0.0)
    extent = last - first
    if not options.aligned and not options.inclusive:
        extent = jnp.maximum(extent, 1.0)
    bins = extent / options.size
    ratio = options.sampling_ratio
    adaptive = jnp.maximum(ceil_divide(extent, divisor=options.size), 0.0)
    samples = jnp.full(2, ratio, extent.dtype) if ratio else adaptive
    order = jnp.array([1, 0])  # rows before columns
    return Regions(level, first[order], bins[order], samples[order])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _align(size: int, ratio: int, regions: Regions, features: tuple[Array, ...]) -> Array:
    windows = partial(align_by_windows, size=size, ratio=ratio)
    products = partial(align_by_products, size=size, ratio=ratio)
    found = lax.platform_dependent(regions, features, cpu=windows, default=products)
    return found.astype(features[0].dtype)


def _forward(
    size: int, ratio: int, regions: Regions, features: tuple[Array, ...]
) -> tuple[Array, Any]:
    shapes = tuple(jnp.zeros((0, *x.shape[1:]), x.dtype) for x in features)
    return _align(size, ratio, regions, features), (regions, shapes)


def _backward(size: int, ratio: int, saved: Any, grad: Array) -> tuple[Regions, tuple[Array, ...]]:
    regions, shapes = saved
    sizes = tuple(x.shape[1:3] for x in shapes)
    windows = partial(transpose_by_windows, ratio=ratio, sizes=sizes)
    products = partial(transpose_by_products, ratio=ratio, sizes=sizes)
    wide = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    by_features = lax.platform_dependent(regions, wide, cpu=windows, default=products)
    cast = tuple(x.astype(like.dtype) for x, like in zip(by_features, shapes, strict=True))
    return jax.tree.map(_no_gradient, regions), cast


def _no_gradient(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros(x.shape, x.dtype)
    return np.zeros(x.shape, jax.dtypes.float0)


_align.defvjp(_forward, _backward)


def _check(
    features: Sequence[Array],
    boxes: Array,
    levels: Array,
    strides: Sequence[float],
    options: RoiOptions,
) -> None:
    if not features or len(features) != len(strides) or not all(s > 0 for s in strides):
        raise UserError(
            f"{len(features)} feature maps and strides {tuple(strides)}; expected a stride above 0 "
            "for each of at least one map"
        )
    shapes = [x.shape for x in features]
    rows = {
        (shape[0], shape[3]) if len(shape) == 4 and min(shape[1:]) > 0 else () for shape in shapes
    }
    if len(rows) != 1 or () in rows or boxes.shape != (*levels.shape, 4):
        raise UserError(
            f"features have the shapes {shapes}, boxes {boxes.shape} and levels {levels.shape}; "
            "expected [b, h, w, c] each, [b, p, 4] and [b, p]"
        )
    if levels.ndim != 2 or levels.shape[0] != shapes[0][0]:
        raise UserError(f"levels have the shape {levels.shape}; expected [{shapes[0][0]}, p]")
    if options.size < 1 or options.sampling_ratio < 0:
        raise UserError(f"{options}; expected size at least 1 and sampling_ratio at least 0")
    if options.aligned and options.inclusive:
        raise UserError(f"{options}; expected aligned=False with inclusive=True")
