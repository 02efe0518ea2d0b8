"""Data sets with unseen classes: what must hold in them, and validation classes held out of them.

Labels index all classes; `descriptions.seen` says which of them training has images of. The splits
are `train` (seen classes), `test_seen` and `test_unseen`; `test_seen+test_unseen` names both at
once, which is what generalised figures are computed over.

**Choosing without the unseen classes.** `hold_out_classes` makes a smaller data set of the same
kind from the seen classes alone: some of them play the unseen ones. What is chosen by its split
`validation` (hyperparameters, steps, the offset of calibrated stacking) is then used in a run on
all seen classes. The unseen classes are not in it at all, neither their images nor their
attributes. That is the protocol of Xian, Lampert, Schiele and Akata, "Zero-shot learning: a
comprehensive evaluation of the good, the bad and the ugly", TPAMI 2019.
"""

from dataclasses import dataclass, replace

import numpy as np

from fgkd_jax.data.base import (
    Dataset,
    DatasetInfo,
    Example,
    Joined,
    Source,
    SplitSources,
    Subset,
    labels_and_ids,
)
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.holdout import hash_ids, holdout
from fgkd_jax.errors import UserError

GROUPS = {"train": True, "test_seen": True, "test_unseen": False}
"""By split, whether its classes are the seen ones; other splits may have either."""


@dataclass(frozen=True)
class Relabelled:
    """Examples of some classes, with labels among these.

    Attributes:
      base: the examples, all of these classes.
      label_of: int64[k], new label by old one; -1 for classes that are not among them.
      labels: int64[n], new ones.
      ids: int64[n].
    """

    base: Source
    label_of: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        example = self.base[index]
        return {**example, "label": int(self.label_of[example["label"]])}


def zero_shot_problems(dataset: Dataset) -> list[str]:
    """Looks for classes in the wrong splits.

    Args:
      dataset: any.

    Returns:
      One line each: an unseen class in `train` or `test_seen`, a seen one in `test_unseen`, a seen
      class that `train` has no image of; empty where the data set has no unseen classes.
    """
    info = dataset.info
    described = info.descriptions
    if described is None or described.seen.all():
        return []
    found = []
    for split, of_seen in GROUPS.items():
        if split not in info.splits:
            continue
        labels, ids = labels_and_ids(dataset.source(split))
        known = (labels >= 0) & (labels < info.num_classes)
        labels, ids = labels[known], ids[known]
        strays = np.flatnonzero(described.seen[labels] != of_seen)
        if len(strays):
            first = strays[0]
            kinds = ("unseen", "seen") if of_seen else ("seen", "unseen")
            found.append(
                f"{info.name}: the {kinds[0]} class {info.class_names[labels[first]]!r} has images "
                f"in the split {split!r}, the first with id {ids[first]}; expected {kinds[1]} "
                "classes only"
            )
        if split == "train":
            without = described.seen & (np.bincount(labels, minlength=info.num_classes) == 0)
            found += [
                f"{info.name}: the seen class {info.class_names[c]!r} has no image in the split "
                "'train'; expected at least one, or a class that is unseen"
                for c in np.flatnonzero(without)[:1]
            ]
    return found


def check_zero_shot(dataset: Dataset) -> Dataset:
    """Raises where an unseen class is in the training split, or a class in another wrong one.

    Args:
      dataset: any.

    Returns:
      The data set.

    Raises:
      UserError: the first of `zero_shot_problems`.
    """
    problems = zero_shot_problems(dataset)
    if problems:
        raise UserError(problems[0])
    return dataset


def hold_out_classes(
    dataset: Dataset, *, classes: float | str, fraction: float, seed: int = 0
) -> SplitSources:
    """Makes a data set of the seen classes, in which some of them are unseen.

    Args:
      dataset: with seen and unseen classes. Of its splits, only `train` is used.
      classes: share of the seen classes to hold out, in (0, 1): those with the smallest hash of
        seed and index, rounded to the nearest number, at least one and never all; or "authors" for
        the classes that the authors of the splits name.
      fraction: share of the images of each other class to validate on, in (0, 1).
      seed: chooses other classes and images.

    Returns:
      Splits `train` (the other classes) and `validation` (all images of the classes held out, and
      the share of the others); its classes are the seen ones of `dataset`, in their order.

    Raises:
      UserError: there are no unseen classes or too few seen ones, a value is out of range, or a
        class has a single image.
    """
    info = dataset.info
    if info.descriptions is None or info.descriptions.seen.all():
        raise UserError(f"{info.name} has no unseen classes; expected validation_classes of 0")
    check_zero_shot(dataset)
    kept = np.flatnonzero(info.descriptions.seen)
    described = info.descriptions.take(kept)
    held = _held_out(described, classes, seed=seed, name=info.name)
    train = dataset.source("train")
    labels, ids = labels_and_ids(train)
    label_of = np.full(info.num_classes, -1, np.int64)
    label_of[kept] = np.arange(len(kept))
    whole = Relabelled(train, label_of, label_of[labels], ids)
    unseen_rows = np.flatnonzero(held[whole.labels])
    seen_rows = np.flatnonzero(~held[whole.labels])
    names = described.class_names
    part_info = DatasetInfo(info.name, names, {"train": len(seen_rows)})
    divided = holdout(
        SplitSources(part_info, {"train": _take(whole, seen_rows)}), fraction=fraction, seed=seed
    )
    own = divided.source("validation")
    own_labels, own_ids = labels_and_ids(own)
    counts = np.bincount(own_labels, minlength=len(names))
    single = np.flatnonzero(~held & (counts == 0))
    if len(single):
        raise UserError(
            f"{info.name}: the class {names[single[0]]!r} has a single training image; expected "
            "at least two, one of them to validate on"
        )
    others = _take(whole, unseen_rows)
    validation = _joined(own, own_labels, own_ids, others)
    sources = {"train": divided.source("train"), "validation": validation}
    described = replace(described, seen=~held, held_out=None)
    return SplitSources(_describe(info, described, kept, sources), sources)


def _held_out(
    described: ClassDescriptions, classes: float | str, *, seed: int, name: str
) -> np.ndarray:
    """Which of the seen classes are held out: bool [k]."""
    if classes == "authors":
        if described.held_out is None:
            raise UserError(
                f"{name} names no validation classes; expected validation_classes in (0, 1)"
            )
        held = described.held_out
    elif isinstance(classes, str) or not 0 < classes < 1:
        raise UserError(
            f"validation_classes is {classes!r}; expected a share in (0, 1) or 'authors'"
        )
    else:
        size = len(described.class_names)
        count = min(max(int(np.floor(size * classes + 0.5)), 1), size - 1)
        held = np.zeros(size, bool)
        held[np.argsort(hash_ids(np.arange(size), seed=seed), kind="stable")[:count]] = True
    if held.all() or not held.any():
        raise UserError(
            f"{name}: {held.sum()} of {len(held)} seen classes are held out; expected some and not "
            "all"
        )
    return held


def _take(source: Relabelled, rows: np.ndarray) -> Subset:
    return Subset(source, rows, source.labels[rows], source.ids[rows])


def _joined(first: Source, labels: np.ndarray, ids: np.ndarray, second: Subset) -> Source:
    return Joined(
        (first, second),
        np.concatenate([labels, second.labels]),
        np.concatenate([ids, second.ids]),
    )


def _describe(
    info: DatasetInfo, described: ClassDescriptions, kept: np.ndarray, sources: dict[str, Source]
) -> DatasetInfo:
    """Describes the classes that are kept."""
    groupings = {
        grouping: tuple(groups[c] for c in kept) for grouping, groups in info.groupings.items()
    }
    parts = info.separating_parts
    return replace(
        info,
        class_names=described.class_names,
        splits={split: len(source) for split, source in sources.items()},
        groupings=groupings,
        separating_parts=tuple(parts[c] for c in kept) if parts else (),
        descriptions=described,
        fingerprint=f"{info.fingerprint}-{described.fingerprint}",
    )
