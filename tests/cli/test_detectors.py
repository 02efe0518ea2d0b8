"""Detectors through the commands: several sizes of images, resume, detections, what is refused."""

import json
import shutil

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.cli.results import restore
from fgkd_jax.cli.weights import tell_frozen
from fgkd_jax.data import DetectionOptions, detection_train_iterator

TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4}  # fmt: skip
COMMON = {"backbone": TINY, "frozen_stages": 1, "pyramid_stages": (1, 2), "pyramid_features": 8,
          "max_detections": 5, "score_threshold": 0.001}  # fmt: skip
DENSE = {"name": "retinanet", **COMMON, "extra_levels": 0, "head_features": 8, "head_depth": 1,
         "anchor_octaves": 1, "candidates": 20}  # fmt: skip
REGIONS = {"name": "faster_rcnn", **COMMON, "proposal_features": 8, "region_features": 8,
           "region_size": 2, "anchor_samples": 8, "region_samples": 8, "train_candidates": 10,
           "candidates": 10, "proposals": 5}  # fmt: skip
BUCKETS = ((24, 32), (32, 24))
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": %r,
        "data": {"dataset": "coco_json", "data_dir": %r, "buckets": %r, "max_boxes": 3},
        "optim": {"name": "sgd", "learning_rate": 0.01},
        "train": {"steps": %d, "batch_size": 2, "eval_batch_size": 2, "log_every": 1,
                  "tensorboard": "off"},
        "mesh": {"data": 2},
        "checkpoint": {"every_steps": 2, "best_metric": "voc_AP50"},
        "report": {"split": "test", "figures": ("voc_AP50",)},
    })
"""


def write_split(root, split, sizes, *, first):
    """Scenes of noise with a bright square or none; categories 3 and 7."""
    (root / "images" / split).mkdir(parents=True)
    images, annotations = [], []
    for i, (height, width) in enumerate(sizes):
        rng = np.random.default_rng([i, first])
        image = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
        images.append({"id": first + i, "file_name": f"{i}.png", "height": height, "width": width})
        if i % 3:
            x, y, side = 2 + i, 3, 14
            image[y : y + side, x : x + side, i % 2] = 250
            annotations.append(
                {"id": len(annotations), "image_id": first + i, "category_id": (3, 7)[i % 2],
                 "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            )  # fmt: skip
        cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
    categories = [{"id": 3, "name": "green"}, {"id": 7, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Wide and high images, some without a box, and configs of both detectors."""
    root = tmp_path_factory.mktemp("scenes")
    write_split(root, "train", [(24, 32)] * 4 + [(48, 36)] * 4, first=100)
    write_split(root, "test", [(48, 64), (30, 20), (24, 32)], first=101)  # ids of other images too
    for name, method in (("dense", DENSE), ("regions", REGIONS)):
        (root / f"{name}.py").write_text(CONFIG % (method, str(root), BUCKETS, 4))
    return root


def train(scenes, kind, workdir, *overrides):
    config = str(scenes / f"{kind}.py")
    return main(["train", "--config", config, "--workdir", str(workdir), *overrides])


@pytest.fixture(scope="module", params=["dense", "regions"])
def trained(scenes, tmp_path_factory, request):
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    assert train(scenes, request.param, workdir) == 0
    return workdir, request.param


def lines(workdir, split="train"):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_a_run_compiles_once_for_each_size_of_images(trained, capsys):
    workdir, _ = trained
    compilations = [line["compilations"] for line in lines(workdir)]
    assert len(compilations) == 4
    # Both sizes came, and each of them more than once.
    assert (compilations[0], compilations[-1]) == (1, len(BUCKETS))
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["timing"]["train_step_compilations"] == len(BUCKETS)
    assert summary["timing"]["evaluation_step_compilations"] == len(BUCKETS)


def test_a_run_says_how_often_it_compiled(trained, scenes, capsys):
    workdir, kind = trained
    assert train(scenes, kind, workdir) == 0
    out, error = capsys.readouterr()
    assert "2 compilations of the training step, one for each size of images, and 2 of that" in out
    assert "note: method.frozen_stages is 1, but pretrained.path is empty" in error


@pytest.mark.parametrize(
    ("config", "option", "told"),
    [
        ("faster_rcnn_folder", "method.num_classes=3", True),
        ("faster_rcnn_folder", "pretrained.path=resnet50.safetensors", False),
        ("faster_rcnn_folder", "method.frozen_stages=0", False),
        ("faster_rcnn_bccd", "method.num_classes=3", False),
        ("classify_cub50", "seed=0", True),
    ],
)
def test_frozen_stages_with_random_weights_are_told(config, option, told, capsys):
    tell_frozen(load_config(config, [f"--config.{option}"]))
    assert capsys.readouterr().err.startswith("note: method.frozen_stages is") is told


def test_a_stopped_run_ends_as_if_it_had_not_been(trained, scenes, tmp_path):
    workdir, kind = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "last" / "4")
    (copy / "summary.json").unlink()
    (copy / "detections" / "test-last.json").unlink()
    assert train(scenes, kind, copy) == 0
    for name in ("metrics.jsonl", "detections/test-last.json"):
        first, again = ((folder / name).read_text() for folder in (workdir, copy))
        if name == "metrics.jsonl":
            # A process that goes on compiles anew: the count is of this process.
            first, again = (
                [{k: v for k, v in json.loads(x).items() if k != "compilations"} for x in text]
                for text in (first.splitlines(), again.splitlines())
            )
        assert first == again, name


def test_eval_agrees_and_writes_what_was_found(trained, scenes, capsys):
    workdir, _ = trained
    summary = json.loads((workdir / "summary.json").read_text())
    (result,) = summary["results"]
    assert result["figures"]["examples"] == 3
    file = workdir / "detections" / "test-last.json"
    before = json.loads(file.read_text())
    file.unlink()
    capsys.readouterr()
    assert main(["eval", "--workdir", str(workdir), "--per_class", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    precisions = [one["voc_AP50"] for one in got["classes"] if one["objects"]]
    assert np.mean(precisions) == pytest.approx(got["figures"]["voc_AP50"])
    assert [one["class"] for one in got["classes"]] == ["green", "blue"]
    assert got["figures"] == pytest.approx(result["figures"], rel=1e-4, abs=1e-6)
    found = json.loads(file.read_text())
    assert len(found) == len(before) > 0
    truth = json.loads((file.parent / "test-truth.json").read_text())
    assert [(one["id"], one["file_name"]) for one in truth["images"]] == [
        (101, "0.png"), (102, "1.png"), (103, "2.png")
    ]  # fmt: skip
    given = json.loads((scenes / "instances_test.json").read_text())
    assert truth["categories"] == given["categories"]
    assert len(truth["annotations"]) == len(given["annotations"]) > 0
    for one, other in zip(truth["annotations"], given["annotations"], strict=True):
        assert all(one[key] == other[key] for key in ("image_id", "category_id", "iscrowd"))
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
    sizes = {101: (64, 48), 102: (20, 30), 103: (32, 24)}
    for one in found:
        width, height = sizes[one["image_id"]]
        x, y, w, h = one["bbox"]
        assert min(x, y, w, h) >= 0
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3
        assert one["category_id"] in (3, 7)


def test_predict_frames_what_is_found_and_writes_it(trained, scenes, tmp_path, capsys):
    workdir, _ = trained
    images = [str(scenes / "images" / "test" / f"{i}.png") for i in (1, 0)]
    folder = tmp_path / "shown"
    arguments = ["predict", "--workdir", str(workdir), "--pictures", str(folder)]
    capsys.readouterr()
    assert main([*arguments, "--threshold", "0", "--json", *images]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == images
    evaluated = json.loads((workdir / "detections" / "test-last.json").read_text())
    for row, image_id, name in zip(rows, (102, 101), ("1", "0"), strict=True):
        file = json.loads((folder / f"{name}.detections.json").read_text())
        assert file["detections"] == row["detections"]
        expected = [one for one in evaluated if one["image_id"] == image_id]
        assert len(row["detections"]) == len(expected) > 0
        for one, other in zip(row["detections"], expected, strict=True):
            assert one["class"] == {3: "green", 7: "blue"}[other["category_id"]]
            np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=2e-2)
        picture = cv2.imread(str(folder / f"{name}.detections.png"))
        plain = cv2.imread(row["image"])
        factor = picture.shape[0] // plain.shape[0]
        assert picture.shape[1] == factor * plain.shape[1]
        assert (picture != np.repeat(np.repeat(plain, factor, 0), factor, 1)).any()

    assert main([*arguments, "--threshold", "1", images[0]]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == images[0]
    assert f"{len(rows[0]['detections'])} less sure ones are not shown" in out[1]


def test_a_detector_goes_into_a_file_and_back(trained, tmp_path, capsys):
    import jax

    from fgkd_jax.cli.export import load_network

    workdir, _ = trained
    path = str(tmp_path / "d.safetensors")
    assert main(["export", "--workdir", str(workdir), "--output", path]) == 0
    loaded = load_network(path)
    restored = restore(str(workdir), checkpoint="last")
    assert loaded.metadata["class_names"] == ["green", "blue"]
    ours = restored.state.variables()
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(jax.device_get(ours))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, jax.device_get(ours))
    capsys.readouterr()
    torch = str(tmp_path / "t.safetensors")
    arguments = ["export", "--workdir", str(workdir), "--output", torch, "--names", "torch"]
    assert main(arguments) == 2
    assert "--names" in capsys.readouterr().err


def initial_variables(config, *overrides):
    import jax

    from fgkd_jax.cli.session import open_data, open_run
    from fgkd_jax.train.loop import Trainer

    experiment = load_config(str(config), overrides)
    trainer = Trainer(open_run(experiment, dataset=open_data(experiment)))
    return jax.device_get(trainer.initial_state().variables())


def test_chosen_stages_are_those_that_an_earlier_run_was_given(trained, scenes):
    from fgkd_jax.cli.workdir import check
    from fgkd_jax.errors import UserError

    workdir, kind = trained
    chosen = load_config(str(scenes / f"{kind}.py"), ["--config.method.pyramid_stages=None"])
    if chosen.method.stages == (1, 2):
        check(str(workdir), chosen)
    else:
        with pytest.raises(UserError, match=r"pyramid_stages is \[1, 2\] there and \[2\] here"):
            check(str(workdir), chosen)


CONTRAST = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"name": "lmcl", "networks": (%r, %r), "embedding_size": 4, "meta_every": 0},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 16,
                 "train_geometry": "resize", "eval_geometry": "resize", "images_per_class": 2},
        "optim": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 1, "batch_size": 4, "eval_batch_size": 8, "tensorboard": "off"},
        "mesh": {"data": 1},
    })
"""


def test_a_detector_starts_from_a_network_that_learned_by_mutual_contrast(
    scenes, photographs, tmp_path, capsys
):
    from flax.traverse_util import flatten_dict

    from fgkd_jax.train.weight_files import load_arrays

    wider = {**TINY, "width": 6}
    config, run, path = tmp_path / "lmcl.py", tmp_path / "run", tmp_path / "network.safetensors"
    config.write_text(CONTRAST % (TINY, wider, str(photographs)))
    assert main(["train", "--config", str(config), "--workdir", str(run)]) == 0
    command = ["export", "--workdir", str(run), "--network", "1", "--output", str(path)]
    assert main(command) == 0
    there = {name: x for name, x in load_arrays(path).items() if "/backbone/" in name}
    for kind in ("dense", "regions"):
        options = (f"pretrained.path={path}", "method.backbone.width=6",
                   "method.pyramid_stages=None")  # fmt: skip
        started = initial_variables(scenes / f"{kind}.py", *(f"--config.{o}" for o in options))
        flat = flatten_dict(started, sep="/")
        ours = {name: x for name, x in flat.items() if "/backbone/" in name}
        assert ours.keys() == there.keys()
        for name, array in there.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
        assert "of the file unused" in capsys.readouterr().err  # its classifier


def test_a_backbone_that_ends_early_starts_from_a_whole_classifier(scenes, tmp_path, capsys):
    import jax

    from fgkd_jax.methods import Classifier
    from fgkd_jax.train.pretrained import named_arrays
    from fgkd_jax.train.weight_files import save_arrays

    deeper = {**TINY, "strides": (1, 2, 2), "stage_sizes": (1, 1, 1), "dilations": (1, 1, 1)}
    image = {"image": jax.numpy.zeros((1, 32, 32, 3), np.uint8)}
    classifier = Classifier(num_classes=5, backbone=deeper)
    there = jax.device_get(jax.jit(classifier.init)(jax.random.key(7), image))
    path = tmp_path / "classifier.npz"
    save_arrays(path, named_arrays(there), metadata={})
    longer = ("strides=(1,2,2)", "stage_sizes=(1,1,1)", "dilations=(1,1,1)")
    overrides = [f"--config.method.backbone.{one}" for one in longer]
    overrides.append(f"--config.pretrained.path={path}")
    started = initial_variables(scenes / "dense.py", *overrides)
    assert " of the file unused" in capsys.readouterr().err
    for collection in ("params", "batch_stats"):
        ours, theirs = started[collection]["backbone"], dict(there[collection]["backbone"])
        assert set(theirs) - set(ours) == {"stage3"}
        del theirs["stage3"]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("kind", ["dense", "regions"])
def test_a_backbone_starts_from_an_exported_classifier(scenes, tmp_path, kind):
    import jax

    from fgkd_jax.methods import Classifier
    from fgkd_jax.train.pretrained import named_arrays
    from fgkd_jax.train.weight_files import save_arrays

    image = {"image": jax.numpy.zeros((1, 32, 32, 3), np.uint8)}
    classifier = Classifier(num_classes=5, backbone=TINY)
    there = jax.device_get(jax.jit(classifier.init)(jax.random.key(7), image))
    path = str(tmp_path / "classifier.npz")
    save_arrays(path, named_arrays(there), metadata={})
    variables = initial_variables(scenes / f"{kind}.py", f"--config.pretrained.path={path}")
    for collection in ("params", "batch_stats"):
        ours, theirs = variables[collection]["backbone"], there[collection]["backbone"]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def refused(capsys, status):
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.data.image_size=8",
            "no option 'data.image_size'; expected one of data.buckets, data.crop",
        ),
        ("--config.data.imgs=8", "config has no option 'data.imgs'; expected one of data.buckets"),
        ("--config.data.least_sied=8", "'data.least_sied'; did you mean 'data.least_side'?"),
        ("--config.data.buckets=32", "[0] is 32; expected (int, int), as in ((24, 32),"),
        ("--config.data.buckets=(32,32)", "[0] is 32; expected (int, int), as in ((24, 32),"),
        ("--config.data.buckets=((24,32))", "[0] is 24; expected (int, int), as in ((24, 32),"),
        ("--config.data.buckets=((0, 8),)", "buckets"),
        ("--config.features.views=1", "features of scenes with boxes are not stored"),
        ("--config.report.split=testing", "report.split is 'testing'; did you mean 'test'"),
        ("--config.report.figures=('AP51',)", "has no figure 'AP51'; did you mean 'AP"),
        ("--config.method.num_classes=5", "method.num_classes is 5, but coco_json has 2 classes"),
        ("--config.method.pyramid_stages=(1, 5)", "pyramid_stages is (1, 5)"),
        ("--config.pretrained.teacher=x.npz", "the method has no teacher"),
    ],
)
def test_wrong_options_are_told_in_one_line(scenes, tmp_path, capsys, override, message):
    line = refused(capsys, train(scenes, "dense", tmp_path / "run", override))
    assert message in line


def test_a_data_set_of_the_other_kind_is_refused(scenes, photographs, config, tmp_path, capsys):
    where = (f"--config.data.data_dir={photographs}", "--config.data.dataset=image_folder")
    line = refused(capsys, train(scenes, "dense", tmp_path / "run", *where))
    assert "'image_folder', whose images have no boxes" in line
    where = (f"--config.data.data_dir={scenes}", "--config.data.dataset=coco_json")
    arguments = ["train", "--config", str(config), "--workdir", str(tmp_path / "run"), *where]
    assert "'coco_json', scenes with boxes; expected images with one" in refused(
        capsys, main(arguments)
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("category_id", 5, "is of category 5, which is not in 'categories'"),
        ("image_id", 999, "is of image 999, which is not in 'images'"),
        ("bbox", [1, 2, 3], "has the box [1, 2, 3]; expected [x, y, width, height]"),
    ],
)
def test_wrong_annotations_are_told_in_one_line(scenes, tmp_path, capsys, key, value, message):
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    path = root / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1][key] = value
    path.write_text(json.dumps(content))
    where = f"--config.data.data_dir={root}"
    assert message in refused(capsys, train(scenes, "dense", tmp_path / "run", where))


def test_predict_of_images_of_one_row(trained, tmp_path, capsys):
    workdir, _ = trained
    sizes = {"dot": (1, 1), "line": (1, 10_000)}
    for name, size in sizes.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((*size, 3), 99, np.uint8))
    images = [str(tmp_path / f"{name}.png") for name in sizes]
    folder = tmp_path / "shown"
    assert main(["predict", "--workdir", str(workdir), "--pictures", str(folder), *images]) == 0
    shown = [cv2.imread(str(folder / f"{name}.detections.png")).shape[:2] for name in sizes]
    assert shown == [(512, 512), (1, 10_000)]


def test_predict_refuses_what_is_no_image_and_a_caption(trained, scenes, tmp_path, capsys):
    workdir, _ = trained
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = str(scenes / "images" / "test" / "0.png")
    assert str(broken) in refused(
        capsys, main(["predict", "--workdir", str(workdir), str(broken), good])
    )
    arguments = ["predict", "--workdir", str(workdir), "--caption", "a bird", good]
    assert "reads no text" in refused(capsys, main(arguments))


def test_a_nan_is_reported_with_its_examples(scenes, tmp_path, capsys):
    status = train(scenes, "dense", tmp_path / "run", "--config.optim.learning_rate=1e30")
    assert status == 1
    assert "not finite in the" in capsys.readouterr().err


def test_two_hundred_images_of_mixed_sizes_compile_once_for_each_bucket(tmp_path):
    sides = np.random.default_rng(0).integers(20, 60, (2, 200, 2)).tolist()
    for split, sizes in zip(("train", "test"), sides, strict=True):
        write_split(tmp_path, split, sizes, first=1)
    buckets = ((16, 32), (32, 16), (24, 24))
    method = {**DENSE, "score_threshold": 0.5}
    (tmp_path / "mixed.py").write_text(CONFIG % (method, str(tmp_path), buckets, 100))
    run = tmp_path / "run"
    assert train(tmp_path, "mixed", run) == 0  # 100 steps of 2 images: a pass over all of them
    summary = json.loads((run / "summary.json").read_text())
    assert summary["results"][0]["figures"]["examples"] == 200
    for step in ("train", "evaluation"):
        assert summary["timing"][f"{step}_step_compilations"] == len(buckets)


def test_two_hundred_images_of_mixed_sizes_come_in_as_many_shapes_as_buckets(tmp_path):
    from fgkd_jax.data.boxes import BoxTable, make_dataset

    table = BoxTable(str(tmp_path))
    rng = np.random.default_rng(0)
    for i in range(200):
        height, width = (int(side) for side in rng.integers(4, 60, 2))
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((height, width, 3), np.uint8))
        nothing = np.zeros((0, 4))
        table.add(f"{i}.png", i, (height, width), nothing, np.zeros(0), np.zeros(0))
    dataset = make_dataset("mixed", class_names=("a",), category_ids=(1,), tables={"train": table})
    options = DetectionOptions(buckets=((16, 32), (32, 16), (24, 24)), max_boxes=2)
    batches = detection_train_iterator(dataset, options, batch_size=2, seed=0)
    shapes = {
        tuple((name, x.shape, x.dtype) for name, x in next(batches).items()) for _ in range(100)
    }
    batches.close()
    assert len(shapes) == 3
