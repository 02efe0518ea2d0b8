"""CUB-200-2011 in the folder layout its authors publish, whole or in part.

Read are `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`, and where
they exist `bounding_boxes.txt`, `parts/` and `attributes/`. Image and class ids keep CUB's
numbering. A class index is the position among the classes that have images, so a copy with the
first 50 species has 50 classes; `Cub.class_ids` leads back.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import FileSource

WHERE = "get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/"
"""Where the data set comes from."""

_VERSION = "cub200_2011/1"
_UNKNOWN = -1


@dataclass(frozen=True)
class Cub(SplitSources):
    """CUB-200-2011.

    Attributes:
      class_ids: CUB's number of each class, by class index.
      class_attributes: float32[k, 312] in [0, 1], the share of annotators who saw the attribute;
        None in a copy without `attributes/`.
      everything: the images of both splits, in the order of `images.txt`.
    """

    class_ids: tuple[int, ...] = ()
    class_attributes: np.ndarray | None = None
    everything: FileSource | None = None


def inspect(data_dir: str) -> Inspection:
    """Reads the lists of a copy of CUB-200-2011, as far as they go.

    Args:
      data_dir: the folder with `images.txt`, or the one that `CUB_200_2011` lies in.

    Returns:
      The data set and what is wrong with it. Images that no list assigns to a split are in `train`,
      and those without a class have the label -1.
    """
    lists = _Lists(find_root(data_dir))
    images, classes = lists.text("images.txt"), lists.text("classes.txt")
    labels = lists.per_image("image_class_labels.txt", images)
    split = lists.per_image("train_test_split.txt", images)
    boxes, (parts, part_names) = lists.boxes(images), lists.parts(images)
    unknown = sorted(set(labels.tolist()) - set(classes) - {_UNKNOWN})
    if classes and unknown:
        lists.complain("image_class_labels.txt", f"class {unknown[0]} is not in classes.txt")
    class_ids = tuple(sorted(set(classes) & set(labels.tolist())))
    attributes, attribute_names = lists.attributes(class_ids)
    if not images:
        return Inspection(None, tuple(lists.problems))

    index = {class_id: i for i, class_id in enumerate(class_ids)}
    everything = FileSource(
        root=str(lists.root / "images"),
        names=tuple(images.values()),
        labels=np.array([index.get(c, _UNKNOWN) for c in labels.tolist()], np.int64),
        ids=np.array(list(images), np.int64),
        per_example={k: v for k, v in (("bbox", boxes), ("parts", parts)) if v is not None},
        per_class={} if attributes is None else {"attributes": attributes},
    )
    sources = {
        "train": everything.take(np.flatnonzero(split != 0)),
        "test": everything.take(np.flatnonzero(split == 0)),
    }
    names = tuple(classes[c] for c in class_ids)
    info = DatasetInfo(
        name="cub200_2011",
        class_names=names,
        splits={name: len(source) for name, source in sources.items()},
        fingerprint=fingerprint(
            version=_VERSION, class_names=names, labels=everything.labels, ids=everything.ids
        ),
        part_names=part_names,
        attribute_names=attribute_names,
        flip_pairs=left_right_pairs(part_names),
    )
    return Inspection(Cub(info, sources, class_ids, attributes, everything), tuple(lists.problems))


def find_root(data_dir: str) -> Path:
    """Finds the folder that holds the lists.

    Args:
      data_dir: that folder, or the one `CUB_200_2011` lies in.

    Returns:
      The folder; `data_dir` itself when neither looks like CUB.
    """
    root = Path(data_dir).expanduser()
    nested = root / "CUB_200_2011"
    return nested if nested.is_dir() and not (root / "images.txt").exists() else root


def left_right_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Finds the parts that a mirrored image exchanges.

    Args:
      names: part names such as "left eye".

    Returns:
      Pairs of positions whose names differ in "left" and "right" alone.

    Example:
      >>> left_right_pairs(("back", "left eye", "tail", "right eye"))
      ((1, 3),)
    """
    positions = {name: i for i, name in enumerate(names)}
    pairs = ((i, positions.get(name.replace("left", "right", 1))) for name, i in positions.items())
    return tuple((i, j) for i, j in pairs if j is not None and i != j)


class _Lists:
    """The list files under a root, and what was found wrong with them."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[str] = []

    def complain(self, name: str, what: str) -> None:
        """Notes a problem with a list."""
        self.problems.append(f"{self.root / name}: {what}")

    def text(self, name: str, *, required: bool = True) -> dict[int, str]:
        """Reads lines of the form `<number> <text>`."""
        path, found = self.root / name, {}
        if not path.is_file():
            if required:
                self.problems.append(f"{name} is missing (looked in {self.root}); {WHERE}")
            return {}
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            key, _, value = line.strip().partition(" ")
            if key.isdecimal() and value:
                found[int(key)] = value.strip()
            elif line.strip():
                self.complain(name, f"line {number} is {line!r}; expected '<number> <text>'")
        return found

    def table(self, name: str, columns: int) -> np.ndarray | None:
        """Reads a table of numbers; None where there is no such file or it is malformed."""
        path = self.root / name
        if not path.is_file() or not path.stat().st_size:
            return None
        try:
            numbers = np.loadtxt(path, np.float64, ndmin=2)
        except ValueError as error:
            self.complain(name, f"is no table of numbers ({error})")
            return None
        if columns and numbers.shape[1] != columns:
            self.complain(name, f"has {numbers.shape[1]} columns; expected {columns}")
            return None
        return numbers

    def per_image(self, name: str, images: dict[int, str]) -> np.ndarray:
        """One whole number per image, in the order of `images`."""
        text = self.text(name)
        wrong = [i for i, value in text.items() if not value.isdecimal()]
        if wrong:
            self.complain(name, f"image {wrong[0]} has {text[wrong[0]]!r}; expected a whole number")
        values = {i: int(value) for i, value in text.items() if value.isdecimal()}
        self._compare(name, images, values.keys() | set(wrong))
        return np.array([values.get(i, _UNKNOWN) for i in images], np.int64)

    def boxes(self, images: dict[int, str]) -> np.ndarray | None:
        """Corners float32[n, 4] from `x y width height`."""
        rows = self.table("bounding_boxes.txt", 5)
        if rows is None:
            return None
        self._compare("bounding_boxes.txt", images, {int(i) for i in rows[:, 0]})
        corners = {int(i): (x, y, x + w, y + h) for i, x, y, w, h in rows.tolist()}
        return np.array([corners.get(i, (0, 0, 0, 0)) for i in images], np.float32)

    def parts(self, images: dict[int, str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Points float32[n, p, 3], and the parts' names; invisible parts are at (0, 0)."""
        names = self.text("parts/parts.txt", required=False)
        rows = self.table("parts/part_locs.txt", 5)
        if rows is None or not names:
            return None, ()
        self._compare("parts/part_locs.txt", images, {int(i) for i in rows[:, 0]})
        row = {image: i for i, image in enumerate(images)}
        column = {part: j for j, part in enumerate(names)}
        strangers = {int(part) for part in rows[:, 1]} - set(names)
        if strangers:
            self.complain("parts/part_locs.txt", f"part {min(strangers)} is not in parts.txt")
        points = np.zeros((len(images), len(names), 3), np.float32)
        for image, part, x, y, visible in rows.tolist():
            if visible and image in row and part in column:
                points[row[int(image)], column[int(part)]] = x, y, 1
        return points, tuple(names.values())

    def attributes(self, class_ids: tuple[int, ...]) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Class attributes float32[k, a] in [0, 1], and their names where they are given."""
        name = "attributes/class_attribute_labels_continuous.txt"
        rows = self.table(name, 0)
        if rows is None:
            return None, ()
        if class_ids and len(rows) < max(class_ids):
            self.complain(name, f"has {len(rows)} rows; expected one for class {max(class_ids)}")
            return None, ()
        # The archive keeps the names beside the folder, copies often inside it.
        for path in ("attributes/attributes.txt", "attributes.txt", "../attributes.txt"):
            names = self.text(path, required=False)
            if len(names) == rows.shape[1]:
                break
        else:
            names = {}
        chosen = rows[np.array(class_ids, np.int64) - 1] / 100
        return chosen.astype(np.float32), tuple(names.values())

    def _compare(self, name: str, images: dict[int, str], found: set[int]) -> None:
        """Complains about images that a list leaves out or makes up."""
        if not (self.root / name).is_file():
            return
        for what, ids in (
            ("has no line for", images.keys() - found),
            ("has a line for", found - images.keys()),
        ):
            if ids:
                unless = "" if what.startswith("has no") else ", not in images.txt"
                count = "image" if len(ids) == 1 else f"{len(ids)} images, first"
                self.complain(name, f"{what} {count} {min(ids)}{unless}")
