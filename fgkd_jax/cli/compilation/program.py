"""The text of a compiled program: what it is made of, and how often each part of it runs.

The text is XLA's, made for people; what is not understood stays unknown.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|select|scatter)"
    r"=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+).*body=%?([\w.\-]+)")
_FRAME = re.compile(r" ?stack_frame_id=\d+")  # of a table that stands before all computations
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_FUSION = re.compile(r" (?:fusion|[\w\-]+-start)\(")
_GOES_ON = re.compile(r" [\w\-]+-(?:update|done)\(")


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while` of a program.

    Attributes:
      body: the computation that it repeats.
      within: the computation that it stands in.
      rounds: how often it repeats it; None where that is not known.
    """

    body: str
    within: str
    rounds: int | None


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that one device runs, by computation.

    Attributes:
      lines: the instructions of each computation, which comes after all those that it calls.
      heads: the line that each begins with.
      entry: name of the one that is run.
    """

    lines: Mapping[str, Sequence[str]]
    heads: Mapping[str, str]
    entry: str

    @cached_property
    def called(self) -> dict[str, list[str]]:
        """By computation, those that it calls, once for each call."""
        return {
            name: [one for line in lines for one in _called(line)]
            for name, lines in self.lines.items()
        }

    @cached_property
    def loops(self) -> list[Loop]:
        """All loops.

        The number of rounds is the one that the compiler states, as those for CPU and GPU do;
        otherwise that of a counter which begins at a constant, is moved on by a constant in each
        round, and is compared with a constant, as in the loops that JAX makes of `scan`.
        """
        found = []
        for name, lines in self.lines.items():
            for line in lines:
                if (match := _LOOP.search(line)) is None:
                    continue
                stated = _TRIPS.search(line)
                if stated is not None:
                    rounds: int | None = int(stated[1])
                else:
                    parts = (self.lines.get(one, ()) for one in match.groups())
                    rounds = _rounds(_Computation(lines), line, *map(_Computation, parts))
                found.append(Loop(match[2], name, rounds))
        return found

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs; a loop of unknown length is taken to run once."""
        times: dict[str, int] = defaultdict(int)
        times[self.entry] = 1
        rounds = defaultdict(list)
        for loop in self.loops:
            rounds[loop.within].append(loop)
        for name in reversed(list(self.lines)):
            for one in self.called[name]:
                times[one] += times[name]
            for loop in rounds[name]:
                times[loop.body] += times[name] * (1 if loop.rounds is None else loop.rounds)
                times[loop.body] -= times[name]  # of the call
        return times

    @cached_property
    def fused(self) -> set[str]:
        """Computations that are no step of their own but a part of one."""
        found: set[str] = set()
        for name in reversed(list(self.lines)):
            for line in self.lines[name]:
                if name in found or _FUSION.search(line):
                    found.update(_called(line))
        return found

    @property
    def unknown_loops(self) -> int:
        """How many of the loops that run are of unknown length."""
        return sum(loop.rounds is None for loop in self.loops if self.times[loop.within])

    @property
    def known_loops(self) -> int:
        """How many of the loops that run are of known length."""
        return sum(loop.rounds is not None for loop in self.loops if self.times[loop.within])

    def alone(self, name: str) -> str:
        """Writes a program down that runs one computation.

        Args:
          name: of the computation.

        Returns:
          XLA's text of a program of it and of all that it calls.
        """
        wanted, waiting = set(), [name]
        while waiting:
            one = waiting.pop()
            if one not in wanted and one in self.lines:
                wanted.add(one)
                waiting += self.called[one]
        parts = ["HloModule alone"]
        for one in self.lines:
            if one in wanted:
                head = f"ENTRY {self.heads[one]}" if one == name else self.heads[one]
                lines = (_FRAME.sub("", line) for line in self.lines[one])
                parts += ["", head, *lines, "}"]
        return "\n".join(parts) + "\n"


def read_program(text: str) -> Program:
    """Reads the text of a compiled program.

    Args:
      text: as `compiled.as_text()` gives it.

    Returns:
      Its computations.
    """
    bodies: dict[str, list[str]] = {}
    heads: dict[str, str] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head is not None:
            current = head[2]
            bodies[current] = []
            heads[current] = line.removeprefix("ENTRY ")
            if head[1]:
                entry = current
        elif line.startswith("}"):
            current = None
        elif current is not None:
            bodies[current].append(line)
    return Program(bodies, heads, entry)


def _called(line: str) -> list[str]:
    if _GOES_ON.search(line):  # names once more what was called at its start
        return []
    return [
        name
        for match in _CALLED.finditer(line)
        for name in re.findall(r"[\w.\-]+", match[1] or match[2] or "")
    ]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    kind: str
    operands: list[str]
    line: str

    @property
    def index(self) -> int:
        """Of a `get-tuple-element`."""
        return int(re.findall(r"index=(\d+)", self.line)[-1])


class _Computation:
    """Looks instructions up by name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = {match[1]: line for line in lines if (match := _NAME.match(line))}
        self.root = next(
            (name for name, line in self._lines.items() if line.lstrip().startswith("ROOT ")), ""
        )

    def instruction(self, name: str) -> _Instruction | None:
        """The instruction that a name stands for, behind all copies."""
        while (line := self._lines.get(name)) is not None:
            found = _parse(line)
            if found is None or found.kind not in ("copy", "bitcast") or not found.operands:
                return found
            name = found.operands[0]
        return None

    def constant(self, name: str) -> int | None:
        """The whole number that a name stands for, if it is one."""
        found = self.instruction(name)
        if found is None or found.kind != "constant":
            return None
        return int(found.operands[0]) if re.fullmatch(r"-?\d+", found.operands[0]) else None

    def carried(self, name: str) -> int | None:
        """Which part of the one parameter a name stands for, if it is one."""
        found = self.instruction(name)
        if found is None or found.kind != "get-tuple-element":
            return None
        source = self.instruction(found.operands[0])
        return found.index if source is not None and source.kind == "parameter" else None


def _parse(line: str) -> _Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    shape = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    kind, bracket, arguments = rest[shape:].strip().partition("(")
    if not bracket:
        return None
    operands = arguments[: _closing(bracket + arguments) - 1]
    return _Instruction(kind, _split(operands), line)


def _closing(text: str) -> int:
    """Where the bracket is closed that the text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place
    return len(text)


def _split(operands: str) -> list[str]:
    """The names of operands, before which there may be their shapes."""
    parts, depth = [""], 0
    for letter in operands:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.split()[-1].removeprefix("%") for part in parts if part.strip()]


def _rounds(
    outside: _Computation, line: str, condition: _Computation, body: _Computation
) -> int | None:
    """Counts the rounds of a loop."""
    test, loop = condition.instruction(condition.root), _parse(line)
    if test is None or loop is None or test.kind != "compare" or len(test.operands) != 2:
        return None
    begun, ended = (outside.instruction(loop.operands[0]), body.instruction(body.root))
    direction = re.search(r"direction=(\w\w)", test.line)
    if begun is None or ended is None or begun.kind != "tuple" or ended.kind != "tuple":
        return None
    begins, ends = begun.operands, ended.operands

    def start(index: int) -> int | None:
        return outside.constant(begins[index])

    def fixed(inside: _Computation, name: str) -> int | None:
        """A constant, or what is one when the loop begins and is never changed."""
        index = inside.carried(name)
        if index is None:
            return inside.constant(name)
        return start(index) if body.carried(ends[index]) == index else None

    def step(index: int) -> int | None:
        moved = body.instruction(ends[index])
        if moved is None or moved.kind not in ("add", "subtract"):
            return None
        first, second = moved.operands
        if body.carried(first) != index:
            first, second = second, first
            if moved.kind == "subtract" or body.carried(first) != index:
                return None
        size = fixed(body, second)
        return -size if size is not None and moved.kind == "subtract" else size

    left, right = test.operands
    limit, word = fixed(condition, right), direction[1] if direction else ""
    if limit is None:
        left, limit = right, fixed(condition, left)
        word = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(word, word)
    index = condition.carried(left)
    if index is None or limit is None:
        return None
    first, each = start(index), step(index)
    return None if first is None or not each else _count(first, limit, each, word)


def _count(first: int, limit: int, step: int, word: str) -> int | None:
    """How many of `first, first + step, ...` come before the first that fails the comparison."""
    if word in ("GT", "GE"):
        first, limit, step = -first, -limit, -step
    if word not in ("LT", "LE", "GT", "GE") or step < 0:
        return None
    return max(0, -(-(limit + (word in ("LE", "GE")) - first) // step))
