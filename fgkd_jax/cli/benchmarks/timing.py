"""How alternatives are timed against each other: in turn, in one process, ours first.

Every repetition takes one sample of each alternative, in the order A B C A B C ..., so that what
else the machine does strikes all of them alike; a ratio is taken within a repetition, never between
samples of different times. What is reported is the median with the least and the largest.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fgkd_jax.cli.benchmarks.shares import MEANING, Share, share_rows, shares
from fgkd_jax.errors import UserError
from fgkd_jax.train.writers import summary_table

RATIO = "alternative seconds / ours seconds; above 1 means ours is faster"
"""How a ratio is defined, everywhere."""

MAX_CALLS = 100_000


def _nothing() -> None:
    """What most alternatives do before and after a sample."""


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One way to do the work of a case.

    Attributes:
      name: what it is called in the table.
      run: does the work a number of times and returns when the device has finished.
      begin: prepares a sample; its time does not count.
      end: clears up after a sample; its time does not count.
    """

    name: str
    run: Callable[[int], None]
    begin: Callable[[], None] = _nothing
    end: Callable[[], None] = _nothing


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work, and the alternatives that do it.

    Attributes:
      name: what it is called in the table.
      sizes: shapes, types and whatever else the times depend on, for the record.
      alternatives: ours comes first; all others are compared with it.
      images: per call, where the table should show images per second.
      notes: what a reader of the figures should know.
      prefixes: alternatives that are ours, cut off behind one part after the other; named by it.
    """

    name: str
    sizes: Mapping[str, Any]
    alternatives: tuple[Alternative, ...]
    images: int | None = None
    notes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Spread:
    """What a few measurements come to.

    Attributes:
      median: the middle one, or the mean of the two in the middle.
      min: the least.
      max: the largest.
    """

    median: float
    min: float
    max: float


@dataclasses.dataclass(frozen=True)
class Times:
    """What was measured of one alternative.

    Attributes:
      first_call: seconds of the very first call: tracing, compiling, opening, and one call.
      calls: in each sample.
      samples: seconds per call, one entry per repetition.
    """

    first_call: float
    calls: int
    samples: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one case.

    Attributes:
      case: the case, without its alternatives: what they hold on to can be freed.
      times: by name of the alternative, ours first.
    """

    case: Case
    times: Mapping[str, Times]

    @property
    def ours(self) -> str:
        """The name of the alternative that the others are compared with."""
        return next(iter(self.times))

    @property
    def shares(self) -> tuple[Share, ...]:
        """What each part of ours takes, and the rest; empty where it was not cut off."""
        cut = {name: self.times[name].samples for name in self.case.prefixes}
        return shares(self.times[self.ours].samples, cut) if cut else ()


def jax_alternative(name: str, call: Callable[[], Any], *, chained: bool = False) -> Alternative:
    """Makes an alternative of a function that enqueues work on JAX's devices.

    Independent calls run side by side on a CPU, which would time something else than one call, so
    there each is waited for. An accelerator makes them one after the other by itself.

    Args:
      name: of the alternative.
      call: enqueues one call and returns arrays that are ready when it is done.
      chained: whether each call needs the result of the one before.

    Returns:
      The alternative.
    """
    wait_for_each = not chained and jax.default_backend() == "cpu"

    def run(count: int) -> None:
        arrays = None
        for _ in range(count):
            arrays = call()
            if wait_for_each:
                jax.block_until_ready(arrays)
        jax.block_until_ready(arrays)

    return Alternative(name, run)


def torch_alternative(name: str, call: Callable[[], Any], *, device: Any) -> Alternative:
    """Makes an alternative of a function that enqueues work on a device of torch.

    Args:
      name: of the alternative.
      call: enqueues one call.
      device: a `torch.device`.

    Returns:
      The alternative.
    """
    import torch

    def run(count: int) -> None:
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return Alternative(name, run)


def measure(
    case: Case,
    *,
    repeats: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Times the alternatives of a case in alternation.

    The first call of each is timed by itself, for it compiles; the second says how many calls make
    a sample of the length asked for.

    Args:
      case: the case.
      repeats: samples of each alternative, at least 1.
      seconds: least length of a sample, above 0.
      clock: seconds from any origin.

    Returns:
      All samples.

    Raises:
      UserError: an argument is out of range.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1")
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds is {seconds}; expected a number above 0")
    first = {one.name: _first_call(one, clock) for one in case.alternatives}
    calls = {
        one.name: calls_for(seconds, per_call=_sample(one, 1, clock)) for one in case.alternatives
    }
    samples: dict[str, list[float]] = {one.name: [] for one in case.alternatives}
    for _ in range(repeats):
        for one in case.alternatives:
            samples[one.name].append(_sample(one, calls[one.name], clock))
    times = {name: Times(first[name], calls[name], tuple(samples[name])) for name in samples}
    return Measured(dataclasses.replace(case, alternatives=()), times)


def calls_for(seconds: float, *, per_call: float) -> int:
    """Says how many calls make a sample.

    Args:
      seconds: least length of the sample.
      per_call: seconds that a call takes.

    Returns:
      At least 1, at most `MAX_CALLS`.

    Example:
      >>> calls_for(0.5, per_call=0.2)
      3
    """
    return min(MAX_CALLS, max(1, math.ceil(seconds / max(per_call, seconds / MAX_CALLS))))


def spread(values: Sequence[float]) -> Spread:
    """Returns median, least and largest.

    Args:
      values: at least one.

    Returns:
      The three.

    Example:
      >>> spread([3.0, 1.0, 2.0])
      Spread(median=2.0, min=1.0, max=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], alternative: Sequence[float]) -> tuple[float, ...]:
    """Divides the samples of an alternative by ours of the same repetition.

    Args:
      ours: seconds per call, one per repetition.
      alternative: likewise, as many.

    Returns:
      One ratio per repetition; above 1 ours is faster.

    Example:
      >>> ratios([1.0, 2.0], [2.0, 1.0])
      (2.0, 0.5)
    """
    return tuple(other / own for own, other in zip(ours, alternative, strict=True))


def to_dict(measured: Measured) -> dict[str, Any]:
    """Turns what was measured of a case into what JSON can hold.

    Args:
      measured: of one case.

    Returns:
      `case`, `sizes`, `ours`, `unit`, `alternatives` (by name: every sample, median, min, max, and
      for all but ours the `ratio`) and `notes`; where ours was cut off, also its `parts`.
    """
    images, parts = measured.case.images, measured.shares
    own = measured.times[measured.ours].samples
    alternatives = {}
    for name, times in measured.times.items():
        found = spread(times.samples)
        entry: dict[str, Any] = {
            "samples": list(times.samples),
            **dataclasses.asdict(found),
            "calls_per_sample": times.calls,
            "first_call": times.first_call,
        }
        if images is not None:
            entry["images_per_second"] = images / found.median
        if name != measured.ours:
            values = ratios(own, times.samples)
            entry["ratio"] = {"samples": list(values), **dataclasses.asdict(spread(values))}
        alternatives[name] = entry
    return {
        "case": measured.case.name,
        "sizes": dict(measured.case.sizes),
        "ours": measured.ours,
        "unit": "seconds per call",
        "alternatives": alternatives,
        "notes": list(measured.case.notes),
        **({"parts": [dataclasses.asdict(one) for one in parts]} if parts else {}),
    }


def table(results: Sequence[Measured]) -> str:
    """Lays out what was measured.

    Args:
      results: one entry per case.

    Returns:
      Several lines: a row per alternative, then what the columns mean; in the same way a row per
      part, where ours was cut off.
    """
    rows, parts = [], []
    for measured in results:
        parts += share_rows(measured.case.name, measured.shares)
        own = measured.times[measured.ours].samples
        for name, times in measured.times.items():
            if name in measured.case.prefixes:
                continue
            found = spread(times.samples)
            row: dict[str, Any] = {
                "case": measured.case.name,
                "alternative": name,
                "ms": 1e3 * found.median,
                "least": 1e3 * found.min,
                "most": 1e3 * found.max,
            }
            if measured.case.images is not None:
                row["images/s"] = round(measured.case.images / found.median)
            row["first call s"] = times.first_call
            if name != measured.ours:
                ratio = spread(ratios(own, times.samples))
                row |= {"ratio": ratio.median, "from": ratio.min, "to": ratio.max}
            rows.append(row)
    notes = dict.fromkeys(note for measured in results for note in measured.case.notes)
    meaning = f"ms per call: median, least, most; ratio: {RATIO}"
    divided = ["", summary_table(parts), "", MEANING] if parts else []
    return "\n".join([summary_table(rows), "", meaning, *divided, *notes])


def _sample(one: Alternative, calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call."""
    one.begin()
    try:
        start = clock()
        one.run(calls)
        return (clock() - start) / calls
    finally:
        one.end()


def _first_call(one: Alternative, clock: Callable[[], float]) -> float:
    """Seconds of the first call, preparation included."""
    start = clock()
    one.begin()
    try:
        one.run(1)
        return clock() - start
    finally:
        one.end()
