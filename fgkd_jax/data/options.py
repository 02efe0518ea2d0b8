"""The pipeline's options, and the geometry they name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from fgkd_jax.data import transforms
from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.data.text import TextOptions
from fgkd_jax.errors import UserError, nearest


@dataclass(frozen=True)
class DataOptions:
    """What the pipeline reads and how.

    Attributes:
      dataset: name of the data set, as `open_dataset` takes it.
      data_dir: its folder; None is `$FGKD_DATA_DIR` or `~/.cache/fgkd_jax`.
      image_size: side in pixels, or (height, width).
      train_geometry: "resize" (the whole image), "random_crop" (a window of the output's aspect
        ratio at a random place), "random_resized_crop" (of random area and aspect ratio),
        "shift_crop" (the image moved by a few pixels), "box" (the true box) or "box_crop" (of
        random area and aspect ratio within the true box).
      eval_geometry: "resize", "center_crop" or "box".
      crop_fraction: of "random_crop" and "center_crop": share of the largest window, in (0, 1].
      crop_scale: of "random_resized_crop" and "box_crop": least and largest share of the area, in
        (0, 1].
      crop_ratio: of the same: least and largest width / height.
      max_shift: of "shift_crop": pixels of the original image.
      box_margin: of "box" and "box_crop": added on each side, as a share of the box.
      flip_probability: of a mirror image in training, in [0, 1].
      views: of each training image, each with a geometry of its own; those after the first are the
        batch's `other_views`. The first is the one that there would be without them.
      images_per_class: 0 shuffles the training images. Otherwise a batch consists of groups of so
        many images of one class, of different classes where there are enough; 2 with a batch of 128
        gives 64 pairs, as contrastive losses want them. `train_iterator` says more.
      validation_fraction: share of each training class held out where the data set has no
        validation split of its own, in [0, 1).
      validation_classes: of a data set with unseen classes: share of the seen classes that play the
        unseen ones in a run by which hyperparameters are chosen, in [0, 1), or "authors" for those
        that the authors of the splits name. Such a run knows the seen classes alone, and has the
        splits `train` and `validation`; `validation_fraction` then says how many images of the
        other classes are validated on. 0 trains on all seen classes.
      validation_seed: chooses another division.
      meta_fraction: share of each class of what then remains that is set apart as the split `meta`,
        for the second steps of methods that have one, in [0, 1); 0 lets them take the batches of
        the main steps.
      train_fraction: share of each class of what then remains that is trained on, in (0, 1].
      word_vectors: file of embeddings of the attributes of the classes, see
        `fgkd_jax.data.word_vectors`; empty for those that come with the data set, if any.
      on_corrupt: what an image that cannot be read does: "raise" stops, "skip" goes on without.
      extra_keys: keys of `Example` to put into the batch besides the standard ones: "bbox",
        "parts", "mask" (as `object_mask`), "attributes", or what else the data set has.
      text: what is read of captions; None reads none.
      num_workers: processes that prepare batches and pass them on through /dev/shm, which must hold
        the batches prepared ahead; 0 prepares them in this one.
      read_threads: threads that prepare batches, in each process.
      prefetch_batches: batches that are prepared ahead, in each process; at least `read_threads`.
    """

    dataset: str = "procedural_birds/classification"
    data_dir: str | None = None
    image_size: int | tuple[int, int] = 224
    train_geometry: Literal[
        "resize", "random_crop", "random_resized_crop", "shift_crop", "box", "box_crop"
    ] = "random_resized_crop"
    eval_geometry: Literal["resize", "center_crop", "box"] = "center_crop"
    crop_fraction: float = 0.875
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    max_shift: int = 4
    box_margin: float = 0.1
    flip_probability: float = 0.5
    views: int = 1
    images_per_class: int = 0
    validation_fraction: float = 0.0
    validation_classes: float | str = 0.0
    validation_seed: int = 0
    meta_fraction: float = 0.0
    train_fraction: float = 1.0
    word_vectors: str = ""
    on_corrupt: Literal["raise", "skip"] = "raise"
    extra_keys: tuple[str, ...] = ()
    text: TextOptions | None = None
    num_workers: int = 0
    read_threads: int = 4
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        _check_choice("train_geometry", self.train_geometry, _TRAIN_GEOMETRY)
        _check_choice("eval_geometry", self.eval_geometry, _EVAL_GEOMETRY)
        _check_choice("on_corrupt", self.on_corrupt, ("raise", "skip"))
        check_value("image_size", self.image_size, min(self.size) > 0, "at least 1")
        check_value("crop_fraction", self.crop_fraction, 0 < self.crop_fraction <= 1, "in (0, 1]")
        low, high = self.crop_scale
        check_value(
            "crop_scale", self.crop_scale, 0 < low <= high <= 1, "0 < least <= largest <= 1"
        )
        low, high = self.crop_ratio
        check_value("crop_ratio", self.crop_ratio, 0 < low <= high, "0 < least <= largest")
        check_value("max_shift", self.max_shift, self.max_shift >= 0, "at least 0")
        check_value("box_margin", self.box_margin, self.box_margin >= 0, "at least 0")
        p = self.flip_probability
        check_value("flip_probability", p, 0 <= p <= 1, "in [0, 1]")
        check_value("views", self.views, self.views >= 1, "at least 1")
        m = self.images_per_class
        check_value("images_per_class", m, m >= 0, "at least 0")
        for name in ("validation_fraction", "meta_fraction"):
            f = getattr(self, name)
            check_value(name, f, 0 <= f < 1, "in [0, 1)")
        c = self.validation_classes
        good = c == "authors" if isinstance(c, str) else 0 <= c < 1
        check_value("validation_classes", repr(c), good, "in [0, 1) or 'authors'")
        if c and not self.validation_fraction:
            raise UserError(
                f"validation_fraction is 0 with validation_classes {c!r}; expected a share of the "
                "images of the other classes, in (0, 1)"
            )
        f = self.train_fraction
        check_value("train_fraction", f, 0 < f <= 1, "in (0, 1]")
        check_value("num_workers", self.num_workers, self.num_workers >= 0, "at least 0")
        check_value("read_threads", self.read_threads, self.read_threads > 0, "at least 1")
        check_value(
            "prefetch_batches", self.prefetch_batches, self.prefetch_batches > 0, "at least 1"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


_Geometry = Callable[[DataOptions], transforms.Transform]

_TRAIN_GEOMETRY: Mapping[str, _Geometry] = {
    "resize": lambda o: transforms.Resize(o.size),
    "random_crop": lambda o: transforms.ResizeShorterRandomCrop(o.size, o.crop_fraction),
    "random_resized_crop": lambda o: transforms.RandomResizedCrop(
        o.size, o.crop_scale, o.crop_ratio
    ),
    "shift_crop": lambda o: transforms.ShiftCrop(o.size, o.max_shift),
    "box": lambda o: transforms.CropToBox(o.size, o.box_margin),
    "box_crop": lambda o: transforms.RandomCropOfBox(
        o.size, o.box_margin, o.crop_scale, o.crop_ratio
    ),
}
_EVAL_GEOMETRY: Mapping[str, _Geometry] = {
    "resize": lambda o: transforms.Resize(o.size),
    "center_crop": lambda o: transforms.ResizeShorterCenterCrop(o.size, o.crop_fraction),
    "box": lambda o: transforms.CropToBox(o.size, o.box_margin),
}


def train_transform(options: DataOptions, info: DatasetInfo) -> transforms.Transform:
    """Returns what is done to a training image.

    Args:
      options: names the geometry.
      info: says which parts a mirror image exchanges.

    Returns:
      The transform.
    """
    mirror = transforms.HorizontalFlip(options.flip_probability, info.flip_pairs)
    return transforms.Compose((_TRAIN_GEOMETRY[options.train_geometry](options), mirror))


def eval_transform(options: DataOptions) -> transforms.Transform:
    """Returns what is done to an image under evaluation.

    Args:
      options: names the geometry.

    Returns:
      The transform, which draws nothing.
    """
    return _EVAL_GEOMETRY[options.eval_geometry](options)


def check_value(name: str, value: object, good: bool, expected: str) -> None:
    """Raises when a value is out of range.

    Args:
      name: of the value.
      value: received.
      good: whether it may be so.
      expected: what it should be.

    Raises:
      UserError: it may not.
    """
    if not good:
        raise UserError(f"{name} is {value}; expected {expected}")


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises when a value is none of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}{nearest(value, choices)}")
