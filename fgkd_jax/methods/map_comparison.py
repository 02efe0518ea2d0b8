"""The loss terms of feature maps of a student and its teacher."""

from typing import NamedTuple

import jax.numpy as jnp

from fgkd_jax.losses.decoupled import decoupled_features
from fgkd_jax.methods.detector_network import Maps
from fgkd_jax.methods.scenes import image_sizes, term
from fgkd_jax.methods.teaching_masks import Masks
from fgkd_jax.protocols import LossTerm
from fgkd_jax.typing import Array, Batch, Bool, Float

Terms = dict[str, LossTerm]
"""Terms by name."""


class ComparedMaps(NamedTuple):
    """Maps of student and teacher that are compared, from fine to coarse.

    Attributes:
      name: of their terms.
      indices: what each is called there.
      adapters: name of the student's adapters among the parameters.
      student: the student's maps.
      teacher: the teacher's.
      masks: of objects.
      strides: pixels from one cell to the next, of each map.
      weights: of the terms inside and outside of the masks.
    """

    name: str
    indices: tuple[int, ...]
    adapters: str
    student: Maps
    teacher: Maps
    masks: Masks
    strides: tuple[int, ...]
    weights: tuple[float, float]


def compare_maps(maps: ComparedMaps, batch: Batch, *, padding: bool) -> Terms:
    """Compares maps, inside and outside of masks.

    Args:
      maps: the student's adapted to the teacher's channels.
      batch: of detection.
      padding: whether the padding of images counts as background.

    Returns:
      Terms per image that have a weight, `NAME_object_INDEX` and `NAME_background_INDEX`: every
      map is divided by its own cells, and weighs as much as any other.
    """
    terms = {}
    for index, ours, theirs, mask, stride in zip(
        maps.indices, maps.student, maps.teacher, maps.masks, maps.strides, strict=True
    ):
        valid = None if padding else _on_images(batch, stride, map_size(ours))
        parts = decoupled_features(ours, theirs, mask, valid=valid)
        for name, part, weight in zip(parts._fields, parts, maps.weights, strict=True):
            if weight:
                share = weight / len(maps.indices)
                terms[f"{maps.name}_{name}_{index}"] = term(part, batch, weight=share)
    return terms


def map_size(x: Float[Array, "b h w c"]) -> tuple[int, int]:
    """Returns the rows and columns of a map.

    Args:
      x: `[b h w c]`.

    Returns:
      h and w.
    """
    return x.shape[1], x.shape[2]


def _on_images(batch: Batch, stride: int, size: tuple[int, int]) -> Bool[Array, "b h w"]:
    """Cells that begin on an image, not on its padding."""
    rows, columns = (
        stride * jnp.arange(count)[None] < image_sizes(batch)[:, axis, None]
        for axis, count in enumerate(size)
    )
    return rows[:, :, None] & columns[:, None, :]
