"""Errors that a person can act on, told in one line."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the caller gave is wrong: a flag, a file, a shape, a label.

    The message is a single line that names the thing, the value received and what was expected.
    Commands print it without a traceback and end with exit status 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns a hint at the valid name closest to a wrong one.

    Args:
      name: what was given.
      valid: the names that would have been accepted.

    Returns:
      `"; did you mean 'x'?"` when one of them is close, else `"; expected one of a, b, c"`.

    Example:
      >>> nearest("resnet51", ["resnet50", "vgg16"])
      "; did you mean 'resnet50'?"
      >>> nearest("alexnet", ["resnet50", "vgg16"])
      '; expected one of resnet50, vgg16'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; expected one of {', '.join(names)}" if names else "; nothing is accepted here"


def first_of(problems: Sequence[str]) -> str:
    """Returns the first of some problems, and says how many more there are.

    Args:
      problems: one line each, at least one.

    Returns:
      One line.

    Example:
      >>> first_of(["a.jpg: no such file", "b.jpg: no such file"])
      'a.jpg: no such file (and 1 more problem)'
    """
    return problems[0] + and_more(len(problems) - 1, "problem")


def and_more(count: int, kind: str = "") -> str:
    """Says how many more there are of something that is told once.

    Args:
      count: of the others.
      kind: what one of them is called.

    Returns:
      Words in parentheses, behind a space; nothing where there are no others.

    Example:
      >>> and_more(2, "problem")
      ' (and 2 more problems)'
    """
    kind = f" {kind}{'s' * (count > 1)}" if kind else ""
    return f" (and {count} more{kind})" if count else ""


class PeersMissing(UserError):
    """The processes of a run did not meet in time; they may when they are started again.

    Commands print it as any `UserError`, and end with `FAILED`.
    """


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and the examples.

    Commands print it without a traceback and end with exit status 1.
    """


class Preempted(RuntimeError):
    """The run was asked to stop, has saved its state and can be continued.

    Commands print it without a traceback and end with exit status 75.
    """


FAILED = 13
"""Exit status of a process that met a defect, or whose peer did: it may be started again."""

EXIT_STATUS: dict[type[BaseException], int] = {
    PeersMissing: FAILED,
    UserError: 2,
    NonFiniteError: 1,
    Preempted: 75,
}
"""How a command ends for each error that is told in one line, the narrower ones first."""


def told(error: BaseException) -> tuple[str, int] | None:
    """Says an error in one line, where it is one that a person can act on.

    Args:
      error: what was raised.

    Returns:
      The line and the exit status that goes with it; None for a defect, which needs its
      traceback.

    Example:
      >>> told(UserError("steps is 0; expected at least 1"))
      ('error: steps is 0; expected at least 1', 2)
      >>> told(KeyError("x"))
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    for kind, status in EXIT_STATUS.items():
        if isinstance(error, kind):
            word = "error" if issubclass(kind, UserError) else "stopped"
            return f"{word}: {' '.join(str(error).split())}", status
    return None
