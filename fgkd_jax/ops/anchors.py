"""Anchors: boxes of fixed shapes over the cells of a feature map."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.ops.division import ceil_divide
from fgkd_jax.typing import Array, Bool, Float, Num


def base_anchors(
    *, sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False
) -> Float[Array, "a 4"]:
    """Returns the anchors of one cell, around the origin.

    Size s and ratio r make a box of width s / sqrt(r) and height s sqrt(r), the first ratio in all
    its sizes first. Faster R-CNN over a pyramid has one size per level, 8 times the stride;
    RetinaNet has three, 4 times the stride times 1, 2^(1/3) and 2^(2/3).

    Args:
      sizes: roots of the areas, in pixels, above 0.
      ratios: height over width, above 0.
      rounded: whether coordinates are rounded to whole pixels, as torchvision does.

    Returns:
      `[a 4]`, float32, a = ratios times sizes.

    Raises:
      UserError: a size or a ratio is missing or not above 0.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, section 3.1; Lin et al., "Focal loss for dense object
      detection", ICCV 2017, section 4. In the convention of mmdet 2.0: centred, not rounded.

    Example:
      >>> base_anchors(sizes=[8.0], ratios=[1.0, 4.0])
      Array([[-4., -4.,  4.,  4.],
             [-2., -8.,  2.,  8.]], dtype=float32)
    """
    for name, values in (("sizes", sizes), ("ratios", ratios)):
        if not values or not all(value > 0 for value in values):
            raise UserError(f"{name} of anchors are {list(values)}; expected numbers above 0")
    root = np.sqrt(np.asarray(ratios, np.float64))[:, None]
    width, height = ((np.asarray(sizes) * x).ravel() / 2 for x in (1 / root, root))
    boxes = np.stack([-width, -height, width, height], axis=1)
    return jnp.asarray(np.round(boxes) if rounded else boxes, jnp.float32)


def grid_anchors(
    base: Float[Array, "a 4"], *, stride: float, size: tuple[int, int]
) -> Float[Array, "p 4"]:
    """Returns the anchors of all cells of a feature map.

    Cell (row, column) has the anchors `base` moved by (column, row) times the stride: its corner,
    not its centre.

    Args:
      base: `[a 4]`, of one cell.
      stride: pixels from one cell to the next.
      size: rows and columns of the map.

    Returns:
      `[p 4]`, p = rows x columns x a, in this order.

    Raises:
      UserError: the shape or an option does not fit.

    Source:
      Ren et al., NIPS 2015, section 3.1, in the convention of mmdet 2.0.

    Example:
      >>> grid_anchors(jnp.array([[-1.0, -1.0, 1.0, 1.0]]), stride=4, size=(1, 2))
      Array([[-1., -1.,  1.,  1.],
             [ 3., -1.,  5.,  1.]], dtype=float32)
    """
    if base.ndim != 2 or base.shape[1] != 4:
        raise UserError(f"base has the shape {base.shape}; expected [a, 4]")
    _check_grid(stride, size)
    y, x = (np.arange(extent, dtype=np.float32) * stride for extent in size)
    shifts = np.stack(np.broadcast_arrays(x[None], y[:, None], x[None], y[:, None]), axis=-1)
    moved = jnp.asarray(shifts, base.dtype)[:, :, None] + base[None, None]
    return moved.reshape(-1, 4)


def valid_anchors(
    image_size: Num[Array, "*b 2"], *, stride: float, size: tuple[int, int], per_cell: int
) -> Bool[Array, "*b p"]:
    """Tells which anchors belong to cells that lie on the image, not wholly on its padding.

    A cell counts when its row is below ceil(rows / stride) and its column likewise.

    Args:
      image_size: `[*b 2]`, rows and columns of each image inside its padded frame.
      stride: pixels from one cell to the next.
      size: rows and columns of the feature map.
      per_cell: anchors of a cell.

    Returns:
      `[*b p]`, in the order of `grid_anchors`.

    Raises:
      UserError: the shape or an option does not fit.

    Source:
      The valid flags of mmdet 2.0.

    Example:
      >>> valid_anchors(jnp.array([8, 5]), stride=4, size=(2, 3), per_cell=1).astype(int)
      Array([1, 1, 0, 1, 1, 0], dtype=int32)
    """
    if image_size.ndim < 1 or image_size.shape[-1] != 2:
        raise UserError(f"image_size has the shape {image_size.shape}; expected [*b, 2]")
    _check_grid(stride, size)
    if per_cell < 1:
        raise UserError(f"per_cell is {per_cell}; expected at least 1")
    cells = ceil_divide(image_size, divisor=stride)[..., None]
    row, column = (
        _lead(jnp.arange(extent), image_size.ndim) < cells[..., axis, :]
        for axis, extent in enumerate(size)
    )
    valid = row[..., :, None] & column[..., None, :]
    return jnp.repeat(valid.reshape(*image_size.shape[:-1], -1), per_cell, axis=-1)


def inside_anchors(
    anchors: Float[Array, "p 4"], image_size: Num[Array, "2"], *, border: float = 0.0
) -> Bool[Array, "p"]:
    """Tells which anchors cross the border of the image by no more than given.

    Args:
      anchors: `[p 4]`.
      image_size: `[2]`, rows and columns.
      border: pixels by which an anchor may cross.

    Returns:
      `[p]`.

    Raises:
      UserError: a shape does not fit.

    Source:
      Ren et al., NIPS 2015, section 3.3. mmdet leaves an anchor out that reaches x2 = columns +
      border exactly, while it keeps one at x1 = -border; here both count as inside.

    Example:
      >>> inside_anchors(jnp.array([[-1.0, 0.0, 2.0, 2.0]]), jnp.array([4, 4]), border=1.0)
      Array([ True], dtype=bool)
    """
    if anchors.ndim != 2 or anchors.shape[-1] != 4 or image_size.shape != (2,):
        raise UserError(
            f"anchors have the shape {anchors.shape} and image_size {image_size.shape}; expected "
            "[p, 4] and [2]"
        )
    limit = _lead(image_size[::-1].astype(anchors.dtype) + border, 2)
    return jnp.all((anchors[:, :2] >= -border) & (anchors[:, 2:] <= limit), axis=1)


def _lead(x: Array, rank: int) -> Array:
    """Gives an array axes of length 1 in front."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def _check_grid(stride: float, size: tuple[int, int]) -> None:
    if not stride > 0 or len(size) != 2 or min(size) < 1:
        raise UserError(f"stride {stride} and size {size}; expected both above 0")
