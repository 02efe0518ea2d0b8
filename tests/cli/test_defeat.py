"""DeFeat through the commands: teacher, file, student, what ships, teachers that are refused."""

import json
import shutil

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.errors import UserError
from fgkd_jax.train.weight_files import load_arrays, load_metadata, save_arrays

TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4}  # fmt: skip
PLAIN = {"name": "faster_rcnn", "backbone": TINY, "frozen_stages": 0, "pyramid_stages": (1, 2),
         "pyramid_features": 8, "max_detections": 5, "score_threshold": 0.001,
         "proposal_features": 8, "region_features": 8, "region_size": 2, "anchor_samples": 8,
         "region_samples": 8, "train_candidates": 10, "candidates": 10,
         "proposals": 5}  # fmt: skip
DENSE = {"name": "retinanet", "backbone": TINY, "frozen_stages": 0, "pyramid_stages": (1, 2),
         "pyramid_features": 8, "max_detections": 5, "score_threshold": 0.001, "extra_levels": 0,
         "head_features": 8, "head_depth": 1, "anchor_octaves": 1, "candidates": 20}  # fmt: skip
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
    deep = {**taught, "teacher": {**WIDE, "backbone": {**WIDE["backbone"], "bottleneck": True}}}
    dense = {**DENSE, "name": "defeat_retinanet", "teacher": WIDE, "compared_stages": (2,)}
    methods = {"teacher": {**PLAIN, **WIDE}, "student": taught, "alone": PLAIN, "dense": dense,
               "dense_teacher": {**DENSE, **WIDE}, "deep": deep}  # fmt: skip
    for name, method in methods.items():
        (root / f"{name}.py").write_text(CONFIG % (method, str(root)))
    train_teacher(root, "teacher", "t.safetensors")
    return root


def train_teacher(root, config, file):
    run = str(root / config)
    assert main(["train", "--config", str(root / f"{config}.py"), "--workdir", run]) == 0
    assert main(["export", "--workdir", run, "--output", str(root / file)]) == 0


@pytest.fixture(scope="module")
def dense_folder(folder):
    """The same with a RetinaNet in a file."""
    train_teacher(folder, "dense_teacher", "d.safetensors")
    return folder


def train(folder, workdir, teacher, config="student", overrides=()):
    arguments = ["train", "--config", str(folder / f"{config}.py"), "--workdir", str(workdir)]
    given = [f"--config.pretrained.teacher={teacher}"] if teacher else []
    return main([*arguments, *given, *(f"--config.{one}" for one in overrides)])


def test_a_student_is_trained_and_exported_as_a_plain_detector(
    folder, tmp_path, capsys, monkeypatch
):
    from fgkd_jax.cli.export import load_network
    from fgkd_jax.cli.results import restore

    read = []
    monkeypatch.setattr(
        "fgkd_jax.train.pretrained.load_arrays", lambda path: read.append(path) or load_arrays(path)
    )
    run = tmp_path / "student"
    assert train(folder, run, folder / "t.safetensors") == 0
    assert read == [str(folder / "t.safetensors")]
    # What is trained has been taught by what the file holds, not by a network of random weights.
    assert f"teacher: {read[0]} (sha256 " in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("config", "file"), [("student", "t.safetensors"), ("dense", "d.safetensors")]
)
def test_a_student_resumes_with_its_teacher_alone(dense_folder, tmp_path, capsys, config, file):
    folder, teacher = dense_folder, dense_folder / file
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    each = ["checkpoint.every_steps=1"]
    assert train(folder, whole, teacher, config, each) == 0
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    taught = [row for row in rows if row["split"] == "train"]
    assert len(taught) == 2
    for part in ("head_object", "neck_background_0", "stage_object_2"):
        assert all(row[f"loss/{part}"] > 0 for row in taught), part

    shutil.copytree(whole, resumed)
    (resumed / "summary.json").unlink()
    (resumed / "detections" / "test-last.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "last" / "2")
    arrays, metadata = load_arrays(teacher), load_metadata(teacher)
    other, moved = tmp_path / "other.npz", tmp_path / "moved.safetensors"
    save_arrays(other, {name: array + 1 for name, array in arrays.items()}, metadata=metadata)
    line = refused(capsys, train(folder, resumed, other, config, each))
    assert "step 1 was made with another weights sha256 of teacher" in line

    # The same teacher under another name is the same teacher.
    shutil.copy(teacher, moved)
    assert train(folder, resumed, moved, config, each) == 0
    for name in ("metrics.jsonl", "detections/test-last.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


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


class Reached(Exception):
    """What follows would be compiled."""


@pytest.fixture
def uncompiled(monkeypatch):
    def stop(self, run):
        raise Reached

    monkeypatch.setattr("fgkd_jax.train.loop.Trainer.__init__", stop)


@pytest.mark.usefixtures("uncompiled")
def test_a_teacher_of_another_method_is_named(folder, tmp_path, capsys):
    good = folder / "t.safetensors"
    line = refused(capsys, train(folder, tmp_path / "run", good, config="dense"))
    assert line.endswith(f"the teacher {good} is a faster_rcnn; expected a retinanet")


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.width=8", "backbone.width 6; expected 8 (method.teacher.backbone.width)"),
        ("pyramid_features=4", "pyramid_features 12; expected 4 (method.teacher.pyramid_features)"),
        (
            "backbone.name=resnet50",
            "backbone.name 'resnet_narrow'; expected 'resnet50' (method.teacher.backbone.name)",
        ),
        (
            "region_features=16",
            "region_features 8; expected 16 (method.teacher.region_features)",
        ),
    ],
)
def test_the_option_is_named_in_which_a_teacher_does_not_fit(
    folder, tmp_path, capsys, override, message
):
    good = folder / "t.safetensors"
    # What changes no tensor is not what it is told by.
    overrides = [f"method.teacher.{one}" for one in ("max_detections=7", override)]
    line = refused(capsys, train(folder, tmp_path / "run", good, overrides=overrides))
    assert f"the teacher {good} has {message}" in line


@pytest.mark.usefixtures("uncompiled")
def test_an_option_that_the_teacher_does_not_name_is_told_too(folder, tmp_path, capsys):
    line = refused(capsys, train(folder, tmp_path / "run", folder / "t.safetensors", config="deep"))
    assert "has the default of backbone.bottleneck; expected True (method.teacher.backbone" in line


def described(folder, path, **options):
    """A copy of the teacher's file whose metadata state other options."""
    metadata = load_metadata(folder / "t.safetensors")
    method = {**metadata["method"], **options}
    arrays = load_arrays(folder / "t.safetensors")
    save_arrays(path, arrays, metadata={**metadata, "method": method}, overwrite=True)
    return path


UNHEARD = {"frozen_stages": 2, "box_weight": 3.0, "score_threshold": 0.3, "iou_threshold": 0.6,
           "max_detections": 7, "anchor_samples": 4, "region_samples": 4, "positive_share": 0.5,
           "train_candidates": 3, "candidates": 3, "proposals": 3, "proposal_iou": 0.5,
           "backbone": {**WIDE["backbone"], "frozen_norm": ".", "remat": [0], "norm_groups": 2,
                        "zero_init_residual": True, "dtype": "bfloat16", "shortcut": "projection"},
           "of_another_version": 1}  # fmt: skip


@pytest.mark.usefixtures("uncompiled")
def test_options_by_which_a_teacher_says_nothing_else_may_differ(folder, tmp_path):
    path = described(folder, tmp_path / "t.npz", **UNHEARD)
    with pytest.raises(Reached):
        train(folder, tmp_path / "run", path)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_scale": 2.0}, "anchor_scale 2.0; expected 8.0 (method.teacher.anchor_scale)"),
        (
            {"anchor_ratios": [1, 2, 4]},
            "anchor_ratios (1, 2, 4); expected (0.5, 1.0, 2.0) (method.teacher.anchor_ratios)",
        ),
        (
            {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
            "image_mean (0, 0, 0); expected (0.485, 0.456, 0.406) (method.teacher.image_mean)",
        ),
        ({"region_scale": 3.0}, "region_scale 3.0; expected 14.0 (method.teacher.region_scale)"),
        (
            {"backbone": {**WIDE["backbone"], "strides": [1, 1]}},
            "backbone.strides (1, 1); expected (1, 2) (method.teacher.backbone.strides)",
        ),
        (
            {"backbone": {**WIDE["backbone"], "shortcut": "zero_pad"}},
            "backbone.shortcut 'zero_pad'; expected the default (method.teacher.backbone.shortcut)",
        ),
    ],
)
def test_a_teacher_that_fits_but_says_other_things_is_refused(
    folder, tmp_path, capsys, options, message
):
    path = described(folder, tmp_path / "t.npz", **options)
    line = refused(capsys, train(folder, tmp_path / "run", path))
    assert line.endswith(f"the teacher {path} has {message}")


@pytest.mark.usefixtures("uncompiled")
def test_a_teacher_is_taken_where_its_options_are_set(folder, tmp_path, capsys):
    path = described(folder, tmp_path / "t.npz", region_scale=3, anchor_ratios=[1, 2, 4])
    wanted = ["method.teacher.region_scale=3.0", "method.teacher.anchor_ratios=(1, 2, 4)"]
    with pytest.raises(Reached):
        train(folder, tmp_path / "run", path, overrides=wanted)
    path = described(folder, tmp_path / "odd.npz", anchor_scale="wide")
    line = refused(capsys, train(folder, tmp_path / "run", path))
    assert f"the teacher {path}: method.anchor_scale is 'wide'; expected float" in line


def test_only_heads_that_are_compared_need_the_same_anchors():
    other = ["--config.method.teacher.anchor_scale=2.0"]
    method = load_config("defeat_retinanet_birds:object", other).method
    assert method.teaching.anchor_scale == 2.0 != method.anchor_scale
    with pytest.raises(UserError, match=r"teacher.anchor_scale is 2.0; expected .*, the student's"):
        load_config("defeat_retinanet_birds", other)


@pytest.mark.usefixtures("uncompiled")
def test_a_file_without_metadata_is_told_by_its_tensors(folder, tmp_path, capsys):
    path = tmp_path / "bare.npz"
    save_arrays(path, load_arrays(folder / "t.safetensors"), metadata={})
    overrides = ["method.teacher.backbone.width=8"]
    line = refused(capsys, train(folder, tmp_path / "run", path, overrides=overrides))
    assert f"{path}: of " in line
    assert "misshapen: " in line
    assert ", expected (8,)" in line


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("option", ["path", "others.backbone", "teacher"])
def test_weights_that_do_not_fit_are_told_before_anything_is_compiled(
    folder, tmp_path, capsys, option
):
    path = tmp_path / "wrong.npz"
    save_arrays(path, {"conv1.weight": np.zeros((1, 2, 3, 4), np.float32)}, metadata={})
    teacher = folder / "t.safetensors"
    overrides = [f"pretrained.{option}={path}"]
    line = refused(capsys, train(folder, tmp_path / "run", teacher, overrides=overrides))
    assert f"{path}: of 1 tensors, missing: " in line


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("option", ["path", "others.backbone", "teacher"])
def test_what_is_no_file_of_weights_is_told_at_once(folder, tmp_path, capsys, monkeypatch, option):
    def opened(experiment):
        raise Reached

    monkeypatch.setattr("fgkd_jax.cli.processes.open_same_data", opened)
    teacher, readme = folder / "t.safetensors", tmp_path / "README.md"
    readme.write_text("# Weights")
    for path, message in (
        (readme, "not a weights file; expected one of .safetensors, .npz, .pt, "),
        (tmp_path / "none.npz", "but there is no such file"),
    ):
        overrides = [f"pretrained.{option}={path}"]
        line = refused(capsys, train(folder, tmp_path / "run", teacher, overrides=overrides))
        assert f"error: pretrained.{option} is {path}, {message}" in line


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
        ("faster_rcnn_coco:resnet18", "Faster R-CNN, ResNet-18, COCO 2017, 12 epochs"),
        ("retinanet_coco:resnet34", "RetinaNet, ResNet-34, COCO 2017, 12 epochs"),
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


STUDENT, TEACHER = "method.backbone.name", "method.teacher.backbone.name"


@pytest.mark.parametrize(
    ("name", "overrides", "title"),
    [
        ("faster_rcnn_coco", {STUDENT: "resnet18"}, "Faster R-CNN, ResNet-18, COCO 2017, 12 epo"),
        ("retinanet_coco", {STUDENT: "mobilenet_v2"}, "RetinaNet, MobileNetV2, COCO 2017, 12"),
        ("faster_rcnn_folder", {STUDENT: "vgg16_bn"}, "Faster R-CNN, vgg16_bn, a folder with"),
        ("faster_rcnn_coco", {STUDENT: "resnet18", "report.title": "Mine"}, "Mine"),
        ("defeat_faster_rcnn_coco", {STUDENT: "resnet18"}, "ResNet-18 from ResNet-152, DeFeat"),
        ("defeat_retinanet_coco", {TEACHER: "resnet50"}, "ResNet-50 from ResNet-50, DeFeat"),
        (
            "defeat_faster_rcnn_coco",
            {STUDENT: "resnet152", TEACHER: "resnet34"},
            "Faster R-CNN, ResNet-152 from ResNet-34, DeFeat",
        ),
        ("classify_imagenet", {STUDENT: "resnet18"}, "resnet18, 224 x 224"),
    ],
)
def test_titles_name_the_networks_that_are_given_instead(name, overrides, title):
    options = [f"--config.{option}={value}" for option, value in overrides.items()]
    found = load_config(name, options).report.title
    assert title in found
    assert load_config(name, ["--config.seed=1"]).report.title == load_config(name).report.title
