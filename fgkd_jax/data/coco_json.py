"""Boxes in COCO's format: `instances_<split>.json` and a folder of images for each split.

Read are the files `instances_<tag>.json` in the folder or in its `annotations`. The split is what
the tag begins with: `train2017` is `train`, `val2017` is `validation`, `test2017` is `test`. The
images of a tag lie in `images/<tag>`, `<tag>`, `images` or the folder itself, and file names may
hold a path. Masks and keypoints are not read.

A class index is the position among the sorted category ids; `DetectionDataset.category_ids` leads
back. An example's id is the image's, which another split may have too. Boxes marked `iscrowd` need
not be found.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.base import Inspection, Repeated
from fgkd_jax.data.boxes import BoxTable, box_notes, make_dataset

WHERE = (
    "expected <data_dir>/annotations/instances_train2017.json and <data_dir>/train2017; get COCO "
    "from https://cocodataset.org/#download"
)
"""What the folder should look like, and where COCO comes from."""

_NAME = "coco_json"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_WHOLE = {
    "images": ("id", "width", "height"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id",),
}
_TEXT = {"images": ("file_name",), "categories": ("name",)}
_LARGEST_ID = 2**31 - 1
_LOOKED_FOR = 20  # images by which the folder of a split is found
_NAMED = 4  # files that a message names at most


def inspect(data_dir: str) -> Inspection:
    """Reads annotations in COCO's format.

    Args:
      data_dir: the folder that holds `annotations` or the JSON files.

    Returns:
      The data set and what is wrong with it. Annotations that name an image or a category which the
      file does not have are left out of it.
    """
    root = Path(data_dir).expanduser()
    problems: list[str] = []
    files = _find_files(root, problems)
    contents = {split: _load(path, problems) for split, path in files.items()}
    contents = {split: content for split, content in contents.items() if content}
    if not contents:
        return Inspection(None, tuple(problems or [_without_annotations(root)]))
    for split, content in contents.items():
        _compare_ids(files[split], content, problems)
        _compare_categories(files[split], content, problems)
    first = next(iter(contents))
    categories = _categories(contents[first])
    for split, content in contents.items():
        if _categories(content) != categories:
            problems.append(f"{files[split]}: its categories are not those of {files[first]}")
    category_ids = tuple(sorted(categories))
    tables = {
        split: _read_split(files[split], content, category_ids, problems)
        for split, content in contents.items()
    }
    if "train" in tables and not tables["train"].counts.boxes:
        problems.append(f"{files['train']}: train has no boxes; expected at least one")
    missing = len(problems)
    for split, table in tables.items():
        names = [row["file_name"] for row in contents[split]["images"]]
        table.root = str(_image_folder(root, files[split], names, problems))
    dataset = make_dataset(
        _NAME,
        class_names=tuple(categories[number] for number in category_ids),
        category_ids=category_ids,
        tables=tables,
        split_files={split: f"instances_{tag}*.json" for tag, split in _SPLITS.items()},
    )
    # Without a folder every image would be a problem of its own.
    found = dataset if len(problems) == missing else None
    return Inspection(found, tuple(problems), box_notes(tables))


def _find_files(root: Path, problems: list[str]) -> dict[str, Path]:
    """The annotation file of each split."""
    if not root.is_dir():
        problems.append(f"{root}: no such folder; {WHERE}")
        return {}
    found = sorted({*root.glob("instances_*.json"), *root.glob("annotations/instances_*.json")})
    files: dict[str, Path] = {}
    for split in _SPLITS.values():
        own = [path for path in found if _split(_tag(path)) == split]
        if len(own) > 1:
            problems.append(f"{own[0]} and {own[1]} are both of the split {split!r}; expected one")
        if own:
            files[split] = own[0]
    problems += [
        f"{path} is of no split; expected instances_ and then a name beginning with train, val or "
        "test"
        for path in found
        if not _split(_tag(path))
    ]
    return files


def _without_annotations(root: Path) -> str:
    """Says that there is no annotation file, and what there is in its place."""
    other = sorted(path.relative_to(root).as_posix() for path in root.glob("*.json"))
    other += sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.json"))
    if not other:
        return f"{root}: has no instances_*.json; {WHERE}"
    more = [f"{len(other) - _NAMED} more"] if len(other) > _NAMED else []
    *before, last = [*other[:_NAMED], *more]
    named = f"{', '.join(before)} and {last}" if before else last
    return (
        f"{root}: has {named}; expected instances_train*.json and instances_val*.json, there or in "
        "annotations"
    )


def _tag(path: Path) -> str:
    """What a file's name says beside `instances_`."""
    return path.stem.removeprefix("instances_")


def _split(tag: str) -> str:
    """The split that a tag begins with; empty where it is none."""
    return next((split for prefix, split in _SPLITS.items() if tag.startswith(prefix)), "")


def _load(path: Path, problems: list[str]) -> dict[str, Any]:
    """The contents of a file; empty where they are not in COCO's format."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path}: is no JSON file ({error})")
        return {}
    for key, fields in _FIELDS.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            problems.append(f"{path}: has no list {key!r}; expected COCO's format")
            return {}
        for number, row in enumerate(rows):
            missing = [name for name in fields if not isinstance(row, dict) or name not in row]
            if missing:
                problems.append(f"{path}: {key}[{number}] has no {missing[0]!r}")
                return {}
            if wrong := _wrong_type(key, row):
                problems.append(f"{path}: {key}[{number}] has {wrong}")
                return {}
    return content


def _wrong_type(key: str, row: dict[str, Any]) -> str:
    """Says which field is of a wrong type, if any; makes whole numbers of those written 512.0."""
    for name in _WHOLE[key]:
        value = row[name]
        if isinstance(value, float) and value.is_integer():
            row[name] = int(value)
        elif type(value) is not int:
            return f"{name} {value!r}; expected a whole number"
    for name in _TEXT.get(key, ()):
        if not isinstance(row[name], str):
            return f"{name} {row[name]!r}; expected a string"
    return ""


def _categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Name by category id."""
    return {row["id"]: row["name"] for row in content["categories"]}


def _compare_ids(path: Path, content: Mapping[str, Any], problems: list[str]) -> None:
    """Complains of images whose id is out of range or another's, and of those without size."""
    seen: set[int] = set()
    for row in content["images"]:
        name = f"{path}: image {row['file_name']}"
        number, width, height = row["id"], row["width"], row["height"]
        if not 0 <= number <= _LARGEST_ID:
            problems.append(f"{name} has the id {number}; expected 0 to {_LARGEST_ID}")
        if number in seen:
            problems.append(f"{name} has the id {number}, which another image of the file has")
        if min(width, height) < 1:
            problems.append(f"{name} is {width} x {height}; expected at least 1 x 1")
        seen.add(number)


def _compare_categories(path: Path, content: Mapping[str, Any], problems: list[str]) -> None:
    """Complains of categories that share an id or a name."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for row in content["categories"]:
        name, number = row["name"], row["id"]
        if names.get(number) == name:
            problems.append(
                f"{path}: the category {name!r} with the id {number} is there twice; "
                "expected it once"
            )
        elif number in names:
            problems.append(
                f"{path}: the categories {names[number]!r} and {name!r} have the id {number}; "
                "expected an id of its own for each"
            )
        elif name in ids:
            problems.append(
                f"{path}: the category {name!r} has the ids {ids[name]} and {number}; "
                "expected one id"
            )
        names.setdefault(number, name)
        ids.setdefault(name, number)


def _read_split(
    path: Path,
    content: Mapping[str, Any],
    category_ids: tuple[int, ...],
    problems: list[str],
) -> BoxTable:
    """The images of one file with their boxes; their folder is not known yet."""
    index = {number: i for i, number in enumerate(category_ids)}
    per_image: dict[int, list[tuple[list[float], int, bool]]] = {
        row["id"]: [] for row in content["images"]
    }
    wrong: dict[str, list[str]] = {"image": [], "category": [], "box": []}
    for number, row in enumerate(content["annotations"]):
        name = f"annotation {row.get('id', number)}"
        corners = _corners(row["bbox"])
        if row["image_id"] not in per_image:
            wrong["image"].append(f"{name} is of image {row['image_id']}, which is not in 'images'")
        elif row["category_id"] not in index:
            wrong["category"].append(
                f"{name} is of category {row['category_id']}, which is not in 'categories'"
            )
        elif corners is None:
            wrong["box"].append(
                f"{name} has the box {row['bbox']}; expected [x, y, width, height], finite"
            )
        else:
            ignored = bool(row.get("iscrowd", 0) or row.get("ignore", 0))
            per_image[row["image_id"]].append((corners, index[row["category_id"]], ignored))
    for lines in wrong.values():
        if lines:
            lines[0] = f"{path}: {lines[0]}"
            problems.append(Repeated(lines, kind="such annotation"))
    table = BoxTable("")
    for row in content["images"]:
        found = per_image[row["id"]]
        table.add(
            row["file_name"],
            row["id"],
            (row["height"], row["width"]),
            np.array([corners for corners, _, _ in found], np.float32).reshape(-1, 4),
            np.array([label for _, label, _ in found], np.int32),
            np.array([ignored for _, _, ignored in found], bool),
        )
    return table


def _corners(box: Any) -> list[float] | None:
    """Corners of [x, y, width, height]; None where these are not four finite numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        return None
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _image_folder(root: Path, path: Path, names: Sequence[str], problems: list[str]) -> Path:
    """The folder of the images of a file: of several the one that has most of those looked for."""
    tag = _tag(path)
    usual = (root / "images" / tag, root / tag, root / "images")
    there = [folder for folder in usual if folder.is_dir()]
    some = names[:: -(-len(names) // _LOOKED_FOR) or 1]
    best, most = (there or usual)[0], 0
    for folder in (*there, root):
        count = sum((folder / name).is_file() for name in some)
        if count > most:
            best, most = folder, count
        if most == len(some):
            break
    if most:
        return best
    elsewhere = next((found for name in some if (found := _found(root, name))), None)
    if elsewhere is not None:
        rename = f"rename that folder to {tag}"
        if _split(elsewhere.name) == _split(tag):
            rename = f"rename it to instances_{elsewhere.name}.json, or that folder to {tag}"
        problems.append(f"{path}: its images lie in {elsewhere}; {rename}")
    elif not there:
        problems.append(f"{usual[0]}: no such folder, nor {usual[1]}; expected the images of {tag}")
    return best


def _found(root: Path, name: str) -> Path | None:
    """A folder in the usual places that has an image, or None."""
    for place in (root / "images", root):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.is_dir() and (folder / name).is_file():
                return folder
    return None
