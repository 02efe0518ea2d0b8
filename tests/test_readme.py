"""The worked example of the README is run as it stands there."""

import json
import re
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from fgkd_jax import methods
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"name": "focal", "width": 4, "gamma": 1.5},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 16,
                 "train_geometry": "resize", "eval_geometry": "resize"},
        "train": {"steps": 2, "batch_size": 4, "eval_batch_size": 4, "tensorboard": "off"},
        "mesh": {"data": 2},
    })
"""


@pytest.fixture
def focal(monkeypatch):
    """The method of the README's code block, registered as its steps say."""
    section = README.split("## Adding a method")[1]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    module = types.ModuleType("focal")
    exec(compile(code, "README.md", "exec"), module.__dict__)
    monkeypatch.setitem(methods.METHODS, "focal", module.Focal)
    return module.Focal


def test_the_worked_example_trains_resumes_and_predicts(focal, tmp_path, capsys):
    data = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (data / split / name).mkdir(parents=True)
            for i in range(4):
                image = np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)
                cv2.imwrite(str(data / split / name / f"{i}.png"), image)
    config = tmp_path / "focal_birds.py"
    config.write_text(CONFIG % str(data))
    arguments = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
    assert main(arguments) == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < line["loss/focal"] < 1
    assert main(arguments) == 0
    image = data / "test" / "a" / "0.png"
    assert main(["predict", "--workdir", str(tmp_path / "run"), str(image)]) == 0
    assert str(image) in capsys.readouterr().out


def test_the_notebook_example_gives_one_value_per_example():
    section = README.split("## From a notebook")[1]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    *setup, last = code.strip().splitlines()
    scope = {}
    exec("\n".join(setup), scope)
    values = eval(last.split("  #")[0], scope)
    np.testing.assert_allclose(values, [np.log(10)] * 2, rtol=1e-6)


def test_the_sampler_example_runs():
    section = README.split("The sampler is a function like any other.")[1]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    *setup, last = code.strip().splitlines()
    scope = {}
    exec("\n".join(setup), scope)
    assert eval(last.split("  #")[0], scope).shape == (2, 224, 224, 3)


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert not re.findall(r"<!-- [^>]*(output|table) -->", README)


def test_the_results_table_names_configs_that_exist():
    section = README.split("## Results")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    commands = re.findall(r"`fgkd (?:reproduce|train --config) (\S+)", section)
    assert rows
    assert len(commands) == len(rows)
    for name in commands:
        load_config(name)  # with its variant
