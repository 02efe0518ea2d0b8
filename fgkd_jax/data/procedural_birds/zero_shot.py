"""The configuration `zero_shot`: 48 species over the same attributes, 12 of them never trained on.

In `classification` the large parts of a genus go together: whoever has a forked tail has a certain
bill. From pictures of such species nobody can learn which of the two an attribute speaks of. Here
every trait but the body's colour is dealt by itself, each value of a group about equally often, so
that attributes can be told apart and an unseen species is a combination of known ones. A genus is
the six species of one body colour; any two species differ in at least `LEAST_DIFFERENCE` groups,
and every attribute is that of at least `LEAST_SEEN` seen species.

Scenes and poses are drawn as in `classification`, from streams of their own.
"""

import functools
import types
from collections.abc import Mapping

import numpy as np

from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.procedural_birds import captions
from fgkd_jax.data.procedural_birds.anatomy import GROUP_PARTS, PARTS
from fgkd_jax.data.procedural_birds.examples import DrawnExample, draw_species
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.world import (
    ATTRIBUTES,
    BARRED_VALUES,
    GROUPS,
    Species,
    World,
    class_attributes,
    genus_names,
)
from fgkd_jax.data.word_vectors import composed_word_vectors
from fgkd_jax.errors import UserError, nearest

SEED = 11
PER_GENUS = 6
LEAST_DIFFERENCE, LEAST_SEEN = 5, 4
UNSEEN = 12
PREFIX = "zero_shot/"
"""What stands before a split in the names of examples and in the tasks of drawing processes."""

PER_SPECIES: Mapping[str, int] = types.MappingProxyType(
    {"train": 60, "test_seen": 20, "test_unseen": 40}
)
"""Images of each species of a split, which are the seen ones or the unseen ones."""

_FIRST_ID = types.MappingProxyType({"train": 0, "test_seen": 200_000, "test_unseen": 300_000})
_ZERO_SHOT = 2  # beside `examples._CLASSIFICATION`
_TRAITS, _CHOICE, _NAMES = 1, 2, 3
_CAPTIONS = 4  # the last of an example's streams, as in `examples`
# The body's colour is everywhere and so at no part.
_PARTS_OF = {
    **GROUP_PARTS,
    "wing_colour": "wing",
    "belly": "belly",
    "bill_shape": "bill",
    "tail_shape": "tail",
    "crest": "crown",
    "breast": "breast",
}


@functools.lru_cache(maxsize=1)
def zero_shot_world() -> World:
    """Returns the 48 species."""
    genera = len(GROUPS["body_colour"])
    names = genus_names(Stream(SEED, _ZERO_SHOT, _NAMES), genera)
    attempt = 0
    while True:
        traits = _deal(Stream(SEED, _ZERO_SHOT, _TRAITS, attempt))
        if _fits(traits, seen_species()):
            break
        attempt += 1
    species = tuple(
        Species(name, number // PER_GENUS, types.MappingProxyType(one))
        for number, (one, name) in enumerate(
            zip(traits, _species_names(traits, names), strict=True)
        )
    )
    table = class_attributes(species, seed=SEED)
    table.setflags(write=False)
    return World(tuple(names), species, table)


@functools.lru_cache(maxsize=1)
def seen_species() -> tuple[bool, ...]:
    """Returns whether training has pictures of each species: of four or five of each genus."""
    stream = Stream(SEED, _ZERO_SHOT, _CHOICE)
    genera = len(GROUPS["body_colour"])
    # One unseen species in each genus, and a second one in some.
    twice = set(stream.permutation(range(genera))[: UNSEEN - genera])
    seen = []
    for genus in range(genera):
        out = set(stream.permutation(range(PER_GENUS))[: 1 + (genus in twice)])
        seen += [place not in out for place in range(PER_GENUS)]
    return tuple(seen)


def species_of(split: str) -> tuple[int, ...]:
    """Returns the species that a split has pictures of.

    Args:
      split: `train`, `test_seen` or `test_unseen`.

    Returns:
      Their labels.

    Raises:
      UserError: there is no such split.
    """
    if split not in PER_SPECIES:
        raise UserError(f"zero_shot has no split {split!r}{nearest(split, PER_SPECIES)}")
    wanted = split != "test_unseen"
    return tuple(number for number, seen in enumerate(seen_species()) if seen == wanted)


def label_of(split: str, index: int) -> int:
    """Returns the species of a split's example: they take turns."""
    classes = species_of(split)
    return classes[index % len(classes)]


def captions_of(visible_attributes: np.ndarray, split: str, index: int) -> tuple[str, ...]:
    """Returns what ten people say of an example.

    Args:
      visible_attributes: uint8[57], those of the example.
      split: a key of `PER_SPECIES`.
      index: which of the split's examples.

    Returns:
      Ten sentences.
    """
    key = (SEED, _ZERO_SHOT, _FIRST_ID[split], index, _CAPTIONS)
    return captions.tell(visible_attributes, Stream(*key))


def id_of(split: str, index: int) -> int:
    """Returns the id of a split's example."""
    return _FIRST_ID[split] + index


def draw_zero_shot(split: str, index: int, *, label: int | None = None) -> DrawnExample:
    """Draws one example of `procedural_birds/zero_shot`.

    Args:
      split: `train`, `test_seen` or `test_unseen`.
      index: which of the split's examples.
      label: draw this species in the same pose and scene instead of the example's own.

    Returns:
      The example.

    Raises:
      UserError: no such split or index.
    """
    size = PER_SPECIES.get(split, 0) * len(species_of(split))
    if not 0 <= index < size:
        raise UserError(f"{PREFIX}{split} has no example {index}; expected 0 to {size - 1}")
    label = label_of(split, index) if label is None else label
    world = zero_shot_world()
    return draw_species(
        (SEED, _ZERO_SHOT, _FIRST_ID[split], index),
        world.species[label],
        label=label,
        number=id_of(split, index),
        name=f"{PREFIX}{split}/{index:06d}",
        attributes=world.class_attributes[label],
    )


def describe_species() -> ClassDescriptions:
    """Describes the species: attributes as annotators would give them, and vectors of their names.

    Returns:
      The descriptions. The vectors are made of the names' words (`composed_word_vectors`), for the
      world has no texts that an embedding could be learned from.
    """
    world = zero_shot_world()
    groups = [name.partition("::")[0] for name in ATTRIBUTES]
    parts = [PARTS.index(_PARTS_OF[group]) if group in _PARTS_OF else -1 for group in groups]
    return ClassDescriptions(
        class_names=tuple(one.name for one in world.species),
        attributes=world.class_attributes,
        seen=np.array(seen_species()),
        attribute_names=ATTRIBUTES,
        word_vectors=composed_word_vectors(ATTRIBUTES),
        attribute_parts=np.array(parts, np.int32),
    )


def _deal(stream: Stream) -> list[dict[str, str]]:
    """Traits of all species: body colours in blocks, every other group from a balanced deck."""
    colours = GROUPS["body_colour"]
    traits = [{"body_colour": colours[n // PER_GENUS]} for n in range(PER_GENUS * len(colours))]
    for group, values in GROUPS.items():
        if group == "body_colour":
            continue
        copies = -(-len(traits) // len(values))
        deck = stream.permutation((values * copies)[: len(traits)])
        for one in traits:
            # A mark in the colour it sits on would be no mark: the next card that is none.
            barred = BARRED_VALUES.get(one["body_colour"], frozenset())
            place = next((i for i, value in enumerate(deck) if value not in barred), None)
            if place is None:
                one[group] = values[0]
                deck.pop()
            else:
                one[group] = deck.pop(place)
    return traits


def _fits(traits: list[dict[str, str]], seen: tuple[bool, ...]) -> bool:
    """Whether species are different enough and every attribute is seen often enough."""
    table = np.array(
        [
            [one[group] == value for group, values in GROUPS.items() for value in values]
            for one in traits
        ]
    )
    if table[np.array(seen)].sum(axis=0).min() < LEAST_SEEN:
        return False
    shared = table.astype(np.int64) @ table.T
    np.fill_diagonal(shared, 0)
    return bool(shared.max() <= len(GROUPS) - LEAST_DIFFERENCE)


_EPITHETS = {
    "wing_colour": "{}-winged",
    "bill_colour": "{}-billed",
    "leg_colour": "{}-legged",
    "tail_shape": "{}-tailed",
}


def _species_names(traits: list[dict[str, str]], names: list[str]) -> list[str]:
    """As many epithets as tell the species of a genus apart."""
    found = []
    for genus, name in enumerate(names):
        members = traits[genus * PER_GENUS : (genus + 1) * PER_GENUS]
        for count in range(1, len(_EPITHETS) + 1):
            groups = list(_EPITHETS.items())[:count]
            own = [" ".join(text.format(one[group]) for group, text in groups) for one in members]
            if len(set(own)) == PER_GENUS:
                break
        found += [f"{epithets.capitalize()} {name}" for epithets in own]
    return found
