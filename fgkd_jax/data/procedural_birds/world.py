"""The species: which traits a bird may have, and which of them each species has.

A bird is described by one value in each of fifteen groups (`GROUPS`): its `traits`. All (group,
value) pairs together are the binary attributes (`ATTRIBUTES`). Five groups are large, seen at any
distance, and belong to the genus (`body_colour`, `wing_colour`, ...); eight are small
(`SMALL_GROUPS`), and one or two of those separate the species of a genus.

Nothing here draws. Whoever wants another bird (an unseen species of a zero-shot split, say) makes
a `Species` from a mapping of traits, and the rest of the package draws it.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping

import numpy as np

from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.errors import UserError, nearest

GROUPS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "body_colour": ("crimson", "rufous", "gold", "green", "teal", "blue", "violet", "rose"),
        "wing_colour": ("black", "brown", "grey", "olive"),
        "belly": ("like_body", "white", "buff"),
        "bill_shape": ("conical", "dagger", "hooked", "curved"),
        "tail_shape": ("fan", "forked", "pointed", "square"),
        "crest": ("smooth", "crested", "tufted"),
        "breast": ("plain", "spotted", "streaked"),
        "bill_colour": ("black", "yellow", "red", "ivory"),
        "forehead": ("plain", "white", "black", "yellow"),
        "eye_ring": ("none", "white", "yellow", "red"),
        "brow": ("none", "black", "white"),
        "throat": ("plain", "white", "black", "yellow"),
        "wing_bar": ("none", "white", "yellow"),
        "tail_tip": ("plain", "white", "yellow"),
        "leg_colour": ("black", "orange", "ivory"),
    }
)
SMALL_GROUPS = (
    "bill_colour",
    "forehead",
    "eye_ring",
    "brow",
    "throat",
    "wing_bar",
    "tail_tip",
    "leg_colour",
)
ATTRIBUTES = tuple(f"{group}::{value}" for group, values in GROUPS.items() for value in values)

_GENUS_NAMES = (
    "Ridgebill", "Marshwit", "Thornlark", "Reedpiper", "Duskfinch", "Fernchat", "Brookdart",
    "Coppicer", "Heathling", "Mosswren", "Cragtail", "Pinesinger", "Saltcreeper", "Glenthrush",
    "Tarnflit", "Willowjack",
)  # fmt: skip
_EPITHETS = {
    "bill_colour": "billed",
    "forehead": "fronted",
    "eye_ring": "ringed",
    "brow": "browed",
    "throat": "throated",
    "wing_bar": "barred",
    "tail_tip": "tipped",
    "leg_colour": "legged",
}
BARRED_VALUES: Mapping[str, frozenset[str]] = types.MappingProxyType(
    {
        "crimson": frozenset({"red"}),
        "rufous": frozenset({"red"}),
        "gold": frozenset({"yellow"}),
        "rose": frozenset({"red"}),
    }
)
"""Values that a bird of a body colour does not have: a mark in the colour it sits on is none."""

# How surely a person sees the group in a picture, and how readily one of its values is taken for
# another: what the class attributes of a data set with human annotators are made of.
_CERTAINTY = {
    "body_colour": (98, 2),
    "wing_colour": (92, 6),
    "belly": (90, 5),
    "bill_shape": (88, 8),
    "tail_shape": (84, 8),
    "crest": (94, 4),
    "breast": (88, 5),
    "bill_colour": (86, 6),
    "forehead": (82, 4),
    "eye_ring": (78, 4),
    "brow": (84, 4),
    "throat": (84, 4),
    "wing_bar": (86, 4),
    "tail_tip": (80, 5),
    "leg_colour": (76, 6),
}


@dataclasses.dataclass(frozen=True)
class Species:
    """One kind of bird.

    Attributes:
      name: two words, epithet and genus.
      genus: index of its genus.
      traits: one value of `GROUPS` for every group.
    """

    name: str
    genus: int
    traits: Mapping[str, str]

    def __post_init__(self) -> None:
        check_traits(self.traits)

    @property
    def indicators(self) -> np.ndarray:
        """Which attributes the species has: uint8[attributes], one 1 in each group."""
        values = [self.traits[group] == value for group, row in GROUPS.items() for value in row]
        return np.array(values, np.uint8)


@dataclasses.dataclass(frozen=True)
class World:
    """A set of species.

    Attributes:
      genus_names: a name for each genus.
      species: all species, those of a genus next to each other.
      class_attributes: float32[species, attributes] in [0, 1]: the share of annotators who would
        say that the species has the attribute. They overlook small parts and mix up values, so it
        is neither 0 nor 1; the highest value of a group is always the true one.
    """

    genus_names: tuple[str, ...]
    species: tuple[Species, ...]
    class_attributes: np.ndarray

    @property
    def genus_of(self) -> tuple[int, ...]:
        """The genus of each species."""
        return tuple(species.genus for species in self.species)


def check_traits(traits: Mapping[str, str]) -> None:
    """Checks that a mapping names one valid value for every group.

    Args:
      traits: group to value.

    Raises:
      UserError: a group is missing or unknown, or a value is not one of its group's.
    """
    for group in traits:
        if group not in GROUPS:
            raise UserError(f"traits name the unknown group {group!r}{nearest(group, GROUPS)}")
    for group, values in GROUPS.items():
        if group not in traits:
            raise UserError(f"traits lack the group {group!r}; all of {len(GROUPS)} are needed")
        if traits[group] not in values:
            hint = nearest(traits[group], values)
            raise UserError(f"traits have {group} = {traits[group]!r}{hint}")


def traits_of(indicators: np.ndarray) -> dict[str, str]:
    """Reads the traits off an attribute vector, the inverse of `Species.indicators`.

    Args:
      indicators: integers [attributes], a single 1 in each group and 0 elsewhere.

    Returns:
      One value for every group.

    Raises:
      UserError: the length is wrong, or a group has no 1 or more than one.
    """
    if indicators.shape != (len(ATTRIBUTES),):
        raise UserError(f"indicators of shape {indicators.shape}; expected ({len(ATTRIBUTES)},)")
    traits, start = {}, 0
    for group, values in GROUPS.items():
        row = indicators[start : start + len(values)]
        if sorted(row.tolist()) != [0] * (len(values) - 1) + [1]:
            raise UserError(f"indicators of {group} are {row.tolist()}; expected a single 1")
        traits[group] = values[int(row.argmax())]
        start += len(values)
    return traits


def class_attributes(species: tuple[Species, ...], *, seed: int) -> np.ndarray:
    """Returns how often annotators would give each species each attribute.

    The true value of a group gets about the share in which the group is seen, every other value
    the share in which it is taken for the true one, both with a spread of a few percent.

    Args:
      species: the species.
      seed: decides the spread; with it, a row depends on its own traits and place alone.

    Returns:
      float32[species, attributes] in [0, 1], whole percents.
    """
    rows = []
    for number, one in enumerate(species):
        stream = Stream(seed, _ANNOTATORS, number)
        row = []
        for group, values in GROUPS.items():
            seen, confused = _CERTAINTY[group]
            for value in values:
                true = one.traits[group] == value
                centre, spread = (seen, (100 - seen) // 2) if true else (confused, confused)
                row.append(centre + stream.integer(-spread, spread + 1))
        rows.append(row)
    return (np.array(rows, np.int64) / 100).astype(np.float32)


_GENERA, _ANNOTATORS = 1, 2


def _genus_traits(seed: int, genera: int) -> list[dict[str, str]]:
    """The traits that all species of a genus share, before the separating ones are changed."""
    stream = Stream(seed, _GENERA)
    decks = {group: stream.permutation(values) for group, values in GROUPS.items()}
    result = []
    for genus in range(genera):
        # Body colours are dealt without repetition; every eighth genus starts the deck again and
        # moves on in the other large groups.
        turn = genus + genus // len(GROUPS["body_colour"])
        traits = {group: deck[turn % len(deck)] for group, deck in decks.items()}
        traits["body_colour"] = decks["body_colour"][genus % len(decks["body_colour"])]
        # Half of the small parts are left unmarked: a face with every mark at once is a clown's.
        for group in SMALL_GROUPS:
            unmarked, *marks = _allowed(group, traits["body_colour"])
            traits[group] = unmarked if stream.chance(0.5) else stream.choice(marks)
        result.append(traits)
    return result


def genus_names(stream: Stream, genera: int) -> list[str]:
    """Returns names of genera, in an order of the stream's."""
    return stream.permutation(_GENUS_NAMES)[:genera]


def _allowed(group: str, body_colour: str) -> list[str]:
    barred = BARRED_VALUES.get(body_colour, frozenset())
    return [value for value in GROUPS[group] if value not in barred]


def _separate(
    genus: int, traits: dict[str, str], first: str, second: str, stream: Stream
) -> list[dict[str, str]]:
    """Three species of a genus: three values of one small group, or two values of two groups."""
    unmarked, *marks = _allowed(first, traits["body_colour"])
    marks = stream.permutation(marks)
    if genus % 2 == 0:
        return [traits | {first: value} for value in (unmarked, *marks[:2])]
    other, *other_marks = _allowed(second, traits["body_colour"])
    base = traits | {first: unmarked, second: other}
    return [base, base | {first: marks[0]}, base | {second: stream.choice(other_marks)}]


def _name(genus_name: str, traits: Mapping[str, str], group: str | None) -> str:
    if group is None or traits[group] in ("plain", "none"):
        return f"Common {genus_name}"
    return f"{traits[group].capitalize()}-{_EPITHETS[group]} {genus_name}"


@functools.lru_cache(maxsize=8)
def make_world(seed: int, *, genera: int = 8) -> World:
    """Makes genera of three species each.

    Genera differ in body colour and in other large parts. In every second genus the species have
    three values of one small group; in the others one species has the mark of a first group, one
    the mark of a second, and one neither.

    Args:
      seed: decides everything.
      genera: how many, 1 to 16. A longer world is not an extension of a shorter one.

    Returns:
      The world.

    Raises:
      UserError: there are not between 1 and 16 genera.
    """
    if not 1 <= genera <= len(_GENUS_NAMES):
        raise UserError(f"genera = {genera}; expected 1 to {len(_GENUS_NAMES)}")
    stream = Stream(seed, _GENERA, 1)
    names = genus_names(stream, genera)
    firsts, shift = stream.permutation(SMALL_GROUPS), stream.integer(1, len(SMALL_GROUPS))
    species = []
    for genus, shared in enumerate(_genus_traits(seed, genera)):
        first = firsts[genus % len(firsts)]
        second = firsts[(genus + shift) % len(firsts)]
        for place, traits in enumerate(_separate(genus, shared, first, second, stream)):
            group = first if genus % 2 == 0 else (None, first, second)[place]
            name = _name(names[genus], traits, group)
            species.append(Species(name, genus, types.MappingProxyType(traits)))
    table = class_attributes(tuple(species), seed=seed)
    table.setflags(write=False)
    return World(tuple(names), tuple(species), table)
