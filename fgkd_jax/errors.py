"""Errors that a person can act on, told in one line."""

import difflib
from collections.abc import Iterable


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


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and the examples.

    Commands print it without a traceback and end with exit status 1.
    """
