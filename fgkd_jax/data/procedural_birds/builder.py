"""The TFDS builder: draws the data set once and keeps it as array_record files."""

import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from fgkd_jax.data.procedural_birds import detection, examples, zero_shot
from fgkd_jax.data.procedural_birds.anatomy import PARTS
from fgkd_jax.data.procedural_birds.records import Record, draw_records
from fgkd_jax.data.procedural_birds.world import ATTRIBUTES, World

VERSION = "1.0.0"


@dataclasses.dataclass(kw_only=True)
class BirdsConfig(tfds.core.BuilderConfig):
    """A configuration.

    Attributes:
      per_species: examples of each species, by split; at most those of `classification`.
      content: what an example is.
    """

    per_species: dict[str, int]

    content: str = "Drawn scenes of one bird each, with parts, attributes, box and mask."

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in the order in which they are drawn."""
        return tuple(self.per_species)

    def features(self) -> dict[str, Any]:
        """Returns what is stored of an example, as TFDS declares it."""
        features = tfds.features
        square = (examples.SIZE, examples.SIZE)
        return {
            "image": features.Image(shape=(*square, 3), encoding_format="jpeg"),
            "mask": features.Image(shape=(*square, 1), encoding_format="png"),
            "label": features.ClassLabel(names=[one.name for one in self.world.species]),
            "genus": features.ClassLabel(names=list(self.world.genus_names)),
            "id": np.int32,
            "name": features.Text(),
            "attributes": features.Tensor(shape=(len(ATTRIBUTES),), dtype=np.float32),
            "visible_attributes": features.Tensor(shape=(len(ATTRIBUTES),), dtype=np.uint8),
            "parts": features.Tensor(shape=(len(PARTS), 3), dtype=np.float32),
            "bbox": features.Tensor(shape=(4,), dtype=np.float32),
        }

    @property
    def world(self) -> World:
        """The species."""
        return examples.birds_world()

    def tasks(self, split: str) -> list[tuple[str, int]]:
        """Returns (split, index) of a split's examples, in order, as `draw_task` takes them."""
        return [(split, index) for index in range(self.per_species[split] * examples.NUM_SPECIES)]

    def label_of(self, split: str, index: int) -> int:
        """Returns the species of a split's example."""
        del split
        return examples.label_of(index)

    def id_of(self, split: str, index: int) -> int:
        """Returns the id of a split's example."""
        return examples.id_of(split, index)

    def captions_of(
        self, visible_attributes: np.ndarray, split: str, index: int
    ) -> tuple[str, ...]:
        """Returns what ten people say of a split's example."""
        return examples.captions_of(visible_attributes, split, index)


@dataclasses.dataclass(kw_only=True)
class ZeroShotConfig(BirdsConfig):
    """The configuration with unseen species."""

    @property
    def world(self) -> World:
        """The species."""
        return zero_shot.zero_shot_world()

    def tasks(self, split: str) -> list[tuple[str, int]]:
        """Returns (split, index) of a split's examples, in order, as `draw_task` takes them."""
        size = self.per_species[split] * len(zero_shot.species_of(split))
        return [(zero_shot.PREFIX + split, index) for index in range(size)]

    def label_of(self, split: str, index: int) -> int:
        """Returns the species of a split's example."""
        return zero_shot.label_of(split, index)

    def id_of(self, split: str, index: int) -> int:
        """Returns the id of a split's example."""
        return zero_shot.id_of(split, index)

    def captions_of(
        self, visible_attributes: np.ndarray, split: str, index: int
    ) -> tuple[str, ...]:
        """Returns what ten people say of a split's example."""
        return zero_shot.captions_of(visible_attributes, split, index)


@dataclasses.dataclass(kw_only=True)
class DetectionConfig(BirdsConfig):
    """The configuration with several birds in a scene.

    Attributes:
      scenes: by split; at most `detection.SCENES`.
    """

    scenes: dict[str, int]
    per_species: dict[str, int] = dataclasses.field(default_factory=dict)
    content: str = "Drawn scenes of one to six birds, with a box and a genus for each."

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in the order in which they are drawn."""
        return tuple(self.scenes)

    def tasks(self, split: str) -> list[tuple[str, int]]:
        """Returns (split, index) of a split's scenes, in order, as `draw_task` takes them."""
        return [(detection.PREFIX + split, index) for index in range(self.scenes[split])]

    def label_of(self, split: str, index: int) -> int:
        """Returns 0: a scene has no label of its own."""
        del split, index
        return 0

    def id_of(self, split: str, index: int) -> int:
        """Returns the id of a split's scene."""
        return detection.id_of(split, index)

    def features(self) -> dict[str, Any]:
        """Returns what is stored of a scene, as TFDS declares it."""
        features, most = tfds.features, detection.MOST_BIRDS
        return {
            "image": features.Image(
                shape=(examples.SIZE, examples.SIZE, 3), encoding_format="jpeg"
            ),
            "id": np.int32,
            "name": features.Text(),
            "num_boxes": np.int32,
            "boxes": features.Tensor(shape=(most, 4), dtype=np.float32),
            "box_labels": features.Tensor(shape=(most,), dtype=np.int32),
            "box_species": features.Tensor(shape=(most,), dtype=np.int32),
            "box_ignored": features.Tensor(shape=(most,), dtype=np.bool_),
        }


CONFIGS = {
    "classification": BirdsConfig(
        name="classification",
        description="24 species of 8 genera, one bird in each picture",
        per_species=dict(examples.PER_SPECIES),
    ),
    "tiny": BirdsConfig(
        name="tiny",
        description="the first few examples of `classification`, for tests and smoke runs",
        per_species={"train": 2, "validation": 1, "test": 1},
    ),
    "zero_shot": ZeroShotConfig(
        name="zero_shot",
        description="48 species with independent traits, 12 of them unseen in training",
        per_species=dict(zero_shot.PER_SPECIES),
    ),
    "detection": DetectionConfig(
        name="detection",
        description="one to six birds in each picture, with boxes by genus",
        scenes=dict(detection.SCENES),
    ),
    "detection_tiny": DetectionConfig(
        name="detection_tiny",
        description="the first few examples of `detection`, for tests and smoke runs",
        scenes={"train": 8, "validation": 4, "test": 4},
    ),
}


class ProceduralBirds(tfds.core.GeneratorBasedBuilder):
    """A fine-grained world that draws itself.

    Captions are not stored: `examples.captions_of` tells them from `visible_attributes`.
    """

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {str(VERSION): "24 species of 8 genera"}  # noqa: RUF012 (TFDS declares it so)
    BUILDER_CONFIGS = list(CONFIGS.values())  # noqa: RUF012
    # TFDS would look it up through `importlib_resources`, which it does not depend on.
    code_path = Path(__file__)

    def __init__(self, *, workers: int = 0, progress: bool = False, **options: Any) -> None:
        """Makes the builder.

        Args:
          workers: processes that draw; with 0, this one does.
          progress: show a progress bar.
          **options: those of every TFDS builder.
        """
        self._workers, self._progress = workers, progress
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.content,
            features=tfds.features.FeaturesDict(self.builder_config.features()),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        splits = self.builder_config.splits
        tasks = [task for split in splits for task in self.builder_config.tasks(split)]
        records = self._all_records(tasks)
        # One row of records feeds the splits one after another, so that the drawing processes
        # start once; TFDS asks for the splits in the order of this dict.
        return {split: self._generate_examples(split, records) for split in splits}

    def _all_records(self, tasks: list[tuple[str, int]]) -> Iterator[Record]:
        bar = tqdm.tqdm(
            draw_records(tasks, workers=self._workers),
            desc=f"drawing {len(tasks):,} birds",
            total=len(tasks),
            unit=" birds",
            mininterval=0.5,
            disable=not self._progress,
        )
        with bar:
            yield from bar

    def _generate_examples(
        self, split: str, records: Iterator[Record]
    ) -> Iterator[tuple[int, Record]]:
        for _, index in self.builder_config.tasks(split):
            record = next(records)
            if record["id"] != self.builder_config.id_of(split, index):
                raise RuntimeError(f"drew example {record['id']} where {split}/{index} was due")
            # Encoded bytes, since TFDS needs TensorFlow to encode an array.
            encoded = {"image", "mask"} & record.keys()
            yield index, record | {key: io.BytesIO(record[key]) for key in encoded}


def default_workers() -> int:
    """Returns how many processes to draw with: one per core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
