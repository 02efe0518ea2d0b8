"""The soak leaves no process behind, however it ends."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOAK = ROOT / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(ready, *, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid):
    """Whether a process has not ended; it may still wait for its parent to hear of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def started(soak, tmp_path):
    """Paths of a leg whose config takes as long as it is let."""
    config = tmp_path / "slow.py"
    config.write_text("import time\ntime.sleep(600)\n")
    paths = {"config": config, "workdir": tmp_path / "run", "cache": tmp_path / "cache"}
    return {**paths, "logs": tmp_path}


def test_a_leg_that_is_late_ends_with_all_its_processes(soak, started):
    seen = []

    def late():
        with soak.Leg(started, "late", seconds=0.2) as leg:
            wait_for(lambda: len(leg.ranks()) == 2)
            seen.extend([leg.launcher.pid, *leg.ranks()])
            assert set(soak.left_over(started["workdir"])) >= set(seen)
            leg.wait()

    with pytest.raises(RuntimeError, match=r"^a leg did not end within 0\.2 s$"):
        late()
    assert soak.left_over(started["workdir"]) == []
    assert not any(map(runs, seen))


def test_what_outlives_its_launcher_is_found_and_ended(soak, started):
    """Each process has a session of its own, and what it starts may have a command of its own."""
    with soak.Leg(started, "orphans", seconds=60.0) as leg:
        wait_for(lambda: len(leg.ranks()) == 2)
        ranks = leg.ranks()
        other = subprocess.Popen(
            ["sleep", "600"], env={soak.MARK: str(started["workdir"])}, start_new_session=True
        )
        leg.launcher.kill()
        leg.wait()
        assert other.pid in soak.left_over(started["workdir"])
    assert other.wait(timeout=10) == -signal.SIGKILL
    assert soak.left_over(started["workdir"]) == []
    wait_for(lambda: not any(map(runs, ranks)), seconds=10)


def test_a_soak_that_is_told_to_stop_leaves_nothing(soak, tmp_path):
    command = [sys.executable, str(SOAK), "--stops=1", "--steps=100000"]
    folder = tmp_path / "soak"
    command += [f"--folder={folder}", f"--output={tmp_path / 'soak.json'}"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    one = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(soak.left_over(folder / "whole")) >= 3)
        one.send_signal(signal.SIGTERM)
        assert one.wait(timeout=120) == 128 + signal.SIGTERM
        assert soak.left_over(folder / "whole") == []
    finally:
        one.kill()
        one.wait()
        soak.end_all(folder / "whole")
    assert not (tmp_path / "soak.json").exists()
