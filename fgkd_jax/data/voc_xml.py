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

from fgkd_jax.data.base import Inspection, Repeated
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
_TRAIN = "'train'"
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
    if problem := _no_root(root):
        return Inspection(None, (problem,))
    splits = {split: _listed(root, lists, problems) for split, lists in wanted.items()}
    splits = {split: images for split, images in splits.items() if images}
    if problems:  # every image of that list would be missing
        return Inspection(None, tuple(problems))
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
        for image in images:
            found = annotations[image]
            file = files.get(image, f"{image}.jpg")
            size = found.size or _header_size(root / "JPEGImages" / file)
            _add(tables[split], file, numbers[image], size, found, classes)
        strangers = [
            f"{root / 'Annotations'}: {image}.xml of the split {split!r} has an object "
            f"{one.name!r}, not in {known_from}"
            for image in images
            for one in annotations[image].objects
            if one.name not in classes
        ]
        # Where no training image has an object, none of the others' classes is known.
        if strangers and (classes or known_from != _TRAIN):
            problems.append(Repeated(strangers))
    if not tables["train"].counts.boxes:
        problems.append(f"{root / 'Annotations'}: train has no boxes; expected at least one")
    dataset = make_dataset(
        _NAME,
        class_names=classes,
        category_ids=tuple(range(len(classes))),
        tables=tables,
        split_files={split: f"ImageSets/Main/{lists[0]}.txt" for split, lists in wanted.items()},
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
    found = _roots_below(root)
    return found[0] if len(found) == 1 else root


def _roots_below(root: Path) -> list[Path]:
    """The folders that hold `Annotations`, below a folder or below its `VOCdevkit`."""
    depths = ("*", "VOCdevkit/*")
    return sorted(path.parent for depth in depths for path in root.glob(f"{depth}/Annotations"))


def _no_root(root: Path) -> str:
    """Says why a folder cannot be read; empty where it can."""
    if not root.is_dir():
        return f"{root}: no such folder; {WHERE}"
    if (root / "Annotations").is_dir():
        return ""
    if found := _roots_below(root):
        names = ", ".join(path.name for path in found)
        return (
            f"{root}: has {len(found)} folders with Annotations ({names}); expected one: copy them "
            "together"
        )
    return f"{root}: has no folder Annotations; {WHERE}"


def _listed(root: Path, lists: Iterable[str], problems: list[str]) -> list[str]:
    """The images of some lists, in their order."""
    images = []
    for name in lists:
        for path in (root / "ImageSets" / "Main" / f"{name}.txt", root / f"{name}.txt"):
            if path.is_file():
                lines = path.read_text("utf-8", "replace").splitlines()
                own = [line.split()[0] for line in lines if line.strip()]
                wrong = [image for image in own if _has_ending(root, image)]
                if wrong:
                    problems.append(f"{path} lists {wrong[0]!r}; expected names without ending")
                images += own
                break
    return images


def _has_ending(root: Path, image: str) -> bool:
    """Whether a name is that of a file, rather than of an image with an annotation."""
    ending = Path(image).suffix.lower()
    is_file = ending == ".xml" or ending in IMAGE_SUFFIXES
    return is_file and not (root / "Annotations" / f"{image}.xml").is_file()


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
        texts = [(one.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        name = (one.findtext("name") or "").strip()
        if wrong := _wrong_object(name, texts):
            problems.append(f"{path}: object {number} has {wrong}")
            continue
        x0, y0, x1, y1 = map(float, texts)
        box = (x0 - 1, y0 - 1, x1, y1) if x1 > x0 and y1 > y0 else (x0, y0, x1, y1)
        difficult = (one.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(_Object(name, box, difficult))
    return _Annotation((height, width) if height and width else None, objects)


def _wrong_object(name: str, texts: Iterable[str]) -> str:
    """Says what an object lacks; empty where it has a name and the numbers of a box."""
    if not name:
        return "no name; expected its class"
    for corner, text in zip(_CORNERS, texts, strict=True):
        if not text:
            return f"no {corner}; expected a box of {', '.join(_CORNERS)}"
        if not _is_number(text):
            return f"{corner} {text!r}; expected a number"
    return ""


def _is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _classes(root: Path, train: Iterable[_Annotation]) -> tuple[tuple[str, ...], str]:
    """The class names, and where they are from."""
    path = root / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in path.read_text("utf-8", "replace").splitlines()]
        return tuple(dict.fromkeys(name for name in names if name)), "classes.txt"
    return tuple(sorted({one.name for found in train for one in found.objects})), _TRAIN


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
