"""Ten captions of a drawn bird, told from what can be seen of it, with mistakes.

Nothing is stored: an example's captions follow from its visible attributes and a stream of their
own, so a data set that was built before there were captions has them too. A test hashes them; any
change bumps `CAPTIONS_VERSION`.

A caption mentions two to four of the groups that can be seen, large ones thrice as readily as the
small marks that separate species, and never says what is not there ("no eye ring"). Each mention is
wrong with probability `ERROR_RATE`: another value of its group. So a caption helps and does not
give the species away; ten together nearly do.
"""

import types
from collections.abc import Mapping

import numpy as np

from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.world import GROUPS, SMALL_GROUPS

CAPTIONS = 10
"""Captions of each example."""

CAPTIONS_VERSION = 1
"""Version of what captions say; the drawn pictures have one of their own."""

ERROR_RATE = 0.15
"""Probability that a mention names another value of its group."""

LEAST, MOST = 2, 4
"""How many groups a caption mentions, where as many can be seen."""

_SMALL_WEIGHT, _LARGE_WEIGHT = 1, 3
_UNSPOKEN = frozenset({"like_body", "plain", "none", "smooth"})
_THINGS: Mapping[str, str] = types.MappingProxyType(
    {
        "body_colour": "body",
        "wing_colour": "wings",
        "belly": "belly",
        "bill_shape": "bill",
        "tail_shape": "tail",
        "crest": "head",
        "breast": "breast",
        "bill_colour": "bill",
        "forehead": "forehead",
        "eye_ring": "eye ring",
        "brow": "brow",
        "throat": "throat",
        "wing_bar": "wing bars",
        "tail_tip": "tail tip",
        "leg_colour": "legs",
    }
)
_PLURAL = frozenset({"wings", "wing bars", "legs"})
_NOUNS = frozenset({"fan", "dagger"})  # a tail is no fan
_OPENINGS = ("this bird has {}", "a bird with {}", "this is a bird that has {}")

SPOKEN: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        group: tuple(value for value in values if value not in _UNSPOKEN)
        for group, values in GROUPS.items()
    }
)
"""The values of each group that captions name."""


def tell(visible_attributes: np.ndarray, stream: Stream) -> tuple[str, ...]:
    """Tells what can be seen of a bird, ten times.

    Args:
      visible_attributes: uint8[57], 1 where the bird has the attribute and it can be seen.
      stream: the captions' own.

    Returns:
      Ten sentences.
    """
    seen = _seen(visible_attributes)
    return tuple(_caption(seen, stream) for _ in range(CAPTIONS))


def caption_words() -> tuple[str, ...]:
    """Returns every word that may stand in a noun phrase of a caption, sorted."""
    words = {"bird", "two", *(word for thing in _THINGS.values() for word in thing.split())}
    return tuple(sorted(words | {value for values in SPOKEN.values() for value in values}))


def _seen(visible_attributes: np.ndarray) -> dict[str, str]:
    """The value of each group that can be seen and is spoken of."""
    pairs = [(group, value) for group, values in GROUPS.items() for value in values]
    return {
        group: value
        for (group, value), shown in zip(pairs, visible_attributes.tolist(), strict=True)
        if shown and value in SPOKEN[group]
    }


def _caption(seen: Mapping[str, str], stream: Stream) -> str:
    """One sentence; every draw is made from the stream in a fixed order."""
    count = stream.integer(LEAST, MOST + 1)
    opening = stream.choice(_OPENINGS)
    describing = stream.chance(0.3)
    groups = list(seen)
    told: list[tuple[str, str]] = []
    while groups and len(told) < count:
        weights = [_SMALL_WEIGHT if g in SMALL_GROUPS else _LARGE_WEIGHT for g in groups]
        group = stream.choice(groups, weights=weights)
        groups.remove(group)
        others = [value for value in SPOKEN[group] if value != seen[group]]
        wrong = stream.chance(ERROR_RATE) and bool(others)
        told.append((_THINGS[group], stream.choice(others) if wrong else seen[group]))
    if not told:
        return "this is a bird."
    if describing and len(told) > 1 and told[-1][1] not in _NOUNS:
        # "... and its legs are orange": not every description stands before the thing.
        thing, value = told[-1]
        rest = _join([_named(*one) for one in told[:-1]])
        verb = "are" if thing in _PLURAL else "is"
        return f"{opening.format(rest)}, and its {thing} {verb} {value}."
    return f"{opening.format(_join([_named(*one) for one in told]))}."


def _named(thing: str, value: str) -> str:
    """A thing with its quality before it."""
    if thing == "wing bars":
        return f"two {value} {thing}"
    if thing in _PLURAL:
        return f"{value} {thing}"
    return f"{'an' if value[0] in 'aeiou' else 'a'} {value} {thing}"


def _join(parts: list[str]) -> str:
    """A list in words."""
    return " and ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), parts[-1]])
