"""FGVC-Aircraft in the folder layout its authors publish: 100 variants, 10,000 images.

Read are `variants.txt`, `images_variant_<split>.txt` with lines of the form `<image> <variant>`,
and, where it exists, `images_box.txt`. An id is an image's number, which is its name. The authors
train on `train` and `val` together for the published figures: `val` is the split `validation` here,
or part of `train` (`trainval`).

Every image ends in a banner of 20 rows that names its owner: it says nothing of the aircraft, and a
crop to the box leaves it out.
"""

from pathlib import Path

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import FileSource

WHERE = (
    "get fgvc-aircraft-2013b.tar.gz from "
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
)
"""Where the data set comes from."""

_NESTED = ("fgvc-aircraft-2013b/data", "data")


def inspect(name: str, data_dir: str) -> Inspection:
    """Reads the lists of FGVC-Aircraft.

    Args:
      name: "fgvc_aircraft", or "fgvc_aircraft/trainval" to train on the validation images too.
      data_dir: the folder with `images`, or one that `fgvc-aircraft-2013b/data` or `data` lies in.

    Returns:
      The data set and what is wrong with it.
    """
    root = Path(data_dir).expanduser()
    if not (root / "variants.txt").exists():
        root = next((root / path for path in _NESTED if (root / path).is_dir()), root)
    splits: dict[str, tuple[str, ...]] = {
        "train": ("train",),
        "validation": ("val",),
        "test": ("test",),
    }
    if name.endswith("/trainval"):
        splits = {"train": ("train", "val"), "test": ("test",)}
    problems: list[str] = []
    variants = tuple(_lines(root / "variants.txt", problems))
    boxes = _boxes(root / "images_box.txt", problems)
    sources = {}
    for split, lists in splits.items():
        rows = [row for part in lists for row in _listed(root, part, variants, problems)]
        images = [image for image, _ in rows]
        box = [boxes.get(image, (0.0, 0.0, 0.0, 0.0)) for image in images]
        sources[split] = FileSource(
            root=str(root / "images"),
            names=tuple(f"{image}.jpg" for image in images),
            labels=np.array([label for _, label in rows], np.int64),
            ids=np.array([int(image) for image in images], np.int64),
            per_example={"bbox": np.array(box, np.float32).reshape(-1, 4)} if boxes else {},
        )
    if not any(len(source) for source in sources.values()):
        return Inspection(None, tuple(problems))
    info = DatasetInfo(
        name=name,
        class_names=variants,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=fingerprint(
            version="fgvc_aircraft/1",
            class_names=variants,
            labels=np.concatenate([source.labels for source in sources.values()]),
            ids=np.concatenate([source.ids for source in sources.values()]),
        ),
    )
    return Inspection(SplitSources(info, sources), tuple(problems))


def _lines(path: Path, problems: list[str], *, required: bool = True) -> list[str]:
    """The lines of a list; none where there is no such file."""
    if not path.is_file():
        if required:
            problems.append(f"{path.name} is missing (looked in {path.parent}); {WHERE}")
        return []
    text = path.read_text("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed(
    root: Path, part: str, variants: tuple[str, ...], problems: list[str]
) -> list[tuple[str, int]]:
    """Images of a list, with their classes."""
    path, rows = root / f"images_variant_{part}.txt", []
    index = {variant: i for i, variant in enumerate(variants)}
    for number, line in enumerate(_lines(path, problems), 1):
        image, _, variant = line.partition(" ")
        if not image.isdecimal() or variant not in index:
            problems.append(
                f"{path}: line {number} is {line!r}; expected '<number> <variant of variants.txt>'"
            )
            continue
        rows.append((image, index[variant]))
    return rows


def _boxes(path: Path, problems: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """Corners by image, from `<image> x_min y_min x_max y_max`, which count pixels from 1."""
    boxes = {}
    for number, line in enumerate(_lines(path, problems, required=False), 1):
        image, *corners = line.split()
        if len(corners) != 4 or not all(corner.isdecimal() for corner in corners):
            problems.append(f"{path}: line {number} is {line!r}; expected '<number>' and 4 corners")
            continue
        x0, y0, x1, y1 = map(float, corners)
        boxes[image] = (x0 - 1, y0 - 1, x1, y1)
    return boxes
