"""What each part of a piece of work takes: the work cut off behind every part, and differences."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

REST = "rest"
"""What the whole takes beyond the last part that it was cut off behind."""

MEANING = (
    "a part: the median as far as its end, less the median as far as the end of the part before; "
    "least and most of the differences within a repetition; where they have both signs the part is "
    "not told apart from nothing, and nothing is cut off at 0"
)
"""How a share is defined, everywhere."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What one part takes.

    Attributes:
      part: its name.
      seconds: difference of medians; all of a case add up to the median of the whole. Below 0
        where noise is larger than the part, or where the compiler saves something as it sees more.
      min: the least difference within a repetition.
      max: the largest one.
      share: of the whole's median.
      told: whether all differences have one sign.
    """

    part: str
    seconds: float
    min: float
    max: float
    share: float
    told: bool


def shares(whole: Sequence[float], prefixes: Mapping[str, Sequence[float]]) -> tuple[Share, ...]:
    """Divides what something takes among its parts.

    Args:
      whole: seconds per call, one sample per repetition.
      prefixes: likewise, of the work as far as the end of each part, by the part's name, in order;
        their samples are of the same repetitions.

    Returns:
      One entry per part, then the rest.
    """
    total = statistics.median(whole)
    found, before = [], [0.0] * len(whole)
    for name, samples in (*prefixes.items(), (REST, whole)):
        seconds = statistics.median(samples) - statistics.median(before)
        differences = [now - then for now, then in zip(samples, before, strict=True)]
        least, most = min(differences), max(differences)
        told = least > 0 or most < 0
        found.append(Share(name, seconds, least, most, seconds / total, told))
        before = list(samples)
    return tuple(found)


def share_rows(case: str, found: Sequence[Share]) -> list[dict[str, Any]]:
    """Lays shares out.

    Args:
      case: what it is called in the table.
      found: as `shares` returns them.

    Returns:
      Rows of `summary_table`.
    """
    return [
        {
            "case": case,
            "part": one.part,
            "ms": 1e3 * one.seconds,
            "least": 1e3 * one.min,
            "most": 1e3 * one.max,
            "share": f"{100 * one.share:.1f}%",
            "told": "yes" if one.told else "no",
        }
        for one in found
    ]
