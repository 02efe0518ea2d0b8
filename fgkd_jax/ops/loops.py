"""Loops over a few large steps, compiled as each platform does best."""

from collections.abc import Callable

import jax
from jax import lax

from fgkd_jax.typing import PyTree

MOST = 32
"""Steps up to which a loop is worth the time that compiling each of them takes."""


def scan_steps(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    start: PyTree,
    items: PyTree,
    *,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` for few and large steps, such as gradients of a network.

    On CPU the steps are compiled one after the other instead of as a loop: within a loop, XLA's CPU
    compiler leaves the gradients of convolutions to a code that is tens of times slower. Elsewhere,
    and for more than `MOST` steps, it is the loop, compiled once.

    Args:
      body: `(carry, item) -> (carry, output)`.
      start: the first carry.
      items: arrays with one leading axis of the same length, a few; one entry per step.
      reverse: whether to begin with the last.

    Returns:
      The last carry, and the outputs along a leading axis.

    Source:
      https://github.com/jax-ml/jax/issues/12868, on convolutions within loops.
    """

    def run(start: PyTree, items: PyTree, *, unroll: bool) -> tuple[PyTree, PyTree]:
        return lax.scan(body, start, items, reverse=reverse, unroll=unroll)

    few = len(jax.tree.leaves(items)[0]) <= MOST
    return lax.platform_dependent(
        start,
        items,
        cpu=lambda *given: run(*given, unroll=few),
        default=lambda *given: run(*given, unroll=False),
    )
