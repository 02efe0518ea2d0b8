"""Batches of images with boxes, each batch of one size.

As in `pipeline`, nothing is saved but the step, and batch s is a function of (data set, options,
batch size, seed, s), whatever the number of processes, threads and workers. Which images go
together depends on the sizes that the annotations state, and on nothing that is drawn.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fgkd_jax.data.base import CorruptImageError, Dataset, DatasetInfo, Example, Source
from fgkd_jax.data.boxes import size_disagreement
from fgkd_jax.data.detection_buckets import BucketOrder, bucket_members
from fgkd_jax.data.detection_transforms import EvalGeometry, Size, TrainGeometry
from fgkd_jax.data.images import configure_opencv, decode
from fgkd_jax.data.loading import CORRUPT, ERROR, collate
from fgkd_jax.data.options import check_value
from fgkd_jax.data.pipeline import BatchIterator, local_size, prefetched
from fgkd_jax.errors import UserError


@dataclass(frozen=True)
class DetectionOptions:
    """What the pipeline of detection reads and how.

    Attributes:
      dataset: name of the data set, as `open_dataset` takes it.
      data_dir: its folder; None is `$FGKD_DATA_DIR` or `~/.cache/fgkd_jax`.
      buckets: (height, width) of the images of a batch. An image goes into the one in which it
        becomes largest: ((800, 1344), (1344, 800)) is COCO's usual 800 by at most 1333. There are
        at most so many compiled programs.
      max_boxes: rows of boxes of an image, at least 1. In training a random choice of more is
        kept; in evaluation more are an error.
      scale: of training images, least and largest share of the largest size that fits, in (0, 1].
      crop_probability: of cropping a training image, in [0, 1].
      crop_scale: of a crop, least and largest side as a share of the image's, in (0, 1].
      least_visible: share of a box that a crop must leave for the box to be kept, in [0, 1].
      least_side: sides of a training box in pixels of the batch must be longer than this.
      flip_probability: of a mirror image in training, in [0, 1].
      on_corrupt: what an image that cannot be read does: "raise" stops, "skip" goes on without.
      num_workers: as in `DataOptions`.
      read_threads: likewise.
      prefetch_batches: likewise.
    """

    dataset: str = "procedural_birds/detection"
    data_dir: str | None = None
    buckets: tuple[Size, ...] = ((256, 256),)
    max_boxes: int = 100
    scale: tuple[float, float] = (1.0, 1.0)
    crop_probability: float = 0.0
    crop_scale: tuple[float, float] = (0.5, 1.0)
    least_visible: float = 0.3
    least_side: float = 1.0
    flip_probability: float = 0.5
    on_corrupt: Literal["raise", "skip"] = "raise"
    num_workers: int = 0
    read_threads: int = 4
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        sides = [side for bucket in self.buckets for side in bucket]
        check_value("buckets", self.buckets, min(sides, default=0) > 0, "one or more, at least 1x1")
        check_value("max_boxes", self.max_boxes, self.max_boxes > 0, "at least 1")
        for name in ("scale", "crop_scale"):
            low, high = getattr(self, name)
            check_value(name, (low, high), 0 < low <= high <= 1, "0 < least <= largest <= 1")
        for name in ("crop_probability", "least_visible", "flip_probability"):
            value = getattr(self, name)
            check_value(name, value, 0 <= value <= 1, "in [0, 1]")
        check_value("least_side", self.least_side, self.least_side >= 0, "at least 0")
        known = self.on_corrupt in ("raise", "skip")
        check_value("on_corrupt", repr(self.on_corrupt), known, "'raise' or 'skip'")
        check_value("num_workers", self.num_workers, self.num_workers >= 0, "at least 0")
        for name in ("read_threads", "prefetch_batches"):
            check_value(name, getattr(self, name), getattr(self, name) > 0, "at least 1")


def detection_train_iterator(
    dataset: Dataset,
    options: DetectionOptions,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
) -> BatchIterator:
    """Batches of training images without end, each of one bucket.

    Buckets come in proportion to their images, evenly mixed; every image comes equally often, and
    none again before all others of its bucket have come. A bucket of fewer images than a batch has
    them several times in it. With `on_corrupt="skip"` an image that cannot be read is replaced by
    the next one of its bucket that can be.

    Args:
      dataset: of images with boxes.
      options: sizes and geometry.
      batch_size: of the global batch.
      seed: of order and draws, in [0, 2^32).
      start_step: the first batch to deliver; starting later costs nothing.
      process_index: which process this is.
      process_count: how many there are; divides `batch_size`.
      split: a split of the data set.

    Returns:
      An iterator over this process's rows of the batches, with the keys of detection.

    Raises:
      UserError: an argument is out of range, an image cannot be read, is of another size than its
        annotation says, or a label is out of range.
    """
    import grain

    rows = local_size(batch_size, process_index, process_count)
    check_value("seed", seed, 0 <= seed < 2**32, "in [0, 2^32)")
    check_value("start_step", start_step, start_step >= 0, "at least 0")
    source = dataset.source(split)
    if not len(source):
        raise UserError(f"{dataset.info.name}: the split {split!r} is empty")
    order = BucketOrder(bucket_members(source, options.buckets), batch_size, seed)
    geometry = TrainGeometry(
        max_boxes=options.max_boxes,
        scale=options.scale,
        crop_probability=options.crop_probability,
        crop_scale=options.crop_scale,
        least_visible=options.least_visible,
        least_side=options.least_side,
        flip_probability=options.flip_probability,
    )
    load = _Loader(source, dataset.info, options, geometry, order)
    batches = grain.MapDataset.range(sys.maxsize).map(load.train)
    batches = batches.batch(rows, drop_remainder=True, batch_fn=collate)
    batches = batches[start_step * process_count + process_index :: process_count]
    return BatchIterator(prefetched(batches, options), step=start_step)


def detection_eval_iterator(
    dataset: Dataset,
    split: str,
    options: DetectionOptions,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Batches of a split, every image once, one bucket after another.

    The last batch of each bucket is filled up with rows whose `mask` is False; with
    `on_corrupt="skip"` so is the row of an image that cannot be read. Such a row has id -1 and
    everything else 0. Every process delivers the same number of batches.

    Args:
      dataset: of images with boxes.
      split: one of the data set's.
      options: sizes and geometry.
      batch_size: of the global batch.
      process_index: which process this is.
      process_count: how many there are; divides `batch_size`.

    Returns:
      An iterator over this process's rows of the batches, with the keys of detection.

    Raises:
      UserError: as `detection_train_iterator`, or an image has more than `max_boxes` boxes.
    """
    import grain

    rows = local_size(batch_size, process_index, process_count)
    source = dataset.source(split)
    geometry = EvalGeometry(options.max_boxes)
    load = _Loader(source, dataset.info, options, geometry)
    tasks = []
    for bucket, members in enumerate(bucket_members(source, options.buckets)):
        filled = np.full(-(-len(members) // batch_size) * batch_size, -1)
        filled[: len(members)] = members
        tasks += [(bucket, int(index)) for index in filled]
    batches = grain.MapDataset.source(tasks).map(load.evaluate).batch(rows, batch_fn=collate)
    batches = batches[process_index::process_count]
    return BatchIterator(prefetched(batches, options), step=0)


@dataclass(frozen=True, eq=False)
class _Loader:
    """Turns a position into a row of a batch; errors are returned, so that they arrive whole."""

    source: Source
    info: DatasetInfo
    options: DetectionOptions
    geometry: TrainGeometry | EvalGeometry
    order: BucketOrder | None = None

    def train(self, position: int) -> Example:
        """The example at a position of the endless stream, or the first that can be read."""
        corrupt: list[tuple[str, str]] = []
        try:
            bucket, candidates, seed = self._at(position)
            for index in candidates:
                try:
                    row = self._load(index, bucket, np.random.default_rng([seed, position]))
                except CorruptImageError as error:
                    self._note(error, corrupt)
                else:
                    return {**row, "mask": True, CORRUPT: corrupt}
            raise UserError(f"{self.info.name}: no image of size {list(bucket)} can be read")
        except UserError as error:
            return {ERROR: error}

    def _at(self, position: int) -> tuple[Size, Iterator[int], int]:
        """The bucket of a position, its image and what may replace it, and the seed."""
        if self.order is None:
            raise RuntimeError("a loader for evaluation was asked for a training example")
        bucket, image = self.order.image(position)
        members = self.order.members[bucket]
        start = int(np.searchsorted(members, image))
        candidates = (int(index) for index in np.roll(members, -start))
        return self.options.buckets[bucket], candidates, self.order.seed

    def evaluate(self, task: tuple[int, int]) -> Example:
        """The example of a task (bucket, index), or an empty row for the index -1."""
        corrupt: list[tuple[str, str]] = []
        bucket, index = self.options.buckets[task[0]], task[1]
        try:
            if index >= 0:
                try:
                    row = self._load(index, bucket, np.random.default_rng(0))
                except CorruptImageError as error:
                    self._note(error, corrupt)
                else:
                    return {**row, "mask": True, CORRUPT: corrupt}
            return {**self._empty(bucket), "mask": False, CORRUPT: corrupt}
        except UserError as error:
            return {ERROR: error}

    def _note(self, error: CorruptImageError, corrupt: list[tuple[str, str]]) -> None:
        """Remembers a corrupt image, or raises when that is what was asked for."""
        if self.options.on_corrupt == "raise":
            raise error
        corrupt.append((error.name, error.reason))

    def _load(self, index: int, bucket: Size, rng: np.random.Generator) -> Example:
        """Reads, checks, decodes and transforms one example."""
        configure_opencv()
        example = self.source[index]
        name = example["name"]
        if "boxes" not in example:
            raise UserError(f"image {name}: has no boxes; expected a data set for detection")
        labels = np.asarray(example["box_labels"])
        wrong = labels[(labels < 0) | (labels >= self.info.num_classes)]
        if len(wrong):
            raise UserError(
                f"image {name}: a box has label {wrong[0]}; expected 0 to "
                f"{self.info.num_classes - 1}"
            )
        image = decode(example["image"], name)
        height, width = image.shape[:2]
        if difference := size_disagreement(example, height, width):
            raise UserError(f"image {name}: {difference}")
        row = self.geometry({**example, "image": image}, bucket, rng)
        size = np.array([height, width], np.int32)
        return {**row, "original_size": size, "id": int(example["id"])}

    def _empty(self, bucket: Size) -> Example:
        """A row that is masked out."""
        nothing = {
            "image": np.zeros((1, 1, 3), np.uint8),
            "boxes": np.zeros((0, 4)),
            "box_labels": np.zeros(0),
            "box_ignored": np.zeros(0),
        }
        row = self.geometry(nothing, bucket, np.random.default_rng(0))
        row["valid_size"] = np.zeros(2, np.int32)
        return {**row, "original_size": np.zeros(2, np.int32), "id": -1}
