"""The shapes of a training batch, by which methods are initialised without one."""

from typing import Any

import jax
import numpy as np

from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.data.detection_transforms import Size
from fgkd_jax.data.options import DataOptions
from fgkd_jax.typing import Batch


def batch_spec(
    info: DatasetInfo, options: DataOptions | DetectionOptions, *, batch_size: int
) -> Batch:
    """Describes a training batch of a data set, of images, of features, or of scenes with boxes.

    Args:
      info: says whether there are features, and of which shape.
      options: says how large an image is.
      batch_size: examples of a global batch.

    Returns:
      `jax.ShapeDtypeStruct` by key; of scenes, those of the first bucket.
    """
    if isinstance(options, DetectionOptions):
        return scene_spec(options.buckets[0], max_boxes=options.max_boxes, batch_size=batch_size)
    spec = image_spec(options, batch_size=batch_size)
    if info.feature_shape is None:
        return spec
    features = jax.ShapeDtypeStruct((batch_size, *info.feature_shape), np.dtype(info.feature_dtype))
    return {"features": features, **{key: spec[key] for key in ("label", "id", "mask")}}


def image_spec(options: DataOptions, *, batch_size: int) -> Batch:
    """Describes a training batch of images with labels.

    Args:
      options: says how large an image is.
      batch_size: examples of a global batch.

    Returns:
      `jax.ShapeDtypeStruct` by key.
    """
    others = (batch_size, options.views - 1, *options.size, 3)
    text: dict[str, Any] = {}
    if options.text is not None:
        shape = (batch_size, options.text.max_phrases, options.text.max_words)
        text["phrases"] = jax.ShapeDtypeStruct(shape, np.int32)
        text["phrase_lengths"] = jax.ShapeDtypeStruct(shape[:2], np.int32)
    return {
        **({"other_views": jax.ShapeDtypeStruct(others, np.uint8)} if options.views > 1 else {}),
        "image": jax.ShapeDtypeStruct((batch_size, *options.size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "id": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), np.bool_),
        **text,
    }


def scene_spec(bucket: Size, *, max_boxes: int, batch_size: int) -> Batch:
    """Describes a batch of scenes with boxes.

    Args:
      bucket: (height, width).
      max_boxes: rows of boxes of an image.
      batch_size: examples of a global batch.

    Returns:
      `jax.ShapeDtypeStruct` by key.
    """
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((*bucket, 3), np.uint8),
        "valid_size": ((2,), np.int32),
        "original_size": ((2,), np.int32),
        "boxes": ((max_boxes, 4), np.float32),
        "box_labels": ((max_boxes,), np.int32),
        "box_mask": ((max_boxes,), np.bool_),
        "box_ignored": ((max_boxes,), np.bool_),
        "dropped_boxes": ((), np.int32),
        "id": ((), np.int32),
        "mask": ((), np.bool_),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }
