"""DeFeat through the commands: teacher, file, student, what ships, teachers that are refused."""

import json

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.train.weight_files import load_arrays, load_metadata, save_arrays

TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4}  # fmt: skip
PLAIN = {"name": "faster_rcnn", "backbone": TINY, "frozen_stages": 0, "pyramid_stages": (1, 2),
         "pyramid_features": 8, "max_detections": 5, "score_threshold": 0.001,
         "proposal_features": 8, "region_features": 8, "region_size": 2, "anchor_samples": 8,
         "region_samples": 8, "train_candidates": 10, "candidates": 10,
         "proposals": 5}  # fmt: skip
WIDE = {"backbone": {**TINY, "width": 6}, "pyramid_features": 12}
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": %r,
        "data": {"dataset": "coco_json", "data_dir": %r, "buckets": ((24, 32),), "max_boxes": 3},
        "optim": {"name": "sgd", "learning_rate": 0.01},
        "train": {"steps": 2, "batch_size": 2, "eval_batch_size": 2, "log_every": 1,
                  "tensorboard": "off"},
        "mesh": {"data": 1},
        "checkpoint": {"every_steps": 2, "best_metric": "voc_AP50"},
        "report": {"split": "test", "figures": ("voc_AP50",)},
    })
"""


def write_split(root, split, *, first):
    (root / "images" / split).mkdir(parents=True)
    images, boxes = [], []
    for i in range(4):
        image = np.random.default_rng([i, first]).integers(0, 90, (24, 32, 3)).astype(np.uint8)
        image[3:17, 2 + i : 16 + i, i % 2] = 250
        cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
        images.append({"id": first + i, "file_name": f"{i}.png", "height": 24, "width": 32})
        boxes.append({"id": i, "image_id": first + i, "category_id": i % 2, "iscrowd": 0,
                      "bbox": [2 + i, 3, 14, 14], "area": 196})  # fmt: skip
    categories = [{"id": 0, "name": "green"}, {"id": 1, "name": "blue"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, a teacher in a file, and the config of its student."""
    root = tmp_path_factory.mktemp("scenes")
    write_split(root, "train", first=100)
    write_split(root, "test", first=200)
    taught = {**PLAIN, "name": "defeat_faster_rcnn", "teacher": WIDE, "compared_stages": (2,)}
    for name, method in (("teacher", {**PLAIN, **WIDE}), ("student", taught), ("alone", PLAIN)):
        (root / f"{name}.py").write_text(CONFIG % (method, str(root)))
    run = str(root / "teacher")
    assert main(["train", "--config", str(root / "teacher.py"), "--workdir", run]) == 0
    assert main(["export", "--workdir", run, "--output", str(root / "t.safetensors")]) == 0
    return root


def train(folder, workdir, teacher, config="student"):
    arguments = ["train", "--config", str(folder / f"{config}.py"), "--workdir", str(workdir)]
    return main([*arguments, *([f"--config.pretrained.teacher={teacher}"] if teacher else [])])


def test_a_student_is_trained_and_exported_as_a_plain_detector(folder, tmp_path, capsys):
    from fgkd_jax.cli.export import load_network
    from fgkd_jax.cli.results import restore

    run = tmp_path / "student"
    assert train(folder, run, folder / "t.safetensors") == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["split"] == "train")
    parts = {"head_object", "head_background", "neck_object_0", "neck_background_2"}
    assert {f"loss/{name}" for name in (*parts, "stage_object_2")} <= first.keys()
    path = str(tmp_path / "s.safetensors")
    assert main(["export", "--workdir", str(run), "--output", path]) == 0
    loaded = load_network(path)
    assert loaded.metadata["method"]["name"] == "faster_rcnn"
    trained = restore(str(run), checkpoint="last").state.variables()["params"]
    adapters = {"neck_adapters", "stage_adapters"}
    assert trained.keys() - loaded.variables["params"].keys() == adapters
    assert not any("adapters" in name or "frozen" in name for name in load_arrays(path))
    # What is evaluated needs no teacher.
    capsys.readouterr()
    assert main(["eval", "--workdir", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["examples"] == 4


def refused(capsys, status):
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_wrong_teachers_are_told_in_one_line(folder, tmp_path, capsys):
    run, good = tmp_path / "run", folder / "t.safetensors"
    line = refused(capsys, train(folder, run, None))
    assert "learns from a frozen teacher, but pretrained.teacher is empty; expected a file" in line
    assert "nothing.npz" in refused(capsys, train(folder, run, "nothing.npz"))
    line = refused(capsys, train(folder, run, good, config="alone"))
    assert line.endswith("but the method has no teacher")
    arrays, metadata = load_arrays(good), load_metadata(good)
    for names, message in (
        (["green", "red"], "class 1 of the teacher {} is 'red'; expected 'blue'"),
        (["green", "blue", "red"], "the teacher {} knows 3 classes; expected 2, those of "),
    ):
        path = tmp_path / f"{len(names)}.npz"
        save_arrays(path, arrays, metadata={**metadata, "class_names": names})
        assert message.format(path) in refused(capsys, train(folder, run, path))
    # A student does not fit where its teacher is expected.
    fewer = {name: array for name, array in arrays.items() if "region_head" not in name}
    save_arrays(tmp_path / "fewer.npz", fewer, metadata=metadata)
    line = refused(capsys, train(folder, run, tmp_path / "fewer.npz"))
    assert "missing: params/region_head/" in line
    assert not run.exists()


@pytest.mark.parametrize("name", ["defeat_faster_rcnn_coco", "defeat_retinanet_coco"])
def test_imitation_weighs_as_much_as_both_parts_together(name):
    taught, imitating = (load_config(f"{name}:{v}", []).method for v in ("defeat", "imitation"))
    assert taught.object_weight + taught.background_weight == imitating.object_weight == 20
    assert imitating.background_weight == 0


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("faster_rcnn_coco", "Faster R-CNN, ResNet-50, COCO 2017, 12 epochs"),
        ("faster_rcnn_coco:resnet152", "Faster R-CNN, ResNet-152, COCO 2017, 12 epochs"),
        ("retinanet_coco:resnet101", "RetinaNet, ResNet-101, COCO 2017, 12 epochs"),
        ("faster_rcnn_voc:resnet101", "Faster R-CNN, ResNet-101, VOC 2007 + 2012"),
        ("defeat_faster_rcnn_coco", "Faster R-CNN, ResNet-50 from ResNet-152, DeFeat, COCO"),
        ("defeat_faster_rcnn_coco:resnet101,object", "ResNet-50 from ResNet-101, imitation on"),
        ("defeat_retinanet_coco:resnet152", "RetinaNet, ResNet-50 from ResNet-152, DeFeat, COCO"),
        ("defeat_faster_rcnn_voc", "Faster R-CNN, ResNet-50 from ResNet-101, DeFeat, VOC"),
    ],
)
def test_titles_name_the_networks(name, title):
    experiment = load_config(name, [])
    assert title in experiment.report.title
    method = experiment.method
    networks = [method.backbone["name"]]
    if "defeat" in name:
        networks.append(method.teacher["backbone"]["name"])
    told = [f"ResNet-{network.removeprefix('resnet')}" for network in networks]
    assert " from ".join(told) in experiment.report.title
