"""`fgkd features` from photographs to a folder, and what trains and is evaluated on it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgkd_jax.cli import features as command
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.curves import FILL, LINE, SIDE, draw_curve
from fgkd_jax.cli.main import main
from fgkd_jax.cli.ridge import ridge_baseline
from fgkd_jax.data import open_dataset
from fgkd_jax.data.base import SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.feature_folder import FeatureIdentity, read_shards
from fgkd_jax.data.feature_writer import writing
from fgkd_jax.data.zero_shot import Relabelled
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import decisions, seen_unseen_curve
from fgkd_jax.methods import METHODS
from fgkd_jax.protocols import LossTerm

COLOURS = ("blue", "green", "red")


def run(config, folder, *overrides):
    return main(["features", "--config", str(config), "--folder", str(folder), *overrides])


@pytest.fixture(scope="module")
def written(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "all"
    assert run(config, folder) == 0
    return folder


class TestCommand:
    def test_all_splits_are_there_in_order(self, written, photographs):
        dataset = open_dataset("features", data_dir=str(written))
        images = open_dataset("image_folder", data_dir=str(photographs))
        assert dataset.info.splits == images.info.splits
        assert dataset.info.class_names == COLOURS
        assert dataset.info.feature_shape == (2, 2, 32)
        for split in images.info.splits:
            np.testing.assert_array_equal(dataset.source(split).ids, images.source(split).ids)
            np.testing.assert_array_equal(dataset.source(split).labels, images.source(split).labels)
        assert main(["data", "check", "features", "--data_dir", str(written)]) == 0

    def test_values_are_those_of_the_backbone(self, written, photographs, config):
        experiment = load_config(str(config))
        extractor = command.Extractor.of(experiment, stage=None)
        extractor.load()
        source = open_dataset("features", data_dir=str(written)).source("test")
        files = sorted((photographs / "test").rglob("*.png"))
        for i in (0, 7, 17):
            image = cv2.cvtColor(cv2.imread(str(files[i])), cv2.COLOR_BGR2RGB)
            small = cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA)
            expected = extractor(extractor.variables, jnp.asarray(small)[None])[0]
            found = source[i]["features"].astype(np.float32)
            np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)

    def test_other_stages_and_storages(self, config, tmp_path, capsys):
        overrides = ["--stage", "1", "--storage", "uint8"]
        assert run(config, tmp_path / "f", *overrides) == 0
        info = open_dataset("features", data_dir=str(tmp_path / "f")).info
        assert info.feature_shape == (16, 16, 4)
        assert "16 x 16 x 4 uint8 features of 78 examples" in capsys.readouterr().out
        # Nothing is computed again.
        assert run(config, tmp_path / "f", *overrides) == 0
        assert "(78 were there)" in capsys.readouterr().out

    def test_annotations_are_in_cells_of_the_map(self):
        batch = {
            "image": np.zeros((1, 20, 40, 3), np.uint8),
            "bbox": np.array([[4.0, 5.0, 40.0, 20.0]], np.float32),
            "parts": np.array([[[10.0, 15.0, 1.0], [0.0, 0.0, 0.0]]], np.float32),
        }
        found = command._in_cells(batch, (2, 8))
        np.testing.assert_allclose(found["bbox"], [[0.8, 0.5, 8.0, 2.0]])
        np.testing.assert_allclose(found["parts"], [[[2.0, 1.5, 1.0], [0.0, 0.0, 0.0]]])

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["--config.data.image_size=24"], "another backbone: image_size is [16, 16] there"),
            (["--config.seed=1"], "another backbone: weights is random, seed 0 there and random"),
            (["--config.method.backbone.width=8"], "another backbone: backbone is {'name': 'res"),
            (["--stage", "3"], "another backbone: stage is 4 there and 3 here"),
            (["--storage", "uint8"], "with another storage: float16 there and uint8 here"),
            (["--stage", "5"], "--stage is 5; expected 0 to 4"),
            (["extra"], "takes no argument 'extra'"),
            (["--config.data.dataset=features"], "features.json is missing"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, config, written, capsys, overrides, message):
        before = sorted(path.name for path in written.iterdir())
        assert run(config, written, *overrides) == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in written.iterdir()) == before

    def test_features_of_features_and_methods_without_a_backbone(self, config, written, tmp_path):
        experiment = load_config(str(config))
        data = dataclasses.replace(experiment.data, dataset="features", data_dir=str(written))
        with pytest.raises(UserError, match="features of image_folder has features already"):
            command.write_features(dataclasses.replace(experiment, data=data), str(tmp_path / "f"))
        other = dataclasses.replace(experiment, method=Linear())
        with pytest.raises(UserError, match="the config's method has no backbone on images"):
            command.write_features(other, str(tmp_path / "f"))
        assert not (tmp_path / "f").exists()

    def test_a_killed_run_goes_on_and_ends_the_same(self, config, written, tmp_path):
        folder = tmp_path / "killed"
        script = (
            "from fgkd_jax.data import feature_writer; feature_writer.SHARD_BYTES = 2048;"
            "import sys; from fgkd_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        arguments = ["features", "--config", str(config), "--folder", str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        deadline = time.monotonic() + 120
        try:
            while not (folder / "train-00002.npz").exists() and time.monotonic() < deadline:
                assert process.poll() is None, "the run ended before it could be killed"
                time.sleep(0.0005)
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(UserError, match="run the same fgkd features again"):
            open_dataset("features", data_dir=str(folder))
        kept = [shard.sha256 for shard in read_shards(folder, "train")]
        assert run(config, folder) == 0
        assert [shard.sha256 for shard in read_shards(folder, "train")][: len(kept)] == kept
        again, whole = (open_dataset("features", data_dir=str(f)) for f in (folder, written))
        assert again.info == whole.info
        for split in whole.info.splits:
            for i in range(whole.info.splits[split]):
                one, other = again.source(split)[i], whole.source(split)[i]
                assert (one["id"], one["label"]) == (other["id"], other["label"])
                np.testing.assert_allclose(one["features"], other["features"], atol=2e-3)

    def test_images_that_cannot_be_read(self, config, photographs, tmp_path, capsys):
        copy = tmp_path / "photographs"
        shutil.copytree(photographs, copy)
        (copy / "test" / "green" / "02.png").write_bytes(b"")
        where = f"--config.data.data_dir={copy}"
        assert run(config, tmp_path / "f", where) == 2
        assert "green/02.png: is empty" in capsys.readouterr().err
        assert run(config, tmp_path / "f", where, "--config.data.on_corrupt=skip") == 0
        dataset = open_dataset("features", data_dir=str(tmp_path / "f"))
        assert dataset.info.splits["test"] == 17
        assert np.bincount(dataset.source("test").labels).tolist() == [6, 5, 6]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Scores that are linear in the mean of the features."""

    task: ClassVar[str] = "zero_shot"
    num_classes: int | None = None

    def frozen_parameters(self):
        return ()

    def init(self, key, batch):
        del key
        return {"params": {"w": jnp.zeros((batch["features"].shape[-1], self.num_classes))}}

    def loss(self, variables, batch, key, *, train):
        del key, train
        scores = self.predict(variables, batch)["scores"]
        target = jnp.eye(scores.shape[1])[batch["label"]]
        mask = batch["mask"].astype(jnp.float32)
        term = LossTerm(sum=jnp.sum((scores - target) ** 2, axis=1) * mask, count=mask)
        return {"squares": term}, {}, {}

    def predict(self, variables: Any, batch: Any):
        mean = jnp.mean(batch["features"].astype(jnp.float32), axis=(1, 2))
        return {"scores": mean @ variables["params"]["w"]}


def write_described(folder, *, without=()):
    """Features near the attributes of their classes; a to h, of which b and e are unseen."""
    rng = np.random.default_rng(0)
    seen = np.array([True, False, True, True, False, True, True, True])
    names = tuple("abcdefgh")
    attributes = rng.normal(size=(8, 6)).astype(np.float32)
    mix = rng.normal(size=(6, 12))
    labels = {
        "train": np.repeat(np.flatnonzero(seen), 12),
        "test_seen": np.repeat(np.flatnonzero(seen), 4),
        "test_unseen": np.repeat([c for c in (1, 4) if names[c] not in without], 6),
    }
    identity = FeatureIdentity(
        dataset="made",
        dataset_fingerprint="m",
        backbone="b",
        about={},
        shape=(2, 2, 12),
        storage="float16",
        splits={split: len(rows) for split, rows in labels.items()},
        class_names=names,
    )
    number = 0
    with writing(folder, identity, ClassDescriptions(names, attributes, seen)) as writer:
        for split, of_split in labels.items():
            rows = []
            for label in of_split:
                values = attributes[label] @ mix + 0.3 * rng.normal(size=(2, 2, 12))
                rows.append({"features": values, "label": label, "id": number})
                number += 1
            writer.write(split, rows, stop=len(rows))
    return folder


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return write_described(tmp_path_factory.mktemp("described") / "features")


def train(folder, workdir, *overrides):
    config = workdir.parent / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'method': {'name': 'linear'}, 'data': {'dataset': 'features',"
        f" 'data_dir': {str(folder)!r}}},\n"
        "        'optim': {'name': 'sgd', 'learning_rate': 0.02},\n"
        "        'train': {'steps': 20, 'batch_size': 12, 'eval_batch_size': 8, 'log_every': 5},\n"
        "        'mesh': {'data': 2}, 'checkpoint': {'best_metric': 'harmonic_mean'},\n"
        "        'report': {'split': 'test_seen+test_unseen',"
        " 'figures': ('zero_shot_accuracy', 'harmonic_mean')}})\n"
    )
    return ["train", "--config", str(config), "--workdir", str(workdir), *overrides]


class TestTraining:
    @pytest.fixture(autouse=True)
    def _linear(self, monkeypatch):
        monkeypatch.setitem(METHODS, "linear", Linear)

    def test_a_run_on_features_and_its_curve(self, described, tmp_path, capsys):
        workdir = tmp_path / "run"
        assert main(train(described, workdir, "--config.data.images_per_class=2")) == 0
        summary = json.loads((workdir / "summary.json").read_text())
        figures = summary["results"][0]["figures"]
        assert figures["examples"] == 6 * 4 + 2 * 6
        assert figures["seen_accuracy"] > 0.5
        assert 0 <= figures["ausuc"] <= 1
        capsys.readouterr()
        picture = tmp_path / "pictures" / "curve.png"
        offset = figures["best_offset"]
        evaluate = ["eval", "--workdir", str(workdir), "--json"]
        scores, linear = str(tmp_path / "msdn.npz"), str(tmp_path / "ridge.npz")
        options = ["--unseen_offset", str(offset), "--curve", str(picture), "--predictions", scores]
        assert main([*evaluate, *options]) == 0
        again = json.loads(capsys.readouterr().out)["figures"]
        assert again["calibrated_harmonic_mean"] == pytest.approx(figures["best_harmonic_mean"])
        # Scores are those of another program, rounded otherwise.
        assert {name: again[name] for name in figures} == pytest.approx(figures, rel=1e-5)
        assert cv2.imread(str(picture)).shape[0] > 500
        assert main([*evaluate, "--predictions", scores]) == 2
        assert "exists already; expected a new file" in capsys.readouterr().err
        assert main(["ridge", "--data_dir", str(described), "--predictions", linear]) == 0
        capsys.readouterr()
        compare = ["compare", scores, linear, "--figure", "zero_shot_accuracy", "--json"]
        assert main(compare) == 0
        compared = json.loads(capsys.readouterr().out)
        assert compared["first"]["mean"] == pytest.approx(figures["zero_shot_accuracy"])
        assert (compared["images"], compared["classes"]) == (2 * 6, 2)
        assert main([*evaluate, "--split", "test_seen"]) == 0
        assert set(json.loads(capsys.readouterr().out)["figures"]) == {"seen_accuracy", "examples"}

    def test_what_is_chosen_on_validation_classes(self, described, tmp_path):
        workdir = tmp_path / "run"
        shares = [f"--config.data.validation_{n}=0.3" for n in ("classes", "fraction")]
        assert main(train(described, workdir, *shares, "--config.report.split=validation")) == 0
        (result,) = json.loads((workdir / "summary.json").read_text())["results"]
        assert result["split"] == "validation"
        assert result["figures"]["examples"] == 2 * 12 + 4 * 4
        assert "best_offset" in result["figures"]

    def test_other_features_are_refused_on_resume(self, described, tmp_path, capsys):
        workdir = tmp_path / "run"
        assert main(train(described, workdir)) == 0
        other = tmp_path / "other"
        shutil.copytree(described, other)
        index = json.loads((other / "features.json").read_text())
        (other / "features.json").write_text(json.dumps({**index, "backbone": "c"}))
        assert main(["eval", "--workdir", str(workdir), "--data_dir", str(other)]) == 2
        message = "made with another backbone of the features: b there and c here"
        assert message in capsys.readouterr().err

    def test_an_empty_class_at_evaluation(self, tmp_path, capsys):
        folder = write_described(tmp_path / "features", without="b")
        assert main(train(folder, tmp_path / "run")) == 2
        message = "the unseen class 'b' has no image to evaluate; expected one of each of 2 unseen"
        assert message in capsys.readouterr().err

    def test_mistakes_are_told(self, described, config, tmp_path, capsys):
        assert main(train(described, tmp_path / "run", "--config.report.unseen_offset=nan")) == 2
        assert "offset is nan" in capsys.readouterr().err
        arguments = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
        assert main([*arguments, "--config.report.unseen_offset=1.0"]) == 2
        assert "unseen_offset is 1.0, but there are no unseen classes" in capsys.readouterr().err


class TestRidge:
    def test_it_finds_the_attributes(self, described, tmp_path, capsys):
        path = tmp_path / "ridge.npz"
        arguments = ["ridge", "--data_dir", str(described), "--predictions", str(path), "--json"]
        assert main(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["figures"]["zero_shot_accuracy"] > 0.9
        assert found["figures"]["examples"] == 36
        with np.load(path) as stored:
            scores, labels = stored["scores"], stored["labels"]
        seen = open_dataset("features", data_dir=str(described)).info.descriptions.seen
        unseen = ~seen[labels]
        predicted = np.where(seen, -np.inf, scores).argmax(1)
        shares = [np.mean(predicted[labels == c] == c) for c in np.flatnonzero(~seen)]
        assert np.mean(shares) == pytest.approx(found["figures"]["zero_shot_accuracy"])
        assert unseen.sum() == 12
        assert main(["ridge", "--data_dir", str(described), "--centre=false"]) == 0
        assert "chosen by 5 divisions of the seen classes" in capsys.readouterr().out

    def test_the_test_split_chooses_nothing(self, described):
        dataset = open_dataset("features", data_dir=str(described))
        one = ridge_baseline(dataset, divisions=2)
        test = dataset.source("test_unseen")
        # The unseen classes exchanged: whatever looks at them is changed.
        mixed = Relabelled(test, np.array([0, 4, 2, 3, 1]), test.labels[::-1], test.ids)
        sources = {**dataset.sources, "test_unseen": mixed}
        other = ridge_baseline(SplitSources(dataset.info, sources), divisions=2)
        assert one["figures"]["zero_shot_accuracy"] > other["figures"]["zero_shot_accuracy"]
        for name in ("regulariser", "offset", "validation_accuracy"):
            assert one[name] == other[name]

    def test_mistakes_are_told(self, photographs, capsys):
        for arguments, message in (
            (["ridge", "--dataset", "image_folder", "--data_dir", str(photographs)], "has images"),
            (["ridge", "x"], "takes no argument 'x'"),
            (["ridge", "--predictions", "a.txt"], "expected a name that ends in .npz"),
        ):
            assert main(arguments) == 2
            assert message in capsys.readouterr().err


def test_the_picture_of_a_curve():
    scores = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 3.0], [3.0, 1.0]])
    found = decisions(scores, np.array([0, 1, 0, 1]), seen=np.array([True, False]))
    curve = seen_unseen_curve(found)
    picture = draw_curve(curve, title="test", marks={"as scored": (0.5, 0.5)})
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    filled = (picture == FILL).all(-1).sum() + (picture == LINE).all(-1).sum()
    # The area of the unit square is SIDE pixels squared; grid lines and the mark cover some of it.
    assert filled / SIDE**2 == pytest.approx(curve.area, abs=0.05)


def test_stored_features_of_photographs_differ_by_the_resize_alone(shared):
    """With Pillow's filter and the ranges of the quantised network, ours are the stored ones."""
    folder = shared / "data" / "mobilenet_v2"
    weights = f"--config.pretrained.path={folder / 'imagenet.npz'}"
    with np.load(folder / "cub50_features_imagenet.npz") as file:
        rows, pooled = file["f320_q_rows"][:3], file["pooled1280"]
        step = float(file["f320_scale"])
        regions = (file["f320_q"][:3].astype(np.float32) - float(file["f320_zero"])) * step
    lines = (shared / "data" / "cub50" / "images.txt").read_text().splitlines()
    images = []
    for row in rows:
        with Image.open(shared / "data" / "cub50" / "images" / lines[row].split()[1]) as image:
            images.append(np.asarray(image.convert("RGB").resize((224, 224), Image.BILINEAR)))
    clamps = "--config.method.backbone.activation_clamps=True"
    experiment = load_config("classify_cub50", [weights, clamps])
    found = {}
    for stage in (4, 5):
        extractor = command.Extractor.of(experiment, stage=stage)
        extractor.load()
        compute = jax.jit(extractor.__call__)
        found[stage] = np.asarray(compute(extractor.variables, jnp.stack(images)))
    np.testing.assert_allclose(found[5].mean((1, 2)), pooled[rows], atol=3e-3)
    np.testing.assert_allclose(found[4].transpose(0, 3, 1, 2), regions, atol=0.51 * step + 5e-3)
