"""Parts of a training step: marks where one ends, and the step as far as a mark, to measure it.

A mark does nothing in a run: `part` gives back what it is given.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

BACKWARD = "backward"
UPDATE = "optimiser"
STEP_PARTS = (BACKWARD, UPDATE)
"""Parts that every training step has after those of its method's loss, in their order."""

_Watcher = Callable[[str, Any], None]
_WATCHER: contextvars.ContextVar[_Watcher | None] = contextvars.ContextVar("watcher", default=None)


class _Reached(Exception):
    """The last part that is wanted has ended."""


def part(name: str, value: _T) -> _T:
    """Marks the end of a part.

    Args:
      name: of the part.
      value: what it made.

    Returns:
      The value.
    """
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(name, value)
    return value


def part_names(function: Callable[[], Any]) -> tuple[str, ...]:
    """Lists the parts that a function goes through.

    Args:
      function: is called once; where that costs too much, `jax.eval_shape` of it will do.

    Returns:
      Names in the order in which the parts end.
    """
    names: list[str] = []
    with _watched(lambda name, value: names.append(name)):
        function()
    return tuple(names)


def until(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., tuple[Any, ...]]:
    """Cuts a function off behind a part.

    All that the function does after it is left out, and so is, under `jax.jit`, whatever the values
    of `names` do not depend on.

    Args:
      function: goes through parts. Those under a transformation of its own, as `jax.grad`, cannot
        be wanted.
      names: of the parts that are wanted, in their order.

    Returns:
      A function of the same arguments that returns the values of these parts.

    Raises:
      ValueError: when it is called, if the function does not go through the last of them.
    """

    def cut(*args: Any) -> tuple[Any, ...]:
        values: list[Any] = []

        def watcher(name: str, value: Any) -> None:
            if name in names:
                values.append(value)
            if name == names[-1]:
                raise _Reached

        with _watched(watcher), contextlib.suppress(_Reached):
            function(*args)
            raise ValueError(f"there is no part {names[-1]!r} to stop at")
        return tuple(values)

    return cut


@contextlib.contextmanager
def _watched(watcher: _Watcher) -> Iterator[None]:
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)
