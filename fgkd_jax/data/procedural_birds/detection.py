"""The configuration `detection`: scenes of one to six birds, with a box and a genus for each.

Species, poses and scenery are those of `classification`, drawn from streams of their own; birds are
smaller, and one may stand in front of another. A box is tight around what can be seen of its bird,
as COCO's are. Of a bird that is nearly hidden the box need not be found; one of which nothing is
seen has none. How many birds there are and where knows nothing of their species.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from fgkd_jax.data.procedural_birds import bird, examples
from fgkd_jax.data.procedural_birds.canvas import Canvas
from fgkd_jax.data.procedural_birds.examples import SEED, SIZE
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.errors import UserError, nearest

PREFIX = "detection/"
"""What stands before a split in the names of examples and in the tasks of drawing processes."""

SCENES: Mapping[str, int] = types.MappingProxyType({"train": 800, "validation": 200, "test": 400})
"""Scenes of each split."""

MOST_BIRDS = 6
LEAST_SHOWN = 0.3
"""A bird need not be found when less than this share of it can be seen."""

_FIRST_ID = types.MappingProxyType({"train": 0, "validation": 100_000, "test": 200_000})
_DETECTION = 3  # beside `examples._CLASSIFICATION` and `zero_shot._ZERO_SHOT`
_POSE, _BIRD, _SPECIES = 1, 3, 5  # the first two as in `examples`
_SHORTEST, _LONGEST = 0.16, 0.36
_ATTEMPTS, _MOST_SHARED = 20, 0.3
# How far a bird reaches from the middle of its body, in its lengths.
_REACH_X, _REACH_Y = 0.5, 0.34


@dataclasses.dataclass(frozen=True)
class DrawnScene:
    """A picture of some birds and where they are.

    Attributes:
      image: uint8[256, 256, 3].
      boxes: float32[g, 4], x_min, y_min, x_max, y_max in pixels; the farthest bird first.
      box_labels: int32[g], the genus, 0 .. 7.
      box_species: int32[g], the species, 0 .. 23.
      box_ignored: bool[g], nearly hidden.
      id: unique in the data set, whatever the split.
      name: `detection/<split>/<index>`.
    """

    image: np.ndarray
    boxes: np.ndarray
    box_labels: np.ndarray
    box_species: np.ndarray
    box_ignored: np.ndarray
    id: int
    name: str

    def padded(self) -> dict[str, Any]:
        """Returns the fields as stored: `MOST_BIRDS` boxes, and the number of real ones."""
        missing = MOST_BIRDS - len(self.boxes)
        rows = {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            for key, value in vars(self).items()
            if key.startswith("box")
        }
        return {**vars(self), **rows, "num_boxes": len(self.boxes)}


def split_size(split: str) -> int:
    """Returns how many scenes a split has.

    Args:
      split: `train`, `validation` or `test`.

    Returns:
      Their number.

    Raises:
      UserError: there is no such split.
    """
    if split not in SCENES:
        raise UserError(
            f"procedural_birds/detection has no split {split!r}{nearest(split, SCENES)}"
        )
    return SCENES[split]


def id_of(split: str, index: int) -> int:
    """Returns the id of a split's scene."""
    return _FIRST_ID[split] + index


def draw_detection(split: str, index: int, *, seed: int = SEED) -> DrawnScene:
    """Draws one scene of `procedural_birds/detection`.

    Args:
      split: `train`, `validation` or `test`.
      index: which of the split's scenes.
      seed: another seed gives other scenes of the same species.

    Returns:
      The scene.

    Raises:
      UserError: no such split or index.
    """
    size = split_size(split)
    if not 0 <= index < size:
        raise UserError(f"{split} has no example {index}; expected 0 to {size - 1}")
    key = (seed, _DETECTION, _FIRST_ID[split], index)
    poses = scene_poses(Stream(*key, _POSE))
    choices = Stream(*key, _SPECIES)
    species = [choices.integer(0, examples.NUM_SPECIES) for _ in poses]
    world = examples.birds_world().species
    traits = [world[label].traits for label in species]
    image, canvas = examples.draw_scene(key, list(zip(traits, poses, strict=True)), poses=poses)
    found = []
    for number, (label, pose) in enumerate(zip(species, poses, strict=True), start=1):
        mask = canvas.coverage(number) >= 5
        if not mask.any():
            continue
        alone = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
        alone.number = number
        bird.draw_bird(alone, world[label].traits, pose, Stream(*key, _BIRD, number))
        whole = int((alone.coverage(number) >= 5).sum())
        hidden = int(mask.sum()) < LEAST_SHOWN * whole
        box = examples.tight_box(mask.astype(np.uint8))
        found.append((box, world[label].genus, label, hidden))
    return DrawnScene(
        image=image,
        boxes=np.array([one[0] for one in found], np.float32).reshape(-1, 4),
        box_labels=np.array([one[1] for one in found], np.int32),
        box_species=np.array([one[2] for one in found], np.int32),
        box_ignored=np.array([one[3] for one in found], bool),
        id=id_of(split, index),
        name=f"{PREFIX}{split}/{index:06d}",
    )


def scene_poses(stream: Stream) -> list[bird.Pose]:
    """Draws where the birds of a scene are.

    Birds overlap a little at most: a place that shares more than three tenths of the smaller bird's
    extent with another bird is drawn again, and given up after twenty attempts.

    Args:
      stream: where the draws come from; it must not know the species.

    Returns:
      One to six poses, the smallest, and so the farthest, first.
    """
    wanted = stream.integer(1, MOST_BIRDS + 1)
    poses: list[bird.Pose] = []
    for _ in range(wanted):
        for _ in range(_ATTEMPTS):
            pose = bird.sample_pose(stream, size=SIZE, shortest=_SHORTEST, longest=_LONGEST)
            if all(_shared(pose, other) <= _MOST_SHARED for other in poses):
                poses.append(pose)
                break
    return sorted(poses, key=lambda pose: pose.length)


def _shared(one: bird.Pose, other: bird.Pose) -> float:
    """The part of the smaller bird's upright box that the other's covers."""
    sides = []
    for middle, reach in (("x", _REACH_X), ("y", _REACH_Y)):
        ends = [
            (
                getattr(pose, middle) - reach * pose.length,
                getattr(pose, middle) + reach * pose.length,
            )
            for pose in (one, other)
        ]
        sides.append(max(0.0, min(end for _, end in ends) - max(start for start, _ in ends)))
    smaller = min(one.length, other.length)
    return sides[0] * sides[1] / (4 * _REACH_X * _REACH_Y * smaller * smaller)
