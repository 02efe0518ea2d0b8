import json
import pickle
import shutil

import numpy as np
import pytest

from fgkd_jax.data import check_dataset, coco_json, open_dataset
from fgkd_jax.data.base import CorruptImageError, Subset
from fgkd_jax.data.boxes import BoxCounts, BoxTable, clip_to_image, image_sizes
from fgkd_jax.data.holdout import holdout
from fgkd_jax.errors import UserError


def edit(coco_dir, tag, change):
    path = coco_dir / "annotations" / f"instances_{tag}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def problems(coco_dir):
    return coco_json.inspect(str(coco_dir)).problems


def test_reads_boxes_classes_and_ids(coco_dir):
    dataset = open_dataset("coco_json", data_dir=str(coco_dir))
    assert dataset.info.class_names == ("ant", "wasp")
    assert dataset.category_ids == (3, 7)
    assert dataset.info.splits == {"train": 2, "validation": 1}
    train = dataset.source("train")
    first, second = train[0], train[1]
    np.testing.assert_array_equal(
        first["boxes"],
        np.array([[10.5, 5, 30.5, 15], [50, 30, 60, 40], [0, 0, 60, 20]], np.float32),
    )
    assert first["boxes"].dtype == np.float32
    assert first["box_labels"].tolist() == [1, 0, 0]
    assert first["box_ignored"].tolist() == [False, False, True]
    assert first["id"] == 1
    assert first["name"] == str(coco_dir / "train2017" / "001.jpg")
    assert first["image"] == (coco_dir / "train2017" / "001.jpg").read_bytes()
    assert second["boxes"].shape == (0, 4)
    assert second["box_labels"].shape == second["box_ignored"].shape == (0,)
    assert dataset.source("validation")[0]["boxes"].tolist() == [[1, 2, 4, 6]]
    assert dataset.counts["train"] == BoxCounts(boxes=3, clipped=1, dropped=1, ignored=1)
    again = pickle.loads(pickle.dumps(train))[0]
    np.testing.assert_array_equal(again["boxes"], first["boxes"])


def test_a_report_counts_boxes(coco_dir):
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    assert report.ok, str(report)
    found = dict(report.lines)
    assert found["train boxes"] == (
        "3 (1 clipped to the image, 1 without area left out, 1 need not be found)"
    )
    assert found["train boxes left out"] == "1, first (5, 5, 5, 13) of 001.jpg"
    assert found["train boxes of an image"] == "at most 3, in 001.jpg"
    assert found["validation boxes of an image"] == "at most 1, in 005.jpg"
    assert "validation boxes left out" not in found


@pytest.mark.parametrize("nested", [True, False])
def test_the_files_may_lie_in_the_folder_and_the_images_below_images(coco_dir, nested):
    for path in (coco_dir / "annotations").iterdir():
        path.rename(coco_dir / path.name)
    (coco_dir / "images").mkdir()
    for tag in ("train2017", "val2017"):
        if nested:
            (coco_dir / tag).rename(coco_dir / "images" / tag)
        else:
            shutil.copytree(coco_dir / tag, coco_dir / "images", dirs_exist_ok=True)
            shutil.rmtree(coco_dir / tag)
    assert check_dataset("coco_json", data_dir=str(coco_dir)).ok


def test_an_annotation_of_a_missing_image(coco_dir):
    path = edit(coco_dir, "train2017", lambda c: c["annotations"][0].update(image_id=99))
    expected = f"{path}: annotation 1 is of image 99, which is not in 'images'"
    assert problems(coco_dir) == (expected,)
    with pytest.raises(UserError) as caught:
        open_dataset("coco_json", data_dir=str(coco_dir))
    assert str(caught.value) == expected


def test_a_category_that_is_not_in_the_list(coco_dir):
    def change(content):
        for row in content["annotations"][:2]:
            row["category_id"] = 4

    path = edit(coco_dir, "train2017", change)
    assert problems(coco_dir) == (
        f"{path}: annotation 1 is of category 4, which is not in 'categories' "
        "(and 1 more such annotation)",
    )


@pytest.mark.parametrize("box", [[1, 2, 3], "all", [1, 2, float("nan"), 3], [1, 2, "3", 4]])
def test_a_box_that_is_none(coco_dir, box):
    edit(coco_dir, "val2017", lambda c: c["annotations"][0].update(bbox=box))
    (problem,) = problems(coco_dir)
    assert "annotation 1 has the box" in problem
    assert "expected [x, y, width, height], finite" in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "has no list 'images'; expected COCO's format"),
        (lambda c: c["images"][0].pop("width"), r"images\[0\] has no 'width'"),
        (lambda c: c["annotations"].append([]), r"annotations\[1\] has no 'image_id'"),
        (lambda c: c["images"][0].update(id="5"), r"images\[0\] has id '5'; expected a whole"),
        (lambda c: c["images"][0].update(id=2**31), "has the id 2147483648; expected 0 to"),
        (
            lambda c: c["images"].append({**c["images"][0], "file_name": "x.jpg"}),
            r"image x.jpg has the id 5, which another image of the file has",
        ),
        (
            lambda c: c["images"][0].update(width=60.5),
            r"images\[0\] has width 60.5; expected a whole",
        ),
        (
            lambda c: c["images"][0].update(width=float("inf")),
            r"images\[0\] has width inf; expected",
        ),
        (
            lambda c: c["images"][0].update(file_name=123),
            r"instances_val2017.json: images\[0\] has file_name 123; expected a string",
        ),
        (
            lambda c: c["categories"][0].update(name=None),
            r"instances_val2017.json: categories\[0\] has name None; expected a string",
        ),
        (lambda c: c["images"][0].update(width=0), "is 0 x 40; expected at least 1 x 1"),
        (lambda c: c["categories"][0].update(name="bee"), "its categories are not those of"),
    ],
)
def test_what_is_not_in_the_format(coco_dir, change, message):
    edit(coco_dir, "val2017", change)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset("coco_json", data_dir=str(coco_dir))
    assert "\n" not in str(caught.value)


def test_categories_that_share_an_id_or_a_name(coco_dir):
    path = edit(coco_dir, "val2017", lambda c: c["categories"].append({"id": 7, "name": "fly"}))
    assert problems(coco_dir)[0] == (
        f"{path}: the categories 'wasp' and 'fly' have the id 7; expected an id of its own for each"
    )
    edit(coco_dir, "val2017", lambda c: c["categories"].pop())
    assert problems(coco_dir) == ()
    edit(coco_dir, "val2017", lambda c: c["categories"].append({"id": 9, "name": "wasp"}))
    assert problems(coco_dir)[0] == (
        f"{path}: the category 'wasp' has the ids 7 and 9; expected one id"
    )
    edit(coco_dir, "val2017", lambda c: c["categories"].pop())
    edit(coco_dir, "val2017", lambda c: c["categories"].append({"id": 7, "name": "wasp"}))
    assert problems(coco_dir) == (
        f"{path}: the category 'wasp' with the id 7 is there twice; expected it once",
    )


def test_training_images_without_a_box(coco_dir):
    path = edit(coco_dir, "train2017", lambda c: c["annotations"].clear())
    assert problems(coco_dir) == (f"{path}: train has no boxes; expected at least one",)
    edit(coco_dir, "val2017", lambda c: c["annotations"].clear())
    assert len(problems(coco_dir)) == 1
    rows = dict(coco_json.inspect(str(coco_dir)).notes)
    assert "validation boxes" in rows
    assert "validation boxes of an image" not in rows


def test_whole_numbers_may_be_written_as_floats(coco_dir):
    def change(content):
        content["images"][0].update(id=5.0, width=60.0)
        content["annotations"][0].update(image_id=5.0, category_id=3.0)

    edit(coco_dir, "val2017", change)
    assert check_dataset("coco_json", data_dir=str(coco_dir)).ok
    example = open_dataset("coco_json", data_dir=str(coco_dir)).source("validation")[0]
    assert (example["id"], example["boxes"].tolist()) == (5, [[1, 2, 4, 6]])
    assert example["annotated_size"].tolist() == [40, 60]


def test_ids_may_start_again_in_another_split(coco_dir):
    def change(content):
        content["images"][0].update(id=1)
        content["annotations"][0].update(image_id=1)

    edit(coco_dir, "val2017", change)
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    assert report.ok, str(report)
    dataset = open_dataset("coco_json", data_dir=str(coco_dir))
    assert dataset.source("validation")[0]["boxes"].tolist() == [[1, 2, 4, 6]]
    assert dataset.source("validation").ids.tolist() == [1]
    assert dataset.source("train").ids.tolist() == [1, 2]


def test_annotations_under_other_names(coco_dir):
    folder = coco_dir / "annotations"
    for old, new in (("instances_train2017", "train"), ("instances_val2017", "val")):
        (folder / f"{old}.json").rename(folder / f"{new}.json")
    (problem,) = problems(coco_dir)
    assert problem == (
        f"{coco_dir}: has annotations/train.json and annotations/val.json; expected "
        "instances_train*.json and instances_val*.json, there or in annotations"
    )
    (folder / "train.json").unlink()
    (problem,) = problems(coco_dir)
    assert ": has annotations/val.json; expected" in problem
    for i in range(5):
        (coco_dir / f"{i}.json").write_text("{}")
    (problem,) = problems(coco_dir)
    assert ": has 0.json, 1.json, 2.json, 3.json and 2 more; expected" in problem


def test_an_annotation_file_of_no_split(coco_dir):
    folder = coco_dir / "annotations"
    (folder / "instances_val2017.json").rename(folder / "instances_eval.json")
    assert problems(coco_dir) == (
        f"{folder / 'instances_eval.json'} is of no split; expected instances_ and then a name "
        "beginning with train, val or test",
    )


def test_file_names_that_hold_a_path(coco_dir):
    (coco_dir / "images").mkdir()
    for tag in ("train2017", "val2017"):
        (coco_dir / tag).rename(coco_dir / "images" / tag)
    before = open_dataset("coco_json", data_dir=str(coco_dir))

    def change(content):
        for row in content["images"]:
            row["file_name"] = "images/train2017/" + row["file_name"]

    edit(coco_dir, "train2017", change)
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    assert report.ok, str(report)
    train = open_dataset("coco_json", data_dir=str(coco_dir)).source("train")
    assert train[1]["image"] == before.source("train")[1]["image"]


def test_images_in_a_folder_named_otherwise(coco_dir):
    for tag in ("train", "val"):
        (coco_dir / "annotations" / f"instances_{tag}2017.json").rename(
            coco_dir / "annotations" / f"instances_{tag}.json"
        )
    (coco_dir / "images").mkdir()
    for tag in ("train2017", "val2017"):
        (coco_dir / tag).rename(coco_dir / "images" / tag)
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    folder = coco_dir / "annotations"
    assert report.problems == [
        f"{folder / f'instances_{tag}.json'}: its images lie in {coco_dir / 'images'}/{tag}2017; "
        f"rename it to instances_{tag}2017.json, or that folder to {tag}"
        for tag in ("train", "val")
    ]
    (coco_dir / "images" / "val2017").rename(coco_dir / "images" / "photos")
    (problem,) = problems(coco_dir)[1:]
    assert problem.endswith(f"lie in {coco_dir / 'images' / 'photos'}; rename that folder to val")


def test_images_beside_the_annotations(coco_dir):
    for path in coco_dir.glob("*2017/*.jpg"):
        path.rename(coco_dir / path.name)
    assert check_dataset("coco_json", data_dir=str(coco_dir)).ok


def test_of_several_folders_the_one_that_has_the_images(coco_dir):
    (coco_dir / "images" / "train2017").mkdir(parents=True)
    assert check_dataset("coco_json", data_dir=str(coco_dir)).ok


def test_of_folders_that_have_as_many_images_the_usual_one(coco_dir):
    usual = coco_dir / "images" / "train2017"
    usual.mkdir(parents=True)
    (coco_dir / "train2017" / "001.jpg").rename(usual / "001.jpg")
    (problem,) = check_dataset("coco_json", data_dir=str(coco_dir)).problems
    assert str(usual / "002.jpg") in problem


def test_images_that_are_nowhere_are_one_problem(coco_dir):
    shutil.rmtree(coco_dir / "train2017")
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    (problem,) = report.problems
    assert "no such folder" in problem


def test_the_files_of_the_splits(coco_dir):
    dataset = open_dataset("coco_json", data_dir=str(coco_dir))
    assert dataset.split_files == {
        "train": "instances_train*.json",
        "validation": "instances_val*.json",
        "test": "instances_test*.json",
    }


def test_one_count_of_further_problems(coco_dir):
    def change(content):
        for row in content["annotations"][:3]:
            row["category_id"] = 4
        content["annotations"][3]["image_id"] = 99

    path = edit(coco_dir, "train2017", change)
    with pytest.raises(UserError) as caught:
        open_dataset("coco_json", data_dir=str(coco_dir))
    assert str(caught.value) == (
        f"{path}: annotation 4 is of image 99, which is not in 'images' (and 4 more problems)"
    )
    edit(coco_dir, "train2017", lambda c: c["annotations"][3].update(image_id=1, category_id=4))
    with pytest.raises(UserError) as caught:
        open_dataset("coco_json", data_dir=str(coco_dir))
    assert str(caught.value) == (
        f"{path}: annotation 1 is of category 4, which is not in 'categories' (and 4 more problems)"
    )


def test_files_that_are_not_there_or_no_json(coco_dir, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; expected"):
        open_dataset("coco_json", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no instances_\*\.json; expected <data_dir>/annot"):
        open_dataset("coco_json", data_dir=str(tmp_path))
    train = coco_dir / "annotations" / "instances_train2017.json"
    shutil.copy(train, train.with_name("instances_train2014.json"))
    with pytest.raises(UserError, match="are both of the split 'train'; expected one"):
        open_dataset("coco_json", data_dir=str(coco_dir))
    train.with_name("instances_train2014.json").unlink()
    shutil.rmtree(coco_dir / "train2017")
    with pytest.raises(UserError, match="expected the images of train2017"):
        open_dataset("coco_json", data_dir=str(coco_dir))
    train.write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        open_dataset("coco_json", data_dir=str(coco_dir))


def test_images_that_are_missing_or_of_another_size(coco_dir, encode, pixels):
    edit(coco_dir, "val2017", lambda c: c["images"][0].update(width=59))
    (coco_dir / "train2017" / "002.jpg").unlink()
    report = check_dataset("coco_json", data_dir=str(coco_dir))
    assert report.problems == [
        f"image {coco_dir / 'train2017' / '002.jpg'}: no such file",
        f"image {coco_dir / 'val2017' / '005.jpg'}: is 60 x 40; its annotation says 59 x 40",
    ]
    train = open_dataset("coco_json", data_dir=str(coco_dir)).source("train")
    with pytest.raises(CorruptImageError, match="no such file"):
        train[1]


def test_the_fingerprint_follows_the_boxes(coco_dir):
    def mark():
        return open_dataset("coco_json", data_dir=str(coco_dir)).info.fingerprint

    before = mark()
    edit(coco_dir, "train2017", lambda c: c["annotations"][0].update(bbox=[10, 5, 20, 10]))
    moved = mark()
    edit(coco_dir, "train2017", lambda c: c["annotations"][0].update(iscrowd=1))
    assert len({before, moved, mark()}) == 3


def test_a_share_can_be_held_out(coco_dir):
    dataset = open_dataset("coco_json", data_dir=str(coco_dir))
    divided = holdout(dataset, fraction=0.5, seed=0, split="held")
    assert divided.info.splits["held"] == divided.info.splits["train"] == 1
    assert image_sizes(divided.source("held")).tolist() == [[40, 60]]


def test_clipping():
    boxes = np.array([[-5.0, -5, 5, 5], [9, 0, 12, 3], [8, 2, 6, 5], [20, 0, 30, 5], [0, 0, 10, 6]])
    clipped = clip_to_image(boxes, size=(6, 10))
    assert clipped.kept.tolist() == [True, True, False, False, True]
    assert clipped.clipped.tolist() == [True, True, False, True, False]
    assert clipped.boxes[:2].tolist() == [[0, 0, 5, 5], [9, 0, 10, 3]]
    assert clip_to_image(boxes, size=(6, 10), least_side=1).kept.tolist()[1] is False
    assert clip_to_image(np.zeros((0, 4)), size=(1, 1)).boxes.shape == (0, 4)


def test_a_box_outside_the_image_counts_as_dropped_alone():
    table = BoxTable("")
    boxes = np.array([[20.0, 0, 30, 5], [-1, 0, 5, 5]])
    table.add("a.jpg", 0, (6, 10), boxes, np.zeros(2, int), np.zeros(2, bool))
    assert table.counts == BoxCounts(boxes=1, clipped=1, dropped=1, ignored=0)


def test_sizes_of_a_subset():
    table = BoxTable("")
    for number in range(4):
        none = np.zeros(0, int)
        table.add("a.jpg", number, (5, 10 + number), np.zeros((0, 4)), none, none > 0)
    subset = Subset(table.source(), np.array([3, 1]), np.zeros(2), np.zeros(2))
    assert image_sizes(subset).tolist() == [[5, 13], [5, 11]]


def test_sizes_are_read_from_headers_where_they_are_not_stated(image_folder):
    train = open_dataset("image_folder", data_dir=str(image_folder)).source("train")
    assert image_sizes(train).tolist() == [[30, 24]] * 6


def test_real_photographs(shared):
    folder = shared / "data" / "coco128"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    dataset = open_dataset("coco_json", data_dir=str(folder))
    assert dataset.info.splits == {"train": 128, "validation": 128}
    assert dataset.info.num_classes == 80
    assert (dataset.counts["train"].boxes, dataset.counts["validation"].boxes) == (929, 898)
    train = dataset.source("train")
    assert sum(len(train[i]["boxes"]) == 0 for i in range(len(train))) == 2
