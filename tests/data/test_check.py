import shutil
from pathlib import Path

import numpy as np
import pytest

from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources
from fgkd_jax.data.check import check_inspection
from fgkd_jax.data.registry import check_dataset
from fgkd_jax.data.report import Report


def rows(report: Report) -> dict[str, str]:
    return dict(report.lines)


def test_a_sound_copy_is_ok(cub_dir):
    report = check_dataset("cub200_2011", data_dir=str(cub_dir))
    assert report.ok, str(report)
    assert rows(report) == {
        "classes": "3",
        "train images": "6",
        "test images": "6",
        "missing images": "0",
        "corrupt images": "0",
        "labels out of range": "0",
        "boxes over the border": "0",
    }
    text = str(report)
    assert text.splitlines()[0].split() == ["data", "set", "cub200_2011"]
    assert text.splitlines()[-1].split() == ["problems", "none"]


def test_a_broken_copy_lists_every_problem_at_once(cub_dir):
    images = sorted((cub_dir / "images").rglob("*.jpg"))
    images[0].unlink()
    images[5].write_bytes(images[5].read_bytes()[:-100])
    images[11].write_bytes(b"")
    (cub_dir / "train_test_split.txt").unlink()
    labels = cub_dir / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("103 3", "103 4"))
    boxes = cub_dir / "bounding_boxes.txt"
    text = boxes.read_text().replace("104 10.0 5.0 23.0", "104 200.0 5.0 23.0")
    text = text.replace("105 10.0 5.0 24.0", "105 10.0 5.0 0.0")
    boxes.write_text(text.replace("107 10.0 5.0 26.0", "107 40.0 5.0 26.0"))
    report = check_dataset("cub200_2011", data_dir=str(cub_dir))
    assert not report.ok
    table = rows(report)
    assert table["train images"] == "12"  # nothing says which ones are for testing
    assert table["missing images"] == "1"
    assert table["corrupt images"] == "2"
    assert table["boxes over the border"] == "2"
    problems = "\n".join(report.problems)
    assert "train_test_split.txt is missing (looked in" in problems
    assert "https://www.vision.caltech.edu/datasets/cub_200_2011/" in problems
    assert "class 4 is not in classes.txt" in problems
    assert f"image {images[0]}: no such file" in problems
    assert f"image {images[5]}: is truncated" in problems
    assert f"image {images[11]}: is empty" in problems
    assert "Bird_3_0003.jpg: box (200, 5, 223, 35.5) lies outside the image of 60 x 43" in problems
    assert "Bird_7_0004.jpg: box (10, 5, 10, 35.5) is empty" in problems
    assert "Bird_7_0006" not in problems  # mostly inside: counted, and clipped when it is used
    assert len(report.problems) == 7


@pytest.mark.parametrize("name", ["cub200_2011", "cifar10", "cifar100", "image_folder"])
@pytest.mark.parametrize("there", [True, False])
def test_an_empty_or_absent_folder_is_a_report_not_a_traceback(tmp_path, name, there):
    folder = tmp_path if there else tmp_path / "nowhere"
    report = check_dataset(name, data_dir=str(folder))
    assert not report.ok
    assert all("\n" not in problem for problem in report.problems)
    assert str(folder) in str(report)


def test_a_folder_of_images_is_checked_without_its_test_split(image_folder):
    shutil.rmtree(image_folder / "test")
    (image_folder / "train" / "ant" / "0.png").write_bytes(b"x")
    report = check_dataset("image_folder", data_dir=str(image_folder))
    assert rows(report)["train images"] == "6"
    assert len(report.problems) == 2


class Source:
    def __init__(self, labels, ids):
        self.rows = list(zip(labels, ids, strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        label, number = self.rows[i]
        image = np.zeros((8, 8, 3), np.uint8)
        return {"image": image, "label": label, "id": number, "name": f"{number}.jpg"}


def test_labels_out_of_range_and_ids_given_twice():
    sources = {"train": Source([0, 2, 1], [1, 2, 3]), "test": Source([5, 0], [4, 1])}
    info = DatasetInfo("x", ("a", "b"), {"train": 3, "test": 2})
    report = check_inspection("x", "/data", Inspection(SplitSources(info, sources)))
    assert rows(report)["labels out of range"] == "2"
    assert report.problems == [
        "image 2.jpg: label is 2; expected 0 to 1",
        "image 4.jpg: label is 5; expected 0 to 1",
        "id 1 belongs to 2 images",
    ]


def test_a_long_report_is_cut_and_counted():
    report = Report("x", "/data", problems=[f"problem {i}" for i in range(45)])
    lines = str(report).splitlines()
    assert lines[2].split() == ["problems", "45"]
    assert lines[3:5] == ["  - problem 0", "  - problem 1"]
    assert lines[-1] == "  ... and 25 more"
    assert len(lines) == 3 + 20 + 1
    assert report.render(limit=100).splitlines()[-1] == "  - problem 44"


def test_more_images_than_a_chunk_are_reported_in_order(monkeypatch):
    monkeypatch.setattr("fgkd_jax.data.check._CHUNK", 4)
    sources = {"train": Source([7] * 10, range(10)), "test": Source([], [])}
    info = DatasetInfo("x", ("a",), {"train": 10, "test": 0})
    report = check_inspection("x", "/data", Inspection(SplitSources(info, sources)))
    assert [problem.split(".")[0] for problem in report.problems] == [
        f"image {i}" for i in range(10)
    ]


def test_the_real_cub_is_sound_but_for_boxes_over_the_border(shared):
    report = check_dataset("cub200_2011", data_dir=str(shared / "data" / "cub50"))
    assert report.ok, str(report)
    table = rows(report)
    assert (table["classes"], table["train images"], table["test images"]) == ("50", "1500", "1389")
    assert table["boxes over the border"] == "14"


def test_a_real_photograph_cut_short_is_found(shared, tmp_path):
    real = shared / "data" / "cub50"
    for name in ("classes.txt", "image_class_labels.txt", "train_test_split.txt", "images.txt"):
        lines = (real / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(lines[:3]) + "\n")
    names = [line.split()[1] for line in (tmp_path / "images.txt").read_text().splitlines()]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes((real / "images" / name).read_bytes())
    assert check_dataset("cub200_2011", data_dir=str(tmp_path)).ok
    half = Path(tmp_path / "images" / names[1])
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (problem,) = check_dataset("cub200_2011", data_dir=str(tmp_path)).problems
    assert problem == f"image {half}: is truncated (JPEG without end-of-image marker)"
