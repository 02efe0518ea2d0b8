"""Features computed once and read many times: a folder of arrays per split.

A folder holds `features.npy` (float16 [n, ...]), `labels.npy` and `ids.npy` (int32 [n]) and
`fingerprint.txt`. It appears whole or not at all.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgkd_jax.errors import UserError

HostBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeatureSplit:
    """Precomputed features of one split.

    Attributes:
      features: float16 [n, ...], read from disk as needed.
      labels: int32 [n].
      ids: int32 [n], those of the examples; several rows may be views of one example.
    """

    features: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, *, size: int) -> HostBatch:
        """Reads some rows.

        Args:
          rows: int [m], which rows.
          size: rows of the batch; those behind the m-th are padding.

        Returns:
          `features` float16, `label`, `id` and `mask`, first axis `size`.
        """
        mask = np.arange(size) < len(rows)
        rows = np.concatenate([rows, np.zeros(size - len(rows), rows.dtype)])
        return {
            "features": np.asarray(self.features[rows]),
            "label": self.labels[rows],
            "id": self.ids[rows],
            "mask": mask,
        }


def write_features(
    folder: Path, batches: Iterable[HostBatch], *, count: int, fingerprint: str
) -> None:
    """Stores the first rows of a stream of batches.

    Args:
      folder: where they go; features of another fingerprint there are replaced.
      batches: `features`, `label`, `id` and `mask`; rows with `mask` False are left out.
      count: rows to store.
      fingerprint: hash of everything the features depend on.

    Raises:
      UserError: the stream ends before `count` rows, or the disk is full.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        done = _write_arrays(partial, batches, count)
        (partial / "fingerprint.txt").write_text(fingerprint)
        if done == count:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"features cannot be written to {folder}: {error.strerror}") from error
    if done < count:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"features of {folder.name} ended after {done} rows; expected {count}")


def _write_arrays(folder: Path, batches: Iterable[HostBatch], count: int) -> int:
    labels, ids = np.zeros(count, np.int32), np.zeros(count, np.int32)
    stored, done = None, 0
    for batch in batches:
        keep = np.flatnonzero(batch["mask"])[: count - done]
        part = slice(done, done + len(keep))
        if stored is None:
            shape = (count, *batch["features"].shape[1:])
            stored = np.lib.format.open_memmap(
                folder / "features.npy", mode="w+", dtype=np.float16, shape=shape
            )
        stored[part] = batch["features"][keep]
        labels[part], ids[part] = batch["label"][keep], batch["id"][keep]
        done += len(keep)
        if done == count:
            break
    if stored is not None:
        stored.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "ids.npy", ids)
    return done


def read_features(folder: Path, *, fingerprint: str) -> FeatureSplit | None:
    """Opens stored features.

    Args:
      folder: where they are.
      fingerprint: what they must have been made from.

    Returns:
      The features, or None where there are none or they were made from something else.
    """
    mark = folder / "fingerprint.txt"
    if not mark.is_file() or mark.read_text() != fingerprint:
        return None
    return FeatureSplit(
        features=np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False),
        labels=np.load(folder / "labels.npy", allow_pickle=False),
        ids=np.load(folder / "ids.npy", allow_pickle=False),
    )


def train_batches(
    split: FeatureSplit,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[HostBatch]:
    """Yields shuffled batches without end; epoch e is a permutation drawn from (seed, e).

    Args:
      split: the features.
      batch_size: rows of a global batch.
      seed: seeds the order.
      start_step: index of the first batch; the order does not depend on where a run starts.
      process_index: which share of each global batch to read.
      process_count: how many shares there are.

    Yields:
      This process's contiguous share of each global batch.
    """
    size, share = len(split), batch_size // process_count
    known: dict[int, np.ndarray] = {}

    def row(position: int) -> int:
        epoch, offset = divmod(position, size)
        if epoch not in known:
            for old in [e for e in known if e < epoch - 1]:
                del known[old]
            known[epoch] = np.random.default_rng([seed, epoch]).permutation(size)
        return int(known[epoch][offset])

    step = start_step
    while True:
        first = step * batch_size + process_index * share
        rows = np.array([row(first + i) for i in range(share)])
        yield split.batch(rows, size=share)
        step += 1


def eval_batches(
    split: FeatureSplit, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[HostBatch]:
    """Yields every row once, in order.

    Args:
      split: the features.
      batch_size: rows of a global batch.
      process_index: which share of each global batch to read.
      process_count: how many shares there are.

    Yields:
      This process's contiguous share of each global batch, padded with `mask` False.
    """
    share = batch_size // process_count
    for start in range(0, len(split), batch_size):
        first = start + process_index * share
        rows = np.arange(min(first, len(split)), min(first + share, len(split)))
        yield split.batch(rows, size=share)
