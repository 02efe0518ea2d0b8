import pickle

import numpy as np
import pytest

from fgkd_jax.data import cub
from fgkd_jax.data.base import CorruptImageError, labels_and_ids
from fgkd_jax.errors import UserError


@pytest.mark.parametrize("parent", [False, True])
def test_reads_the_original_layout(cub_dir, parent):
    dataset = cub.inspect(str(cub_dir.parent if parent else cub_dir)).usable()
    info = dataset.info
    assert info.splits == {"train": 6, "test": 6}
    assert info.class_names == ("003.Bird_3", "007.Bird_7", "009.Bird_9")
    assert dataset.class_ids == (3, 7, 9)
    assert info.part_names == ("left eye", "tail", "right eye")
    assert info.flip_pairs == ((0, 2),)
    assert info.attribute_names == ("has_bill::long", "has_bill::short")
    # Rows of the attribute table go by CUB's ids, not by position.
    np.testing.assert_allclose(dataset.class_attributes, [[0.03, 0.97], [0.07, 0.93], [0.09, 0.91]])
    train, test = dataset.source("train"), dataset.source("test")
    labels, ids = labels_and_ids(train)
    assert ids.tolist() == [101, 103, 105, 107, 109, 111]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert labels_and_ids(test)[1].tolist() == [102, 104, 106, 108, 110, 112]
    example = test[3]  # image 108, the eighth
    assert example["id"] == 108
    assert example["label"] == 1
    assert example["name"].endswith("images/007.Bird_7/Bird_7_0007.jpg")
    assert example["image"][:2] == b"\xff\xd8"
    np.testing.assert_allclose(example["bbox"], [10, 5, 37, 35.5])  # from x y width height
    np.testing.assert_array_equal(example["parts"], [[12.5, 8, 1], [0, 0, 0], [30, 20, 1]])
    np.testing.assert_allclose(example["attributes"], [0.07, 0.93])
    assert {example[k].dtype for k in ("bbox", "parts", "attributes")} == {np.dtype("float32")}


def test_a_source_survives_pickling(cub_dir):
    source = cub.inspect(str(cub_dir)).usable().source("train")
    again = pickle.loads(pickle.dumps(source))
    assert again[2]["image"] == source[2]["image"]
    np.testing.assert_array_equal(again[2]["bbox"], source[2]["bbox"])


@pytest.mark.parametrize(
    "name", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"]
)
def test_a_missing_list_is_one_line_that_says_where_to_get_it(cub_dir, name):
    (cub_dir / name).unlink()
    with pytest.raises(UserError) as caught:
        cub.inspect(str(cub_dir)).usable()
    message = str(caught.value)
    assert message.startswith(f"{name} is missing (looked in {cub_dir}); get CUB_200_2011.tgz from")
    assert "https://www.vision.caltech.edu/datasets/cub_200_2011/" in message
    assert "\n" not in message


def test_an_empty_folder_lists_all_that_is_missing(tmp_path):
    problems = cub.inspect(str(tmp_path)).problems
    assert [p.split()[0] for p in problems] == [
        "images.txt",
        "classes.txt",
        "image_class_labels.txt",
        "train_test_split.txt",
    ]


def test_boxes_parts_and_attributes_are_optional(cub_dir):
    (cub_dir / "bounding_boxes.txt").unlink()
    (cub_dir / "parts" / "part_locs.txt").unlink()
    (cub_dir / "attributes" / "class_attribute_labels_continuous.txt").unlink()
    dataset = cub.inspect(str(cub_dir)).usable()
    assert dataset.source("train")[0].keys() == {"image", "label", "id", "name"}
    assert dataset.class_attributes is None


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("image_class_labels.txt", "105 7", "105 8", "class 8 is not in classes.txt"),
        ("image_class_labels.txt", "105 7", "105 x", "image 105 has 'x'; expected a whole number"),
        ("image_class_labels.txt", "105 7\n", "", "has no line for image 105"),
        ("train_test_split.txt", "105 1\n106 0\n", "", "has no line for 2 images, first 105"),
        ("train_test_split.txt", "112 0", "112 0\n113 0", "for image 113, not in images.txt"),
        ("images.txt", "105 ", "hundred ", "line 5 is 'hundred 007.Bird_7/"),
        ("bounding_boxes.txt", "105 10.0 5.0", "105 10.0", "is no table of numbers"),
        ("bounding_boxes.txt", "105 10.0", "999 10.0", "has no line for image 105"),
        ("parts/part_locs.txt", "105 3 ", "105 4 ", "part 4 is not in parts.txt"),
    ],
)
def test_damaged_lists_are_named(cub_dir, name, old, new, message):
    path = cub_dir / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    inspection = cub.inspect(str(cub_dir))
    assert any(message in problem and name in problem for problem in inspection.problems), (
        inspection.problems
    )
    with pytest.raises(UserError):
        inspection.usable()


def test_too_few_rows_of_attributes(cub_dir):
    path = cub_dir / "attributes" / "class_attribute_labels_continuous.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:8]))
    (problem,) = cub.inspect(str(cub_dir)).problems
    assert problem.endswith("has 8 rows; expected one for class 9")


def test_attribute_names_may_lie_beside_the_folder(cub_dir):
    (cub_dir / "attributes" / "attributes.txt").rename(cub_dir.parent / "attributes.txt")
    info = cub.inspect(str(cub_dir)).usable().info
    assert info.attribute_names == ("has_bill::long", "has_bill::short")


def test_a_missing_image_is_named_when_it_is_read(cub_dir):
    dataset = cub.inspect(str(cub_dir)).usable()
    (cub_dir / "images/003.Bird_3/Bird_3_0002.jpg").unlink()
    with pytest.raises(CorruptImageError, match=r"Bird_3_0002\.jpg: no such file"):
        dataset.source("train")[1]


def test_the_fingerprint_follows_labels_and_ids(cub_dir):
    before = cub.inspect(str(cub_dir)).usable().info.fingerprint
    assert cub.inspect(str(cub_dir)).usable().info.fingerprint == before
    path = cub_dir / "image_class_labels.txt"
    path.write_text(path.read_text().replace("105 7", "105 9"))
    assert cub.inspect(str(cub_dir)).usable().info.fingerprint != before


def test_the_real_one(shared):
    dataset = cub.inspect(str(shared / "data" / "cub50")).usable()
    info = dataset.info
    assert info.splits == {"train": 1500, "test": 1389}
    assert info.num_classes == 50
    assert dataset.class_ids == tuple(range(1, 51))
    assert dataset.class_attributes.shape == (50, 312)
    assert 0 <= dataset.class_attributes.min() < dataset.class_attributes.max() <= 1
    assert len(info.attribute_names) == 312
    pairs = {(info.part_names[i], info.part_names[j]) for i, j in info.flip_pairs}
    assert pairs == {(f"left {part}", f"right {part}") for part in ("eye", "leg", "wing")}
    assert np.bincount(labels_and_ids(dataset.source("train"))[0]).tolist() == [30] * 50
    first = dataset.source("test")[0]  # image 1 of images.txt
    assert (first["id"], first["label"]) == (1, 0)
    np.testing.assert_allclose(first["bbox"], [30.72, 13.86, 197.12, 169.94], atol=1e-4)
