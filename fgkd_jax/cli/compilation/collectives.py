"""The collectives of a compiled program: which, how many, how many bytes; and what they may cost.

Read from the text of the program that each device runs. The text is XLA's, made for people: what is
not understood is left out of the count, so the figures are an estimate.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

from fgkd_jax.cli.compilation.program import Program

_SIZES = {
    1: ("pred", "s8", "u8"),
    2: ("s16", "u16", "bf16", "f16"),
    4: ("s32", "u32", "f32"),
    8: ("s64", "u64", "f64", "c64"),
    16: ("c128",),
}
BYTES: Mapping[str, int] = {name: size for size, names in _SIZES.items() for name in names}
"""Bytes of a number by XLA's name of its type; types of eight bits (`f8...`) are not listed."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a program.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute` or
        `collective-broadcast`.
      bytes: of its result on one device.
      devices: how many exchange with each other.
      times: how often a run of the program executes it: more than once inside a loop.
    """

    kind: str
    bytes: int
    devices: int
    times: int = 1


def _all_reduce(size: float, n: int) -> float:
    return 2 * (n - 1) / n * size


def _all_gather(size: float, n: int) -> float:
    return (n - 1) / n * size


def _reduce_scatter(size: float, n: int) -> float:
    return (n - 1) * size


def _once(size: float, n: int) -> float:
    return size


SENT: Mapping[str, Callable[[float, int], float]] = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-to-all": _all_gather,
    "ragged-all-to-all": _all_gather,
    "collective-permute": _once,
    "collective-broadcast": _once,
}
"""Bytes that a device sends in a ring, from the bytes of its result and the number of devices."""


def bytes_sent(collective: Collective) -> float:
    """Estimates the bytes that each device sends to others for one collective, all its runs.

    With s the bytes of the result on one device and n devices, for an algorithm that goes round a
    ring, which no other sends less than: all-reduce 2 (n - 1) / n s; all-gather and all-to-all
    (n - 1) / n s; reduce-scatter (n - 1) s, as its operand has n s; a permutation s.

    Args:
      collective: the instruction.

    Returns:
      Bytes; 0 where a device is alone.

    Source:
      Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH,
      IJHPCA 2005, sections 4.1 to 4.5.

    Example:
      >>> bytes_sent(Collective("all-reduce", 100, 4))
      150.0
    """
    if collective.devices < 2:
        return 0.0
    sent = SENT[collective.kind](collective.bytes, collective.devices)
    return sent * collective.times


_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>"
    + "|".join(sorted(SENT, key=len, reverse=True))
    + r")(?P<start>-start)?\(",
)
_READER = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[\w\-]+)"
    r"\((?P<operands>[^)]*)\)"
)
_OPERAND = re.compile(r"%([\w.\-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_LAYOUT = re.compile(r"\{[^}]*\}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=(?:@\w+|mesh\[([^\]]*)\]).*? \{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'(?:=|:\(\d+\))?(\d*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


def find_collectives(program: Program, *, devices: int) -> list[Collective]:
    """Reads the collectives out of a compiled program.

    Args:
      program: its text, as `read_program` reads it.
      devices: how many run it; a collective that names no group is among all of them.

    Returns:
      One entry per exchange, which `times` says how often it runs; inside a loop of unknown length
      as if that ran once. An exchange that goes on beside several steps of arithmetic stands in
      the text once for each of them, inside fusions, and is one entry. TPU's compiler writes a
      reduce-scatter as a fusion of an all-reduce and a slice of what comes out; it is told as what
      it is.
    """
    found = []
    parts: dict[tuple[str, str], Collective] = {}
    for name, lines in program.lines.items():
        for line in lines:
            match = _INSTRUCTION.match(line)
            if match is None or not program.times[name]:
                continue
            kind = match["kind"]
            size = _result_bytes(match["shape"], kind, started=bool(match["start"]))
            group = _group_size(line, devices=devices)
            if name in program.fused and kind == "all-reduce":
                kept = _sliced_bytes(lines, match["name"])
                kind, size = ("reduce-scatter", kept) if kept else (kind, size)
            one = Collective(kind, size, group, program.times[name])
            channel = _CHANNEL.search(line)
            if name not in program.fused or channel is None:
                found.append(one)
                continue
            key = (kind, channel[1])
            parts[key] = max(one, parts.get(key, one), key=lambda each: each.times)
    return [*found, *parts.values()]


def summary(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Adds up collectives by kind.

    Args:
      collectives: as `find_collectives` returns them.

    Returns:
      By kind: how many run in a step (`count`), in how many instructions (`instructions`), the
      bytes of their results on a device (`bytes`), and those that each device sends by
      `bytes_sent` (`bytes_sent`).
    """
    kinds: dict[str, dict[str, int]] = {}
    for kind in sorted({one.kind for one in collectives}):
        some = [one for one in collectives if one.kind == kind]
        kinds[kind] = {
            "count": sum(one.times for one in some),
            "instructions": len(some),
            "bytes": sum(one.times * one.bytes for one in some),
            "bytes_sent": round(sum(map(bytes_sent, some))),
        }
    return kinds


def _sliced_bytes(lines: Sequence[str], name: str) -> int:
    """Bytes of the slices of an instruction's result; 0 where something else reads it too."""
    sizes, names = 0, {name}
    for line in lines:
        match = _READER.match(line)
        if match is None or names.isdisjoint(_OPERAND.findall(match["operands"])):
            continue
        if match["kind"] == "get-tuple-element":
            names.add(match["name"])
        elif match["kind"] in ("dynamic-slice", "slice"):
            sizes += _result_bytes(match["shape"], match["kind"], started=False)
        else:
            return 0
    return sizes


def _result_bytes(shape: str, kind: str, *, started: bool) -> int:
    """Bytes of what an instruction results in.

    The start of an asynchronous one has its operands before its results, but for all-reduce, which
    has the results alone; behind them may come scalars of bookkeeping.
    """
    shape = _LAYOUT.sub("", shape)
    arrays = [
        BYTES.get(dtype, 1 if dtype.startswith("f8") else 0)
        * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in _SHAPE.findall(shape)
    ]
    if started and kind != "all-reduce" and shape.startswith("("):
        return _result_bytes(_elements(shape)[1], kind, started=False)
    return sum(arrays)


def _elements(shape: str) -> list[str]:
    """What a tuple's text holds, arrays and tuples, without what these hold."""
    found, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([") - (letter in ")]")
        if (letter == "," and depth == 1) or depth == 0:
            found.append(shape[start:place].strip())
            start = place + 1
    return found


def _group_size(line: str, *, devices: int) -> int:
    """How many devices exchange with each other."""
    listed = _LISTED.search(line)
    if listed is not None:
        return len(listed[1].split(","))
    mesh = _MESH.search(line)
    if mesh is not None:  # along some axes of a mesh, or along parts of axes
        sizes = dict(_AXIS.findall(mesh[1] or ""))
        along = [size or sizes.get(axis, "") for axis, size in _AXIS.findall(mesh[2])]
        return math.prod(map(int, along)) if all(along) else devices
    iota = _IOTA.search(line)
    return int(iota[2]) if iota is not None else devices
