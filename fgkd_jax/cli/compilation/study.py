"""Compiles the steps of a run and reads off what the compiler says of them."""

import re
import time
from collections.abc import Callable
from typing import Any

from fgkd_jax.cli.abstract_run import AbstractRun
from fgkd_jax.cli.compilation.chips import GIB
from fgkd_jax.cli.compilation.collectives import find_collectives, summary
from fgkd_jax.cli.compilation.costs import cost_of, with_all_rounds
from fgkd_jax.cli.compilation.program import read_program
from fgkd_jax.cli.compilation.topology import Slice
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.train.steps import Counted

MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "aliased": "alias_size_in_bytes",
    "program": "generated_code_size_in_bytes",
}
_EXCEEDED = re.compile(r"RESOURCE_EXHAUSTED|Ran out of memory|[Ee]xceeded \w+ capacity")
_USED = re.compile(
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]?|\(([\d.]+)([KMGT]?)\) exceeds available HBM"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def study_steps(
    run: AbstractRun,
    where: Slice,
    *,
    only: str | None = None,
    memory_bytes: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles every step of a run, or one of them.

    Args:
      run: its steps and their shapes.
      where: the devices.
      only: name of the one step to compile; None for all.
      memory_bytes: of a chip, in place of the published figure.
      say: takes one line at a time for the person who waits.

    Returns:
      JSON values by step: `train`, and `meta` where the method has a second step.

    Raises:
      UserError: there is no such step.
    """
    studied: dict[str, tuple[Counted, tuple[Any, ...]]] = {
        "train": (run.steps.train_step, (run.state, run.batch))
    }
    if run.steps.meta_step is not None:
        studied["meta"] = (run.steps.meta_step, (run.state, run.batch, run.batch))
    if only is not None:
        if only not in studied:
            raise UserError(f"--step is '{only}'{nearest(only, studied)}")
        studied = {only: studied[only]}
    found = {}
    for name, (step, arguments) in studied.items():
        say(f"compiling the {name} step for {where.name}")
        found[name] = study(step, arguments, where, memory_bytes=memory_bytes)
    return found


def study(
    step: Counted, arguments: tuple[Any, ...], where: Slice, *, memory_bytes: int | None = None
) -> dict[str, Any]:
    """Compiles one step.

    Args:
      step: a jitted step, with shardings.
      arguments: `jax.ShapeDtypeStruct` of what it takes.
      where: the devices.
      memory_bytes: of a chip, in place of the published figure.

    Returns:
      JSON values. Bytes and operations are those of one chip and one step; `fits` is None where
      nobody says how much memory there is. `loops` are those that run: how many are `known` by
      their number of rounds, and whether operations and bytes accessed count all of these
      (`in_operations`); one that is `unknown` counts as one round. Where the compiler gives up for
      want of memory, only `memory`, `fits`, the times and what it said.

    Raises:
      UserError: the compiler refuses the program for another reason that has one line.
    """
    started = time.monotonic()
    lowered = step.lower(*arguments)
    traced = time.monotonic()
    limit = memory_bytes or (where.chip.hbm_bytes if where.chip else None)
    compiled, said = _compile(lowered)
    seconds = {
        "lower_seconds": round(traced - started, 1),
        "compile_seconds": round(time.monotonic() - traced, 1),
    }
    if compiled is None:
        return {"fits": False, "memory": _exceeded(said, where, limit), "said": said, **seconds}
    each = where.devices_per_chip
    analysis = compiled.memory_analysis()
    memory = {name: each * int(getattr(analysis, field)) for name, field in MEMORY.items()}
    total = sum(memory.values()) - 2 * memory["aliased"]  # aliased outputs are arguments
    program = read_program(compiled.as_text())
    once = cost_of(compiled.cost_analysis())
    whole = with_all_rounds(once, program)
    cost = whole or once
    flops, moved = each * cost.flops, each * cost.bytes_accessed
    collectives = summary(find_collectives(program, devices=len(where.devices)))
    sent = each * sum(one["bytes_sent"] for one in collectives.values())
    return {
        "fits": None if limit is None else total <= limit,
        "memory": {**memory, "total": total, "capacity": limit},
        "flops": flops,
        "bytes_accessed": moved,
        "arithmetic_intensity": round(flops / moved, 2) if moved else None,
        "collectives": collectives,
        "loops": {
            "unknown": program.unknown_loops,
            "known": program.known_loops,
            "in_operations": whole is not None,
        },
        "estimate": estimate(flops, moved, sent, where),
        **seconds,
    }


def estimate(flops: float, moved: float, sent: float, where: Slice) -> dict[str, float] | None:
    """Estimates the length of a step by the chip's published figures.

    A step is taken to last `max(flops / peak, bytes accessed / memory bandwidth)`, and what it
    sends to other chips `bytes sent / interconnect bandwidth`. **This is an estimate on paper,
    nothing was run.** No chip reaches its peak; the bytes accessed count what stays in on-chip
    memory as well, so that memory may take less; a loop whose rounds cannot be told
    counts as one round, in operations as in exchanges; the interconnect's figure takes all links of
    a chip at once, of which a small slice has fewer; what two devices of one chip exchange counts
    as if it left the chip; and exchanges may go on while the chip computes.

    Args:
      flops: operations of one chip and step.
      moved: bytes to and from memory, likewise.
      sent: bytes to other chips, likewise.
      where: the chip.

    Returns:
      Seconds of arithmetic, memory and interconnect, the bytes sent, and the share
      `interconnect / (interconnect + max(arithmetic, memory))`: of a step that exchanges only when
      it does not compute. None for virtual devices.
    """
    if where.chip is None:
        return None
    arithmetic, memory = flops / where.chip.peak_flops, moved / where.chip.hbm_bandwidth
    interconnect = sent / where.chip.ici_bandwidth
    step = max(arithmetic, memory) + interconnect
    return {
        "interconnect_bytes": sent,
        "arithmetic_seconds": arithmetic,
        "memory_seconds": memory,
        "interconnect_seconds": interconnect,
        "interconnect_share": interconnect / step if step else 0.0,
    }


def _compile(lowered: Any) -> tuple[Any, str]:
    """The compiled program, or None and what the compiler said of memory."""
    try:
        return lowered.compile(), ""
    except RuntimeError as error:
        text = str(error)
        if _EXCEEDED.search(text) is None:
            raise UserError(f"the compiler refuses the step: {text.splitlines()[0]}") from error
        lines = [line.strip() for line in text.splitlines()]
        return None, next(line for line in lines if _EXCEEDED.search(line))[:300]


def _exceeded(said: str, where: Slice, limit: int | None) -> dict[str, int | None]:
    """The memory that the compiler asked for, as far as it said so."""
    used = _USED.search(said)
    total = None
    if used is not None:
        number, unit = (one for one in used.groups() if one is not None)
        total = round(where.devices_per_chip * float(number) * _UNITS[unit])
    return {"total": total, "capacity": limit}


def gib(number: float | None) -> str:
    """Writes bytes for a person.

    Args:
      number: bytes; None where they are not known.

    Returns:
      In GiB, or in MiB where they are few.

    Example:
      >>> gib(3 * 2**29), gib(3 * 2**19)
      ('1.50 GiB', '1.5 MiB')
    """
    if number is None:
        return "unknown"
    return f"{number / GIB:.2f} GiB" if number >= GIB / 10 else f"{number / 2**20:.1f} MiB"
