"""`fgkd train`, `eval`, `predict` and `reproduce` on a small folder of images."""

import json
import re
import shutil

import numpy as np
import pytest

from fgkd_jax.cli import results
from fgkd_jax.cli.main import main
from fgkd_jax.cli.predictions import read_predictions


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--config", str(config), "--workdir", str(workdir)]) == 0
    return workdir


def test_a_run_leaves_metrics_checkpoints_and_a_summary(trained):
    written = lines(trained)
    assert [line["step"] for line in written if line["split"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in written if line["split"] == "validation"] == [4, 8, 12]
    assert all(line["compilations"] == 1 for line in written if line["split"] == "train")
    summary = json.loads((trained / "summary.json").read_text())
    last = next(r for r in summary["results"] if r["split"] == "test" and r["checkpoint"] == "last")
    assert last["figures"]["examples"] == 18
    assert last["step"] == 12
    assert summary["timing"]["train_step_compilations"] == 1


def test_the_same_command_again_trains_nothing_and_agrees(trained, config, capsys):
    before = json.loads((trained / "summary.json").read_text())
    metrics = (trained / "metrics.jsonl").read_bytes()
    assert main(["train", "--config", str(config), "--workdir", str(trained)]) == 0
    after = json.loads((trained / "summary.json").read_text())
    assert after == before
    assert (trained / "metrics.jsonl").read_bytes() == metrics
    assert "tiny: 12 steps" in capsys.readouterr().out


def test_eval_repeats_the_summary(trained, tmp_path, capsys):
    summary = json.loads((trained / "summary.json").read_text())
    for name in {result["checkpoint"] for result in summary["results"]}:
        capsys.readouterr()
        arguments = ["eval", "--workdir", str(trained), "--checkpoint", name, "--json"]
        assert main(arguments) == 0
        got = json.loads(capsys.readouterr().out)
        expected = next(
            r for r in summary["results"] if r["split"] == "test" and r["checkpoint"] == name
        )
        assert (got["step"], got["split"]) == (expected["step"], expected["split"])
        # On another number of devices: counts are exact, the sum of losses is rounded.
        assert got["figures"] == pytest.approx(expected["figures"], rel=1e-6)
    path = str(tmp_path / "scores.npz")
    assert main(["eval", "--workdir", str(trained), "--predictions", path, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    scores = read_predictions(path)
    assert scores.seen.all()
    assert len(scores.ids) == figures["examples"]
    share = np.mean(scores.scores.argmax(1) == scores.labels)
    assert share == pytest.approx(figures["accuracy"], abs=1e-6)


def test_eval_tells_the_figures_of_each_class(trained, capsys):
    capsys.readouterr()
    assert main(["eval", "--workdir", str(trained), "--per_class"]) == 0
    first, classes = capsys.readouterr().out.split("\n\n")
    lines = [line.split() for line in classes.splitlines()]
    assert lines[0] == ["class", "examples", "accuracy"]
    assert [line[:2] for line in lines[2:]] == [["blue", "6"], ["green", "6"], ["red", "6"]]
    shares = [float(line[2].rstrip("%")) for line in lines[2:]]
    assert f"{np.mean(shares):.1f}%" in first


def test_predict_agrees_with_eval(trained, photographs, capsys):
    images = sorted((photographs / "test").glob("*/*.png"))
    capsys.readouterr()
    arguments = ["predict", "--workdir", str(trained), "--top", "1", "--json"]
    assert main([*arguments, *map(str, images)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [
        row["classes"][0]["class"] == path.parent.name
        for row, path in zip(rows, images, strict=True)
    ]
    summary = json.loads((trained / "summary.json").read_text())
    last = next(r for r in summary["results"] if r["split"] == "test" and r["checkpoint"] == "last")
    assert np.mean(right) == pytest.approx(last["figures"]["accuracy"])


def test_predict_prints_probabilities(trained, photographs, capsys):
    image = photographs / "test" / "red" / "00.png"
    assert main(["predict", "--workdir", str(trained), str(image)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(image)
    assert sorted(line.split()[-1] for line in out[1:]) == ["blue", "green", "red"]
    shares = [float(line.split()[0].rstrip("%")) for line in out[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)


def test_accumulation_needs_no_other_option(config, tmp_path):
    arguments = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
    overrides = [
        "--config.train.steps=4",
        "--config.train.accumulate=2",
        "--config.method.backbone.norm_groups=1",
    ]
    assert main([*arguments, *overrides]) == 0


def test_reproduce_prints_the_mean_over_seeds(config, tmp_path, capsys):
    arguments = ["reproduce", str(config), "--seeds", "2", "--workdir", str(tmp_path)]
    assert main([*arguments, "--config.train.steps=4"]) == 0
    out = capsys.readouterr().out
    row = json.loads((tmp_path / "tiny" / "row.json").read_text())
    values = row["figures"]["accuracy"]["values"]
    assert len(values) == 2
    mean, std = 100 * np.mean(values), 100 * np.std(values, ddof=1)
    assert f"top-1 {mean:.1f} ± {std:.1f}%" in out
    assert "| last (step 4) |" in out


def test_non_finite_loss_stops_and_names_step_and_examples(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--workdir", str(workdir)]
    overrides = ["--config.optim.learning_rate=1e30", "--config.optim.warmup_steps=0"]
    assert main([*arguments, *overrides]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fgkd: stopped: step ")
    assert re.search(r"not finite in the (loss of|update from) examples \[\d+", error)
    assert "none was saved before" in error
    assert not list((workdir / "checkpoints" / "last").glob("[0-9]*"))


def test_the_last_good_checkpoint_outlives_a_non_finite_loss(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--workdir", str(workdir)]
    # The rate is 0 until the second step and enormous from the fifth on.
    overrides = [
        "--config.optim.learning_rate=1e30",
        "--config.optim.warmup_steps=10",
        "--config.optim.rules=({'pattern': '.', 'learning_rate_scale': 1e-9},)",
        "--config.checkpoint.every_steps=1",
    ]
    assert main([*arguments, *overrides]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    failed = int(re.search(r"stopped: step (\d+)", error)[1])
    kept = int(re.search(r"the checkpoint of step (\d+) is kept", error)[1])
    assert kept == failed - 1 >= 1
    assert (workdir / "checkpoints" / "last" / str(kept)).is_dir()
    assert not (workdir / "checkpoints" / "last" / str(failed)).exists()


def test_stored_features_resume_and_end_as_images_do(config, tmp_path):
    """Training on stored features: resumed it is the same; evaluated it is the whole network."""
    overrides = [
        "--config.method.frozen_stages=2",
        "--config.method.brightness=0",
        "--config.features.views=2",
        "--config.train.steps=8",
    ]
    workdir = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--workdir", str(workdir), *overrides]
    assert main(arguments) == 0
    whole = json.loads((workdir / "summary.json").read_text())
    metrics = (workdir / "metrics.jsonl").read_bytes()
    stored = np.load(workdir / "features" / "train" / "ids.npy")
    assert len(stored) == 2 * 48
    assert set(np.unique(stored, return_counts=True)[1]) == {2}
    stamp = (workdir / "features" / "train" / "features.bin").stat().st_mtime_ns

    shutil.rmtree(workdir / "checkpoints" / "last" / "8")
    (workdir / "summary.json").unlink()
    assert main(arguments) == 0
    assert json.loads((workdir / "summary.json").read_text())["results"] == whole["results"]
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    assert (workdir / "features" / "train" / "features.bin").stat().st_mtime_ns == stamp

    restored = results.restore(str(workdir), checkpoint="last")
    last = next(r for r in whole["results"] if (r["split"], r["checkpoint"]) == ("test", "last"))
    evaluated = restored.trainer.evaluate(restored.state, "test")
    assert evaluated == pytest.approx(last["figures"], rel=1e-6)


def test_predict_does_not_shift_rows_behind_a_corrupt_image(trained, photographs, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes((photographs / "test" / "red" / "00.png").read_bytes()[:100])
    good = str(photographs / "test" / "red" / "01.png")
    assert main(["predict", "--workdir", str(trained), str(broken), good]) == 2
    printed = capsys.readouterr()
    assert str(broken) in printed.err
    assert printed.out == ""
