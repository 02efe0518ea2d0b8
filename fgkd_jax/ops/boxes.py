"""Boxes: areas, overlaps, clipping, and the code in which networks predict them.

A box is (x1, y1, x2, y2) in pixels of its image, continuous: the width is x2 - x1, and the corner
(0, 0) is the corner of the first pixel, not its centre.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float, Num

MAX_LOG_SCALE = math.log(1000.0 / 16.0)
"""How far a decoded side may be from its anchor's, as a logarithm."""

_LEAST_SIDE = 1e-6  # of pixels: what a side of no length counts as where it is divided by


def box_area(boxes: Float[Array, "*p 4"]) -> Float[Array, "*p"]:
    """Returns (x2 - x1) (y2 - y1).

    Args:
      boxes: `[*p 4]`.

    Returns:
      `[*p]`, square pixels; negative where exactly one side runs backwards.

    Raises:
      UserError: the last axis is not of length 4.

    Source:
      Elementary; boxes are continuous, without the +1 of boxes whose last pixel is inclusive.

    Example:
      >>> box_area(jnp.array([[0.0, 0.0, 2.0, 3.0]]))
      Array([6.], dtype=float32)
    """
    _check_boxes(boxes=boxes)
    return _product(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def box_iou(
    boxes: Float[Array, "*b p 4"], others: Float[Array, "*b g 4"], *, undefined: float = 0.0
) -> Float[Array, "*b p g"]:
    """Returns the intersection of every box with every other one over their union.

    Rounded as written, with no product contracted into a sum: boxes of equal overlap stay equal,
    and a threshold falls where it falls in NumPy. Sides that run backwards are not put right.

    Args:
      boxes: `[*b p 4]`.
      others: `[*b g 4]`.
      undefined: the value where the union has no area; the reference leaves NaN there.

    Returns:
      `[*b p g]`, in [0, 1] for proper boxes.

    Raises:
      UserError: the shapes do not fit.

    Source:
      The Jaccard index; Everingham et al., "The PASCAL visual object classes challenge", IJCV 2010,
      equation 3.

    Example:
      >>> box_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]]))
      Array([[0.33333334]], dtype=float32)
    """
    return _overlap(*_every_pair(boxes, others), _union, undefined)


def box_iof(
    boxes: Float[Array, "*b p 4"], others: Float[Array, "*b g 4"], *, undefined: float = 0.0
) -> Float[Array, "*b p g"]:
    """Returns the share of every box that lies inside every other one.

    Args:
      boxes: `[*b p 4]`; their own areas are divided by.
      others: `[*b g 4]`.
      undefined: the value where a box has no area; the reference leaves NaN there.

    Returns:
      `[*b p g]`, in [0, 1] for proper boxes.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Intersection over foreground, as mmdet has it for regions to ignore.

    Example:
      >>> box_iof(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 9.0, 2.0]]))
      Array([[0.5]], dtype=float32)
    """
    return _overlap(*_every_pair(boxes, others), _first, undefined)


def paired_box_iou(
    boxes: Float[Array, "*p 4"], others: Float[Array, "*p 4"], *, undefined: float = 0.0
) -> Float[Array, "*p"]:
    """Returns `box_iou` of boxes that stand side by side.

    Args:
      boxes: `[*p 4]`.
      others: `[*p 4]`.
      undefined: the value where the union has no area.

    Returns:
      `[*p]`.

    Raises:
      UserError: the shapes differ.

    Source:
      As `box_iou`.

    Example:
      >>> paired_box_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]]))
      Array([0.5], dtype=float32)
    """
    _check_alike(boxes, others)
    return _overlap(boxes, others, _union, undefined)


def paired_box_iof(
    boxes: Float[Array, "*p 4"], others: Float[Array, "*p 4"], *, undefined: float = 0.0
) -> Float[Array, "*p"]:
    """Returns `box_iof` of boxes that stand side by side.

    Args:
      boxes: `[*p 4]`; their own areas are divided by.
      others: `[*p 4]`.
      undefined: the value where a box has no area.

    Returns:
      `[*p]`.

    Raises:
      UserError: the shapes differ.

    Source:
      As `box_iof`.

    Example:
      >>> paired_box_iof(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 9.0, 1.0]]))
      Array([0.5], dtype=float32)
    """
    _check_alike(boxes, others)
    return _overlap(boxes, others, _first, undefined)


def clip_boxes(
    boxes: Float[Array, "*p 4"], image_size: Num[Array, "*#p 2"]
) -> Float[Array, "*p 4"]:
    """Moves corners that are outside the image to its border.

    Args:
      boxes: `[*p 4]`.
      image_size: rows and columns, in axes that broadcast against those of `boxes`.

    Returns:
      `[*p 4]`, x in [0, columns] and y in [0, rows].

    Raises:
      UserError: the shapes do not fit.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, section 3.3; the border is at the size, not one before.

    Example:
      >>> clip_boxes(jnp.array([[-1.0, 2.0, 9.0, 9.0]]), jnp.array([[5, 6]]))
      Array([[0., 2., 6., 5.]], dtype=float32)
    """
    _check_boxes(boxes=boxes)
    if image_size.ndim != boxes.ndim or image_size.shape[-1] != 2:
        raise UserError(
            f"image_size has the shape {image_size.shape}; expected the rank of boxes of shape "
            f"{boxes.shape} and (rows, columns) in the last axis"
        )
    height, width = image_size[..., :1], image_size[..., 1:]
    border = jnp.concatenate([width, height, width, height], axis=-1).astype(boxes.dtype)
    clipped = jnp.minimum(jnp.maximum(boxes, 0), border)
    # On the border the gradient passes, whole.
    return jnp.where((boxes >= 0) & (boxes <= border), boxes, lax.stop_gradient(clipped))


def encode_boxes(
    anchors: Float[Array, "*p 4"],
    boxes: Float[Array, "*p 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*p 4"]:
    """Describes boxes by their offset from anchors.

    ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)) of centres and sides, less the means,
    over the standard deviations.

    Args:
      anchors: `[*p 4]`; sides of no length count as a millionth of a pixel, so that all is finite.
      boxes: `[*p 4]`, likewise.
      means: of the four numbers.
      stds: of the four numbers, above 0.

    Returns:
      `[*p 4]`, in the dtype of `anchors`, computed in at least float32.

    Raises:
      UserError: the shapes differ, or there are not four means and standard deviations above 0.

    Source:
      Girshick et al., "Rich feature hierarchies", CVPR 2014, appendix C, equations 6 to 9.

    Example:
      >>> encode_boxes(jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[2.0, 0.0, 6.0, 4.0]]))
      Array([[0.5, 0. , 0. , 0. ]], dtype=float32)
    """
    _check_alike(anchors, boxes)
    _check_scales(means, stds)
    centre_a, side_a = _centres_and_sides(anchors)
    centre, side = _centres_and_sides(boxes)
    side_a, side = jnp.maximum(side_a, _LEAST_SIDE), jnp.maximum(side, _LEAST_SIDE)
    code = jnp.concatenate([(centre - centre_a) / side_a, jnp.log(side / side_a)], axis=-1)
    return ((code - _row(means, code)) / _row(stds, code)).astype(anchors.dtype)


def decode_boxes(
    anchors: Float[Array, "*#p 4"],
    deltas: Float[Array, "*p 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Float[Array, "*p 4"]:
    """Turns what `encode_boxes` makes into boxes again.

    The logarithms of the sides are clamped to +-`max_log_scale`: a network that is off can make a
    box 62.5 times as long as its anchor, and not infinity. Past the clamp the gradient is 0.

    Args:
      anchors: `[*p 4]`, or axes that broadcast against those of `deltas`: one anchor, many
        classes.
      deltas: `[*p 4]`.
      means: as in `encode_boxes`.
      stds: as in `encode_boxes`.
      max_log_scale: the clamp, above 0.

    Returns:
      `[*p 4]`, in the dtype of `deltas`, computed in at least float32; not clipped to an image.

    Raises:
      UserError: the ranks differ, or an option is out of range.

    Source:
      Girshick et al., CVPR 2014, appendix C, equations 1 to 4; the clamp is that of the released
      detectors.

    Example:
      >>> decode_boxes(jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[0.5, 0.0, 0.0, 0.0]]))
      Array([[2., 0., 6., 4.]], dtype=float32)
    """
    _check_boxes(anchors=anchors, deltas=deltas)
    _check_scales(means, stds)
    if anchors.ndim != deltas.ndim:
        raise UserError(
            f"anchors have the shape {anchors.shape} and deltas {deltas.shape}; expected one rank"
        )
    if not max_log_scale > 0:
        raise UserError(f"max_log_scale is {max_log_scale}; expected a number above 0")
    code = deltas.astype(jnp.promote_types(deltas.dtype, jnp.float32))
    code = code * _row(stds, code) + _row(means, code)
    shift, scale = code[..., :2], code[..., 2:]
    # Not jnp.clip: at the clamp itself the gradient is whole.
    far = jnp.abs(scale) > max_log_scale
    scale = jnp.where(far, jnp.sign(scale) * max_log_scale, scale)
    centre_a, side_a = _centres_and_sides(anchors)
    centre, half = centre_a + side_a * shift, 0.5 * side_a * jnp.exp(scale)
    return jnp.concatenate([centre - half, centre + half], axis=-1).astype(deltas.dtype)


def _product(one: Array, other: Array) -> Array:
    """A product that no sum takes in: the select between them keeps it from being contracted."""
    product = one * other
    return jnp.where(product == 0, 0.0, product)


def _union(area: Array, other_area: Array, intersection: Array) -> Array:
    return area + other_area - intersection


def _first(area: Array, other_area: Array, intersection: Array) -> Array:
    return jnp.broadcast_to(area, intersection.shape)


def _overlap(
    boxes: Array, others: Array, whole: Callable[[Array, Array, Array], Array], undefined: float
) -> Array:
    # One coordinate at a time: no array with a short last axis, which no vector unit likes.
    x1, y1 = (jnp.maximum(boxes[..., i], others[..., i]) for i in (0, 1))
    x2, y2 = (jnp.minimum(boxes[..., i], others[..., i]) for i in (2, 3))
    intersection = _product(jnp.maximum(x2 - x1, 0), jnp.maximum(y2 - y1, 0))
    area = whole(box_area(boxes), box_area(others), intersection)
    return jnp.where(area == 0, undefined, intersection / jnp.where(area == 0, 1.0, area))


def _every_pair(boxes: Array, others: Array) -> tuple[Array, Array]:
    _check_boxes(boxes=boxes, others=others)
    if boxes.ndim < 2 or boxes.ndim != others.ndim or boxes.shape[:-2] != others.shape[:-2]:
        raise UserError(
            f"boxes have the shape {boxes.shape} and others {others.shape}; expected [*b, p, 4] "
            "and [*b, g, 4]"
        )
    return boxes[..., :, None, :], others[..., None, :, :]


def _centres_and_sides(boxes: Array) -> tuple[Array, Array]:
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def _row(values: tuple[float, ...], like: Array) -> Array:
    return lax.broadcast(jnp.asarray(values, like.dtype), (1,) * (like.ndim - 1))


def _check_boxes(**arrays: Array) -> None:
    for name, array in arrays.items():
        if array.ndim < 1 or array.shape[-1] != 4:
            raise UserError(f"{name} have the shape {array.shape}; expected 4 numbers at the end")


def _check_alike(boxes: Array, others: Array) -> None:
    _check_boxes(boxes=boxes, others=others)
    if boxes.shape != others.shape:
        raise UserError(f"boxes of shape {boxes.shape} and {others.shape}; expected one shape")


def _check_scales(means: tuple[float, ...], stds: tuple[float, ...]) -> None:
    if len(means) != 4 or len(stds) != 4 or not all(std > 0 for std in stds):
        raise UserError(f"means {means} and stds {stds}; expected four of each, stds above 0")
