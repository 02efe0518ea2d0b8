"""Two processes by two devices train every method as one process by four devices does.

What takes longest is compiling, for which a machine of two cores takes a few minutes: those methods
that are variants or parts of others are tried with `-m long`; parameters that devices share, method
by method, and runs that go on as another number of processes with `-m release`.
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
ALWAYS = (
    *("classifier", "tasn", "pma", "msdn", "mcl", "lmcl"),
    "defeat_retinanet",
)
REST = (
    *("kd", "afd", "mcl_moco", "mcl_bank", "lmcl_bank", "pma_vision", "pma_text", "pma_student"),
    *("retinanet", "faster_rcnn", "defeat_faster_rcnn"),
)
SHARED = ("kd", "tasn", "pma", "mcl_moco", "lmcl", "defeat_retinanet")
"""A teacher's weights, averaged weights and queues, second steps, boxes."""
MOVED = ("classifier", "classifier:shared", "mcl_bank")
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


def run(folder, commands, *trainings):
    """Trains side by side.

    Args:
      trainings: of each, how many processes, and the arguments of the worker.
    """
    launcher = [sys.executable, str(LAUNCHER), "--processes", "2", "--"]
    started = []
    for i, (count, arguments) in enumerate(trainings):
        worker = [sys.executable, str(WORKER), str(folder), *arguments]
        command = {1: worker, 2: [*launcher, *worker]}[count]
        log = folder / f"{i}.log"
        with log.open("w") as file:
            process = commands.start(command, stdout=file, stderr=file, env=environment())
        started.append((process, log))
    with commands:  # none outlives this, in time or not
        for process, log in started:
            assert process.wait(timeout=1500) == 0, log.read_text()[-3000:]


def prepared(folder):
    write_photographs(folder / "photographs")
    write_scenes(folder / "scenes")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, module_commands):
    folder = prepared(tmp_path_factory.mktemp("processes"))
    cases = [*ALWAYS, "classifier:shared"]
    run(folder, module_commands, (1, cases), (2, cases))
    return folder


@pytest.fixture(scope="module")
def rest(tmp_path_factory, module_commands):
    folder = prepared(tmp_path_factory.mktemp("rest"))
    run(folder, module_commands, (1, REST), (2, REST))
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory, module_commands):
    folder = prepared(tmp_path_factory.mktemp("shared"))
    parts = [f"{name}:shared" for name in SHARED]
    run(folder, module_commands, (1, ["--runs=whole", *SHARED]), (1, ["--runs=parts", *parts]))
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory, module_commands):
    """Runs that stop, amid an epoch, and go on into the next as another number of processes."""
    folder, first = prepared(tmp_path_factory.mktemp("moved")), ["--steps=2", *MOVED]
    run(
        folder,
        module_commands,
        (1, ["--runs=never", "--steps=5", *MOVED]),
        (2, ["--runs=to_one", *first]),
        (1, ["--runs=to_two", *first]),
    )
    then = ["--from_step=2", "--steps=5", *MOVED]
    run(folder, module_commands, (1, ["--runs=to_one", *then]), (2, ["--runs=to_two", *then]))
    return folder


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir):
    with np.load(workdir / "state.npz") as archive:
        return dict(archive)


def check(workdir, other, *, steps=2, rtol=1e-4, of_gradients=1e-3):
    """Compares what is logged and all that is kept: parameters, statistics, queues, banks.

    Gradients pass through batch norms and temperatures, which multiply what the order of a sum
    makes of the last digits, or end at a ReLU's zero; what the optimiser keeps of them is compared
    by its largest value.
    """
    ours, expected = lines(workdir), lines(other)
    assert [line["step"] for line in ours if line["split"] == "train"] == list(range(1, steps + 1))
    assert [line.keys() for line in ours] == [line.keys() for line in expected]
    for line, theirs in zip(ours, expected, strict=True):
        assert line.pop("split") == theirs.pop("split")
        for figure, value in line.items():
            near = pytest.approx(theirs[figure], rel=2e-4, abs=1e-6)
            assert value == near or figure == "compilations", (line["step"], figure)
        if "loss" in line:
            assert line["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    kept, others = arrays(workdir), arrays(other)
    assert kept.keys() == others.keys()
    for path, value in kept.items():
        near = {"rtol": rtol, "atol": rtol / 10}
        if path.startswith("opt_state"):
            largest = np.abs(others[path]).max(initial=0.3)
            near = {"rtol": of_gradients, "atol": of_gradients * largest}
        np.testing.assert_allclose(value, others[path], **near, err_msg=path)


@pytest.mark.parametrize("name", ALWAYS)
def test_two_processes_train_a_method_as_one_does(name, folder):
    check(folder / "2" / name, folder / "1" / name)


@pytest.mark.long
@pytest.mark.parametrize("name", REST)
def test_two_processes_train_the_other_methods_as_one_does(name, rest):
    check(rest / "2" / name, rest / "1" / name)


def test_every_method_is_tried():
    assert sorted([*ALWAYS, *REST]) == sorted(METHODS)


@pytest.mark.parametrize("count", ["1", "2"])
def test_parameters_shared_by_both_processes_come_to_the_same(count, folder):
    """After a checkpoint that both wrote their parts of, and both read back."""
    runs = folder / count
    check(runs / "classifier:shared", runs / "classifier", rtol=1e-6, of_gradients=1e-6)


@pytest.mark.release
@pytest.mark.parametrize("name", SHARED)
def test_parameters_shared_by_devices_come_to_the_same_in_a_method(name, shared):
    check(
        shared / "parts" / f"{name}:shared", shared / "whole" / name, rtol=1e-6, of_gradients=1e-6
    )


@pytest.mark.release
@pytest.mark.parametrize("case", MOVED)
@pytest.mark.parametrize("runs", ["to_one", "to_two"])
def test_a_run_goes_on_as_another_number_of_processes(case, runs, moved):
    check(moved / runs / case, moved / "never" / case, steps=5)
