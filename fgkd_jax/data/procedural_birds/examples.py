"""One example of the data set, from (configuration, seed, split, index) alone.

Other configurations have a number of their own in place of `_CLASSIFICATION`, so they can be added
without a change to what is drawn here. Captions are told from `visible_attributes` when they are
asked for, by a stream with a number of its own beside `_POSE`, `_SCENE` and `_BIRD`.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import numpy as np

from fgkd_jax.data.procedural_birds import bird, captions, scene
from fgkd_jax.data.procedural_birds.canvas import Canvas
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.world import GROUPS, Species, World, make_world
from fgkd_jax.errors import UserError, nearest

SIZE = 256
SEED = 7
NUM_SPECIES = 24
# Images of each species; an id is the split's first id plus the index.
PER_SPECIES: Mapping[str, int] = types.MappingProxyType({"train": 80, "validation": 20, "test": 40})
_FIRST_ID = types.MappingProxyType({"train": 0, "validation": 100_000, "test": 200_000})
_CLASSIFICATION = 1
_POSE, _SCENE, _BIRD, _CAPTIONS = 1, 2, 3, 4


@dataclasses.dataclass(frozen=True)
class DrawnExample:
    """A picture of one bird and everything that is true of it.

    Attributes:
      image: uint8[256, 256, 3].
      label: the species, 0 .. 23 (0 .. 47 of `zero_shot`).
      genus: its genus, 0 .. 7.
      id: unique in the data set, whatever the split.
      name: `<split>/<index>`, with the configuration before it where it is another one.
      attributes: float32[57], the species' attributes as annotators would give them.
      visible_attributes: uint8[57], 1 where the bird has the attribute and it can be seen here.
      parts: float32[12, 3], x and y in pixels, 1 where the part can be seen.
      bbox: float32[4], x_min, y_min, x_max, y_max in pixels, around what can be seen.
      mask: uint8[256, 256], 1 where at least half of the pixel shows the bird.
    """

    image: np.ndarray
    label: int
    genus: int
    id: int
    name: str
    attributes: np.ndarray
    visible_attributes: np.ndarray
    parts: np.ndarray
    bbox: np.ndarray
    mask: np.ndarray


def split_size(split: str) -> int:
    """Returns how many examples a split has.

    Args:
      split: `train`, `validation` or `test`.

    Returns:
      Its number of examples.

    Raises:
      UserError: there is no such split.
    """
    if split not in PER_SPECIES:
        raise UserError(f"procedural_birds has no split {split!r}{nearest(split, PER_SPECIES)}")
    return PER_SPECIES[split] * NUM_SPECIES


def birds_world() -> World:
    """Returns the 24 species of the configuration `classification`."""
    return make_world(SEED)


def label_of(index: int) -> int:
    """Returns the species of a split's example: they take turns."""
    return index % NUM_SPECIES


def id_of(split: str, index: int) -> int:
    """Returns the id of a split's example."""
    return _FIRST_ID[split] + index


def captions_of(visible_attributes: np.ndarray, split: str, index: int) -> tuple[str, ...]:
    """Returns what ten people say of an example.

    Args:
      visible_attributes: uint8[57], those of the example.
      split: `train`, `validation` or `test`.
      index: which of the split's examples.

    Returns:
      Ten sentences.
    """
    key = (SEED, _CLASSIFICATION, _FIRST_ID[split], index, _CAPTIONS)
    return captions.tell(visible_attributes, Stream(*key))


def draw_example(
    split: str, index: int, *, seed: int = SEED, label: int | None = None, with_bird: bool = True
) -> DrawnExample:
    """Draws one example of `procedural_birds/classification`.

    Args:
      split: `train`, `validation` or `test`.
      index: which of the split's examples.
      seed: another seed gives other pictures of the same species.
      label: draw this species in the same pose and scene instead of the example's own.
      with_bird: without it, the scene is drawn empty: no bird, no part of it visible, an empty
        mask and box.

    Returns:
      The example.

    Raises:
      UserError: no such split, index or species.
    """
    size = split_size(split)
    if not 0 <= index < size:
        raise UserError(f"{split} has no example {index}; expected 0 to {size - 1}")
    label = label_of(index) if label is None else label
    if not 0 <= label < NUM_SPECIES:
        raise UserError(f"there is no species {label}; expected 0 to {NUM_SPECIES - 1}")
    return draw_species(
        (seed, _CLASSIFICATION, _FIRST_ID[split], index),
        birds_world().species[label],
        label=label,
        number=id_of(split, index),
        name=f"{split}/{index:06d}",
        attributes=birds_world().class_attributes[label],
        with_bird=with_bird,
    )


def draw_species(
    key: tuple[int, ...],
    species: Species,
    *,
    label: int,
    number: int,
    name: str,
    attributes: np.ndarray,
    with_bird: bool = True,
) -> DrawnExample:
    """Draws one bird of a species.

    Args:
      key: decides pose, scene and the bird's individual differences.
      species: what to draw.
      label: of the species.
      number: id of the example.
      name: of the example.
      attributes: float32[attributes], the species' own.
      with_bird: see `draw_example`.

    Returns:
      The example.
    """
    pose = bird.sample_pose(Stream(*key, _POSE), size=SIZE)
    birds = [(species.traits, pose)] if with_bird else []
    image, canvas = draw_scene(key, birds, poses=[pose])
    mask = (canvas.coverage(1) >= 5).astype(np.uint8)
    return DrawnExample(
        image=image,
        label=label,
        genus=species.genus,
        id=number,
        name=name,
        attributes=attributes,
        visible_attributes=species.indicators * visible_groups(canvas, 1, pose),
        parts=visible_parts(mask, pose),
        bbox=tight_box(mask),
        mask=mask,
    )


def draw_scene(
    key: tuple[int, ...],
    birds: Sequence[tuple[Mapping[str, str], bird.Pose]],
    *,
    poses: Sequence[bird.Pose],
    size: int = SIZE,
) -> tuple[np.ndarray, Canvas]:
    """Draws a scene of any number of birds.

    Args:
      key: decides the scene and the birds' individual differences.
      birds: traits and pose of each, the farthest first. On the canvas they have the numbers 1, 2,
        ... in this order.
      poses: where there are perches and what covers birds; usually those of the birds.
      size: side of the picture, pixels; a multiple of 16.

    Returns:
      The picture, uint8[size, size, 3], and the canvas, which knows what of each bird can be seen.
    """
    stream = Stream(*key, _SCENE)
    canvas = Canvas(scene.backdrop(stream, size=size))
    scene.behind(canvas, stream, poses)
    for number, (traits, pose) in enumerate(birds, start=1):
        canvas.number = number
        bird.draw_bird(canvas, traits, pose, Stream(*key, _BIRD, number))
    canvas.number = 0
    scene.before(canvas, stream, poses)
    gain, noise = scene.light(stream, size=size)
    picture = canvas.finish().astype(np.int32)
    for number, (_, pose) in enumerate(birds, start=1):
        scene.model(picture, canvas.coverage(number), pose)
    lit = (picture * gain >> 10) + noise
    return np.clip(lit, 0, 255).astype(np.uint8), canvas


def visible_groups(canvas: Canvas, number: int, pose: bird.Pose) -> np.ndarray:
    """Returns which attributes could be seen, if the bird had them.

    Args:
      canvas: the scene.
      number: the bird's number on it.
      pose: the bird's pose.

    Returns:
      uint8[attributes], 1 in all of a group when two of its three points show the bird.
    """
    points = bird.group_points(pose)
    shown = canvas.shows(number, points.reshape(-1, 2)).reshape(points.shape[:2]).sum(axis=1) >= 2
    return np.repeat(shown, [len(values) for values in GROUPS.values()]).astype(np.uint8)


def visible_parts(mask: np.ndarray, pose: bird.Pose) -> np.ndarray:
    """Returns where a bird's parts are and which can be seen.

    Args:
      mask: uint8[h, w], 1 where the bird shows.
      pose: its pose.

    Returns:
      float32[parts, 3], x and y in pixels, and 1 where the mask has the point.
    """
    points = bird.part_points(pose)
    column, row = np.floor(points).astype(np.int64).T
    height, width = mask.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    shown = inside & (mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)] == 1)
    return np.concatenate([points, shown[:, None]], axis=1).astype(np.float32)


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Returns the smallest box around a mask.

    Args:
      mask: uint8[h, w].

    Returns:
      float32[4], x_min, y_min, x_max, y_max in pixels; all 0 when the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
