"""Batches for training and evaluation, through Grain.

Nothing about an iterator is saved but the step. Batch s of a training run is a function of (data
set, options, batch size, seed, s): the same, bit for bit and in order, whatever the number of
processes, threads and workers. Process p of P delivers rows [p b, (p + 1) b) of it, b = batch size
/ P. An epoch's order depends on (seed, epoch), the draws for an example on (seed, position in the
endless stream of examples) alone. With `images_per_class` the order is that of `class_groups`.

With `num_workers` the work is done in other processes, which are *spawned*: a script that uses them
needs `if __name__ == "__main__":`.
"""

import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import flags, logging

from fgkd_jax.data.base import (
    Dataset,
    DatasetInfo,
    Source,
    labels_and_ids,
    split_source,
)
from fgkd_jax.data.captions import partners
from fgkd_jax.data.class_groups import class_groups
from fgkd_jax.data.holdout import holdout
from fgkd_jax.data.loading import CORRUPT, ERROR, ExampleLoader, collate
from fgkd_jax.data.options import DataOptions, check_value, eval_transform, train_transform
from fgkd_jax.data.text import CaptionEncoder
from fgkd_jax.data.zero_shot import hold_out_classes
from fgkd_jax.errors import UserError

Batch = dict[str, np.ndarray]


class BatchIterator(Iterator[Batch]):
    """Batches, and what went wrong on the way.

    Attributes:
      step: index of the batch that comes next.
      corrupt: reason by file name, of the images left out of the batches delivered so far.
    """

    def __init__(self, batches: Any, *, step: int):
        self._batches = batches
        self.step = step
        self.corrupt: dict[str, str] = {}

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if ERROR in batch:
            self.close()
            raise batch[ERROR]
        for name, reason in batch.pop(CORRUPT):
            if name not in self.corrupt:
                self.corrupt[name] = reason
                logging.warning("left out image %s: %s", name, reason)
        self.step += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes behind it."""
        self._batches.close()


def divide_train(dataset: Dataset, options: DataOptions) -> Dataset:
    """Divides the training split of a data set as the options ask.

    Each division is by `holdout`, one after the other: first `validation`, where the data set has
    no such split of its own, then `meta`, then what `train_fraction` leaves unused. With
    `validation_classes` the first is by `hold_out_classes`, and only seen classes are left.

    Args:
      dataset: any.
      options: `validation_fraction`, `validation_classes`, `validation_seed`, `meta_fraction` and
        `train_fraction` count.

    Returns:
      The data set with smaller `train`; itself when nothing is asked for, or it is divided already.

    Raises:
      UserError: classes cannot be held out of this data set.
    """
    if options.validation_classes and "validation" not in dataset.info.splits:
        dataset = hold_out_classes(
            dataset,
            classes=options.validation_classes,
            fraction=options.validation_fraction,
            seed=options.validation_seed,
        )
    shares = {
        "validation": options.validation_fraction,
        "meta": options.meta_fraction,
        "unused": 1 - options.train_fraction,
    }
    for split, share in shares.items():
        if share and split not in dataset.info.splits:
            dataset = holdout(dataset, fraction=share, seed=options.validation_seed, split=split)
    return dataset


def train_iterator(
    dataset: Dataset,
    options: DataOptions,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
) -> BatchIterator:
    """Batches of the training split without end, shuffled anew in every epoch.

    An epoch may end inside a batch: every batch is full and no image is left out. With
    `on_corrupt="skip"` an image that cannot be read is replaced by the next one of the source that
    can be.

    With `images_per_class` m > 0, rows [m i, m (i + 1)) of the global batch are of one class. Its
    batch_size / m groups are of different classes where there are as many, and otherwise of every
    class equally often, to within one. Classes come equally often, whatever their size, and within
    a class images do (`class_groups` has the details). Any part of the batch that begins and ends
    between groups, a process's share or one of the `groups` of a loss, holds for each of its images
    the others of its group. An image that cannot be read is replaced by one of the same class.

    Args:
      dataset: has a `train` split.
      options: geometry, validation split, threads.
      batch_size: of the global batch.
      seed: of order and draws, in [0, 2^32).
      start_step: the first batch to deliver; starting later costs nothing.
      process_index: which process this is.
      process_count: how many there are; divides `batch_size`.
      split: `train`, or `meta` where the options set one apart.

    Returns:
      An iterator over this process's rows of the batches, whose `mask` is True throughout.

    Raises:
      UserError: an argument is out of range, an image cannot be read or a label is out of range;
        `images_per_class` does not divide `batch_size`, or a class has images, but fewer.
    """
    import grain

    rows = local_size(batch_size, process_index, process_count)
    check_value("seed", seed, 0 <= seed < 2**32, "in [0, 2^32)")
    check_value("start_step", start_step, start_step >= 0, "at least 0")
    dataset = divide_train(dataset, options)
    source = dataset.source(split)
    if not len(source):
        raise UserError(f"{dataset.info.name}: the split {split!r} is empty")
    stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    groups = None
    if options.images_per_class:
        size = options.images_per_class
        groups = class_groups(
            source, dataset.info, batch_size=batch_size, images_per_class=size, seed=seed
        )
        stream = grain.MapDataset.range(sys.maxsize).seed(seed)
    if dataset.info.feature_shape is not None and options.views > 1:
        raise UserError(
            f"views is {options.views}, but {dataset.info.name} has features; expected 1"
        )
    geometry = train_transform(options, dataset.info)
    text = _encoder(options, dataset.info, train=True)
    load = ExampleLoader(source, dataset.info, options, geometry, groups, options.views, text)
    # Batches come before the slice, so that a process takes whole blocks of consecutive rows.
    batches = stream.random_map(load.train).batch(rows, drop_remainder=True, batch_fn=collate)
    batches = batches[start_step * process_count + process_index :: process_count]
    return BatchIterator(prefetched(batches, options), step=start_step)


def eval_iterator(
    dataset: Dataset,
    split: str,
    options: DataOptions,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Batches of a split, once, in order.

    The last batch is filled up with rows whose `mask` is False; with `on_corrupt="skip"` so is the
    row of an image that cannot be read. Such a row has image, label and all extra keys 0 and id -1.
    Every process delivers the same number of batches.

    Args:
      dataset: has the split.
      split: one of the data set's, or "validation" when the options hold one out; several with "+"
        between them are read one after another.
      options: geometry, validation split, threads.
      batch_size: of the global batch.
      process_index: which process this is.
      process_count: how many there are; divides `batch_size`.

    Returns:
      An iterator over this process's rows of the batches.

    Raises:
      UserError: an argument is out of range, the data set has no such split, an image cannot be
        read or a label is out of range.
    """
    import grain

    rows = local_size(batch_size, process_index, process_count)
    source, info = _eval_source(dataset, split, options)
    load = ExampleLoader(
        source,
        info,
        options,
        eval_transform(options),
        text=_encoder(options, info, train=False),
        partners=partners(*labels_and_ids(source)) if options.text else None,
    )
    positions = -(-len(source) // batch_size) * batch_size
    batches = grain.MapDataset.range(positions).map(load.evaluate).batch(rows, batch_fn=collate)
    batches = batches[process_index::process_count]
    return BatchIterator(prefetched(batches, options), step=0)


def _encoder(options: DataOptions, info: DatasetInfo, *, train: bool) -> CaptionEncoder | None:
    """What reads captions; None where none are read."""
    if options.text is None:
        return None
    if info.vocabulary is None:
        raise UserError(f"{info.name} has no vocabulary; expected it of `with_text`")
    return CaptionEncoder(info.vocabulary, options.text, train)


def _eval_source(dataset: Dataset, split: str, options: DataOptions) -> tuple[Source, DatasetInfo]:
    """The examples of a split; `train` and `validation` are what the options make of them."""
    if {"train", "validation", "meta", "unused"} & set(split.split("+")):
        dataset = divide_train(dataset, options)
    if split == "validation" and split not in dataset.info.splits:
        raise UserError(
            f"{dataset.info.name} has no split 'validation' and validation_fraction is 0; "
            "expected a fraction of 'train' to hold out"
        )
    return split_source(dataset, split), dataset.info


@runtime_checkable
class Reading(Protocol):
    """What options of any pipeline say of how batches are prepared ahead, as `DataOptions`."""

    @property
    def num_workers(self) -> int:
        """Processes."""
        ...

    @property
    def read_threads(self) -> int:
        """Threads of each process."""
        ...

    @property
    def prefetch_batches(self) -> int:
        """Batches ahead, in each process."""
        ...


def prefetched(batches: Any, options: Reading) -> Any:
    """Iterates over a Grain data set of batches with threads and, on demand, processes.

    Args:
      batches: the data set.
      options: how many.

    Returns:
      An iterator with a method `close`.
    """
    import grain

    threads = options.read_threads
    buffer = max(options.prefetch_batches, threads)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    stream = batches.to_iter_dataset(read)
    if options.num_workers:
        # Grain asks absl for its flags even where nothing has parsed any, in a notebook say.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=options.num_workers)
        stream = stream.mp_prefetch(workers)
    return iter(stream)


def local_size(batch_size: int, process_index: int, process_count: int) -> int:
    """Checks a division of batches over processes.

    Args:
      batch_size: of the global batch.
      process_index: which process this is.
      process_count: how many there are.

    Returns:
      The rows of a batch that each process delivers.

    Raises:
      UserError: an argument is out of range, or the batch cannot be divided.
    """
    check_value("batch_size", batch_size, batch_size > 0, "at least 1")
    check_value("process_count", process_count, process_count > 0, "at least 1")
    check_value("process_index", process_index, 0 <= process_index < process_count, "in [0, count)")
    if batch_size % process_count:
        raise UserError(
            f"batch_size is {batch_size}; expected a multiple of {process_count} processes"
        )
    return batch_size // process_count
