"""What is wrong with a run of two processes is said in one line, by the command."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = ROOT / "launch" / "local" / "launch.py"
TRAIN = f"exec {sys.executable} -m fgkd_jax.cli.main train"


def environment():
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


LAUNCH = [sys.executable, str(LAUNCHER), "--processes=2", "--devices=1", "--"]


@pytest.fixture
def refused(run_to_the_end):
    """Runs a command whose arguments may name $JAX_PROCESS_ID; returns the lines that were said."""

    def run(arguments):
        command = [*LAUNCH, "sh", "-c", f"{TRAIN} {arguments}"]
        done = run_to_the_end(command, env=environment(), timeout=300)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stdout
        return [line[4:] for line in done.stdout.splitlines() if line[4:].startswith("fgkd: ")]

    return run


def one_line(lines):
    """What is the same on all that said it."""
    told = r"^fgkd: (rank \d: )?(ends because rank \d failed: )?(error: )?"
    (line,) = {re.sub(told, "", line) for line in lines}
    return line


def test_other_configs_are_refused(refused, config, tmp_path):
    arguments = f"--config {config} --workdir {tmp_path / 'run'} --config.seed=$JAX_PROCESS_ID"
    assert one_line(refused(arguments)) == (
        "the processes were given another config: seed is 0 on rank 0 and 1 on rank 1; expected "
        "the same config on all"
    )
    assert not (tmp_path / "run").exists(), "a run that is refused leaves nothing"


def test_other_data_are_refused(refused, config, tmp_path):
    for rank in range(2):
        for name in ("blue", "green", "red"):
            for split in ("train", "validation", "test"):
                folder = tmp_path / f"data{rank}" / split / name
                folder.mkdir(parents=True)
                image = np.full((8, 8, 3), 90, np.uint8)
                for i in range(8 + rank):
                    cv2.imwrite(str(folder / f"{i}.png"), image)
    data = f"--config.data.data_dir={tmp_path}/data$JAX_PROCESS_ID"
    line = one_line(refused(f"--config {config} --workdir {tmp_path / 'run'} {data}"))
    assert re.fullmatch(
        r"the processes were given another data set: fingerprint is '\w+' on rank 0 and '\w+' on "
        "rank 1; expected the same data set on all",
        line,
    )


def test_other_weights_are_refused(refused, config, tmp_path):
    for rank in range(2):
        np.savez(tmp_path / f"weights{rank}.npz", kernel=np.full(3, rank, np.float32))
    weights = f"--config.pretrained.path={tmp_path}/weights$JAX_PROCESS_ID.npz"
    line = one_line(refused(f"--config {config} --workdir {tmp_path / 'run'} {weights}"))
    assert re.fullmatch(
        r"the processes were given another set of weights: weights sha256 is '\w{64}' on rank 0 "
        r"and '\w{64}' on rank 1; expected the same set of weights on all",
        line,
    )
    assert not any((tmp_path / "run").iterdir()), "a run that is refused leaves nothing"


def test_stored_features_are_refused_before_anything_is_written(refused, config, tmp_path):
    options = (
        "--config.features.views=2 --config.method.frozen_stages=1 --config.method.brightness=0"
    )
    assert one_line(refused(f"--config {config} --workdir {tmp_path / 'run'} {options}")) == (
        "features.views is 2, but there are 2 processes, and features are computed by one alone; "
        "expected 0, or a run of one process"
    )
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused(refused, config, tmp_path):
    arguments = f"--config {config} --workdir {tmp_path}/run$JAX_PROCESS_ID"
    lines = refused(arguments)
    for line in lines:
        assert re.search(
            r"/run\d is not the same folder on all processes: rank 1 does not see what rank 0 "
            "writes there; expected a file system that all of them share$",
            line,
        )
    assert lines


def test_a_mesh_that_does_not_fit_is_refused(refused, config, tmp_path):
    arguments = f"--config {config} --workdir {tmp_path / 'run'} --config.mesh.data="
    assert one_line(refused(f"{arguments}3")) == "mesh.data is 3, but there are only 2 cpu devices"
    assert one_line(refused(f"{arguments}1")) == (
        "mesh.data is 1; a run of several processes uses all 2 devices"
    )


def test_a_coordinator_that_is_not_there_is_named_within_the_timeout(
    run_to_the_end, config, tmp_path
):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    command = [sys.executable, "-m", "fgkd_jax.cli.main", "train", "--config", str(config)]
    command += ["--workdir", str(tmp_path / "run"), f"--coordinator={address}"]
    command += ["--num_processes=2", "--process_id=1", "--coordinator_timeout=1"]
    started = time.monotonic()
    done = run_to_the_end(command, env=environment(), timeout=300)
    assert done.returncode == 13
    assert re.fullmatch(
        rf"fgkd: error: coordinator {re.escape(address)} was not reached within 1 s: .*\n",
        done.stderr,
    )
    assert time.monotonic() - started < 120


def test_nothing_is_left_of_a_run_that_takes_too_long(commands, tmp_path):
    """Each process has a session of its own, starts another, and does not end when asked to."""
    files = [tmp_path / f"started{rank}" for rank in range(2)]
    stubborn = f"trap '' TERM; sleep 600 & touch {tmp_path}/started$JAX_PROCESS_ID; wait; sleep 600"
    process = commands.start([*LAUNCH, "sh", "-c", stubborn], env=environment())
    deadline = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(commands.left()) >= 5, "the launcher, two processes and what these started"
    with pytest.raises(subprocess.TimeoutExpired), commands:
        process.wait(timeout=0.1)
    assert commands.left() == []
    assert process.returncode == -signal.SIGKILL
