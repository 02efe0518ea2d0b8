"""A run that is killed and started again ends as one that was never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fgkd_jax.cli.main import main
from fgkd_jax.errors import EXIT_STATUS, Preempted
from fgkd_jax.train.array_store import LEFTOVER

STEPS = 60
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


def command(config, workdir, cache):
    return [
        sys.executable, "-m", "fgkd_jax.cli.main", "train",
        "--config", str(config), "--workdir", str(workdir), "--compilation_cache", str(cache),
        f"--config.train.steps={STEPS}", "--config.checkpoint.every_steps=2",
        "--config.train.eval_every=10", "--config.method.backbone.width=24",
    ]  # fmt: skip


def finish(config, workdir, cache):
    done = subprocess.run(
        command(config, workdir, cache), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def kill_when(commands):
    """Starts the run and kills it as soon as `ready` says so."""

    def kill(config, workdir, cache, ready):
        process = commands.start(
            command(config, workdir, cache),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        deadline = time.monotonic() + 120
        while not ready() and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.0005)
        assert ready(), "the moment to kill the run did not come"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    return kill


def saved(workdir):
    folder = workdir / "checkpoints" / "last"
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit())


def being_written(workdir):
    folder = workdir / "checkpoints" / "last"
    return [p for p in folder.glob(f"*{LEFTOVER}") if p.is_dir()]


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(config, folder / "run", folder / "cache")
    return folder


def test_sigkill_at_three_moments_changes_nothing(config, tmp_path, uninterrupted, kill_when):
    workdir, cache = tmp_path / "run", uninterrupted / "cache"
    rng = np.random.default_rng()

    kill_when(config, workdir, cache, lambda: bool(saved(workdir)) and bool(being_written(workdir)))
    caught = being_written(workdir)
    assert caught, "no checkpoint was being written when the run was killed"

    for _ in range(2):
        start = saved(workdir)[-1]
        target = start + int(rng.integers(1, max(2, (STEPS - start) // 2)))
        kill_when(config, workdir, cache, lambda target=target: saved(workdir)[-1] >= target)
        time.sleep(float(rng.uniform(0, 0.05)))
        assert saved(workdir)[-1] < STEPS

    log = finish(config, workdir, cache)
    assert "resumed from step" in log
    whole = uninterrupted / "run"
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    one, other = (json.loads((d / "summary.json").read_text()) for d in (workdir, whole))
    assert one["results"] == other["results"]


@pytest.mark.parametrize("while_it", ["imports JAX", "reads its config"])
def test_sigterm_before_training_began_is_no_failure(commands, tmp_path, while_it):
    slow = "import time\nprint('begins', flush=True)\ntime.sleep(60)\ndef get_config(): ...\n"
    config, environment = tmp_path / "slow.py", ENVIRONMENT
    config.write_text(slow)
    if while_it == "imports JAX":
        (tmp_path / "first" / "jax").mkdir(parents=True)
        (tmp_path / "first" / "jax" / "__init__.py").write_text(slow)
        path = os.pathsep.join([str(tmp_path / "first"), *sys.path])
        environment = {**ENVIRONMENT, "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workdir = tmp_path / "run"
    process = commands.start(command(config, workdir, tmp_path), **pipes, env=environment)
    assert process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_STATUS[Preempted]
    assert errors == "fgkd: stopped: SIGTERM came before training began\n"
    assert not workdir.exists()


def test_training_gives_sigterm_back(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    config = tmp_path / "wrong.py"
    config.write_text(
        "import signal\ntaken = signal.getsignal(signal.SIGTERM)\n"
        "def get_config(): raise ValueError(taken.__qualname__)\n"
    )
    main(["train", "--config", str(config), "--workdir", str(tmp_path / "run")])
    assert "ending_at_once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
