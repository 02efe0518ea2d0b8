"""Boxes in COCO's format: `instances_<split>.json` and a folder of images for each split.

Read are the files `instances_<tag>.json` in the folder or in its `annotations`. The split is what
the tag begins with: `train2017` is `train`, `val2017` is `validation`, `test2017` is `test`. The
images of a tag lie in `images/<tag>`, `<tag>` or `images`. Masks and keypoints are not read.

A class index is the position among the sorted category ids; `DetectionDataset.category_ids` leads
back. An example's id is the image's. Boxes marked `iscrowd` need not be found.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.base import Inspection
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
_LARGEST_ID = 2**31 - 1


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
        return Inspection(None, tuple(problems or [f"{root}: has no instances_*.json; {WHERE}"]))
    first = next(iter(contents))
    categories = _categories(contents[first])
    for split, content in contents.items():
        if _categories(content) != categories:
            problems.append(f"{files[split]}: its categories are not those of {files[first]}")
    _compare_ids(files, contents, problems)
    category_ids = tuple(sorted(categories))
    tables = {
        split: _read_split(root, files[split], content, category_ids, problems)
        for split, content in contents.items()
    }
    dataset = make_dataset(
        _NAME,
        class_names=tuple(categories[number] for number in category_ids),
        category_ids=category_ids,
        tables=tables,
    )
    return Inspection(dataset, tuple(problems), box_notes(tables))


def _find_files(root: Path, problems: list[str]) -> dict[str, Path]:
    """The annotation file of each split."""
    if not root.is_dir():
        problems.append(f"{root}: no such folder; {WHERE}")
        return {}
    found = sorted({*root.glob("instances_*.json"), *root.glob("annotations/instances_*.json")})
    files: dict[str, Path] = {}
    for prefix, split in _SPLITS.items():
        own = [path for path in found if _tag(path).startswith(prefix)]
        if len(own) > 1:
            problems.append(f"{own[0]} and {own[1]} are both of the split {split!r}; expected one")
        if own:
            files[split] = own[0]
    return files


def _tag(path: Path) -> str:
    """What a file's name says beside `instances_`."""
    return path.stem.removeprefix("instances_")


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
            for name in _WHOLE[key]:
                if type(row[name]) is not int:
                    problems.append(
                        f"{path}: {key}[{number}] has {name} {row[name]!r}; expected a whole number"
                    )
                    return {}
    return content


def _categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Name by category id."""
    return {row["id"]: row["name"] for row in content["categories"]}


def _compare_ids(
    files: Mapping[str, Path], contents: Mapping[str, Any], problems: list[str]
) -> None:
    """Complains of ids out of range or given twice, and of images without size."""
    seen: set[int] = set()
    for split, content in contents.items():
        for row in content["images"]:
            name = f"{files[split]}: image {row['file_name']}"
            number, width, height = row["id"], row["width"], row["height"]
            if not 0 <= number <= _LARGEST_ID:
                problems.append(f"{name} has the id {number}; expected 0 to {_LARGEST_ID}")
            if number in seen:
                problems.append(f"{name} has the id {number}, which another image has")
            if min(width, height) < 1:
                problems.append(f"{name} is {width} x {height}; expected at least 1 x 1")
            seen.add(number)


def _read_split(
    root: Path,
    path: Path,
    content: Mapping[str, Any],
    category_ids: tuple[int, ...],
    problems: list[str],
) -> BoxTable:
    """The images of one file with their boxes."""
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
            more = f" (and {len(lines) - 1} more such annotations)" if len(lines) > 1 else ""
            problems.append(f"{path}: {lines[0]}{more}")
    table = BoxTable(str(_image_folder(root, path, problems)))
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


def _image_folder(root: Path, path: Path, problems: list[str]) -> Path:
    """The folder of the images of a file."""
    tag = _tag(path)
    choices = (root / "images" / tag, root / tag, root / "images")
    for folder in choices:
        if folder.is_dir():
            return folder
    problems.append(f"{choices[0]}: no such folder, nor {choices[1]}; expected the images of {tag}")
    return choices[0]
