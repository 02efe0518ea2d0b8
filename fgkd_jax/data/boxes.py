"""Images with boxes: what readers of detection data sets share.

A box is (x_min, y_min, x_max, y_max) in pixels, continuous: pixel i covers [i, i + 1). Readers clip
boxes to the size that the annotation states, drop those that are left without area, and count both.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgkd_jax.data.base import (
    DatasetInfo,
    Example,
    Source,
    SplitSources,
    Subset,
    fingerprint,
)
from fgkd_jax.data.files import read_image_file
from fgkd_jax.data.images import image_size
from fgkd_jax.errors import UserError


class BoxCounts(NamedTuple):
    """How many boxes there are, and what became of the rest.

    Attributes:
      boxes: kept.
      clipped: of these, how many reached over the image.
      dropped: had no area in the image, and are left out.
      ignored: of those kept, how many need not be found (crowds, difficult objects).
    """

    boxes: int = 0
    clipped: int = 0
    dropped: int = 0
    ignored: int = 0


class ClippedBoxes(NamedTuple):
    """Boxes within an image.

    Attributes:
      boxes: float32[g, 4], within the image.
      kept: bool[g], whether something of the box is left.
      clipped: bool[g], whether something was cut off.
    """

    boxes: np.ndarray
    kept: np.ndarray
    clipped: np.ndarray


def clip_to_image(
    boxes: np.ndarray, *, size: tuple[int, int], least_side: float = 0.0
) -> ClippedBoxes:
    """Clips boxes to an image and says which of them still have area.

    Args:
      boxes: [g, 4], pixels, finite; corners may be the wrong way round.
      size: (height, width) of the image.
      least_side: a box is kept where both its sides are longer than this, pixels.

    Returns:
      The clipped boxes, all g of them.

    Example:
      >>> clip_to_image(np.array([[-2.0, 1, 3, 4], [5, 0, 5, 4]]), size=(4, 8)).kept.tolist()
      [True, False]
    """
    limits = np.array([size[1], size[0]] * 2, np.float32)
    given = np.asarray(boxes, np.float32).reshape(-1, 4)
    inside = np.clip(given, 0, limits)
    kept = np.all(inside[:, 2:] - inside[:, :2] > least_side, axis=1)
    return ClippedBoxes(inside, kept, np.any(inside != given, axis=1))


@dataclass(frozen=True, eq=False)
class BoxSource:
    """Image files with boxes; those of image i are the rows `starts[i]` to `starts[i + 1]`.

    Examples have the keys `image`, `boxes`, `box_labels`, `box_ignored`, `annotated_size`, `id` and
    `name`. A scene has no label of its own.

    Attributes:
      root: the folder that `names` are relative to.
      names: one file per image.
      ids: int64[n].
      sizes: int64[n, 2], (height, width) as the annotation states them.
      starts: int64[n + 1].
      boxes: float32[t, 4].
      box_labels: int32[t].
      box_ignored: bool[t], True for objects that need not be found.
    """

    root: str
    names: tuple[str, ...]
    ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    box_labels: np.ndarray
    box_ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        path = Path(self.root, self.names[index])
        rows = slice(self.starts[index], self.starts[index + 1])
        return {
            "image": read_image_file(path),
            "boxes": self.boxes[rows],
            "box_labels": self.box_labels[rows],
            "box_ignored": self.box_ignored[rows],
            "annotated_size": self.sizes[index],
            "id": int(self.ids[index]),
            "name": str(path),
        }

    @property
    def labels(self) -> np.ndarray:
        """One class for all images, int64[n]: a held-out share is a share of all of them."""
        return np.zeros(len(self.names), np.int64)


@dataclass
class BoxTable:
    """Collects the images of one split; `source` makes them a `BoxSource`.

    Attributes:
      root: the folder of the images.
      counts: of the boxes added so far.
      first_dropped: the first box without area and its image; empty where there is none.
    """

    root: str
    counts: BoxCounts = field(default_factory=BoxCounts)
    first_dropped: str = ""
    _rows: list[tuple[str, int, tuple[int, int]]] = field(default_factory=list)
    _boxes: list[np.ndarray] = field(default_factory=list)
    _labels: list[np.ndarray] = field(default_factory=list)
    _ignored: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        name: str,
        number: int,
        size: tuple[int, int],
        boxes: np.ndarray,
        labels: np.ndarray,
        ignored: np.ndarray,
    ) -> None:
        """Adds an image.

        Args:
          name: its file, relative to `root`.
          number: its id.
          size: (height, width).
          boxes: [g, 4], pixels, as annotated.
          labels: [g].
          ignored: [g].
        """
        clipped = clip_to_image(boxes, size=size)
        kept = clipped.kept
        self._rows.append((name, number, size))
        self._boxes.append(clipped.boxes[kept])
        self._labels.append(np.asarray(labels, np.int32)[kept])
        self._ignored.append(np.asarray(ignored, bool)[kept])
        if not kept.all() and not self.first_dropped:
            corners = ", ".join(f"{value:g}" for value in boxes[np.argmin(kept)])
            self.first_dropped = f"({corners}) of {name}"
        before = self.counts
        self.counts = BoxCounts(
            boxes=before.boxes + int(kept.sum()),
            clipped=before.clipped + int((clipped.clipped & kept).sum()),
            dropped=before.dropped + int((~kept).sum()),
            ignored=before.ignored + int(self._ignored[-1].sum()),
        )

    def source(self) -> BoxSource:
        """Returns the images."""
        return BoxSource(
            root=self.root,
            names=tuple(name for name, _, _ in self._rows),
            ids=np.array([number for _, number, _ in self._rows], np.int64),
            sizes=np.array([size for _, _, size in self._rows], np.int64).reshape(-1, 2),
            starts=np.cumsum([0, *map(len, self._boxes)]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *self._boxes]),
            box_labels=np.concatenate([np.zeros(0, np.int32), *self._labels]),
            box_ignored=np.concatenate([np.zeros(0, bool), *self._ignored]),
        )


@dataclass(frozen=True)
class DetectionDataset(SplitSources):
    """Images with boxes.

    Attributes:
      category_ids: the number that the annotations give each class, by class index: results in
        COCO's format name classes by it.
      counts: boxes kept, clipped and dropped, by split; empty where all are drawn.
      split_files: what each split that there may be is read from, by split; empty where it is not
        read from files of its own.
    """

    category_ids: tuple[int, ...] = ()
    counts: Mapping[str, BoxCounts] = field(default_factory=dict)
    split_files: Mapping[str, str] = field(default_factory=dict)


def make_dataset(
    name: str,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    tables: Mapping[str, BoxTable],
    split_files: Mapping[str, str] | None = None,
) -> DetectionDataset:
    """Puts splits together to a data set.

    Args:
      name: under which it is opened.
      class_names: by class index.
      category_ids: likewise.
      tables: the images by split.
      split_files: what each split that there may be is read from; None where that is not known.

    Returns:
      The data set; its fingerprint covers file names, boxes, classes and ids.
    """
    sources = {split: table.source() for split, table in tables.items()}
    digest = hashlib.sha256()
    for one in sources.values():
        digest.update("\0".join(one.names).encode())
        digest.update(one.boxes.astype("<f4").tobytes() + one.starts.astype("<i8").tobytes())
        digest.update(one.box_ignored.tobytes())
    info = DatasetInfo(
        name=name,
        class_names=class_names,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=fingerprint(
            version=f"{name}/1/{digest.hexdigest()}",
            class_names=class_names,
            labels=np.concatenate([s.box_labels for s in sources.values()] or [np.zeros(0)]),
            ids=np.concatenate([s.ids for s in sources.values()] or [np.zeros(0)]),
        ),
    )
    counts = {split: table.counts for split, table in tables.items()}
    return DetectionDataset(info, sources, category_ids, counts, split_files or {})


def box_notes(tables: Mapping[str, BoxTable]) -> tuple[tuple[str, str], ...]:
    """Says how many boxes were kept, clipped and dropped, and how many an image has.

    Args:
      tables: by split.

    Returns:
      Rows (what, found) for a report.
    """
    rows = []
    for split, table in tables.items():
        counts = table.counts
        rows.append(
            (
                f"{split} boxes",
                f"{counts.boxes} ({counts.clipped} clipped to the image, {counts.dropped} without "
                f"area left out, {counts.ignored} need not be found)",
            )
        )
        if table.first_dropped:
            rows.append(
                (f"{split} boxes left out", f"{counts.dropped}, first {table.first_dropped}")
            )
        if (most := most_boxes(table.source())) is not None and most.number:
            rows.append((f"{split} boxes of an image", f"at most {most.number}, in {most.name}"))
    return tuple(rows)


class MostBoxes(NamedTuple):
    """The image with the most boxes.

    Attributes:
      number: of its boxes.
      name: its file.
    """

    number: int
    name: str


def most_boxes(source: Source) -> MostBoxes | None:
    """Finds the image of a source that has the most boxes, without reading images.

    Args:
      source: any.

    Returns:
      The first such image; None where the source is empty, or knows boxes by reading images alone.
    """
    if not isinstance(source, BoxSource) or not len(source):
        return None
    counts = np.diff(source.starts)
    largest = int(np.argmax(counts))
    return MostBoxes(int(counts[largest]), source.names[largest])


def image_sizes(source: Source) -> np.ndarray:
    """Returns the sizes of all images of a source.

    Args:
      source: its attribute `sizes` is used where it has one; otherwise every header is read.

    Returns:
      int64[n, 2], (height, width).

    Raises:
      UserError: an image is missing or is none.
    """
    if isinstance(source, Subset):
        return image_sizes(source.base)[source.indices]
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        sizes = [_header_size(source[index]) for index in range(len(source))]
    return np.asarray(sizes, np.int64).reshape(-1, 2)


def _header_size(example: Example) -> tuple[int, int]:
    """(height, width) of an example's image."""
    try:
        return image_size(example["image"])
    except OSError as error:
        raise UserError(f"image {example['name']}: cannot be read ({error})") from None


def size_disagreement(example: Example, height: int, width: int) -> str:
    """Says how an image differs from what its annotation says of it.

    Args:
      example: may have `annotated_size`.
      height: of the decoded image.
      width: of the decoded image.

    Returns:
      The difference, or nothing.
    """
    if "annotated_size" not in example:
        return ""
    stated_height, stated_width = (int(v) for v in example["annotated_size"])
    if (stated_height, stated_width) == (height, width):
        return ""
    difference = f"is {width} x {height}; its annotation says {stated_width} x {stated_height}"
    if (stated_height, stated_width) != (width, height):
        return difference
    return (
        f"{difference} (where the file's EXIF orientation turns the image: expected the size and "
        "the boxes of the turned one)"
    )
