"""Small data sets in the layouts that their authors publish."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
