"""Geometry for detection: crops, flips and resizes into padded images of a few sizes.

The image is resized by one factor along both axes, to whole pixels, and put into the top left
corner of its bucket; the rest of the bucket is 0. Boxes are scaled by the sizes in pixels that
result, so they keep to the image exactly.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from fgkd_jax.data.base import Example
from fgkd_jax.data.boxes import clip_to_image
from fgkd_jax.data.images import resize
from fgkd_jax.errors import UserError

Size = tuple[int, int]
"""Height and width."""


class Scene(NamedTuple):
    """A decoded image with its boxes.

    Attributes:
      image: uint8[h, w, 3].
      boxes: float32[g, 4].
      labels: int32[g].
      ignored: bool[g].
      dropped: boxes lost so far.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    dropped: int = 0

    def select(self, kept: np.ndarray) -> "Scene":
        """Returns the scene with some of its boxes, the others counted as dropped."""
        return self._replace(
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            ignored=self.ignored[kept],
            dropped=self.dropped + int((~kept).sum()),
        )


def choose_bucket(size: Size, *, buckets: tuple[Size, ...]) -> int:
    """Says which bucket an image belongs to.

    Args:
      size: (height, width) of the image.
      buckets: (height, width) of each.

    Returns:
      The one in which the image becomes largest; of several such the smallest, then the first.

    Example:
      >>> choose_bucket((480, 640), buckets=((800, 1344), (1344, 800)))
      0
    """
    height, width = (max(1, side) for side in size)
    factors = [min(h / height, w / width) for h, w in buckets]
    return min(range(len(buckets)), key=lambda i: (-factors[i], buckets[i][0] * buckets[i][1]))


def fitted_size(size: Size, *, bucket: Size, scale: float = 1.0) -> Size:
    """Says how large an image becomes in a bucket.

    Args:
      size: (height, width) of the image.
      bucket: (height, width).
      scale: share of the largest size that fits, in (0, 1].

    Returns:
      (height, width), at least 1 x 1.
    """
    factor = scale * min(bucket[0] / size[0], bucket[1] / size[1])
    height, width = (
        min(max(1, round(side * factor)), most) for side, most in zip(size, bucket, strict=True)
    )
    return height, width


def resize_scene(scene: Scene, *, size: Size, least_side: float = 0.0) -> Scene:
    """Resizes an image with its boxes.

    Args:
      scene: any.
      size: (height, width) to give it.
      least_side: a box with a side of at most this many pixels is dropped afterwards.

    Returns:
      The scene; its boxes are clipped to the image.
    """
    height, width = scene.image.shape[:2]
    factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    clipped = clip_to_image(scene.boxes * factors, size=size, least_side=least_side)
    resized = scene._replace(image=resize(scene.image, size), boxes=clipped.boxes)
    return resized.select(clipped.kept)


def crop_scene(
    scene: Scene, *, window: tuple[int, int, int, int], least_visible: float = 0.0
) -> Scene:
    """Cuts a window out of an image.

    Args:
      scene: any.
      window: (x, y, width, height) in whole pixels, within the image.
      least_visible: a box of whose area less than this share is in the window is dropped, in
        [0, 1]; with 0 any box with area in it is kept.

    Returns:
      The scene; its boxes are clipped to the window.
    """
    x, y, width, height = window
    moved = scene.boxes - np.array([x, y, x, y], np.float32)
    clipped = clip_to_image(moved, size=(height, width))
    kept = clipped.kept & (_areas(clipped.boxes) >= least_visible * _areas(moved))
    image = scene.image[y : y + height, x : x + width]
    return scene._replace(image=image, boxes=clipped.boxes).select(kept)


def flip_scene(scene: Scene) -> Scene:
    """Mirrors an image with its boxes left to right."""
    width = np.float32(scene.image.shape[1])
    x0, y0, x1, y1 = scene.boxes.T
    boxes = np.stack([width - x1, y0, width - x0, y1], axis=1)
    return scene._replace(image=cv2.flip(scene.image, 1), boxes=boxes)


def pad_scene(scene: Scene, *, bucket: Size, max_boxes: int) -> dict[str, Any]:
    """Fills an image and its boxes up to fixed shapes.

    Args:
      scene: at most of the bucket's size, with at most `max_boxes` boxes.
      bucket: (height, width).
      max_boxes: rows of the result's boxes.

    Returns:
      `image`, `valid_size`, `boxes`, `box_labels`, `box_mask`, `box_ignored` and `dropped_boxes`,
      as the batch has them.
    """
    height, width = scene.image.shape[:2]
    count = len(scene.boxes)
    image = np.zeros((*bucket, 3), np.uint8)
    image[:height, :width] = scene.image
    boxes = np.zeros((max_boxes, 4), np.float32)
    boxes[:count] = scene.boxes
    labels = np.zeros(max_boxes, np.int32)
    labels[:count] = scene.labels
    ignored = np.zeros(max_boxes, bool)
    ignored[:count] = scene.ignored
    return {
        "image": image,
        "valid_size": np.array([height, width], np.int32),
        "boxes": boxes,
        "box_labels": labels,
        "box_mask": np.arange(max_boxes) < count,
        "box_ignored": ignored,
        "dropped_boxes": np.int32(scene.dropped),
    }


@dataclass(frozen=True)
class TrainGeometry:
    """What is done to a training image: perhaps a crop, a scale, perhaps a mirror image.

    Attributes:
      max_boxes: of more boxes a random choice is kept.
      scale: least and largest share of the largest size that fits the bucket.
      crop_probability: of a crop.
      crop_scale: least and largest side of the window, as a share of the image's; height and width
        are drawn apart.
      least_visible: share of a box that must be left by a crop.
      least_side: of a box, in pixels of the result: smaller ones are dropped.
      flip_probability: of a mirror image.
    """

    max_boxes: int
    scale: tuple[float, float] = (1.0, 1.0)
    crop_probability: float = 0.0
    crop_scale: tuple[float, float] = (0.5, 1.0)
    least_visible: float = 0.3
    least_side: float = 1.0
    flip_probability: float = 0.5

    def __call__(self, example: Example, bucket: Size, rng: np.random.Generator) -> dict[str, Any]:
        """Transforms a decoded example."""
        scene = _scene(example)
        # The same number of draws for every image, whatever comes of them.
        crop, flip, scale = rng.random() < self.crop_probability, rng.random(), rng.random()
        shares, places = rng.uniform(*self.crop_scale, size=2), rng.random(2)
        if crop:
            height, width = scene.image.shape[:2]
            h, w = (max(1, round(s * n)) for s, n in zip(shares, (height, width), strict=True))
            y, x = int(places[0] * (height - h + 1)), int(places[1] * (width - w + 1))
            scene = crop_scene(scene, window=(x, y, w, h), least_visible=self.least_visible)
        low, high = self.scale
        height, width = scene.image.shape[:2]
        size = fitted_size((height, width), bucket=bucket, scale=low + (high - low) * scale)
        scene = resize_scene(scene, size=size, least_side=self.least_side)
        if flip < self.flip_probability:
            scene = flip_scene(scene)
        if len(scene.boxes) > self.max_boxes:
            kept = np.zeros(len(scene.boxes), bool)
            kept[rng.choice(len(kept), self.max_boxes, replace=False)] = True
            scene = scene.select(kept)
        return pad_scene(scene, bucket=bucket, max_boxes=self.max_boxes)


@dataclass(frozen=True)
class EvalGeometry:
    """What is done to an image under evaluation: it is made as large as its bucket allows.

    Attributes:
      max_boxes: more are an error, for none may be left out.
    """

    max_boxes: int

    def __call__(self, example: Example, bucket: Size, rng: np.random.Generator) -> dict[str, Any]:
        """Transforms a decoded example; draws nothing."""
        del rng
        scene = _scene(example)
        if len(scene.boxes) > self.max_boxes:
            raise UserError(
                f"image {example['name']}: has {len(scene.boxes)} boxes; expected at most "
                f"max_boxes, which is {self.max_boxes}"
            )
        height, width = scene.image.shape[:2]
        scene = resize_scene(scene, size=fitted_size((height, width), bucket=bucket))
        return pad_scene(scene, bucket=bucket, max_boxes=self.max_boxes)


def _scene(example: Example) -> Scene:
    """The scene of a decoded example."""
    return Scene(
        example["image"],
        np.asarray(example["boxes"], np.float32).reshape(-1, 4),
        np.asarray(example["box_labels"], np.int32),
        np.asarray(example["box_ignored"], bool),
    )


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes [g, 4]."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
