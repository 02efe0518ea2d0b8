"""Random numbers that stay the same for good.

NumPy promises that a bit generator's raw output and `SeedSequence` never change, but not that the
distributions of `Generator` do not. So every draw of the data set is made here from raw 64-bit
words, by arithmetic that is written out.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream:
    """An endless row of random draws that a key alone decides.

    Args:
      key: non-negative integers; two streams with different keys are independent.
    """

    def __init__(self, *key: int) -> None:
        # With its length: `SeedSequence` takes a key and the same with zeros after it for one.
        self._bits = np.random.Philox(np.random.SeedSequence([len(key), *key]))

    def unit(self) -> float:
        """Returns a number in [0, 1), a multiple of 2^-53."""
        return int(self._bits.random_raw() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """Returns a number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Returns a whole number in low .. high - 1."""
        return low + int(self.unit() * (high - low))

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.unit() < probability

    def choice(self, options: Sequence[T], *, weights: Sequence[int] | None = None) -> T:
        """Returns one of the options, with equal chances or in proportion to whole weights."""
        if weights is None:
            return options[self.integer(0, len(options))]
        totals = list(itertools.accumulate(weights))
        return options[bisect.bisect_right(totals, self.integer(0, totals[-1]))]

    def permutation(self, options: Sequence[T]) -> list[T]:
        """Returns the options in a random order."""
        left = list(options)
        return [left.pop(self.integer(0, len(left))) for _ in range(len(left))]

    def octets(self, *shape: int) -> np.ndarray:
        """Returns independent whole numbers in 0 .. 255: uint8[shape]."""
        size = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw((size + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:size].reshape(shape)
