"""Two processes that are asked to stop save the same step; one process goes on from there."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fgkd_jax.cli.main import main
from fgkd_jax.errors import EXIT_STATUS, Preempted

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = ROOT / "launch" / "local" / "launch.py"
STEPS = 120
OPTIONS = (
    f"--config.train.steps={STEPS} --config.train.eval_every=20 --config.checkpoint.every_steps=20"
    " --config.mesh.data=4 --config.optim.learning_rate=0.01"
    " --config.method.backbone.stage_sizes=1, --config.method.backbone.strides=2,"
    " --config.method.backbone.dilations=1,"
)
ON_ONE = ("--processes=1", "--devices=4")


def command(*, where, config, workdir, pids):
    python = f"{sys.executable} -m fgkd_jax.cli.main"
    train = f"{python} train --config {config} --workdir {workdir} {OPTIONS}"
    script = f"echo $$ > {pids}$JAX_PROCESS_ID; exec {train}"
    return [sys.executable, str(LAUNCHER), *where, "--", "sh", "-c", script]


def environment():
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}


def weights(workdir, output):
    assert main(["export", "--workdir", str(workdir), "--output", str(output)]) == 0
    return load_file(output)


def lines(workdir):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {(one["step"], one["split"]): one for one in read}


def stopped(commands, arguments, log):
    """Sends SIGTERM to rank 1 once a checkpoint is there; returns the launcher's status."""
    with log.open("w") as file:
        process = commands.start(
            command(where=("--processes=2", "--devices=2"), **arguments),
            stdout=file,
            stderr=file,
            env=environment(),
        )
    deadline = time.monotonic() + 300
    while not (arguments["workdir"] / "checkpoints" / "last" / "20").exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(int(Path(f"{arguments['pids']}1").read_text()), signal.SIGTERM)
    return process.wait(timeout=120)


@pytest.mark.long  # test_distributed stops and continues a smaller run, always
def test_a_stop_of_two_processes_is_continued_by_one(commands, run_to_the_end, config, tmp_path):
    arguments = {"config": config, "pids": tmp_path / "pid"}
    run, log = {**arguments, "workdir": tmp_path / "run"}, tmp_path / "log"
    assert stopped(commands, run, log) == EXIT_STATUS[Preempted], log.read_text()
    said = [line for line in log.read_text().splitlines() if "stopped: " in line]
    (told,) = {line.partition("stopped: ")[2] for line in said}
    step = int(re.fullmatch(rf"asked to stop; step (\d+) of {STEPS} is saved", told)[1])
    assert 20 <= step < STEPS
    assert str(step) in os.listdir(tmp_path / "run" / "checkpoints" / "last")
    assert commands.left() == []
    assert re.findall(r"^\[(\d)\] step ", log.read_text(), re.MULTILINE), "progress is shown"
    assert not re.search(r"^\[1\] (step|resumed|split) ", log.read_text(), re.MULTILINE)

    whole = {**arguments, "workdir": tmp_path / "whole"}
    for one in (run, whole):
        done = run_to_the_end(command(where=ON_ONE, **one), env=environment(), timeout=300)
        assert done.returncode == 0, done.stdout
    ours, expected = lines(tmp_path / "run"), lines(tmp_path / "whole")
    asked = {(step, "train")} - expected.keys()  # a stop ends a window of the averages
    assert ours.keys() - asked == expected.keys()
    ours, expected = (weights(one["workdir"], tmp_path / f"{i}.safetensors")
                      for i, one in enumerate((run, whole)))  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
