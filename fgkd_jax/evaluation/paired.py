"""How sure one can be that one set of predictions is better than another on the same images."""

from dataclasses import dataclass

import numpy as np

from fgkd_jax.errors import UserError

_BLOCK = 1 << 22
"""Most random numbers that are held at once."""

_ROUNDING = 1e-12
"""Sums of the same numbers in another order differ by less: a tie is not a difference."""


@dataclass(frozen=True)
class PairedDifference:
    """What two sets of predictions differ by on the same images.

    Attributes:
      first: accuracy of the first, in [0, 1], the mean over its runs.
      second: that of the second.
      difference: first less second.
      low: lower end of the interval of the difference.
      high: its upper end.
      not_above: share of the resamples in which the first is not above the second.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    not_above: float

    @property
    def separated(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > _ROUNDING or self.high < -_ROUNDING


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compares two sets of predictions by drawing the images anew, the same ones for both.

    Each resample draws as many images of each group as there are, with replacement. The interval
    is that of percentiles. It says how far the difference could have come from which images were
    tested; the runs stay as they are, so that it says nothing of what other seeds would do.

    Args:
      first: bool [r, n], whether each of r runs is right about each of n images.
      second: bool [s, n], likewise of s runs to compare with.
      groups: int [n], the class of each image: accuracy is then the mean over classes. None takes
        all images as one group.
      resamples: how often to draw.
      confidence: of the interval, in (0, 1).
      seed: of the draws.

    Returns:
      The accuracies, their difference and its interval.

    Raises:
      UserError: the shapes do not fit, or a number is out of its range.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13
    (percentile interval; resampling within groups).
    """
    _check(first, second, groups, resamples, confidence)
    gain = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    labels = np.zeros(first.shape[1], np.int64) if groups is None else groups
    rng = np.random.default_rng(seed)
    present = np.unique(labels)
    drawn = np.zeros(resamples)
    for group in present:
        drawn += _means(gain[labels == group], resamples, rng) / len(present)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    means = [_grouped(right.mean(axis=0), labels) for right in (first, second)]
    return PairedDifference(
        first=means[0],
        second=means[1],
        difference=_grouped(gain, labels),
        low=float(low),
        high=float(high),
        not_above=float(np.mean(drawn <= _ROUNDING)),
    )


def _means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of samples of one group, drawn with replacement: float64 [resamples]."""
    rows = max(1, _BLOCK // len(values))
    parts = [
        values[rng.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _grouped(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over groups of the mean within each."""
    counts = np.bincount(labels)
    present = counts > 0
    return float(np.mean(np.bincount(labels, weights=values)[present] / counts[present]))


def _check(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None,
    resamples: int,
    confidence: float,
) -> None:
    n = first.shape[-1]
    for name, right in (("first", first), ("second", second)):
        if right.ndim != 2 or right.shape[1] != n or not right.size:
            raise UserError(
                f"{name} has shape {right.shape}; expected (runs, images) with as many images as "
                f"the other, at least one of each"
            )
    if groups is not None and groups.shape != (n,):
        raise UserError(f"groups have shape {groups.shape}; expected ({n},)")
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; expected at least 1")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; expected a number between 0 and 1")
