"""Distillation from a frozen teacher through the commands: trains, resumes, knows its teacher."""

import json
import shutil

import jax
import numpy as np
import pytest

from fgkd_jax.cli.main import main
from fgkd_jax.cli.results import restore
from fgkd_jax.train.weight_files import load_arrays, load_metadata, save_arrays

NET = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
       "width": 4, "norm_groups": 2}  # fmt: skip
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": %r,
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize"},
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.05},
        "train": {"steps": %d, "batch_size": 8, "eval_batch_size": 8, "log_every": 1,
                  "tensorboard": "off"},
        "mesh": {"data": 2},
        "checkpoint": {"every_steps": 1},
    })
"""


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """A teacher in a file, and the config of its student."""
    folder = tmp_path_factory.mktemp("kd")
    plain = {"name": "classifier", "backbone": {**NET, "width": 6}}
    (folder / "teacher.py").write_text(CONFIG % (plain, str(photographs), 1))
    kd = {"name": "kd", "backbone": NET, "teacher": {**NET, "width": 6}}
    (folder / "student.py").write_text(CONFIG % (kd, str(photographs), 3))
    run = str(folder / "teacher")
    assert main(["train", "--config", str(folder / "teacher.py"), "--workdir", run]) == 0
    assert main(["export", "--workdir", run, "--output", str(folder / "t.safetensors")]) == 0
    return folder


def student(folder, workdir, teacher="t.safetensors"):
    command = ["train", "--config", str(folder / "student.py"), "--workdir", str(workdir)]
    return main([*command, f"--config.pretrained.teacher={folder / teacher}"])


def refused(capsys, status):
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_student_learns_from_a_file_and_resumes_with_that_file_alone(folder, tmp_path, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert student(folder, whole) == 0
    assert "teacher: " in capsys.readouterr().err
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/distillation"] > 0 for line in lines if line["split"] == "train"] == [
        True
    ] * 3

    # It stands in no checkpoint: neither its widths nor its collection.
    restored = restore(str(whole), checkpoint="last")
    assert {leaf.shape[-1] for leaf in jax.tree.leaves(restored.state.to_save()) if leaf.ndim} == {
        3,
        4,
    }
    shutil.copytree(whole, resumed)
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "last" / "3")

    arrays, metadata = (
        load_arrays(folder / "t.safetensors"),
        load_metadata(folder / "t.safetensors"),
    )
    other = {name: array + 1 for name, array in arrays.items()}
    save_arrays(folder / "other.npz", other, metadata=metadata, overwrite=True)
    line = refused(capsys, student(folder, resumed, "other.npz"))
    assert "step 2 was made with another weights sha256 of teacher" in line

    # The same teacher under another name is the same teacher.
    shutil.copy(folder / "t.safetensors", folder / "moved.safetensors")
    assert student(folder, resumed, "moved.safetensors") == 0
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    run = str(tmp_path / "run")
    command = ["train", "--config", str(folder / "student.py"), "--workdir", run]
    line = refused(capsys, main(command))
    assert "learns from a frozen teacher, but pretrained.teacher is empty; expected a file" in line
    line = refused(capsys, student(folder, run, "nothing.npz"))
    assert "nothing.npz" in line
    wrong = [*command, f"--config.pretrained.teacher={folder / 't.safetensors'}"]
    line = refused(capsys, main([*wrong, "--config.method.teacher.width=8"]))
    assert line.endswith(
        f"the teacher {folder}/t.safetensors has width 6; expected 8 (method.teacher.width)"
    )
    line = refused(capsys, main([*wrong, "--config.method.image_std=(0.5, 0.5, 0.5)"]))
    assert "t.safetensors has image_std (0.229, 0.224, 0.225); expected (0.5, 0.5, 0.5)" in line
    assert line.endswith("(method.teacher_std)")
    plain = ["train", "--config", str(folder / "teacher.py"), "--workdir", run]
    line = refused(
        capsys, main([*plain, f"--config.pretrained.teacher={folder / 't.safetensors'}"])
    )
    assert line.endswith("but the method has no teacher")
    metadata = load_metadata(folder / "t.safetensors")
    other = {**metadata, "class_names": ["green", "blue", "red"]}
    path = folder / "classes.npz"
    save_arrays(path, load_arrays(folder / "t.safetensors"), metadata=other, overwrite=True)
    line = refused(capsys, student(folder, run, path.name))
    assert f"class 0 of the teacher {path} is 'green'; expected 'blue'" in line
    assert not (tmp_path / "run").exists()
    np.testing.assert_equal(load_metadata(path), other)
