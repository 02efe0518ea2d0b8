"""Where on a pyramid a student imitates its teacher: masks of objects, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgkd_jax.methods.scenes import Objects
from fgkd_jax.ops.box_masks import box_masks, gaussian_mask, near_object_mask
from fgkd_jax.typing import Array, Float, Int

Masks = tuple[Any, ...]
"""Of every level `[b h w]`, bool or weights in [0, 1]."""


class Scene(NamedTuple):
    """Objects on a pyramid.

    Attributes:
      objects: of a batch.
      levels: int `[b g]`, the level that each object counts on.
      strides: pixels from one cell to the next, of every level.
      sizes: rows and columns of every level.
      anchors: of every level `[p 4]`.
      single_cell: as in `box_mask`.
    """

    objects: Objects
    levels: Int[Array, "b g"]
    strides: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    anchors: tuple[Float[Array, "_ 4"], ...]
    single_cell: bool = False


def boxes(scene: Scene) -> Masks:
    """Marks the cells inside of boxes.

    Args:
      scene: the objects.

    Returns:
      The masks.

    Source:
      Guo et al., "Distilling object detectors via decoupled features", CVPR 2021, section 3.1.
    """
    return box_masks(
        scene.objects.boxes,
        scene.objects.valid,
        scene.levels,
        strides=scene.strides,
        sizes=scene.sizes,
        single_cell=scene.single_cell,
    )


def everything(scene: Scene) -> Masks:
    """Marks all cells: imitation of whole feature maps.

    Args:
      scene: the objects.

    Returns:
      The masks.
    """
    return tuple(jnp.ones((len(scene.levels), *size), bool) for size in scene.sizes)


def near_anchors(scene: Scene) -> Masks:
    """Marks the cells with an anchor that overlaps an object well.

    Args:
      scene: the objects.

    Returns:
      The masks.

    Source:
      Wang et al., "Distilling object detectors with fine-grained feature imitation", CVPR 2019.
    """
    masks = []
    for level, (size, anchors) in enumerate(zip(scene.sizes, scene.anchors, strict=True)):
        mark = partial(near_object_mask, anchors=anchors, size=size)
        here = scene.objects.valid & (scene.levels == level)
        masks.append(jax.vmap(mark)(scene.objects.boxes, here))
    return tuple(masks)


def gaussian(scene: Scene) -> Masks:
    """Weights the cells inside of boxes, the more the nearer they are to the centre.

    Args:
      scene: the objects.

    Returns:
      The masks.

    Source:
      Sun et al., "Distilling object detectors with task adaptive regularization", 2020.
    """
    masks = []
    for level, (size, stride) in enumerate(zip(scene.sizes, scene.strides, strict=True)):
        here = scene.objects.valid & (scene.levels == level)
        masks.append(gaussian_mask(scene.objects.boxes, here, stride=stride, size=size))
    return tuple(masks)


MASKS: Mapping[str, Callable[[Scene], Masks]] = {
    "boxes": boxes,
    "everything": everything,
    "near_anchors": near_anchors,
    "gaussian": gaussian,
}
"""Functions from objects to masks, by the name that a config gives as `method.mask`."""
