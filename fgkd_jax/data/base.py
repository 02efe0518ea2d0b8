"""What every data set of the project offers: examples by index, and a description of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.vocabulary import Vocabulary
from fgkd_jax.errors import UserError, and_more, nearest

Example = dict[str, Any]
"""One example before the pipeline, by key.

| key | value |
|---|---|
| `image` | encoded bytes, or uint8[h, w, 3] |
| `features` | float16 or float32[h, w, f], in place of an image where they were computed before |
| `label` | int, index into `DatasetInfo.class_names` |
| `id` | int in [0, 2^31), stable between runs and unique over all splits; of detection in each |
| `name` | str, the file an error message should name |
| `bbox` | optional float32[4], (x_min, y_min, x_max, y_max) |
| `parts` | optional float32[p, 3], (x, y, visible 0 or 1) |
| `mask` | optional uint8[h, w], non-zero on the object |
| `attributes` | optional float32[a] in [0, 1] |
| `boxes` | of detection, in place of `label`: float32[g, 4], as `bbox`; g may be 0 |
| `box_labels` | of detection: int32[g], indices into `DatasetInfo.class_names` |
| `box_ignored` | of detection: bool[g], True for objects that need not be found |
| `annotated_size` | optional int[2], (height, width) that the boxes were drawn in |

Coordinates are in pixels, continuous: pixel i covers [i, i + 1), the image [0, w] x [0, h].
"""


class CorruptImageError(UserError):
    """An image that is missing, truncated or cannot be decoded.

    Attributes:
      name: the file.
      reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"image {name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


@runtime_checkable
class Source(Protocol):
    """Examples of one split by index.

    Cheap to pickle (workers are separate processes) and safe to read from several threads: keep
    paths and small arrays, open files when an example is asked for. A source may also have the
    attributes `labels` and `ids`, int64[n], which spare `labels_and_ids` reading every example, and
    a method `captions(index) -> tuple[str, ...]`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class DatasetInfo:
    """A description of a data set.

    Attributes:
      name: the name under which it is opened.
      class_names: one name per class, by index.
      splits: number of examples per split.
      groupings: coarser classes, one index per class, e.g. `{"genus": (0, 0, 1)}`.
      fingerprint: hash of version, class names, labels and ids.
      part_names: one name per row of `parts`.
      attribute_names: one name per entry of `attributes`.
      flip_pairs: pairs of rows of `parts` that a mirrored image exchanges (left and right eye).
      separating_parts: rows of `parts` at which a class differs from its nearest relatives, by
        class; empty where that is not known.
      descriptions: attributes of the classes, and which of them training sees; None where all are
        seen and nothing describes them.
      vocabulary: words of its captions; None where it has none, or they were not read yet.
      feature_shape: (h, w, f) of the `features` that examples have in place of an image; None where
        they have an image.
      feature_dtype: of `features`, "float16" or "float32".
      feature_backbone: hash of what computed them; empty where that is not known.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, int]
    groupings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fingerprint: str = ""
    part_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    separating_parts: tuple[tuple[int, ...], ...] = ()
    descriptions: ClassDescriptions | None = None
    vocabulary: Vocabulary | None = None
    feature_shape: tuple[int, int, int] | None = None
    feature_dtype: str = "float16"
    feature_backbone: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@runtime_checkable
class Dataset(Protocol):
    """A data set: its description, and a source per split ("train", "test", maybe "validation")."""

    @property
    def info(self) -> DatasetInfo:
        """The description."""
        ...

    def source(self, split: str) -> Source:
        """The examples of a split; `UserError` names the valid splits when it is unknown."""
        ...


@dataclass(frozen=True)
class SplitSources:
    """The simplest `Dataset`: a description and one source per split.

    Attributes:
      info: the description.
      sources: source by split.
    """

    info: DatasetInfo
    sources: Mapping[str, Source]

    def source(self, split: str) -> Source:
        """Returns the examples of a split.

        Args:
          split: a key of `info.splits`.

        Returns:
          The source.

        Raises:
          UserError: the data set has no such split.
        """
        if split not in self.sources:
            raise unknown_split(self.info, split)
        return self.sources[split]


@dataclass(frozen=True)
class Subset:
    """Some examples of another source.

    Attributes:
      base: the other source.
      indices: int64[n], which of its examples, in order.
      labels: int64[n].
      ids: int64[n].
    """

    base: Source
    indices: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.base[int(self.indices[index])]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of an example.

        Args:
          index: which of these.

        Returns:
          Sentences.
        """
        return captions_of(self.base, int(self.indices[index]))


@dataclass(frozen=True)
class Joined:
    """The examples of several sources, one source after another.

    Attributes:
      parts: the sources.
      labels: int64[n].
      ids: int64[n].
    """

    parts: tuple[Source, ...]
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


class Repeated(str):
    """A problem with the number of others of its kind, which are not told.

    Attributes:
      first: the problem alone.
      others: how many more there are.
    """

    first: str
    others: int

    def __new__(cls, problems: Sequence[str], *, kind: str = "") -> "Repeated":
        """Tells several problems as one.

        Args:
          problems: at least one.
          kind: what one of the others is called.

        Returns:
          The first, with the count of the others behind it.
        """
        others = len(problems) - 1
        one = super().__new__(cls, problems[0] + and_more(others, kind))
        one.first, one.others = problems[0], others
        return one


@dataclass(frozen=True)
class Inspection:
    """A data set as far as it could be read, and everything wrong with its files.

    Attributes:
      dataset: what could be read; None when nothing could.
      problems: one line each; empty when the data set can be used.
      notes: rows (what, found) of what the reader counted, for a report.
    """

    dataset: Dataset | None
    problems: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def usable(self) -> Dataset:
        """Returns the data set.

        Returns:
          The data set.

        Raises:
          UserError: there is a problem; the message is the first one and the number of the others.
        """
        if self.problems or self.dataset is None:
            first = self.problems[0]
            more = len(self.problems) - 1 + sum(getattr(one, "others", 0) for one in self.problems)
            raise UserError(getattr(first, "first", first) + and_more(more, "problem"))
        return self.dataset


def captions_of(source: Source, index: int) -> tuple[str, ...]:
    """Returns the captions of an example.

    Args:
      source: any source.
      index: which example.

    Returns:
      Sentences.

    Raises:
      UserError: the source has no captions.
    """
    if not hasattr(source, "captions"):
        raise UserError(
            "the data set has no captions of its own; expected data.text.captions_dir, their folder"
        )
    captions: tuple[str, ...] = source.captions(index)
    return captions


def unknown_split(info: DatasetInfo, split: str) -> UserError:
    """Makes the error for a split that a data set does not have.

    Args:
      info: the data set's description.
      split: what was asked for.

    Returns:
      The error, to be raised.
    """
    return UserError(f"{info.name} has no split {split!r}{nearest(split, info.splits)}")


def splits_of(info: DatasetInfo, split: str) -> tuple[str, ...]:
    """Reads which splits a name stands for.

    Args:
      info: the data set's description.
      split: a split, or several with "+" between them.

    Returns:
      The splits.

    Raises:
      UserError: the data set does not have one of them, or one is named twice.
    """
    names = tuple(split.split("+"))
    for name in names:
        if name not in info.splits:
            raise unknown_split(info, name)
    if len(set(names)) < len(names):
        raise UserError(f"the splits {split!r} name one twice; expected different ones")
    return names


def split_source(dataset: Dataset, split: str) -> Source:
    """Returns the examples of a split, or of several as if they were one.

    Args:
      dataset: has them.
      split: a split, or several with "+" between them: `test_seen+test_unseen`.

    Returns:
      The source.

    Raises:
      UserError: as `splits_of`.
    """
    parts = tuple(dataset.source(name) for name in splits_of(dataset.info, split))
    if len(parts) == 1:
        return parts[0]
    labels, ids = zip(*map(labels_and_ids, parts), strict=True)
    return Joined(parts, np.concatenate(labels), np.concatenate(ids))


def labels_and_ids(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns all labels and ids of a source, without reading images where it can.

    Args:
      source: its attributes `labels` and `ids` are used where it has them.

    Returns:
      Labels int64[n] and ids int64[n].
    """
    labels, ids = getattr(source, "labels", None), getattr(source, "ids", None)
    if labels is None or ids is None:
        pairs = [(ex["label"], ex["id"]) for ex in (source[i] for i in range(len(source)))]
        labels, ids = zip(*pairs, strict=True) if pairs else ((), ())
    return np.asarray(labels, np.int64), np.asarray(ids, np.int64)


def fingerprint(
    *, version: str, class_names: Sequence[str], labels: np.ndarray, ids: np.ndarray
) -> str:
    """Hashes what identifies a data set, so that a changed copy is noticed on resume.

    Args:
      version: version of the data and of its reader.
      class_names: names by class index.
      labels: int[n], of all splits one after another.
      ids: int[n], likewise.

    Returns:
      16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256("\0".join([version, *class_names]).encode())
    for array in (labels, ids):
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()[:16]
