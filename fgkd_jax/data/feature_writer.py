"""Writes folders of features: shard by shard, so that a stopped run goes on where it was."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.class_descriptions import ClassDescriptions, save_descriptions
from fgkd_jax.data.feature_folder import (
    DESCRIPTIONS,
    INDEX,
    FeatureIdentity,
    file_hash,
    pack,
    read_identity,
    read_shards,
    shard_paths,
)
from fgkd_jax.errors import UserError

SHARD_BYTES = 16 * 2**20
"""About how large a file of records becomes; so much work is lost when a run is stopped."""

_OPTIONS = "group_size:1,uncompressed"  # one example per chunk, for random access


class FeatureWriter:
    """A folder of features that is being written by this process alone.

    Attributes:
      folder: the folder.
      identity: whose features.
    """

    def __init__(self, folder: Path, identity: FeatureIdentity):
        self.folder, self.identity = folder, identity
        self._numbers, self._stops = {}, {}
        for split in identity.splits:
            shards = read_shards(folder, split)
            self._numbers[split] = len(shards)
            self._stops[split] = shards[-1].stop if shards else 0

    @property
    def rows_per_shard(self) -> int:
        """Examples of one file of records."""
        width = 1 if self.identity.storage == "uint8" else 2
        return max(1, SHARD_BYTES // (int(np.prod(self.identity.shape)) * width))

    def done(self, split: str) -> int:
        """Returns how many examples of a split need not be computed again.

        Args:
          split: the split.

        Returns:
          A position in its source.
        """
        return self._stops[split]

    def write(self, split: str, rows: Sequence[Mapping[str, Any]], *, stop: int) -> None:
        """Writes one shard; it is there whole or not at all.

        Args:
          split: the split.
          rows: per example `features` [h, w, f], `label`, `id` and extra keys.
          stop: position in the source behind the last example that it covers; examples that could
            not be read have no row.

        Raises:
          UserError: a value is not finite in float16, or the disk is full.
        """
        records, beside = shard_paths(self.folder, split, self._numbers[split])
        keys = ("label", "id", *self.identity.extra_keys)
        arrays = {key: np.array([row[key] for row in rows]) for key in keys}
        try:
            partial = records.with_suffix(".partial")
            _write_records(partial, rows, self.identity)
            meta = {
                "start": self._stops[split],
                "stop": stop,
                "size": partial.stat().st_size,
                "sha256": file_hash(partial),
            }
            partial.replace(records)
            buffer = io.BytesIO()
            np.savez(buffer, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
            _replace(beside, buffer.getvalue())
        except OSError as error:
            raise UserError(f"features cannot be written to {records}: {error.strerror}") from error
        self._numbers[split] += 1
        self._stops[split] = stop


def _write_records(
    path: Path, rows: Sequence[Mapping[str, Any]], identity: FeatureIdentity
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for row in rows:
            number = int(row["id"])
            # Out of the range of float16 is found by the check, not told as a warning.
            with np.errstate(over="ignore"):
                finite = np.isfinite(row["features"].astype(np.float16)).all()
            if not finite:
                raise UserError(
                    f"features of id {number} are not finite, or beyond the range of float16"
                )
            writer.write(
                pack(
                    row["features"],
                    label=int(row["label"]),
                    number=number,
                    storage=identity.storage,
                )
            )
    finally:
        writer.close()


@contextlib.contextmanager
def writing(
    folder: Path, identity: FeatureIdentity, descriptions: ClassDescriptions | None
) -> Iterator[FeatureWriter]:
    """Makes a folder one of features, or goes on with one that is.

    Args:
      folder: the folder; created where it is missing.
      identity: whose features.
      descriptions: of the classes, stored beside them.

    Yields:
      The writer.

    Raises:
      UserError: the folder holds features of another backbone or data set, or something else; it
        cannot be written, or another process writes to it.
    """
    check_folder(folder, identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"features cannot be written to {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder} is in use by another fgkd features") from error
        if not (folder / INDEX).exists():
            if descriptions is not None:
                save_descriptions(folder / DESCRIPTIONS, descriptions)
            _replace(folder / INDEX, identity.to_json().encode())
        yield FeatureWriter(folder, identity)


def check_folder(folder: Path, identity: FeatureIdentity) -> None:
    """Checks that a folder may take features; writes nothing.

    Args:
      folder: the folder; it may be missing.
      identity: whose features.

    Raises:
      UserError: it holds features of another backbone or data set, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder for features")
    if not (folder / INDEX).exists():
        # Descriptions alone are what a run leaves that is stopped while it begins.
        ours = {DESCRIPTIONS, f"{INDEX}.partial"}
        others = sorted(p.name for p in folder.glob("[!.]*") if p.name not in ours)
        if others:
            raise UserError(f"{folder} holds {others[0]!r}; expected an empty or new folder")
        return
    found = read_identity(folder)
    if found.backbone != identity.backbone:
        raise UserError(
            f"{folder} holds features of another backbone: {_difference(found, identity)}; "
            "expected the same, or another folder"
        )
    for one in dataclasses.fields(identity):
        there, here = getattr(found, one.name), getattr(identity, one.name)
        if one.name != "about" and there != here:
            raise UserError(
                f"{folder} holds features with another {one.name}: {_cut(there)} there and "
                f"{_cut(here)} here; expected the same, or another folder"
            )


def _difference(found: FeatureIdentity, identity: FeatureIdentity) -> str:
    """The first thing in which two backbones differ, in words."""
    here = json.loads(json.dumps(dict(identity.about)))
    for name in (*here, *found.about):
        if here.get(name) != found.about.get(name):
            return f"{name} is {_cut(found.about.get(name))} there and {_cut(here.get(name))} here"
    return f"{found.backbone} there and {identity.backbone} here"


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
