"""What the rounds of loops cost, of which XLA's own analysis counts one."""

import dataclasses
import importlib
from collections.abc import Mapping

import jax

from fgkd_jax.cli.compilation.program import Program


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a device does in one run of a program.

    Attributes:
      flops: operations.
      bytes_accessed: bytes to and from memory.
    """

    flops: float
    bytes_accessed: float


def with_all_rounds(once: Cost, program: Program) -> Cost | None:
    """Adds the rounds of loops after the first.

    XLA's analysis takes every loop for one round, also where it knows how many there are. Here the
    same analysis is made of each loop's body by itself. Where a round reads or writes a part of a
    larger array, the analysis may take it for the whole: the bytes are then too many.

    Args:
      once: what the analysis says of the program.
      program: the program.

    Returns:
      What it comes to, loops of unknown length being one round; None where this release of jaxlib
      cannot be asked about a part of a program, or cannot read it.
    """
    flops, moved = once.flops, once.bytes_accessed
    costs: dict[str, Cost] = {}
    for loop in program.loops:
        more = ((1 if loop.rounds is None else loop.rounds) - 1) * program.times[loop.within]
        if not more:
            continue
        if loop.body not in costs:
            cost = _analyse(program.alone(loop.body))
            if cost is None:
                return None
            costs[loop.body] = cost
        flops += more * costs[loop.body].flops
        moved += more * costs[loop.body].bytes_accessed
    return Cost(flops, moved)


def cost_of(analysis: Mapping[str, float] | None) -> Cost:
    """Reads what XLA's analysis gives.

    Args:
      analysis: as `compiled.cost_analysis()` gives it.

    Returns:
      What it says, 0 where it says nothing.
    """
    found = analysis or {}
    return Cost(float(found.get("flops", 0.0)), float(found.get("bytes accessed", 0.0)))


def _analyse(text: str) -> Cost | None:
    try:  # the analysis of a text has no public name
        read = importlib.import_module("jaxlib._hlo").hlo_module_from_text
        analyse = importlib.import_module("jaxlib._jax").hlo_module_cost_analysis
    except (ImportError, AttributeError):
        return None
    try:
        return cost_of(analyse(jax.devices("cpu")[0].client, read(text)))
    except jax.errors.JaxRuntimeError:  # a text that it cannot read: no hour of compiling is lost
        return None
