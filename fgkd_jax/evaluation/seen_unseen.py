"""Generalised zero-shot figures from decisions: at one offset, and over all of them.

Calibrated stacking adds an offset to the scores of the unseen classes before the largest score
decides. An image is then told by its best seen class, its best unseen class, and the margin between
the two: it goes to the seen one as long as the margin is larger than the offset. So the figures at
every offset follow from three numbers per image, and only offsets at a margin change anything.

Source: Chao, Changpinyo, Gong and Sha, "An empirical study and analysis of generalized zero-shot
learning for object recognition in the wild", ECCV 2016 (calibrated stacking, AUSUC); Xian, Schiele
and Akata, "Zero-shot learning: the good, the bad and the ugly", CVPR 2017 (per-class U, S and H).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgkd_jax.errors import UserError

NO_CLASS = -1
"""The class of an image whose scores hold a NaN: no label is it."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What the scores say of each image, whatever the offset.

    Attributes:
      labels: int [n].
      best_seen: int [n], the seen class of the largest score; the first of several.
      best_unseen: int [n], likewise of the unseen classes.
      margins: float64 [n], score of `best_seen` less that of `best_unseen`.
      seen: bool [k], whether training has images of the class.
    """

    labels: np.ndarray
    best_seen: np.ndarray
    best_unseen: np.ndarray
    margins: np.ndarray
    seen: np.ndarray

    def __post_init__(self) -> None:
        shapes = {
            getattr(self, name).shape for name in ("labels", "best_seen", "best_unseen", "margins")
        }
        if len(shapes) != 1 or self.labels.ndim != 1:
            raise UserError(f"decisions have shapes {sorted(shapes)}; expected one entry per image")
        if np.isnan(self.margins).any():
            raise UserError("a margin is NaN; expected numbers")

    @property
    def of_unseen(self) -> np.ndarray:
        """Whether each image is of an unseen class: bool [n]."""
        return ~self.seen[self.labels]

    def predicted(self, offset: float) -> np.ndarray:
        """Decides at an offset.

        Args:
          offset: added to the scores of unseen classes.

        Returns:
          int [n], the class of the largest score, the first of several that tie.
        """
        earlier = self.best_seen < self.best_unseen
        to_seen = (self.margins > offset) | ((self.margins == offset) & earlier)
        return np.where(to_seen, self.best_seen, self.best_unseen)


def decisions(scores: np.ndarray, labels: np.ndarray, *, seen: np.ndarray) -> Decisions:
    """Reads the decisions off a matrix of scores.

    Args:
      scores: float [n, k]. A row with a NaN decides for no class.
      labels: int [n], in [0, k).
      seen: bool [k], with at least one class of either kind.

    Returns:
      The decisions.

    Raises:
      UserError: the shapes do not fit, or all classes are of one kind.
    """
    if scores.ndim != 2 or scores.shape != (len(labels), len(seen)):
        raise UserError(
            f"scores have shape {scores.shape}; expected ({len(labels)}, {len(seen)}), one row per "
            "image and one column per class"
        )
    if seen.all() or not seen.any():
        raise UserError("all classes are of one kind; expected seen and unseen ones")
    broken = np.isnan(scores).any(axis=1)
    wide = np.where(broken[:, None], 0.0, scores.astype(np.float64))
    best, top = {}, {}
    for kind, mask in (("seen", seen), ("unseen", ~seen)):
        columns = np.flatnonzero(mask)
        place = wide[:, columns].argmax(axis=1)
        top[kind] = wide[np.arange(len(wide)), columns[place]]
        best[kind] = np.where(broken, NO_CLASS, columns[place])
    return Decisions(
        labels=np.asarray(labels),
        best_seen=best["seen"],
        best_unseen=best["unseen"],
        margins=difference(top["seen"], top["unseen"]),
        seen=seen,
    )


def difference(top: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Subtracts scores; two that are the same infinity tie.

    Args:
      top: float [n].
      other: float [n].

    Returns:
      float64 [n], without a NaN where neither has one.
    """
    top, other = top.astype(np.float64), other.astype(np.float64)
    same = top == other
    return np.where(same, 0.0, np.where(same, 1.0, top) - np.where(same, 0.0, other))


def check_classes(labels: np.ndarray, *, seen: np.ndarray, class_names: Sequence[str]) -> None:
    """Checks that no class of a group is without an image where others of the group have some.

    The mean over the classes of a group is not defined with an empty one, and to leave that out
    would be another figure under the same name.

    Args:
      labels: int [n].
      seen: bool [k].
      class_names: k names.

    Raises:
      UserError: such a class; the first is named.
    """
    counts = np.bincount(labels, minlength=len(seen))
    for kind, group in (("seen", seen), ("unseen", ~seen)):
        empty = np.flatnonzero(group & (counts == 0))
        if len(empty) and len(empty) < group.sum():
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise UserError(
                f"the {kind} class {class_names[empty[0]]!r}{more} has no image to evaluate; "
                f"expected one of each of {group.sum()} {kind} classes"
            )


def class_accuracy(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the share of their images that are right.

    Args:
      right: bool [n].
      labels: int [n].

    Returns:
      In [0, 1], over the classes that have images; NaN where there is no image.
    """
    if not len(labels):
        return float("nan")
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=right)
    present = counts > 0
    return float(np.mean(hits[present] / counts[present]))


def harmonic_mean(seen: np.ndarray | float, unseen: np.ndarray | float) -> np.ndarray:
    """2 S U / (S + U), and 0 where both are 0.

    Args:
      seen: S, in [0, 1], of any shape.
      unseen: U, likewise.

    Returns:
      float64 of their shape.
    """
    total = np.add(seen, unseen, dtype=np.float64)
    return np.where(total > 0, 2 * np.multiply(seen, unseen) / np.where(total > 0, total, 1), 0.0)


def generalised(found: Decisions, *, offset: float) -> tuple[float, float, float]:
    """Accuracy among all classes, at one offset.

    Args:
      found: the decisions.
      offset: added to the scores of unseen classes.

    Returns:
      S, U and their harmonic mean H, per class and in [0, 1]; NaN for a group without images.
    """
    right = found.predicted(offset) == found.labels
    of_unseen = found.of_unseen
    s = class_accuracy(right[~of_unseen], found.labels[~of_unseen])
    u = class_accuracy(right[of_unseen], found.labels[of_unseen])
    return s, u, float(harmonic_mean(s, u)) if s == s and u == u else float("nan")


def conventional(found: Decisions) -> float:
    """Accuracy of unseen images among the unseen classes.

    Args:
      found: the decisions.

    Returns:
      Per class, in [0, 1]; NaN without an image of an unseen class.
    """
    of_unseen = found.of_unseen
    labels = found.labels[of_unseen]
    return class_accuracy(found.best_unseen[of_unseen] == labels, labels)


@dataclass(frozen=True, eq=False)
class SeenUnseenCurve:
    """S and U at every offset that makes a difference.

    Attributes:
      offsets: float64 [p], rising; one in the middle of the offsets at which each point holds, 0
        where that is among them. The first point is that of all offsets low enough, the last that
        of all high enough.
      seen: float64 [p], S, never rising.
      unseen: float64 [p], U, never falling.
    """

    offsets: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray

    @property
    def area(self) -> float:
        """Area under S as a function of U (AUSUC), in [0, 1], by the trapezoid rule."""
        return float(np.sum(np.diff(self.unseen) * (self.seen[1:] + self.seen[:-1]) / 2))

    @property
    def harmonic(self) -> np.ndarray:
        """H at each point: float64 [p]."""
        return harmonic_mean(self.seen, self.unseen)


def seen_unseen_curve(found: Decisions) -> SeenUnseenCurve:
    """Follows S and U over all offsets.

    From one point to the next, the images change over whose margin the offset passes; several with
    one margin do so together, except that those whose unseen class has the lower index do at the
    margin itself and the others just above it (as the first of equal scores is taken).

    Args:
      found: the decisions, with images of either kind.

    Returns:
      The curve, with at most one point more than there are images.

    Raises:
      UserError: there are no images of one kind.
    """
    of_unseen = found.of_unseen
    if of_unseen.all() or not of_unseen.any():
        kind = "seen" if of_unseen.all() else "unseen"
        raise UserError(f"a curve needs images of both kinds; there are none of {kind} classes")
    # What an image adds to the mean over its group's classes when it is right.
    counts = np.bincount(found.labels, minlength=len(found.seen))
    weight = 1.0 / counts[found.labels]
    weight /= np.where(of_unseen, *((counts[g] > 0).sum() for g in (~found.seen, found.seen)))
    loses = np.where(~of_unseen & (found.best_seen == found.labels), weight, 0.0)
    gains = np.where(of_unseen & (found.best_unseen == found.labels), weight, 0.0)
    stays = (found.margins == np.inf) | (found.best_seen == NO_CLASS)
    left = found.margins == -np.inf
    moving = np.flatnonzero(~stays & ~left)

    late = found.best_seen < found.best_unseen
    order = moving[np.lexsort((late[moving], found.margins[moving]))]
    margins, late = found.margins[order], late[order]
    last = np.ones(len(order), bool)
    last[:-1] = (margins[1:] != margins[:-1]) | (late[1:] != late[:-1])
    # Summed from the end at which nothing is left, so that S ends at 0 and U begins there exactly.
    seen = np.append(np.cumsum(loses[order][::-1])[::-1], 0.0) + loses[stays].sum()
    unseen = np.insert(np.cumsum(gains[order]), 0, 0.0) + gains[left].sum()
    points = np.insert(np.flatnonzero(last) + 1, 0, 0)
    offsets = _offsets(margins[last], late[last])
    return SeenUnseenCurve(offsets=offsets, seen=seen[points], unseen=unseen[points])


def _offsets(margins: np.ndarray, late: np.ndarray) -> np.ndarray:
    """An offset at which each point holds: before the first event, and after each of them."""
    if not len(margins):
        return np.zeros(1)
    # A point holds from its event (from just above it where that comes late) to the next one.
    low = np.insert(margins, 0, margins[0] - 2.0)
    high = np.append(margins, margins[-1] + 2.0)
    middle = (low + high) / 2
    begins_above = np.insert(late, 0, True)
    within = np.where(begins_above, low < 0, low <= 0)
    # Just below the next event, and on it where that comes late.
    within &= np.where(np.append(late, False), high >= 0, high > 0)
    within[0] |= margins[0] > 0
    within[-1] |= margins[-1] < 0
    return np.where(within, 0.0, middle)


def choose_offset(curve: SeenUnseenCurve) -> float:
    """Picks the offset with the largest harmonic mean.

    On validation classes, that is how the offset of a test is chosen; on the test split itself it
    gives an upper bound.

    Args:
      curve: S and U over all offsets.

    Returns:
      The offset; of several equally good ones, that which changes the scores least.
    """
    harmonic = curve.harmonic
    best = np.flatnonzero(harmonic >= harmonic.max() - 1e-12)
    return float(curve.offsets[best[np.argmin(np.abs(curve.offsets[best]))]])


def zero_shot_figures(found: Decisions, *, offset: float = 0.0) -> dict[str, float]:
    """Computes every figure of zero-shot recognition; `ZeroShotEvaluator` has the table of them.

    Args:
      found: the decisions.
      offset: added to the scores of unseen classes for the `calibrated_` figures, which are left
        out at 0.

    Returns:
      Figures by name, without those that need a group of which there is no image.
    """
    figures = {"zero_shot_accuracy": conventional(found)}
    for prefix, value in {"": 0.0, **({"calibrated_": offset} if offset else {})}.items():
        names = ("seen_accuracy", "unseen_accuracy", "harmonic_mean")
        figures |= {
            f"{prefix}{name}": figure
            for name, figure in zip(names, generalised(found, offset=value), strict=True)
        }
    if found.of_unseen.any() and not found.of_unseen.all():
        curve = seen_unseen_curve(found)
        best = choose_offset(curve)
        figures |= {
            "best_harmonic_mean": generalised(found, offset=best)[2],
            "best_offset": best,
            "ausuc": curve.area,
        }
    known = {name: value for name, value in figures.items() if not np.isnan(value)}
    return {**known, "examples": len(found.labels)}
