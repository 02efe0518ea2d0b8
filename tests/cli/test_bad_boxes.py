"""Boxes that a detector cannot be trained or evaluated on, as the commands tell of them."""

import json

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.main import main

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"name": "retinanet"},
        "data": {"dataset": %r, "data_dir": %r, "buckets": ((24, 32),), "max_boxes": 2},
        "optim": {"name": "sgd", "learning_rate": 0.01},
        "train": {"steps": 1, "batch_size": 2, "eval_batch_size": 2, "tensorboard": "off"},
        "checkpoint": {"every_steps": 1, "best_metric": "voc_AP50"},
        "report": {"split": "test", "figures": ("voc_AP50",)},
    })
"""
XML = """<annotation><size><width>32</width><height>24</height></size><object><name>wren</name>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


@pytest.fixture
def scenes(tmp_path):
    """Three splits in COCO's format, of two images with 1 and `boxes[split]` boxes."""

    def make(**boxes):
        for split, count in boxes.items():
            (tmp_path / split).mkdir()
            rows = []
            for i, n in enumerate((1, count)):
                cv2.imwrite(str(tmp_path / split / f"{i}.png"), np.full((24, 32, 3), 40, np.uint8))
                rows += [
                    {"image_id": i, "category_id": 1, "bbox": [1 + k, 2, 9, 9]} for k in range(n)
                ]
            content = {
                "images": [
                    {"id": i, "file_name": f"{i}.png", "width": 32, "height": 24} for i in range(2)
                ],
                "annotations": rows,
                "categories": [{"id": 1, "name": "wren"}],
            }
            (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
        (tmp_path / "config.py").write_text(CONFIG % ("coco_json", str(tmp_path)))
        return tmp_path

    return make


@pytest.fixture
def lists(tmp_path):
    """Two splits in VOC's format, for training and validation."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, split in (("a", "train"), ("b", "val")):
        cv2.imwrite(
            str(tmp_path / "JPEGImages" / f"{name}.jpg"), np.full((24, 32, 3), 40, np.uint8)
        )
        (tmp_path / "Annotations" / f"{name}.xml").write_text(XML)
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(name)
    (tmp_path / "config.py").write_text(CONFIG % ("voc_xml", str(tmp_path)))
    return tmp_path


def refused(folder, capsys, *overrides):
    """The one line in which `fgkd train` refuses to start."""
    run = folder / "run"
    command = ["train", "--config", str(folder / "config.py"), "--workdir", str(run), *overrides]
    assert main(command) == 2
    assert not run.exists()
    printed = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in printed if line.startswith("fgkd:")]
    assert line == printed[-1]
    return line.removeprefix("fgkd: error: ")


@pytest.mark.parametrize("split", ["val", "test"])
def test_more_boxes_than_an_evaluation_takes(scenes, capsys, split):
    folder = scenes(**{"train": 5, "val": 2, "test": 2, split: 3})
    line = refused(folder, capsys)
    name = {"val": "validation", "test": "test"}[split]
    assert line == (
        f"image 1.png of the split '{name}' has 3 boxes and data.max_boxes is 2; expected at least "
        "3, for an evaluation leaves none out"
    )


def test_training_images_may_have_more(scenes, capsys):
    folder = scenes(train=5, val=2, test=2)
    # The next thing that is wrong is told of.
    line = refused(folder, capsys, "--config.report.figures=('AP51',)")
    assert "has no figure 'AP51'" in line


def test_scenes_are_evaluated_split_by_split(scenes, capsys):
    folder = scenes(train=1, val=1, test=1)
    line = refused(folder, capsys, "--config.report.split=validation+test")
    assert line == (
        "the splits 'validation+test' are of scenes with boxes; expected one split, for they are "
        "evaluated one at a time"
    )


def test_a_split_of_which_there_is_no_list(lists, capsys):
    assert refused(lists, capsys) == (
        "report.split is 'test', but voc_xml has train and validation alone; expected "
        "ImageSets/Main/test.txt in data.data_dir, or --config.report.split=validation"
    )
    assert refused(lists, capsys, "--config.data.dataset=voc_xml/trainval") == (
        "report.split is 'test', but voc_xml has train alone; expected "
        "ImageSets/Main/test.txt in data.data_dir, or --config.report.split=train"
    )
    line = refused(lists, capsys, "--config.report.split=validatoin")
    assert line == "report.split is 'validatoin'; did you mean 'validation'?"


def test_a_split_of_which_there_is_no_annotation_file(scenes, capsys):
    folder = scenes(train=1, test=1)
    line = refused(folder, capsys, "--config.report.split=validation")
    assert line == (
        "report.split is 'validation', but coco_json has train and test alone; expected "
        "instances_val*.json in data.data_dir, or --config.report.split=test"
    )


def test_training_without_boxes(scenes, capsys):
    folder = scenes(train=1, test=1)
    path = folder / "instances_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    assert refused(folder, capsys) == f"{path}: train has no boxes; expected at least one"


def test_a_check_says_how_many_boxes_an_image_has(scenes, capsys):
    folder = scenes(train=5, val=2, test=3)
    assert main(["data", "check", "coco_json", "--data_dir", str(folder)]) == 0
    rows = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()]
    table = {row[0].strip(): row[-1].strip() for row in rows}
    assert table["train boxes of an image"] == "at most 5, in 1.png"
    assert table["test boxes of an image"] == "at most 3, in 1.png"


def test_captions_of_scenes(scenes, capsys):
    folder = str(scenes(train=1))
    command = ["data", "check", "coco_json", "--data_dir", folder, "--captions_dir", folder]
    assert main(command) == 2
    assert capsys.readouterr().err.strip() == (
        "fgkd: error: coco_json has boxes, no labels; expected no --captions_dir"
    )
