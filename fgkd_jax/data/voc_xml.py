"""Boxes in the format of PASCAL VOC: a folder of images and one XML file for each.

Read are `JPEGImages`, `Annotations`, and the lists `ImageSets/Main/{train,val,test}.txt`, or lists
of the same names in the folder itself. `val` is the split `validation`; under the name
`voc_xml/trainval` it is part of `train`, as the published figures have it. The classes are those of
`classes.txt`, one on each line, or else the names that the objects of `train` have, sorted. An
example's id is the position of the image's name among all that are listed, sorted: adding an image
renumbers those after it.

VOC counts pixels from 1 and includes the last, so `xmin`..`xmax` covers [xmin - 1, xmax] here. Two
equal corners are a slip of the hand and not a box of one pixel: such a box has no area. Objects
marked `difficult` need not be found.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from fgkd_jax.data.base import Inspection
from fgkd_jax.data.boxes import BoxTable, box_notes, make_dataset
from fgkd_jax.data.files import IMAGE_SUFFIXES
from fgkd_jax.data.images import image_size

WHERE = (
    "expected <data_dir>/JPEGImages, <data_dir>/Annotations and "
    "<data_dir>/ImageSets/Main/train.txt; get VOC from http://host.robots.ox.ac.uk/pascal/VOC/"
)
"""What the folder should look like, and where VOC comes from."""

_NAME = "voc_xml"
_SPLITS = {"train": ("train",), "validation": ("val",), "test": ("test",)}
_TRAINVAL = {"train": ("train", "val"), "test": ("test",)}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    ignored: bool


class _Annotation(NamedTuple):
    size: tuple[int, int] | None
    objects: list[_Object]


def inspect(name: str, data_dir: str) -> Inspection:
    """Reads annotations in VOC's format.

    Args:
      name: "voc_xml", or "voc_xml/trainval" to train on the validation images too.
      data_dir: the folder that holds `Annotations`, or the one that folder lies in.

    Returns:
      The data set and what is wrong with it. Objects of a class that is not known are left out.
    """
    root = find_root(data_dir)
    problems: list[str] = []
    wanted = _TRAINVAL if name.endswith("/trainval") else _SPLITS
    splits = {split: _listed(root, lists) for split, lists in wanted.items()}
    splits = {split: images for split, images in splits.items() if images}
    if "train" not in splits:
        return Inspection(None, (f"{root}: has no list of training images; {WHERE}",))
    _compare(root, splits, problems)
    annotations = {
        image: _read(root / "Annotations" / f"{image}.xml", problems)
        for image in sorted({image for images in splits.values() for image in images})
    }
    numbers = {image: number for number, image in enumerate(annotations)}
    classes, known_from = _classes(root, (annotations[image] for image in splits["train"]))
    files = _image_files(root / "JPEGImages")
    tables = {}
    for split, images in splits.items():
        tables[split] = BoxTable(str(root / "JPEGImages"))
        strangers: list[str] = []
        for image in images:
            found = annotations[image]
            strangers += [
                f"{image}.xml has an object {one.name!r}"
                for one in found.objects
                if one.name not in classes
            ]
            file = files.get(image, f"{image}.jpg")
            size = found.size or _header_size(root / "JPEGImages" / file)
            _add(tables[split], file, numbers[image], size, found, classes)
        if strangers:
            more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
            problems.append(f"{root / 'Annotations'}: {strangers[0]}, not in {known_from}{more}")
    dataset = make_dataset(
        _NAME, class_names=classes, category_ids=tuple(range(len(classes))), tables=tables
    )
    return Inspection(dataset, tuple(problems), box_notes(tables))


def find_root(data_dir: str) -> Path:
    """Finds the folder that holds `Annotations`.

    Args:
      data_dir: that folder, or one that it lies in, alone or below `VOCdevkit`.

    Returns:
      The folder; `data_dir` itself when there is none, or more than one.
    """
    root = Path(data_dir).expanduser()
    if (root / "Annotations").is_dir():
        return root
    found = [
        path.parent for depth in ("*", "VOCdevkit/*") for path in root.glob(f"{depth}/Annotations")
    ]
    return found[0] if len(found) == 1 else root


def _listed(root: Path, lists: Iterable[str]) -> list[str]:
    """The images of some lists, in their order."""
    images = []
    for name in lists:
        for path in (root / "ImageSets" / "Main" / f"{name}.txt", root / f"{name}.txt"):
            if path.is_file():
                lines = path.read_text("utf-8", "replace").splitlines()
                images += [line.split()[0] for line in lines if line.strip()]
                break
    return images


def _compare(root: Path, splits: Mapping[str, list[str]], problems: list[str]) -> None:
    """Complains of images that are listed more than once."""
    where: dict[str, str] = {}
    for split, images in splits.items():
        for image in images:
            if image in where:
                problems.append(f"{root}: image {image} is listed in {where[image]} and in {split}")
            where[image] = split


def _read(path: Path, problems: list[str]) -> _Annotation:
    """One file; without objects where it cannot be read."""
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        problems.append(f"{path}: no such file; expected the boxes of a listed image")
        return _Annotation(None, [])
    except (OSError, ElementTree.ParseError) as error:
        problems.append(f"{path}: is no XML file ({error})")
        return _Annotation(None, [])
    sides = [tree.findtext(f"size/{side}", "0").strip() for side in ("height", "width")]
    height, width = (int(side) if side.isdecimal() else 0 for side in sides)
    objects = []
    for number, one in enumerate(tree.findall("object")):
        corners = [_number(one.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
        name = (one.findtext("name") or "").strip()
        if not name or None in corners:
            problems.append(f"{path}: object {number} has no name or no box")
            continue
        x0, y0, x1, y1 = (value for value in corners if value is not None)
        box = (x0 - 1, y0 - 1, x1, y1) if x1 > x0 and y1 > y0 else (0.0, 0.0, 0.0, 0.0)
        difficult = (one.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(_Object(name, box, difficult))
    return _Annotation((height, width) if height and width else None, objects)


def _number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _classes(root: Path, train: Iterable[_Annotation]) -> tuple[tuple[str, ...], str]:
    """The class names, and where they are from."""
    path = root / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in path.read_text("utf-8", "replace").splitlines()]
        return tuple(dict.fromkeys(name for name in names if name)), "classes.txt"
    return tuple(sorted({one.name for found in train for one in found.objects})), "'train'"


def _image_files(folder: Path) -> dict[str, str]:
    """The image files of a folder by their stem."""
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.stem: path.name for path in sorted(files)}


def _header_size(path: Path) -> tuple[int, int]:
    """(height, width) from an image's header, where the annotation lacks it; (0, 0) without one."""
    try:
        return image_size(path.read_bytes())
    except OSError:
        return 0, 0  # whoever reads the image is told


def _add(
    table: BoxTable,
    file: str,
    number: int,
    size: tuple[int, int],
    found: _Annotation,
    classes: tuple[str, ...],
) -> None:
    """Adds an image with the objects whose class is known."""
    objects = [one for one in found.objects if one.name in classes]
    table.add(
        file,
        number,
        size,
        np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        np.array([classes.index(one.name) for one in objects], np.int32),
        np.array([one.ignored for one in objects], bool),
    )
