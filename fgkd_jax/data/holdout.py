"""Divisions of the training split: for validation, for second steps, and smaller ones."""

from dataclasses import dataclass, replace

import numpy as np

from fgkd_jax.data.base import Dataset, DatasetInfo, Source, Subset, labels_and_ids, unknown_split
from fgkd_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class HoldoutDataset:
    """A data set whose training images are divided into `train` and another split.

    Attributes:
      base: the data set.
      info: its description with one more split.
      parts: the two divisions of its `train`.
    """

    base: Dataset
    info: DatasetInfo
    parts: dict[str, Subset]

    def source(self, split: str) -> Source:
        """Returns the examples of a split.

        Args:
          split: a key of `info.splits`.

        Returns:
          The source.

        Raises:
          UserError: the data set has no such split.
        """
        if split not in self.info.splits:
            raise unknown_split(self.info, split)
        return self.parts[split] if split in self.parts else self.base.source(split)


def holdout(
    dataset: Dataset, *, fraction: float, seed: int = 0, split: str = "validation"
) -> HoldoutDataset:
    """Holds a share of the training images of each class out, for validation for example.

    Within a class of n images, those with the smallest hash of (seed, id) are held out: fraction x
    n of them, rounded to the nearest and at least one, but never all. So the division depends on
    ids alone, not on the order of the images, and a larger fraction holds out the same images and
    more.

    Args:
      dataset: has a `train` split. Its labels and ids are read, images only where the source knows
        no other way.
      fraction: share to hold out, in (0, 1).
      seed: chooses another division.
      split: what the images held out are called.

    Returns:
      The same data set with `train` and the new split disjoint; `test` and its fingerprint are as
      before.

    Raises:
      UserError: the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise UserError(f"{split} fraction is {fraction}; expected more than 0 and less than 1")
    train = dataset.source("train")
    labels, ids = labels_and_ids(train)
    order = np.lexsort((ids, hash_ids(ids, seed=seed), labels))
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    # With one image a class keeps it: min comes after max.
    held = np.minimum(np.maximum(np.floor(sizes * fraction + 0.5), 1), sizes - 1)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    chosen = np.zeros(len(order), bool)
    chosen[order] = rank < np.repeat(held, sizes)
    rows = {"train": np.flatnonzero(~chosen), split: np.flatnonzero(chosen)}
    parts = {name: Subset(train, row, labels[row], ids[row]) for name, row in rows.items()}
    splits = {**dataset.info.splits, **{name: len(part) for name, part in parts.items()}}
    return HoldoutDataset(dataset, replace(dataset.info, splits=splits), parts)


def hash_ids(ids: np.ndarray, *, seed: int) -> np.ndarray:
    """Scrambles ids into 64 bits that look random and never change between versions.

    Args:
      ids: int64[n].
      seed: any integer.

    Returns:
      uint64[n].

    Source:
      Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014 (the
      finaliser of SplitMix64).
    """
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    mixed = _mix(ids.astype(np.uint64) ^ _mix(np.array([start])))
    return _mix(mixed + np.uint64(0x9E3779B97F4A7C15))


def _mix(x: np.ndarray) -> np.ndarray:
    """Spreads every bit of uint64[n] over all of them; the products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
