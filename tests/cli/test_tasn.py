"""TASN through the commands: trains, resumes bit for bit, shows what it looks at, has controls."""

import json
import shutil
import textwrap

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.main import main

STEPS = 6


@pytest.fixture(scope="module")
def tasn_config(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasn") / "tiny_tasn.py"
    path.write_text(
        textwrap.dedent(f"""
        from ml_collections import ConfigDict

        NET = {{"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
                "dilations": (1,), "norm_groups": 2}}


        def get_config(sampling="attention"):
            return ConfigDict(
                {{
                    "method": {{
                        "name": "tasn", "sampling": sampling, "backbone": NET,
                        "attention_backbone": NET, "attention_size": 8, "out_size": 8,
                        "brightness": 0.1, "dropout": 0.1,
                    }},
                    "data": {{
                        "dataset": "image_folder", "data_dir": {str(photographs)!r},
                        "image_size": 16, "train_geometry": "shift_crop",
                        "eval_geometry": "resize",
                    }},
                    "optim": {{"name": "adamw", "learning_rate": 0.01}},
                    "train": {{
                        "steps": {STEPS}, "batch_size": 16, "eval_batch_size": 8,
                        "log_every": 1, "eval_every": 2, "tensorboard": "off",
                    }},
                    "mesh": {{"data": 2}},
                    "checkpoint": {{"every_steps": 2, "best_metric": "accuracy"}},
                    "report": {{
                        "title": f"tiny {{sampling}}", "figures": ("accuracy",),
                        "checkpoint": "best", "controls": (__file__ + ":uniform",),
                    }},
                }}
            )
        """)
    )
    return path


@pytest.fixture(scope="module")
def trained(tasn_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    assert main(["train", "--config", str(tasn_config), "--workdir", str(workdir)]) == 0
    return workdir


def test_a_stopped_run_ends_as_one_that_was_not(trained, tasn_config, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(trained, workdir)
    for name in ("summary.json", f"checkpoints/last/{STEPS}"):
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["train", "--config", str(tasn_config), "--workdir", str(workdir)]) == 0
    assert (workdir / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    ours, theirs = (
        json.loads((folder / "summary.json").read_text()) for folder in (workdir, trained)
    )
    assert ours["results"] == theirs["results"]
    assert ours["timing"]["resumed_from_step"] == STEPS - 2


def test_all_terms_are_logged(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["split"] == "train")
    terms = ("attention", "part", "master", "part_auxiliary", "master_auxiliary", "distillation")
    assert {name for name in first if name.startswith("loss/")} == {f"loss/{t}" for t in terms}
    assert {"accuracy", "part_accuracy", "attention_accuracy"} <= set(first)


def test_predict_draws_what_was_looked_at(trained, photographs, tmp_path, capsys):
    image = photographs / "test" / "red" / "00.png"
    folder = tmp_path / "shown"
    command = ["predict", "--workdir", str(trained), "--pictures", str(folder), str(image)]
    assert main([*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    kinds = ("attention", "grid", "structure", "detail")
    assert row["pictures"] == [str(folder / f"00.{kind}.png") for kind in kinds]
    read = {kind: cv2.imread(path) for kind, path in zip(kinds, row["pictures"], strict=True)}
    assert read["structure"].shape == read["detail"].shape == (8, 8, 3)
    assert min(read["attention"].shape[:2]) >= 512
    # The photograph is mostly red, and so is what was sampled from it.
    assert read["structure"].mean((0, 1)).argmax() == cv2.imread(str(image)).mean((0, 1)).argmax()
    assert main(command) == 0
    assert "looked at: " in capsys.readouterr().out
    assert main(["predict", "--workdir", str(trained), "--pictures", "none", str(image)]) == 0
    assert "looked at" not in capsys.readouterr().out
    assert not (trained / "pictures").exists()


def test_reproduce_runs_the_controls_on_the_best_checkpoint(tasn_config, tmp_path, capsys):
    arguments = ["reproduce", str(tasn_config), "--seeds", "2", "--workdir", str(tmp_path)]
    assert main([*arguments, "--config.train.steps=4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in out[2:]] == ["tiny attention", "tiny uniform"]
    assert all("| best on validation (step " in line for line in out[2:])
    row = json.loads((tmp_path / "tiny_tasn" / "row.json").read_text())
    for seed, value in enumerate(row["figures"]["accuracy"]["values"]):
        folder = tmp_path / "tiny_tasn" / f"seed{seed}"
        results = json.loads((folder / "summary.json").read_text())["results"]
        tested = {r["checkpoint"]: r for r in results if r["split"] == "test"}
        assert value == tested.get("best", tested["last"])["figures"]["accuracy"]
    assert (tmp_path / "tiny_tasn-uniform" / "row.json").exists()
    capsys.readouterr()
    again = [*arguments, "--controls=false", "--config.train.steps=4"]
    assert main(again) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_weights_for_both_backbones(trained, tasn_config, tmp_path, capsys):
    from safetensors.numpy import save_file

    from fgkd_jax.cli.results import restore
    from fgkd_jax.train.pretrained import to_torch_state_dict

    variables = restore(str(trained), checkpoint="last").state.variables()
    files = {}
    for part in ("backbone", "attention_backbone"):
        files[part] = str(tmp_path / f"{part}.safetensors")
        arrays = to_torch_state_dict(variables, backbone=part, head=None)
        save_file(
            {name: np.ascontiguousarray(value) for name, value in arrays.items()}, files[part]
        )
    command = ["train", "--config", str(tasn_config), "--workdir", str(tmp_path / "run")]
    overrides = [
        f"--config.pretrained.path={files['backbone']}",
        f"--config.pretrained.others.attention_backbone={files['attention_backbone']}",
        "--config.train.steps=1",
        "--config.optim.learning_rate=0.0",
    ]
    assert main([*command, *overrides]) == 0
    started = restore(str(tmp_path / "run"), checkpoint="last").state.params
    for part in files:
        kernel = started[part]["stem"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, variables["params"][part]["stem"]["conv"]["kernel"])
    capsys.readouterr()
    wrong = [overrides[0], f"--config.pretrained.others.atention={files['backbone']}"]
    assert main([*command[:-1], str(tmp_path / "other"), *wrong]) == 2
    assert "atention" in capsys.readouterr().err.splitlines()[-1]
