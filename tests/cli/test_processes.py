"""Two processes by two devices train every method as one process by four devices does.

What takes longest is compiling, for which a machine of two cores takes a few minutes: those methods
that are variants of others are tried with `-m long`.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fgkd_jax.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = Path(__file__).with_name("every_method_worker.py")
ALWAYS = ("classifier", "kd", "tasn", "pma", "msdn", "mcl", "mcl_moco", "lmcl", "retinanet")
REST = (
    *("afd", "mcl_bank", "lmcl_bank", "pma_vision", "pma_text", "pma_student"),
    *("faster_rcnn", "defeat_retinanet", "defeat_faster_rcnn"),
)
LAUNCHER = ROOT / "launch" / "local" / "launch.py"


def write_photographs(root):
    """Squares of three colours, with ten captions each that say which."""
    for k, name in enumerate(("blue", "green", "red")):
        (root / "text_c10" / name).mkdir(parents=True)
        for split, count in (("train", 8), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.random.default_rng([k, i]).integers(0, 99, (12, 12, 3), np.uint8)
                image[..., k] += 120
                cv2.imwrite(str(root / split / name / f"{split}{i}.png"), image)
                text = "\n".join(f"a {name} square with {n} dark spots" for n in range(2, 12))
                (root / "text_c10" / name / f"{split}{i}.txt").write_text(text)


def write_scenes(root):
    """Noise with a bright square in most."""
    for split, first in (("train", 100), ("test", 200)):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(8):
            image = np.random.default_rng([i, first]).integers(0, 90, (24, 32, 3), np.uint8)
            images.append({"id": first + i, "file_name": f"{i}.png", "height": 24, "width": 32})
            if i % 4:
                image[3:17, 2 + i : 16 + i, i % 2] = 250
                annotations.append(
                    {"id": i, "image_id": first + i, "category_id": (3, 7)[i % 2],
                     "bbox": [2 + i, 3, 14, 14], "area": 196, "iscrowd": 0}
                )  # fmt: skip
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
        categories = [{"id": 3, "name": "green"}, {"id": 7, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))


def environment():
    """Little is computed here, and much compiled: the compiler is told not to try hard."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def run_both(folder, cases, commands):
    """Trains as one process and as two, side by side; each writes into a folder of its number."""
    write_photographs(folder / "photographs")
    write_scenes(folder / "scenes")
    worker = [sys.executable, str(WORKER), str(folder), *cases]
    launcher = [sys.executable, str(LAUNCHER), "--processes", "2", "--"]
    started = {}
    for count, command in {"1": worker, "2": [*launcher, *worker]}.items():
        with (folder / f"{count}.log").open("w") as log:
            started[count] = commands.start(command, stdout=log, stderr=log, env=environment())
    with commands:  # none outlives this, in time or not
        for count, process in started.items():
            assert process.wait(timeout=1500) == 0, (folder / f"{count}.log").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, module_commands):
    return run_both(tmp_path_factory.mktemp("processes"), [*ALWAYS, "shared"], module_commands)


@pytest.fixture(scope="module")
def rest(tmp_path_factory, module_commands):
    return run_both(tmp_path_factory.mktemp("rest"), REST, module_commands)


def lines(folder, count, case):
    text = (folder / count / case / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def arrays(folder, count, case):
    with np.load(folder / count / case / "params.npz") as archive:
        return dict(archive)


def check(folder, name):
    ours, expected = lines(folder, "2", name), lines(folder, "1", name)
    assert [line["step"] for line in ours if line["split"] == "train"] == [1, 2]
    assert [line.keys() for line in ours] == [line.keys() for line in expected]
    for line, other in zip(ours, expected, strict=True):
        assert line.pop("split") == other.pop("split")
        for figure, value in line.items():
            assert value == pytest.approx(other[figure], rel=2e-4, abs=1e-6), (line["step"], figure)
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    theirs = arrays(folder, "1", name)
    for path, value in arrays(folder, "2", name).items():
        np.testing.assert_allclose(value, theirs[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ALWAYS)
def test_two_processes_train_a_method_as_one_does(name, folder):
    check(folder, name)


@pytest.mark.long
@pytest.mark.parametrize("name", REST)
def test_two_processes_train_the_other_methods_as_one_does(name, rest):
    check(rest, name)


def test_every_method_is_tried():
    assert sorted([*ALWAYS, *REST]) == sorted(METHODS)


@pytest.mark.parametrize("count", ["1", "2"])
def test_parameters_shared_by_both_processes_come_to_the_same(count, folder):
    """After a checkpoint that both wrote their parts of, and both read back."""
    expected = arrays(folder, count, "classifier")
    for path, value in arrays(folder, count, "shared").items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-6, atol=1e-6, err_msg=path)
    ours, theirs = (lines(folder, count, case) for case in ("shared", "classifier"))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs])
