"""Features computed once and read many times: a folder of arrays per split.

A folder holds `features.bin` (float16 [n, ...], C order), `labels.npy` and `ids.npy` (int32 [n])
and `features.json` (shape and fingerprint). It appears whole or not at all.
"""

import json
import math
import shutil
from collections.abc import Generator, Iterable
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
    folder: Path, batches: Iterable[HostBatch], *, limit: int, fingerprint: str
) -> FeatureSplit:
    """Stores the rows of a stream of batches.

    Args:
      folder: where they go; features of another fingerprint there are replaced.
      batches: `features`, `label`, `id` and `mask`; rows with `mask` False are left out.
      limit: rows to store at most; a shorter stream is stored as it is.
      fingerprint: hash of everything the features depend on.

    Returns:
      The features, as `read_features` would.

    Raises:
      UserError: the stream has no row, or the disk is full.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shape = _write_arrays(partial, batches, limit)
        document = {"fingerprint": fingerprint, "shape": shape}
        (partial / "features.json").write_text(json.dumps(document))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"features cannot be written to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = read_features(folder, fingerprint=fingerprint)
    if found is None:
        raise UserError(f"features of {folder.name}: no image to compute them of")
    return found


def _write_arrays(folder: Path, batches: Iterable[HostBatch], limit: int) -> tuple[int, ...]:
    labels: list[int] = []
    ids: list[int] = []
    row: tuple[int, ...] = ()
    # Written in order and not mapped: a full disk is then an error and not a signal.
    with (folder / "features.bin").open("wb") as file:
        for batch in batches:
            keep = np.flatnonzero(batch["mask"])[: limit - len(labels)]
            row = batch["features"].shape[1:]
            file.write(np.ascontiguousarray(batch["features"][keep], np.float16).tobytes())
            labels += batch["label"][keep].tolist()
            ids += batch["id"][keep].tolist()
            if len(labels) == limit:
                break
    np.save(folder / "labels.npy", np.asarray(labels, np.int32))
    np.save(folder / "ids.npy", np.asarray(ids, np.int32))
    return (len(labels), *row)


def read_features(folder: Path, *, fingerprint: str) -> FeatureSplit | None:
    """Opens stored features.

    Args:
      folder: where they are.
      fingerprint: what they must have been made from.

    Returns:
      The features, or None where there are none, they are incomplete, or they were made from
      something else.
    """
    try:
        document = json.loads((folder / "features.json").read_text())
        shape = tuple(document["shape"])
        if document["fingerprint"] != fingerprint or not shape[0]:
            return None
        path = folder / "features.bin"
        if path.stat().st_size != 2 * math.prod(shape):
            return None
        split = FeatureSplit(
            features=np.memmap(path, np.float16, mode="r", shape=shape),
            labels=np.load(folder / "labels.npy", allow_pickle=False),
            ids=np.load(folder / "ids.npy", allow_pickle=False),
        )
    except (OSError, ValueError, KeyError):
        return None
    return split if len(split.labels) == len(split.ids) == shape[0] else None


def train_batches(
    split: FeatureSplit,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
) -> Generator[HostBatch, None, None]:
    """Yields shuffled batches without end; epoch e is a permutation drawn from (seed, e).

    Args:
      split: the features.
      batch_size: rows of a batch.
      seed: seeds the order.
      start_step: index of the first batch; the order does not depend on where a run starts.

    Yields:
      Batches, as `FeatureSplit.batch` makes them.
    """
    size = len(split)
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
        rows = np.array([row(step * batch_size + i) for i in range(batch_size)])
        yield split.batch(rows, size=batch_size)
        step += 1


def eval_batches(split: FeatureSplit, *, batch_size: int) -> Generator[HostBatch, None, None]:
    """Yields every row once, in order.

    Args:
      split: the features.
      batch_size: rows of a batch.

    Yields:
      Batches, the last one padded with `mask` False.
    """
    for start in range(0, len(split), batch_size):
        rows = np.arange(start, min(start + batch_size, len(split)))
        yield split.batch(rows, size=batch_size)
