"""The data set as the rest of the library sees it: built where it is missing, read at random."""

import contextlib
import dataclasses
import fcntl
import functools
import io
import operator
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fgkd_jax.data.base import DatasetInfo, Example, SplitSources, fingerprint
from fgkd_jax.data.boxes import DetectionDataset
from fgkd_jax.data.procedural_birds.anatomy import GROUP_PARTS, PARTS
from fgkd_jax.data.procedural_birds.builder import (
    CONFIGS,
    VERSION,
    DetectionConfig,
    ProceduralBirds,
    default_workers,
)
from fgkd_jax.data.procedural_birds.captions import caption_words
from fgkd_jax.data.procedural_birds.examples import SIZE
from fgkd_jax.data.procedural_birds.records import decode_mask
from fgkd_jax.data.procedural_birds.world import ATTRIBUTES, World
from fgkd_jax.data.procedural_birds.zero_shot import describe_species
from fgkd_jax.data.vocabulary import Vocabulary
from fgkd_jax.errors import UserError, nearest

_NAME = "procedural_birds"


def open_birds(
    data_dir: str | os.PathLike[str],
    *,
    config: str = "classification",
    workers: int | None = None,
    progress: bool = True,
) -> SplitSources:
    """Opens the data set; draws it first where it is missing.

    Args:
      data_dir: the folder that holds the data sets.
      config: `classification`, `tiny` (96 of its examples), `zero_shot`, `detection` or
        `detection_tiny` (16 of its examples).
      workers: processes that draw; None is one per core, 0 draws in this process.
      progress: show a progress bar while drawing.

    Returns:
      A `BirdSource` for each of the splits `train`, `validation` and `test`, or `train`,
      `test_seen` and `test_unseen` of `zero_shot`; a `SceneSource` for each of those of
      `detection`; and their description.

    Raises:
      UserError: there is no such configuration, or the folder cannot be written to.
    """
    build_birds(data_dir, config=config, workers=workers, progress=progress)
    folder = str(birds_folder(data_dir, config=config))
    sizes = {split: len(CONFIGS[config].tasks(split)) for split in CONFIGS[config].splits}
    if isinstance(CONFIGS[config], DetectionConfig):
        return _scenes(config, {s: SceneSource(folder, s, n, config) for s, n in sizes.items()})
    sources = {split: BirdSource(folder, split, size, config) for split, size in sizes.items()}
    return SplitSources(info=_describe(config, sources), sources=sources)


def build_birds(
    data_dir: str | os.PathLike[str],
    *,
    config: str = "classification",
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Draws the data set unless it is there already.

    It is drawn into a folder beside its own, which is renamed when all is written: an interrupted
    build leaves nothing that would be read. Of several processes that want it at once, one draws
    and the others wait.

    Args:
      data_dir: the folder that holds the data sets; made if missing.
      config: as `open_birds` takes it.
      workers: processes that draw; None is one per core, 0 draws in this process.
      progress: show a progress bar.

    Raises:
      UserError: there is no such configuration, or the folder cannot be written to.
    """
    folder = birds_folder(data_dir, config=config)
    if folder.is_dir():
        return
    with _alone(folder.parent):
        if folder.is_dir():
            return
        # Whoever left these was killed while it held the lock that is ours now.
        for left in folder.parent.glob("*incomplete*"):
            shutil.rmtree(left, ignore_errors=True)
        builder = ProceduralBirds(
            data_dir=os.fspath(data_dir),
            config=CONFIGS[config],
            workers=default_workers() if workers is None else workers,
            progress=progress,
        )
        try:
            with _quiet(), tempfile.TemporaryDirectory() as nothing:
                builder.download_and_prepare(download_dir=nothing)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def birds_folder(data_dir: str | os.PathLike[str], *, config: str = "classification") -> Path:
    """Returns where a configuration is, or would be, kept.

    Args:
      data_dir: the folder that holds the data sets.
      config: as `open_birds` takes it.

    Returns:
      `<data_dir>/procedural_birds/<config>/<version>`.

    Raises:
      UserError: there is no such configuration.
    """
    if config not in CONFIGS:
        raise UserError(f"{_NAME} has no configuration {config!r}{nearest(config, CONFIGS)}")
    return Path(data_dir) / _NAME / config / VERSION


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time in; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling of a download that does not happen, and from bars of its own."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _describe(config: str, sources: dict[str, "BirdSource"]) -> DatasetInfo:
    world = CONFIGS[config].world
    described = describe_species() if config == "zero_shot" else None
    names = tuple(one.name for one in world.species)
    mark = fingerprint(
        version=VERSION,
        class_names=names,
        labels=np.concatenate([source.labels for source in sources.values()]),
        ids=np.concatenate([source.ids for source in sources.values()]),
    )
    return DatasetInfo(
        name=f"{_NAME}/{config}",
        class_names=names,
        splits={split: len(source) for split, source in sources.items()},
        groupings={"genus": world.genus_of},
        fingerprint=f"{mark}-{described.fingerprint}" if described else mark,
        part_names=PARTS,
        attribute_names=ATTRIBUTES,
        vocabulary=Vocabulary(caption_words()),
        # Species whose traits are independent differ nearly everywhere.
        separating_parts=() if described else _separating_parts(world),
        descriptions=described,
    )


def _scenes(config: str, sources: dict[str, "SceneSource"]) -> DetectionDataset:
    """The data set of scenes, whose classes are the genera."""
    names = CONFIGS[config].world.genus_names
    info = DatasetInfo(
        name=f"{_NAME}/{config}",
        class_names=names,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=fingerprint(
            version=f"{VERSION}/detection",
            class_names=names,
            labels=np.concatenate([source.labels for source in sources.values()]),
            ids=np.concatenate([source.ids for source in sources.values()]),
        ),
    )
    return DetectionDataset(info, sources, category_ids=tuple(range(len(names))))


def _separating_parts(world: World) -> tuple[tuple[int, ...], ...]:
    """The parts at which the species of a genus differ, for each species."""
    traits: dict[int, list[Mapping[str, str]]] = {}
    for one in world.species:
        traits.setdefault(one.genus, []).append(one.traits)
    parts = {
        genus: tuple(
            PARTS.index(part)
            for group, part in GROUP_PARTS.items()
            if len({one[group] for one in relatives}) > 1
        )
        for genus, relatives in traits.items()
    }
    return tuple(parts[genus] for genus in world.genus_of)


@dataclasses.dataclass(frozen=True)
class _StoredSource:
    """The stored records of one split, by index.

    Attributes:
      folder: where the configuration is kept.
      split: the split.
      size: its number of examples.
      config: the configuration.
    """

    folder: str
    split: str
    size: int
    config: str = "classification"

    def __len__(self) -> int:
        return self.size

    @property
    def labels(self) -> np.ndarray:
        """The species of all examples, or 0 for scenes: int64[n]."""
        config = CONFIGS[self.config]
        return np.array([config.label_of(self.split, i) for i in range(self.size)], np.int64)

    @property
    def ids(self) -> np.ndarray:
        """The ids of all examples: int64[n]."""
        config = CONFIGS[self.config]
        return np.array([config.id_of(self.split, i) for i in range(self.size)], np.int64)

    def _record(self, index: int) -> dict[str, Any]:
        """The stored fields of an example, image and mask as they are encoded."""
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"{self.split} has no example {index}; expected 0 to {self.size - 1}")
        return dict(_records(self.folder, self.split)[index])


@dataclasses.dataclass(frozen=True)
class BirdSource(_StoredSource):
    """One split, by index.

    Example i is the one that `draw_example(split, i)` draws, of `zero_shot` `draw_zero_shot`.

    Attributes:
      folder: where the configuration is kept.
      split: the split.
      size: its number of examples.
      config: the configuration.
    """

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the ten captions of an example.

        Args:
          index: which example.

        Returns:
          Ten sentences.
        """
        return _captions(self, operator.index(index))

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        record["name"] = record["name"].decode()
        record["mask"] = decode_mask(record["mask"])
        return record


@dataclasses.dataclass(frozen=True)
class SceneSource(_StoredSource):
    """One split of `detection`, by index.

    Example i is the one that `draw_detection(split, i)` draws. Besides the keys of detection,
    examples have `box_species`, int32[g].

    Attributes:
      folder: where the configuration is kept.
      split: the split.
      size: its number of examples.
      config: the configuration.
    """

    @property
    def sizes(self) -> np.ndarray:
        """(height, width) of all images: int64[n, 2]."""
        return np.full((self.size, 2), SIZE, np.int64)

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        record["name"] = record["name"].decode()
        count = int(record.pop("num_boxes"))
        return {
            key: value[:count] if key.startswith("box") else value for key, value in record.items()
        }


@functools.lru_cache(maxsize=2**14)
def _captions(source: BirdSource, index: int) -> tuple[str, ...]:
    """Tells what can be seen of a bird, once per process: that takes longer than reading."""
    visible = source._record(index)["visible_attributes"]
    return CONFIGS[source.config].captions_of(visible, source.split, index)


@functools.lru_cache(maxsize=16)
def _records(folder: str, split: str) -> Any:
    """Opens a split's files, once per process: that keeps a `BirdSource` cheap to pickle."""
    builder = tfds.builder_from_directory(folder)
    encoded = {"image", "mask"} & builder.info.features.keys()
    skip = {key: tfds.decode.SkipDecoding() for key in encoded}
    return builder.as_data_source(split, decoders=skip)
