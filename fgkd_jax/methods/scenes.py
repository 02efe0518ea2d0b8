"""Batches of scenes with boxes, as detectors and what teaches them read them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgkd_jax.protocols import LossTerm, Metric
from fgkd_jax.typing import Array, Batch, Bool, Float, Int, Key


class Objects(NamedTuple):
    """What is to be found in the images of a batch.

    Attributes:
      boxes: float32 [b, g, 4], in pixels of the batch's images.
      labels: int32 [b, g].
      valid: bool [b, g], False at the padding, and for objects that need not be found.
    """

    boxes: Float[Array, "b g 4"]
    labels: Int[Array, "b g"]
    valid: Bool[Array, "b g"]


def image_sizes(batch: Batch) -> Int[Array, "b 2"]:
    """Returns rows and columns of the images of a batch without their padding.

    Args:
      batch: `image` [b, h, w, 3] and, where images are padded, `valid_size` int [b, 2].

    Returns:
      int32 [b, 2].
    """
    image = batch["image"]
    if "valid_size" in batch:
        return batch["valid_size"]
    return jnp.broadcast_to(jnp.asarray([image.shape[1:3]], jnp.int32), (len(image), 2))


def objects(batch: Batch) -> Objects:
    """Returns what detectors are trained to find; crowds and the like are left out.

    Args:
      batch: of detection.

    Returns:
      The objects.
    """
    wanted = batch["box_mask"] & ~batch["box_ignored"]
    return Objects(batch["boxes"], batch["box_labels"], wanted)


def dropped_boxes(batch: Batch) -> Metric:
    """Counts the boxes per image that augmentation or `max_boxes` left out.

    Args:
      batch: of detection.

    Returns:
      The figure.
    """
    return batch["dropped_boxes"].astype(jnp.float32), batch["mask"].astype(jnp.float32)


def image_keys(key: Key[Array, ""], batch: Batch) -> Key[Array, "b"]:
    """Makes a key for each image, whatever batch it is in.

    Args:
      key: a typed PRNG key.
      batch: with `id` int [b].

    Returns:
      One key per image.
    """
    fold: Callable[[Array], Array] = functools.partial(jax.random.fold_in, key)
    return jax.vmap(fold)(batch["id"])


def term(part: tuple[Array, Array], batch: Batch, *, weight: float = 1.0) -> LossTerm:
    """Makes a loss term of the sums and counts of images.

    Args:
      part: sum [b] and count [b].
      batch: with `mask` bool [b].
      weight: of the term.

    Returns:
      The term; rows that hold no example count nothing.
    """
    total, count = (jnp.where(batch["mask"], values, 0.0) for values in part)
    return LossTerm(sum=total, count=count, weight=weight)
