"""Bad input: one line on stderr, exit status 2, and nothing written over."""

import errno
import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from fgkd_jax.cli import main as program
from fgkd_jax.cli import workdir as workdirs
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.cli.workdir import claimed


def train(config, workdir, *overrides):
    return ["train", "--config", str(config), "--workdir", str(workdir), *overrides]


def snapshot(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_line(capsys, arguments, status=2):
    capsys.readouterr()
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("fgkd:")]
    assert len(lines) == 1
    assert printed.err.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert main(train(config, workdir, "--config.train.steps=8")) == 0
    return workdir


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.train.stepz=3",
            "no option 'train.stepz'; did you mean 'train.steps'?",
        ),
        (
            "--config.trian.steps=3",
            "no option 'trian.steps'; did you mean 'train.steps'?",
        ),
        ("--config.optim.name=sdg", "config.optim.name is 'sdg'; did you mean 'sgd'?"),
        ("--config.train.steps=abc", "config.train.steps is 'abc'; expected a whole number"),
        ("--config.train.steps=1.5", "config.train.steps is '1.5'; expected a whole number"),
        ("--config.optim.momentum=abc", "config.optim.momentum is 'abc'; expected a number"),
        ("--config.optim.nesterov=maybe", "optim.nesterov is 'maybe'; expected True or False"),
        ("--config.method.backbone.width=4=5", "width is '4=5'; expected a whole number"),
        (
            "--config.train=3",
            "config.train is '3'; expected its options one by one, as in --config.train.",
        ),
        (
            "--config.data.crop_scale=0.5",
            "crop_scale is (0.5,); expected (float, float), as in (0.08, 1.0)",
        ),
        ("--config.train.steps", "--config.train.steps has no value"),
        ("--config.train.steps=0", "config.train: steps is 0; expected at least 1"),
        (
            "--config.train.batch_size=15",
            "batch_size is 15; expected a multiple of 2 devices",
        ),
        ("--config.mesh.data=64", "mesh.data is 64, but there are only 8 cpu devices"),
        ("--config.method.name=clasifier", "is 'clasifier'; did you mean 'classifier'?"),
        ("--config.method.backbone.name=resnet81", "backbone 'resnet81'; did you mean 'resnet18'?"),
        ("--config.data.dataset=cifar_10", "'cifar_10'"),
        ("--config.data.data_dir=/nonexistent", "/nonexistent"),
        ("--config.pretrained.path=/nonexistent.npz", "/nonexistent.npz"),
        ("--config.report.figures=('acuracy',)", "'acuracy'; did you mean 'accuracy'?"),
        ("--config.report.split=tset", "report.split is 'tset'; did you mean 'test'?"),
        ("--config.checkpoint.best_metric=acuracy", "'acuracy'; did you mean 'accuracy'?"),
        ("--config.method.num_classes=7", "num_classes is 7, but image_folder has 3 classes"),
        ("--config.method.backbone.widht=7", "option 'widht'; did you mean 'width'?"),
        ("--config.optim.warmup_steps=12", "train.steps is 12 and optim.warmup_steps 12"),
        ("--config.features.views=2", "features.views is 2, but the method has no frozen stages"),
        (
            "--config.data.images_per_class=3",
            "images_per_class is 3; expected a divisor of batch_size, which is 16",
        ),
        ("--config.optim.rules=({'pattern': 'haed', 'frozen': True},)", "haed"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(config, tmp_path, capsys, override, message):
    line = one_line(capsys, train(config, tmp_path / "run", override))
    assert line.startswith("fgkd: error: ")
    assert message in line
    # A folder is claimed only by a run that can start.
    assert not (tmp_path / "run").exists()


def test_stored_features_cannot_come_in_groups(config, tmp_path, capsys):
    overrides = ("method.frozen_stages=2", "method.brightness=0", "features.views=2")
    given = [f"--config.{one}" for one in (*overrides, "data.images_per_class=2")]
    line = one_line(capsys, train(config, tmp_path / "run", *given))
    assert "data.images_per_class is 2, but stored features are shuffled; expected 0" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "fgkd has no command 'trian'; did you mean 'train'?"),
        (["train", "--cofig", "x"], "fgkd train has no flag --cofig; did you mean '--config'?"),
        (["eval", "--spilt", "x"], "fgkd eval has no flag --spilt; did you mean '--split'?"),
        (["train", "--workdir", "x"], "fgkd train needs --config"),
        (["train", "x"], "fgkd train takes no argument 'x'"),
        (
            ["train", "--config", "classify_brids", "--workdir", "x"],
            "did you mean 'classify_birds'?",
        ),
        (["train", "--config", "classify_cifar10:x", "--workdir", "x"], "takes no argument"),
        (["eval", "--workdir", "nowhere"], "workdir nowhere holds no run"),
        (["eval", "--workdir", "x", "--checkpoint", "worst"], "worst"),
        (["predict", "--workdir", "x"], "needs at least one image"),
        (["predict", "--workdir", "x", "nothing.jpg"], "image nothing.jpg does not exist"),
        (["data", "chek", "cifar10"], "fgkd data cannot 'chek'; did you mean 'check'?"),
        (["data", "check", "cifar11"], "cifar1"),
        (["reproduce"], "fgkd reproduce needs one config"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    monkeypatch, tmp_path, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    line = one_line(capsys, arguments)
    assert message in line
    assert not list(tmp_path.iterdir())


def test_no_such_device(tmp_path, capsys, config):
    line = one_line(capsys, train(config, tmp_path / "run", "--device", "tpu"))
    assert "--device is tpu, but JAX finds no such device here" in line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return undefined\n", "line 2: NameError"),
        ("def get_config():\n    return {}\n", "returns a dict; expected a ConfigDict"),
        ("x = 1\n", "defines no function get_config"),
    ],
)
def test_a_config_that_cannot_be_run(tmp_path, capsys, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    line = one_line(capsys, train(path, tmp_path / "run"))
    assert str(path) in line
    assert message in line


def test_two_runs_do_not_share_a_folder(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    with claimed(str(workdir), load_config(str(config))):
        line = one_line(capsys, train(config, workdir))
    assert "is in use by another run" in line


def test_a_file_system_without_locks_is_told_and_used(config, tmp_path, capsys, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
    with claimed(str(tmp_path), load_config(str(config))):
        error = capsys.readouterr().err
    assert error.startswith(f"note: workdir {tmp_path} cannot be locked (No locks available), so")


def test_a_defect_has_a_traceback_and_a_status_of_its_own(capsys, monkeypatch):
    def fail(arguments):
        raise KeyError("a slip")

    monkeypatch.setattr(program, "dispatch", fail)
    assert program.program() == 13
    assert capsys.readouterr().err.rstrip().endswith("KeyError: 'a slip'")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_is_not_an_error(arguments, capsys):
    assert main(arguments) == 0
    assert "fgkd" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["train", "eval", "predict", "export", "data", "bench", "reproduce"]
)
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fgkd {command} ")
    assert f"  fgkd {command} " in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_workdir_of_another_config_is_left_alone(finished, config, capsys):
    before = snapshot(finished)
    line = one_line(
        capsys,
        train(config, finished, "--config.train.steps=8", "--config.optim.learning_rate=0.01"),
    )
    assert "optim.learning_rate is 0.05 there and 0.01 here" in line
    assert snapshot(finished) == before


def test_a_folder_that_is_no_run_is_left_alone(config, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    line = one_line(capsys, train(config, tmp_path))
    assert "holds 'thesis.tex' but no config.json" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_data_that_changed_are_told(finished, config, photographs, tmp_path, capsys):
    workdir, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished, workdir)
    shutil.copytree(photographs, data)
    (data / "test" / "red" / "00.png").unlink()
    moved = f"--config.data.data_dir={data}"
    line = one_line(capsys, train(config, workdir, "--config.train.steps=8", moved))
    assert "made with another data fingerprint" in line
    line = one_line(capsys, ["eval", "--workdir", str(finished), "--data_dir", str(data)])
    assert "made with another data fingerprint" in line


def test_a_damaged_best_checkpoint_is_left_out(finished, config, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    best = next((workdir / "checkpoints" / "best").glob("[0-9]*"))
    (best / "MANIFEST.json").write_text("{}")
    assert main(train(config, workdir, "--config.train.steps=8")) == 0
    assert "the best checkpoint is left out" in capsys.readouterr().err
    results = json.loads((workdir / "summary.json").read_text())["results"]
    assert {result["checkpoint"] for result in results} == {"last"}


def test_a_truncated_checkpoint_falls_back_and_says_so(finished, config, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = json.loads((workdir / "summary.json").read_text())
    metrics = (workdir / "metrics.jsonl").read_bytes()
    newest = workdir / "checkpoints" / "last" / "8"
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    capsys.readouterr()
    assert main(train(config, workdir, "--config.train.steps=8")) == 0
    told = capsys.readouterr().err
    assert "checkpoints/last/8" in told
    assert "resumed from step 4" in told
    assert json.loads((workdir / "summary.json").read_text())["results"] == before["results"]
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


@pytest.fixture
def damaged(photographs, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    victim = root / "train" / "red" / "03.png"
    victim.write_bytes(victim.read_bytes()[:200])
    return root


def test_a_corrupt_image_is_named(config, damaged, tmp_path, capsys):
    line = one_line(capsys, train(config, tmp_path / "run", f"--config.data.data_dir={damaged}"))
    assert "train/red/03.png" in line


def test_a_corrupt_image_is_left_out_only_when_asked_and_counted(config, damaged, tmp_path, capsys):
    overrides = [f"--config.data.data_dir={damaged}", "--config.data.on_corrupt=skip"]
    assert main(train(config, tmp_path / "run", "--config.train.steps=4", *overrides)) == 0
    assert "1 images could not be read and were left out" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [name.rpartition("train/")[2] for name in summary["images_left_out"]] == ["red/03.png"]


def test_wrong_weights_are_named(config, tmp_path, capsys):
    weights = tmp_path / "weights.npz"
    np.savez(weights, **{"conv1.weight": np.zeros((4, 3, 5, 5), np.float32)})
    line = one_line(capsys, train(config, tmp_path / "run", f"--config.pretrained.path={weights}"))
    assert str(weights) in line
    assert "conv1.weight" in line
    weights.write_text("not a file of weights")
    line = one_line(capsys, train(config, tmp_path / "run", f"--config.pretrained.path={weights}"))
    assert str(weights) in line


def test_a_data_folder_without_its_split_file_is_told(config, tmp_path, capsys):
    folder = tmp_path / "CUB_200_2011"
    (folder / "images").mkdir(parents=True)
    for name in ("images.txt", "image_class_labels.txt", "classes.txt"):
        (folder / name).write_text("")
    overrides = ["--config.data.dataset=cub200_2011", f"--config.data.data_dir={folder}"]
    line = one_line(capsys, train(config, tmp_path / "run", *overrides))
    assert "train_test_split.txt" in line
    assert "http" in line


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_in_one_line(config, small_disk, capsys):
    line = one_line(capsys, train(config, small_disk / "run", "--config.method.backbone.width=32"))
    assert "no space left" in line.lower()
    config_file = json.loads((small_disk / "run" / "config.json").read_text())
    assert config_file["method"]["backbone"]["width"] == 32
