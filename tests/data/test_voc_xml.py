import shutil

import numpy as np
import pytest

from fgkd_jax.data import check_dataset, open_dataset, voc_xml
from fgkd_jax.data.boxes import BoxCounts
from fgkd_jax.errors import UserError


def test_reads_boxes_classes_and_ids(voc_dir):
    dataset = open_dataset("voc_xml", data_dir=str(voc_dir))
    assert dataset.info.class_names == ("cat", "dog")
    assert dataset.info.splits == {"train": 2, "validation": 1, "test": 1}
    train = dataset.source("train")
    b, a = train[0], train[1]
    # VOC counts from 1 and includes the last pixel.
    assert a["boxes"].tolist() == [[0, 0, 60, 40], [10, 5, 30, 15]]
    assert a["boxes"].dtype == np.float32
    assert a["box_labels"].tolist() == [0, 1]
    assert a["box_ignored"].tolist() == [False, True]
    assert (a["id"], b["id"]) == (0, 1)
    assert b["boxes"].tolist() == [[50, 30, 60, 40]]
    assert dataset.counts["train"] == BoxCounts(boxes=3, clipped=1, dropped=1, ignored=1)
    d = dataset.source("test")[0]
    assert d["boxes"].shape == (0, 4)
    assert d["id"] == 3
    assert d["name"] == str(voc_dir / "JPEGImages" / "d.jpg")
    assert d["annotated_size"].tolist() == [40, 60]


@pytest.mark.parametrize("up", [0, 1, 2])
def test_finds_the_folder_below(voc_dir, up):
    folder = [voc_dir, *voc_dir.parents][up]
    assert check_dataset("voc_xml", data_dir=str(folder)).ok


def test_training_on_the_validation_images_too(voc_dir):
    dataset = open_dataset("voc_xml/trainval", data_dir=str(voc_dir))
    assert dataset.info.splits == {"train": 3, "test": 1}


def test_lists_in_the_folder_and_classes_from_a_file(voc_dir):
    for path in (voc_dir / "ImageSets" / "Main").iterdir():
        path.rename(voc_dir / path.name)
    (voc_dir / "classes.txt").write_text("dog\ncat\nemu\n")
    dataset = open_dataset("voc_xml", data_dir=str(voc_dir))
    assert dataset.info.class_names == ("dog", "cat", "emu")
    assert dataset.source("train")[1]["box_labels"].tolist() == [1, 0]
    (voc_dir / "classes.txt").write_text("dog\n")
    with pytest.raises(UserError, match=r"b.xml of the split 'train' has an object 'cat'.*and 1"):
        open_dataset("voc_xml", data_dir=str(voc_dir))


def test_a_class_that_training_does_not_have(voc_dir):
    path = voc_dir / "Annotations" / "c.xml"
    path.write_text(path.read_text().replace("dog", "gnu"))
    (problem,) = voc_xml.inspect("voc_xml", str(voc_dir)).problems
    assert problem == (
        f"{voc_dir / 'Annotations'}: c.xml of the split 'validation' has an object 'gnu', "
        "not in 'train'"
    )


def test_training_images_without_an_object(voc_dir):
    for name in "ab":
        (voc_dir / "Annotations" / f"{name}.xml").write_text("<annotation></annotation>")
    (problem,) = voc_xml.inspect("voc_xml", str(voc_dir)).problems
    assert problem == f"{voc_dir / 'Annotations'}: train has no boxes; expected at least one"


def test_classes_of_which_no_object_is(voc_dir):
    (voc_dir / "classes.txt").write_text("\n")
    *strangers, last = voc_xml.inspect("voc_xml", str(voc_dir)).problems
    assert strangers == [
        f"{voc_dir / 'Annotations'}: b.xml of the split 'train' has an object 'cat', not in "
        "classes.txt (and 3 more)",
        f"{voc_dir / 'Annotations'}: c.xml of the split 'validation' has an object 'dog', not in "
        "classes.txt",
    ]
    assert last.endswith("train has no boxes; expected at least one")


def test_an_equal_corner_is_named(voc_dir):
    found = dict(check_dataset("voc_xml", data_dir=str(voc_dir)).lines)
    assert found["train boxes left out"] == "1, first (5, 5, 5, 5) of b.jpg"
    assert found["train boxes of an image"] == "at most 2, in a.jpg"


def test_folders_that_are_none(voc_dir, tmp_path):
    (problem,) = voc_xml.inspect("voc_xml", str(tmp_path / "nope")).problems
    assert problem.startswith(f"{tmp_path / 'nope'}: no such folder; expected")
    shutil.copytree(voc_dir, voc_dir.with_name("VOC2012"))
    for folder in (voc_dir.parent, voc_dir.parent.parent):
        (problem,) = voc_xml.inspect("voc_xml", str(folder)).problems
        assert problem == (
            f"{folder}: has 2 folders with Annotations (VOC2007, VOC2012); expected one: copy them "
            "together"
        )
    shutil.rmtree(voc_dir / "Annotations")
    (problem,) = voc_xml.inspect("voc_xml", str(voc_dir)).problems
    assert problem.startswith(f"{voc_dir}: has no folder Annotations; expected <data_dir>")


@pytest.mark.parametrize("ending", [".jpg", ".xml", ".PNG"])
def test_a_list_with_endings(voc_dir, ending):
    path = voc_dir / "ImageSets" / "Main" / "train.txt"
    path.write_text(f"b{ending}\na{ending}\n")
    (problem,) = voc_xml.inspect("voc_xml", str(voc_dir)).problems
    assert problem == f"{path} lists 'b{ending}'; expected names without ending"


def test_a_name_with_a_dot_is_no_ending(voc_dir):
    for folder, ending in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (voc_dir / folder / f"a{ending}").rename(voc_dir / folder / f"a.jpg{ending}")
    path = voc_dir / "ImageSets" / "Main" / "train.txt"
    path.write_text("b\na.jpg\n")
    assert check_dataset("voc_xml", data_dir=str(voc_dir)).ok


def test_the_files_of_the_splits(voc_dir):
    apart, joined = (
        open_dataset(name, data_dir=str(voc_dir)).split_files
        for name in ("voc_xml", "voc_xml/trainval")
    )
    assert apart["test"] == joined["test"] == "ImageSets/Main/test.txt"
    assert apart["validation"] == "ImageSets/Main/val.txt"
    assert "validation" not in joined


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotation>", "<annotation", "c.xml: is no XML file"),
        (
            "<ymax>5</ymax>",
            "",
            "c.xml: object 0 has no ymax; expected a box of xmin, ymin, xmax, ymax",
        ),
        ("<ymax>5<", "<ymax>five<", "c.xml: object 0 has ymax 'five'; expected a number"),
        ("<xmin>2<", "<xmin>a2<", "c.xml: object 0 has xmin 'a2'; expected a number"),
        ("<ymax>5<", "<ymax>inf<", "c.xml: object 0 has ymax 'inf'; expected a number"),
        ("<name>dog</name>", "", "c.xml: object 0 has no name"),
    ],
)
def test_files_that_cannot_be_read(voc_dir, old, new, message):
    path = voc_dir / "Annotations" / "c.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset("voc_xml", data_dir=str(voc_dir))
    assert "\n" not in str(caught.value)


def test_missing_files(voc_dir, tmp_path):
    (voc_dir / "JPEGImages" / "c.jpg").unlink()
    report = check_dataset("voc_xml", data_dir=str(voc_dir))
    assert report.problems == [f"image {voc_dir / 'JPEGImages' / 'c.jpg'}: no such file"]
    (voc_dir / "Annotations" / "b.xml").unlink()
    with pytest.raises(UserError, match=r"b.xml: no such file; expected the boxes of a listed"):
        open_dataset("voc_xml", data_dir=str(voc_dir))
    (voc_dir / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(UserError, match="has no list of training images; expected <data_dir>/JPEG"):
        open_dataset("voc_xml", data_dir=str(voc_dir))


def test_an_image_in_two_splits(voc_dir):
    (voc_dir / "ImageSets" / "Main" / "test.txt").write_text("d\na\n")
    with pytest.raises(UserError, match="image a is listed in train and in test"):
        open_dataset("voc_xml", data_dir=str(voc_dir))


def test_a_size_that_is_not_stated_is_read_from_the_image(voc_dir):
    path = voc_dir / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<width>60</width>", "<width>0</width>"))
    dataset = open_dataset("voc_xml", data_dir=str(voc_dir))
    assert dataset.source("train")[0]["boxes"].tolist() == [[50, 30, 60, 40]]


def test_blood_cells(shared):
    folder = shared / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    dataset = open_dataset("voc_xml", data_dir=str(folder))
    assert dataset.info.splits == {"train": 205, "validation": 87, "test": 72}
    assert dataset.info.class_names == ("Platelets", "RBC", "WBC")
    counts = dataset.counts.values()
    assert sum(one.boxes + one.dropped for one in counts) == 4888
    assert sum(one.dropped for one in counts) == 2
