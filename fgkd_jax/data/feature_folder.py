"""Region features of a data set in a folder: what `fgkd features` writes, read as a data set.

| file | what |
|---|---|
| `features.json` | whose features: data set, backbone, shape and storage (`FeatureIdentity`) |
| `descriptions.npz` | attributes of the classes, where the data set has them |
| `<split>-<number>.array_record` | one record per example: label, id, range, values |
| `<split>-<number>.npz` | of the same examples: labels, ids, extra keys; hash of the records |

Values are stored as float16, or in 8 bits: `low + step * q` with the least value of the example and
1/255 of its range, so that none is off by more than half a step. Examples come with `features`
float16 [h, w, f] in place of `image`; boxes and points among the extra keys are in cells of the
features, where an image's are in pixels. The extra key `thumbnail`, uint8 [h, w, 3], is what the
backbone saw, made small: for pictures.
"""

import functools
import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.base import (
    CorruptImageError,
    DatasetInfo,
    Example,
    Inspection,
    SplitSources,
)
from fgkd_jax.data.class_descriptions import load_descriptions
from fgkd_jax.errors import UserError

WHERE = "write features with: fgkd features --config CONFIG --folder FOLDER"
"""Where such a folder comes from."""

FORMAT = 1
INDEX, DESCRIPTIONS = "features.json", "descriptions.npz"
STORAGES = ("float16", "uint8")
THUMBNAIL = "thumbnail"
"""The extra key of small images."""

_HEADER = struct.Struct("<iiff")


@dataclass(frozen=True)
class FeatureIdentity:
    """What features depend on, and what they look like.

    Attributes:
      dataset: name of the data set.
      dataset_fingerprint: its own.
      backbone: hash of network, weights and what is done to an image.
      about: the same in words: options by name.
      shape: (h, w, f).
      storage: a member of `STORAGES`.
      splits: examples by split, those that could not be read included.
      class_names: one per class.
      groupings: as of the data set.
      part_names: as of the data set.
      extra_keys: what is stored beside features, labels and ids.
      thumbnails: largest side of `THUMBNAIL`, in pixels; 0 where there is none.
    """

    dataset: str
    dataset_fingerprint: str
    backbone: str
    about: Mapping[str, Any]
    shape: tuple[int, int, int]
    storage: str
    splits: Mapping[str, int]
    class_names: tuple[str, ...]
    groupings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    part_names: tuple[str, ...] = ()
    extra_keys: tuple[str, ...] = ()
    thumbnails: int = 0

    def to_json(self) -> str:
        """Returns the text of `features.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)


@dataclass(frozen=True)
class Shard:
    """One file of records, and the examples in it.

    Attributes:
      records: the file.
      start: position in the source of its first example.
      stop: position behind its last.
      size: bytes of the file.
      sha256: of its bytes.
      arrays: `label`, `id` and extra keys, [rows, ...].
    """

    records: Path
    start: int
    stop: int
    size: int
    sha256: str
    arrays: Mapping[str, np.ndarray]


def read_identity(folder: Path) -> FeatureIdentity:
    """Reads whose features a folder holds.

    Args:
      folder: the folder.

    Returns:
      The identity.

    Raises:
      UserError: the folder holds no features, or those of another format.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{INDEX} is missing (looked in {folder}); {WHERE}")
    try:
        values = json.loads(path.read_text())
        found = values.pop("format")
        if found != FORMAT:
            raise UserError(f"{path}: format {found}; expected {FORMAT}")
        for name in ("shape", "class_names", "part_names", "extra_keys"):
            values[name] = tuple(values[name])
        values["groupings"] = {name: tuple(row) for name, row in values["groupings"].items()}
        return FeatureIdentity(**values)
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no readable index of features ({error})") from error


def shard_paths(folder: Path, split: str, number: int) -> tuple[Path, Path]:
    """Names the files of a shard: the records, and what is beside them."""
    stem = f"{split}-{number:05d}"
    return folder / f"{stem}.array_record", folder / f"{stem}.npz"


def read_shards(folder: Path, split: str) -> list[Shard]:
    """Reads the shards of a split, as far as they follow one another without a gap.

    Args:
      folder: the folder.
      split: the split.

    Returns:
      The shards, whose files have the sizes that they had when they were written.

    Raises:
      UserError: a shard is damaged.
    """
    found: list[Shard] = []
    while True:
        records, beside = shard_paths(folder, split, len(found))
        if not beside.is_file():
            return found
        try:
            with np.load(beside, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(str(arrays.pop("meta")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{beside}: cannot be read ({error})") from error
        start = found[-1].stop if found else 0
        size = records.stat().st_size if records.is_file() else -1
        if size != meta["size"] or meta["start"] != start:
            what = "is missing" if size < 0 else f"has {size} bytes"
            raise UserError(
                f"{records}: {what}; expected {meta['size']} bytes from example {start}"
            )
        found.append(Shard(records, start, meta["stop"], size, meta["sha256"], arrays))


def pack(features: np.ndarray, *, label: int, number: int, storage: str) -> bytes:
    """Makes the record of an example.

    Args:
      features: float [h, w, f], finite and in the range of float16.
      label: its class.
      number: its id.
      storage: a member of `STORAGES`.

    Returns:
      Header and values.
    """
    low, step = 0.0, 0.0
    if storage == "uint8":
        values = features.astype(np.float32)
        low = float(values.min())
        step = float((values.max() - np.float32(low)) / np.float32(255))
        scaled = (values - np.float32(low)) / np.float32(step or 1.0)
        data = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    else:
        data = features.astype("<f2")
    return _HEADER.pack(label, number, low, step) + np.ascontiguousarray(data).tobytes()


def unpack(
    record: bytes, *, shape: tuple[int, int, int], storage: str
) -> tuple[int, int, np.ndarray]:
    """Reads the record of an example.

    Args:
      record: as `pack` made it.
      shape: of the features.
      storage: a member of `STORAGES`.

    Returns:
      Label, id and features float16 [h, w, f].

    Raises:
      ValueError: the record has another length.
    """
    label, number, low, step = _HEADER.unpack_from(record)
    kind = "<u1" if storage == "uint8" else "<f2"
    values = np.frombuffer(record, kind, offset=_HEADER.size).reshape(shape)
    if storage == "uint8":
        values = values.astype(np.float32) * np.float32(step) + np.float32(low)
    return label, number, values.astype(np.float16)


@dataclass(frozen=True, eq=False)
class FeatureShards:
    """One split, by index.

    Attributes:
      files: the files of records, in order.
      labels: int64 [n].
      ids: int64 [n].
      shape: (h, w, f).
      storage: a member of `STORAGES`.
      extras: further arrays [n, ...] by example key.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    ids: np.ndarray
    shape: tuple[int, int, int]
    storage: str
    extras: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        number = int(self.ids[index])
        name = f"{Path(self.files[0]).parent} id {number}"
        try:
            found = unpack(_records(self.files)[index], shape=self.shape, storage=self.storage)
        except (ValueError, struct.error, RuntimeError) as error:
            raise CorruptImageError(name, f"its record cannot be read ({error})") from None
        label, read, features = found
        if (label, read) != (self.labels[index], number):
            raise CorruptImageError(name, f"its record is of id {read} and label {label}")
        extras = {key: array[index] for key, array in self.extras.items()}
        return {"features": features, "label": label, "id": number, "name": name, **extras}


@functools.lru_cache(maxsize=16)
def _records(files: tuple[str, ...]) -> Any:
    """Opens files of records once per process: that keeps a `FeatureShards` cheap to pickle."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(list(files))


def inspect(data_dir: str) -> Inspection:
    """Reads a folder of features.

    Args:
      data_dir: the folder.

    Returns:
      The data set and what is wrong with it; hashes are for `verify`.
    """
    folder = Path(data_dir).expanduser()
    try:
        return Inspection(_read(folder))
    except UserError as error:
        return Inspection(None, (str(error),))


def _read(folder: Path) -> SplitSources:
    identity = read_identity(folder)
    sources = {}
    for split, size in identity.splits.items():
        shards = read_shards(folder, split)
        stop = shards[-1].stop if shards else 0
        if stop != size:
            raise UserError(
                f"{folder}: features of {stop} of {size} examples of the split {split!r} are "
                "there; expected all; run the same fgkd features again, which goes on from there"
            )
        sources[split] = _source(shards, identity)
    described = None
    if (folder / DESCRIPTIONS).is_file():
        described = load_descriptions(folder / DESCRIPTIONS)
    marks = [identity.dataset_fingerprint, identity.backbone, identity.storage]
    info = DatasetInfo(
        name=f"features of {identity.dataset}",
        class_names=identity.class_names,
        splits={split: len(source) for split, source in sources.items()},
        groupings=identity.groupings,
        fingerprint=hashlib.sha256("\0".join(marks).encode()).hexdigest()[:16],
        part_names=identity.part_names,
        attribute_names=described.attribute_names if described else (),
        descriptions=described,
        feature_shape=identity.shape,
        feature_backbone=identity.backbone,
    )
    return SplitSources(info, sources)


def _source(shards: list[Shard], identity: FeatureIdentity) -> FeatureShards:
    def joined(key: str) -> np.ndarray:
        return np.concatenate([shard.arrays[key] for shard in shards])

    return FeatureShards(
        files=tuple(str(shard.records) for shard in shards),
        labels=joined("label").astype(np.int64),
        ids=joined("id").astype(np.int64),
        shape=identity.shape,
        storage=identity.storage,
        extras={key: joined(key) for key in identity.extra_keys},
    )


def verify(data_dir: str) -> list[str]:
    """Compares the hash of every file of records with that of when it was written.

    Args:
      data_dir: a folder of features.

    Returns:
      One line per file that has changed.

    Raises:
      UserError: as of reading it.
    """
    folder = Path(data_dir).expanduser()
    return [
        f"{shard.records}: its bytes have changed since they were written"
        for split in read_identity(folder).splits
        for shard in read_shards(folder, split)
        if file_hash(shard.records) != shard.sha256
    ]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
