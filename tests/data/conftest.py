"""Small data sets in the layouts that their authors publish."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions


def _pixels(number: int, height: int, width: int) -> np.ndarray:
    """A smooth picture that differs from number to number, so that JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + number * k) + np.cos(y / (5 + k) + number) for k in range(3)]
    return (np.stack(waves, -1) * 60 + 127).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pixels() -> Callable[..., np.ndarray]:
    return _pixels


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encodes an array with PIL: `encode(array, "JPEG", mode="CMYK")`."""

    def make(array: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options) -> bytes:
        image = Image.fromarray(array)
        buffer = io.BytesIO()
        (image.convert(mode) if mode else image).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def cub_dir(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Twelve images of CUB's classes 3, 7 and 9; ids from 101; odd ids train, even ids test."""
    root = tmp_path / "CUB_200_2011"
    lines: dict[str, list[str]] = {name: [] for name in _CUB_LISTS}
    lines["classes.txt"] = [f"{c} {c:03d}.Bird_{c}" for c in (3, 7, 9)]
    for i in range(12):
        image, c = 101 + i, (3, 7, 9)[i // 4]
        name = f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg"
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(_pixels(i, 40 + i, 60)))
        lines["images.txt"].append(f"{image} {name}")
        lines["image_class_labels.txt"].append(f"{image} {c}")
        lines["train_test_split.txt"].append(f"{image} {image % 2}")
        lines["bounding_boxes.txt"].append(f"{image} 10.0 5.0 {20 + i}.0 30.5")
        lines["parts/part_locs.txt"] += [f"{image} 1 12.5 8.0 1", f"{image} 2 0.0 0.0 0"]
        lines["parts/part_locs.txt"] += [f"{image} 3 30.0 20.0 1"]
    lines["parts/parts.txt"] = ["1 left eye", "2 tail", "3 right eye"]
    # One row per class of the whole data set, in the order of CUB's ids.
    lines["attributes/class_attribute_labels_continuous.txt"] = [
        f"{c}.0 {100 - c}.0" for c in range(1, 11)
    ]
    lines["attributes/attributes.txt"] = ["1 has_bill::long", "2 has_bill::short"]
    for name, text in lines.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n".join(text) + "\n")
    return root


_CUB_LISTS = (
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "parts/part_locs.txt",
)


@pytest.fixture
def image_folder(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Classes `ant` and `bee`, three training images each and two test images each."""
    root = tmp_path / "photos"
    number = 0
    for split, count in (("train", 3), ("test", 2)):
        for name in ("bee", "ant"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                suffix, kind = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))[i]
                (folder / f"{i}.{suffix}").write_bytes(encode(_pixels(number, 30, 24), kind))
                number += 1
    return root


class Made:
    """Examples made of labels and ids: `features` whose first entry is the id, or no pixels."""

    def __init__(self, labels, ids, shape: tuple[int, int, int] | None = (1, 1, 3)):
        self.labels, self.ids = np.array(labels, np.int64), np.array(ids, np.int64)
        self.shape = shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        label, number = int(self.labels[index]), int(self.ids[index])
        example = {"label": label, "id": number, "name": str(number)}
        if self.shape is None:
            return {**example, "image": b""}
        features = np.full(self.shape, label, np.float32)
        features[0, 0, 0] = number
        return {**example, "features": features}


def _zero_shot(per_class: int = 4, **changes) -> SplitSources:
    """Six classes a to f, of which b and e are unseen; ids tell split, class and number."""
    seen = np.array([True, False, True, True, False, True])
    rng = np.random.default_rng(0)
    names = tuple("abcdef")
    described = ClassDescriptions(names, rng.random((6, 5)).astype(np.float32), seen)
    groups = {"train": seen, "test_seen": seen, "test_unseen": ~seen}
    sources = {}
    for place, (split, group) in enumerate(groups.items()):
        labels = np.repeat(np.flatnonzero(group), per_class)
        ids = 1000 * place + 10 * labels + np.tile(np.arange(per_class), group.sum())
        sources[split] = Made(labels, ids)
    sources |= changes.pop("sources", {})
    options = {
        "name": "made",
        "class_names": names,
        "splits": {split: len(source) for split, source in sources.items()},
        "fingerprint": "f",
        "groupings": {"pair": (0, 0, 1, 1, 2, 2)},
        "descriptions": described,
        "feature_shape": (1, 1, 3),
        "feature_dtype": "float32",
        **changes,
    }
    return SplitSources(DatasetInfo(**options), sources)


@pytest.fixture(scope="session")
def made() -> type[Made]:
    return Made


@pytest.fixture(scope="session")
def zero_shot() -> Callable[..., SplitSources]:
    return _zero_shot


@pytest.fixture
def cub_split(cub_dir: Path) -> Path:
    """A split of `cub_dir`, with labels in an order of its own; Bird_7 is unseen."""
    names = [line.split()[1] for line in (cub_dir / "images.txt").read_text().splitlines()]
    own = {"009": 0, "003": 1, "007": 2, "001": 3}
    files = [f"somewhere/CUB_200_2011/images/{name}" for name in names]
    files += ["x/001.Bird_1/Bird_1_0001.jpg"]  # a class that this copy does not have
    labels = np.array([own[name.split("/")[-2][:3]] for name in files])
    seen = np.flatnonzero(np.isin(labels, [0, 1]))
    path = cub_dir / "CUB_split.npz"
    np.savez(
        path,
        image_files=np.array(files),
        labels=labels,
        trainval_loc=np.append(seen[seen % 4 != 3], len(files) - 1),
        test_seen_loc=seen[seen % 4 == 3],
        test_unseen_loc=np.flatnonzero(labels == 2),
    )
    return path


@pytest.fixture
def coco_dir(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Two training images, of which the second has no box, and one of validation; categories 3, 7.

    Image 1 has a box over the border, a crowd and a box of no width.
    """
    root = tmp_path / "coco"
    categories = [{"id": 7, "name": "wasp"}, {"id": 3, "name": "ant"}]
    splits: dict[str, dict[int, list[tuple[int, list[float], int]]]] = {
        "train2017": {
            1: [
                (7, [10.5, 5, 20, 10], 0),
                (3, [50, 30, 20, 20], 0),
                (3, [0, 0, 60, 20], 1),
                (3, [5, 5, 0, 8], 0),
            ],
            2: [],
        },
        "val2017": {5: [(3, [1, 2, 3, 4], 0)]},
    }
    (root / "annotations").mkdir(parents=True)
    for tag, images in splits.items():
        rows, boxes = [], []
        (root / tag).mkdir()
        for number, found in images.items():
            (root / tag / f"{number:03d}.jpg").write_bytes(encode(_pixels(number, 40, 60)))
            rows.append({"id": number, "file_name": f"{number:03d}.jpg", "width": 60, "height": 40})
            for category, box, crowd in found:
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": box,
                        "iscrowd": crowd,
                    }
                )
        content = {"images": rows, "annotations": boxes, "categories": categories}
        (root / "annotations" / f"instances_{tag}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def voc_dir(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Images a to d, 60 x 40: a and b train, c validation, d test; d has no object."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    objects = {
        "a": [("cat", 0, (1, 1, 60, 40)), ("dog", 1, (11, 6, 30, 15))],
        "b": [("cat", 0, (5, 5, 5, 5)), ("dog", 0, (51, 31, 70, 40))],
        "c": [("dog", 0, (2, 3, 4, 5))],
        "d": [],
    }
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, (name, found) in enumerate(objects.items()):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode(_pixels(number, 40, 60)))
        (root / "Annotations" / f"{name}.xml").write_text(_voc_xml(found))
    for split, names in {"train": "ba", "val": "c", "test": "d", "trainval": "abc"}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def _voc_xml(objects: list[tuple[str, int, tuple[int, int, int, int]]]) -> str:
    """An annotation as VOC writes it; a part with a box of its own stands inside each object."""
    lines = ["<annotation><size><width>60</width><height>40</height><depth>3</depth></size>"]
    for name, difficult, corners in objects:
        names = ("xmin", "ymin", "xmax", "ymax")
        box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(names, corners, strict=True))
        lines.append(
            f"<object><name>{name}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{box}</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
            "</object>"
        )
    return "\n".join([*lines, "</annotation>"])
