"""Geometry on the host: windows, resizes and flips that carry boxes, parts and masks along.

Each transform is a small object: `transform(example, rng) -> example`, where `example["image"]` is
uint8[h, w, 3] and `rng` a NumPy generator that only random transforms draw from. Nothing is
changed in place. Colour is not the host's business.

A window is cut in whole pixels and resized in one step by `images.resize`. Afterwards boxes are
clipped to the image (one that lies outside has no area), and a part outside is no longer visible;
invisible parts are at (0, 0).
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from fgkd_jax.data.base import Example
from fgkd_jax.data.images import resize, resize_mask
from fgkd_jax.errors import UserError

Transform = Callable[[Example, np.random.Generator], Example]
Window = tuple[int, int, int, int]
"""x, y, width and height in whole pixels; it may reach over the border of the image."""


@dataclass(frozen=True)
class Compose:
    """Several transforms in order.

    Attributes:
      transforms: the first is applied first.
    """

    transforms: tuple[Transform, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Applies them all."""
        for transform in self.transforms:
            example = transform(example, rng)
        return example


@dataclass(frozen=True)
class _Crop(abc.ABC):
    """What the transforms that cut a window have in common; `_window` says which one."""

    size: tuple[int, int]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Cuts the window out and resizes it."""
        return crop_and_resize(example, window=self._window(example, rng), size=self.size)

    @abc.abstractmethod
    def _window(self, example: Example, rng: np.random.Generator) -> Window: ...


@dataclass(frozen=True)
class Resize(_Crop):
    """The whole image at a given size; the aspect ratio is not kept.

    Attributes:
      size: (height, width).
    """

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        height, width = example["image"].shape[:2]
        return 0, 0, width, height


@dataclass(frozen=True)
class ResizeShorterCenterCrop(_Crop):
    """The central window of the output's aspect ratio, at a given size.

    The same as resizing the shorter side to size / crop_fraction and cutting the centre out, in
    one step.

    Attributes:
      size: (height, width).
      crop_fraction: share of the largest such window that is kept, in (0, 1].
    """

    crop_fraction: float = 0.875

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        height, width = example["image"].shape[:2]
        w, h = _largest_window(height, width, self.size, self.crop_fraction)
        return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class ResizeShorterRandomCrop(_Crop):
    """A window as `ResizeShorterCenterCrop` takes it, at a random place.

    Attributes:
      size: (height, width).
      crop_fraction: share of the largest such window that is kept, in (0, 1].
    """

    crop_fraction: float = 0.875

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        height, width = example["image"].shape[:2]
        w, h = _largest_window(height, width, self.size, self.crop_fraction)
        return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h


@dataclass(frozen=True)
class RandomResizedCrop(_Crop):
    """A window of random area, aspect ratio and place.

    Area is uniform in `scale`, the logarithm of the aspect ratio uniform in `ratio`. When ten
    draws do not fit into the image, the largest central window with an admissible ratio is taken.

    Attributes:
      size: (height, width).
      scale: least and largest share of the image's area.
      ratio: least and largest width / height of the window.

    Source:
      Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        height, width = example["image"].shape[:2]
        return _random_window(height, width, self.scale, self.ratio, rng)


@dataclass(frozen=True)
class ShiftCrop(_Crop):
    """The image moved by a random whole number of pixels, at a given size.

    What moves out is lost and what moves in is 0: with `max_shift=4` and 32-pixel images this is
    the usual padding of 4 and random crop of 32.

    Attributes:
      size: (height, width).
      max_shift: largest shift along either axis, in pixels of the original image.
    """

    max_shift: int = 4

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        height, width = example["image"].shape[:2]
        x, y = (int(v) for v in rng.integers(-self.max_shift, self.max_shift + 1, size=2))
        return x, y, width, height


@dataclass(frozen=True)
class HorizontalFlip:
    """A mirror image, with a given probability.

    Attributes:
      probability: in [0, 1].
      flip_pairs: rows of `parts` to exchange: the left eye of a mirrored bird is a right eye.
    """

    probability: float = 0.5
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Flips a coin, then perhaps the example."""
        if rng.random() >= self.probability:
            return example
        return flip(example, flip_pairs=self.flip_pairs)


@dataclass(frozen=True)
class CropToBox(_Crop):
    """The object's true box, with a margin: the control that knows where to look.

    The window is centred on the box, grown to the output's aspect ratio, and moved into the image;
    where it is larger than the image it is cut to it. A box outside the image counts as all of it.

    Attributes:
      size: (height, width).
      margin: added on each side, as a share of the box's width or height.
    """

    margin: float = 0.1

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        if "bbox" not in example:
            raise UserError(f"image {example['name']}: has no box; cropping to the box needs one")
        height, width = example["image"].shape[:2]
        limits = np.array([width, height, width, height], np.float32)
        x0, y0, x1, y1 = np.clip(example["bbox"], 0, limits).tolist()
        if x1 <= x0 or y1 <= y0:
            x0, y0, x1, y1 = 0.0, 0.0, width, height
        grown_w, grown_h = (x1 - x0) * (1 + 2 * self.margin), (y1 - y0) * (1 + 2 * self.margin)
        aspect = self.size[1] / self.size[0]
        w = max(1, min(width, round(max(grown_w, grown_h * aspect))))
        h = max(1, min(height, round(max(grown_h, grown_w / aspect))))
        x = min(max(0, round((x0 + x1 - w) / 2)), width - w)
        y = min(max(0, round((y0 + y1 - h) / 2)), height - h)
        return x, y, w, h


@dataclass(frozen=True)
class RandomCropOfBox(_Crop):
    """A window of random area, aspect ratio and place within the object's true box.

    The window is drawn as `RandomResizedCrop` draws one, in what `CropToBox` cuts out instead of in
    the whole image. What is learned so cannot rest on one part that is always there.

    Attributes:
      size: (height, width).
      margin: of `CropToBox`.
      scale: least and largest share of the area of the box, with its margin.
      ratio: least and largest width / height of the window.
    """

    margin: float = 0.1
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def _window(self, example: Example, rng: np.random.Generator) -> Window:
        left, top, width, height = CropToBox(self.size, self.margin)._window(example, rng)
        x, y, w, h = _random_window(height, width, self.scale, self.ratio, rng)
        return left + x, top + y, w, h


def crop_and_resize(example: Example, *, window: Window, size: tuple[int, int]) -> Example:
    """Cuts a window out of an example and resizes it.

    Args:
      example: its `image` decoded; `bbox`, `parts` and `mask` follow where present.
      window: (x, y, width, height) in whole pixels; it may reach over the border, where the image
        and the mask continue with 0.
      size: (height, width) of the result.

    Returns:
      A new example.
    """
    x, y, w, h = window
    out = {**example, "image": resize(_cut(example["image"], window), size)}
    factor = np.array([size[1] / w, size[0] / h], np.float32)
    if "bbox" in example:
        corners = (np.reshape(example["bbox"], (2, 2)) - np.array([x, y], np.float32)) * factor
        out["bbox"] = np.clip(corners, 0, np.array(size[::-1], np.float32)).reshape(4)
    if "parts" in example:
        out["parts"] = _visible(
            (example["parts"][:, :2] - np.array([x, y], np.float32)) * factor,
            example["parts"][:, 2],
            size,
        )
    if "mask" in example:
        out["mask"] = resize_mask(_cut(example["mask"], window), size)
    return out


def flip(example: Example, *, flip_pairs: tuple[tuple[int, int], ...] = ()) -> Example:
    """Mirrors an example left to right.

    Args:
      example: its `image` decoded; `bbox`, `parts` and `mask` follow where present.
      flip_pairs: rows of `parts` to exchange.

    Returns:
      A new example.
    """
    height, width = example["image"].shape[:2]
    out = {**example, "image": cv2.flip(example["image"], 1)}
    if "bbox" in example:
        x0, y0, x1, y1 = example["bbox"]
        out["bbox"] = np.array([width - x1, y0, width - x0, y1], np.float32)
    if "parts" in example:
        order = np.arange(len(example["parts"]))
        for left, right in flip_pairs:
            order[[left, right]] = right, left
        parts = example["parts"][order]
        points = np.stack([width - parts[:, 0], parts[:, 1]], axis=1)
        out["parts"] = _visible(points, parts[:, 2], (height, width))
    if "mask" in example:
        out["mask"] = cv2.flip(example["mask"], 1)
    return out


def _largest_window(
    height: int, width: int, size: tuple[int, int], fraction: float
) -> tuple[int, int]:
    """Width and height of the largest window with the aspect of `size`, times the fraction."""
    unit = min(height / size[0], width / size[1]) * fraction
    return max(1, round(size[1] * unit)), max(1, round(size[0] * unit))


def _cut(image: np.ndarray, window: Window) -> np.ndarray:
    """Cuts (x, y, width, height) out of an image that continues with 0 over its border."""
    height, width = image.shape[:2]
    x, y, w, h = window
    inside = image[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    pad = (
        min(max(0, -y), h),
        min(max(0, y + h - height), h),
        min(max(0, -x), w),
        min(max(0, x + w - width), w),
    )
    if not any(pad):
        return inside
    if not inside.size:
        return np.zeros((h, w, *image.shape[2:]), image.dtype)
    return cv2.copyMakeBorder(inside, *pad, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def _visible(points: np.ndarray, visible: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joins points and visibility to float32[p, 3]; what lies outside `size` is invisible."""
    limit = np.array(size[::-1], np.float32)
    seen = (visible > 0) & np.all((points >= 0) & (points <= limit), axis=1)
    return np.column_stack([np.where(seen[:, None], points, 0), seen]).astype(np.float32)


def _random_window(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Window:
    """A window of random area, aspect ratio and place in an image, see `RandomResizedCrop`."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = np.clip(width / height, *ratio)
    w = max(1, round(min(width, height * aspect)))
    h = max(1, round(min(height, width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h
