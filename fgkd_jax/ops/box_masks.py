"""Which cells of a feature map belong to objects, by their boxes."""

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.ops.boxes import box_iou
from fgkd_jax.ops.division import nearest_rows, truncate_divide
from fgkd_jax.typing import Array, Bool, Float


def box_mask(
    boxes: Float[Array, "*b g 4"],
    valid: Bool[Array, "*b g"],
    *,
    stride: float,
    size: tuple[int, int],
    single_cell: bool = False,
) -> Bool[Array, "*b h w"]:
    """Marks the cells that boxes cover.

    Corners over the stride are cut to whole cells, towards zero, and those below 0 are moved to 0;
    the box covers the cells from the upper left corner up to, and without, the lower right one. A
    box that begins and ends in the same row (or column) covers that one.

    Over a pyramid: `box_masks`.

    Args:
      boxes: `[*b g 4]`, in pixels of the image.
      valid: `[*b g]`, boxes that count: not padding, and on this level.
      stride: pixels of the image per cell, above 0.
      size: rows and columns of the map.
      single_cell: whether a box that begins and ends in the same row or in the same column marks
        its upper left cell alone, however long it is, as released.

    Returns:
      `[*b h w]`. Boxes outside the map mark nothing (the released code has an IndexError for some).

    Raises:
      UserError: the shapes or an option do not fit.

    Source:
      Guo et al., "Distilling object detectors via decoupled features", CVPR 2021, section 3.1: the
      binary mask of ground-truth boxes. Its rounding is that of the released code.

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 9.0, 5.0]])
      >>> box_mask(boxes, jnp.array([True]), stride=4, size=(2, 3)).astype(int)
      Array([[1, 1, 0],
             [0, 0, 0]], dtype=int32)
    """
    _check(boxes, valid, stride, size)
    cells = truncate_divide(boxes, divisor=stride).astype(jnp.int32)
    first = jnp.maximum(cells[..., :2], 0)
    last = cells[..., 2:]
    thin = first == last
    if single_cell:
        thin = jnp.any(thin, axis=-1, keepdims=True)
        last = jnp.where(thin, first + 1, last)
    else:
        last = last + thin
    row, column = (
        (cell >= first[..., axis, None]) & (cell < last[..., axis, None])
        for axis, cell in ((1, _cells(size[0], boxes.ndim)), (0, _cells(size[1], boxes.ndim)))
    )
    covered = (row & valid[..., None])[..., :, None] & column[..., None, :]
    return jnp.any(covered, axis=-3)


def box_masks(
    boxes: Float[Array, "*b g 4"],
    valid: Bool[Array, "*b g"],
    levels: Array,
    *,
    strides: tuple[float, ...],
    sizes: tuple[tuple[int, int], ...],
    single_cell: bool = False,
) -> tuple[Bool[Array, "*b _ _"], ...]:
    """Marks the cells that boxes cover on a pyramid, each box on its level alone.

    The released code takes `pyramid_levels` with `inclusive=True`, base 56 and all five levels of
    the pyramid, for RetinaNet too. What fits Faster R-CNN is the assignment of its RoIs: four
    levels, not inclusive. What fits RetinaNet is the base that puts a box on the level of its
    anchors, see `pyramid_levels`.

    Args:
      boxes: `[*b g 4]`, in pixels of the image.
      valid: `[*b g]`, False at the padding.
      levels: int `[*b g]`, the level of every box.
      strides: pixels of the image per cell of every level.
      sizes: rows and columns of every level.
      single_cell: as in `box_mask`.

    Returns:
      Of every level `[*b h w]`.

    Raises:
      UserError: the shapes or an option do not fit.

    Source:
      Guo et al., CVPR 2021, section 3.1.

    Example:
      >>> boxes, valid = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([True])
      >>> masks = box_masks(
      ...     boxes, valid, jnp.array([1]), strides=(2.0, 4.0), sizes=((2, 2), (1, 1))
      ... )
      >>> [int(mask.sum()) for mask in masks]
      [0, 1]
    """
    if len(strides) != len(sizes) or levels.shape != valid.shape:
        raise UserError(
            f"{len(strides)} strides, {len(sizes)} sizes and levels of shape {levels.shape}; "
            f"expected as many of both, and levels {valid.shape}"
        )
    return tuple(
        box_mask(
            boxes, valid & (levels == index), stride=stride, size=size, single_cell=single_cell
        )
        for index, (stride, size) in enumerate(zip(strides, sizes, strict=True))
    )


def near_object_mask(
    boxes: Float[Array, "g 4"],
    valid: Bool[Array, "g"],
    anchors: Float[Array, "p 4"],
    *,
    size: tuple[int, int],
    share: float = 0.5,
) -> Bool[Array, "h w"]:
    """Marks the cells with an anchor that overlaps an object nearly as much as the best one does.

    A cell counts when one of its anchors has an IoU with a box above `share` times the largest IoU
    of that box with any anchor of the level.

    Args:
      boxes: `[g 4]`.
      valid: `[g]`, boxes that count: not padding, and on this level.
      anchors: `[p 4]`, as `grid_anchors` orders them, p = rows x columns x anchors of a cell.
      size: rows and columns of the map.
      share: in [0, 1].

    Returns:
      `[h w]`. For many images: `vmap`.

    Raises:
      UserError: the shapes or an option do not fit.

    Source:
      Wang et al., "Distilling object detectors with fine-grained feature imitation", CVPR 2019,
      section 3.1, as the released code of DeFeat compares with it: a box counts on one level.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]])
      >>> box, valid = jnp.array([[0.0, 0.0, 5.0, 4.0]]), jnp.array([True])
      >>> near_object_mask(box, valid, anchors, size=(1, 2)).tolist()
      [[True, False]]
    """
    _check(boxes, valid, 1.0, size)
    if anchors.ndim != 2 or anchors.shape[0] % (size[0] * size[1]) or not 0.0 <= share <= 1.0:
        raise UserError(
            f"anchors have the shape {anchors.shape} on a map of {size} and share is {share}; "
            "expected the same number of anchors for every cell, and a share in [0, 1]"
        )
    if boxes.shape[0] == 0:
        return jnp.zeros(size, bool)
    overlaps = box_iou(boxes, anchors)
    near = overlaps > share * jnp.max(overlaps, axis=1, keepdims=True)
    near = jnp.any(near & valid[:, None], axis=0)
    return jnp.any(near.reshape(*size, -1), axis=-1)


def gaussian_mask(
    boxes: Float[Array, "*b g 4"],
    valid: Bool[Array, "*b g"],
    *,
    stride: float,
    size: tuple[int, int],
    spread: float = 2.0,
) -> Float[Array, "*b h w"]:
    """Weights cells inside boxes by how near they are to the centre.

    exp(-(dx / (spread w / 2))^2 - (dy / (spread h / 2))^2) with dx, dy from the centre of the cell
    to that of the box and w, h the sides of the box; 0 outside; the largest where boxes overlap.

    Args:
      boxes: `[*b g 4]`, in pixels of the image.
      valid: `[*b g]`, boxes that count: not padding, and on this level.
      stride: pixels of the image per cell, above 0.
      size: rows and columns of the map.
      spread: in half sides of the box, above 0.

    Returns:
      `[*b h w]`, float32 in [0, 1].

    Raises:
      UserError: the shapes or an option do not fit.

    Source:
      Sun et al., "Distilling object detectors with task adaptive regularization", 2020, the mask of
      its feature distillation. Cells are those of `box_mask`.

    Example:
      >>> box, valid = jnp.array([[0.0, 0.0, 3.0, 1.0]]), jnp.array([True])
      >>> (1000 * gaussian_mask(box, valid, stride=1, size=(1, 4), spread=1.0)).astype(int)
      Array([[ 641, 1000,  641,    0]], dtype=int32)
    """
    _check(boxes, valid, stride, size)
    if not spread > 0:
        raise UserError(f"spread is {spread}; expected a number above 0")
    if boxes.shape[-2] == 0:
        return jnp.zeros((*boxes.shape[:-2], *size), jnp.float32)
    wide = boxes.astype(jnp.float32)
    # One box at a time, then the largest: a mask per box is what each cell belongs to.
    inside = jax.vmap(
        lambda one, counts: box_mask(one, counts, stride=stride, size=size),
        in_axes=(-3, -2),
        out_axes=-3,
    )(wide[..., None, :], valid[..., None])
    height, width = (
        jnp.exp(-jnp.square(_distance(wide[..., i::2], stride, extent) / spread))
        for i, extent in ((1, size[0]), (0, size[1]))
    )
    weights = height[..., :, None] * width[..., None, :]
    return jnp.max(jnp.where(inside, weights, 0.0), axis=-3)


def resize_mask(mask: Bool[Array, "*b h w"], *, size: tuple[int, int]) -> Bool[Array, "*b oh ow"]:
    """Takes a mask to a map of another size by nearest neighbour.

    Output row i reads row floor(i h / oh), and columns likewise, h / oh in float32.

    Args:
      mask: `[*b h w]`.
      size: rows and columns of the result.

    Returns:
      `[*b oh ow]`.

    Raises:
      UserError: the mask has fewer than two axes, or something is empty.

    Source:
      `interpolate(mode="nearest")` of PyTorch, with which the released DeFeat takes the mask of its
      first level to the stages of the backbone.

    Example:
      >>> resize_mask(jnp.array([[True, False, False, True]]), size=(1, 2)).tolist()
      [[True, False]]
    """
    if mask.ndim < 2 or 0 in mask.shape[-2:] or min(size) < 1:
        raise UserError(f"mask of shape {mask.shape} to {size}; expected [*b, h, w], none empty")
    rows, columns = (
        nearest_rows(old=old, new=new) for new, old in zip(size, mask.shape[-2:], strict=True)
    )
    return mask[..., rows, :][..., columns]


def _distance(ends: Array, stride: float, extent: int) -> Array:
    """From cells to the middle between two ends, in half the distance of these; `[*b g extent]`."""
    centre = jnp.mean(ends, axis=-1, keepdims=True)
    half = jnp.maximum((ends[..., 1:] - ends[..., :1]) * 0.5, 0.5 * stride)
    return ((_cells(extent, ends.ndim) + 0.5) * stride - centre) / half


def _cells(extent: int, rank: int) -> Array:
    return jnp.arange(extent).reshape((1,) * (rank - 1) + (-1,))


def _check(boxes: Array, valid: Array, stride: float, size: tuple[int, int]) -> None:
    if boxes.ndim < 2 or boxes.shape[-1] != 4 or boxes.shape[:-1] != valid.shape:
        raise UserError(
            f"boxes have the shape {boxes.shape} and valid {valid.shape}; expected [*b, g, 4] and "
            "[*b, g]"
        )
    if not stride > 0 or len(size) != 2 or min(size) < 1:
        raise UserError(f"stride {stride} and size {size}; expected both above 0")
