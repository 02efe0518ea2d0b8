"""Several processes: they meet, agree, train as one does, and end together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from fgkd_jax.errors import EXIT_STATUS, Preempted, UserError, told
from fgkd_jax.train import distributed
from fgkd_jax.train.places import Place, ProcessOptions, find_place, shows_a_job_of_several
from fgkd_jax.train.processes import check_same, check_shared, gather
from fgkd_jax.train.termination import Termination, ending_at_once

WORKER = Path(__file__).with_name("process_worker.py")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment() -> dict[str, str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}


def run_two(what, workdir, *, limit=120.0):
    """Runs two processes into one log; returns statuses, the log, and the times of the ends."""
    address = f"127.0.0.1:{free_port()}"
    log = workdir / f"{what}.log"
    with log.open("w") as file:
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER), address, str(rank), what, str(workdir)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
            for rank in range(2)
        ]
        ends: dict[int, float] = {}
        deadline = time.monotonic() + limit
        try:
            while len(ends) < 2 and time.monotonic() < deadline:
                for rank, process in enumerate(processes):
                    if rank not in ends and process.poll() is not None:
                        ends[rank] = time.monotonic()
                time.sleep(0.02)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    text = log.read_text()
    assert len(ends) == 2, f"still running after {limit} s:\n{text}"
    return [process.returncode for process in processes], text, ends


def said(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("fgkd: ")]


def losses(workdir) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {one["step"]: one["loss"] for one in map(json.loads, lines)}


def alone(workdir, *, steps):
    """The same run in this process, on four of its devices."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("process_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("process_worker", worker)
    spec.loader.exec_module(worker)
    return worker.train(workdir, steps=steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    statuses, log, _ = run_two("train", workdir)
    assert statuses == [0, 0], log
    return workdir, log


def test_two_processes_by_two_devices_train_as_one_by_four(trained, tmp_path):
    workdir, _ = trained
    alone(tmp_path, steps=2)
    ours, expected = losses(workdir), losses(tmp_path)
    assert list(ours) == [1, 2]
    np.testing.assert_allclose([*ours.values()], [*expected.values()], rtol=1e-6)


def test_what_differs_between_the_processes_is_refused_on_all_of_them(trained):
    workdir, log = trained
    found = [json.loads(line) for line in log.splitlines() if line.startswith('["refused')]
    by_rank = {rank: lines for _, rank, *lines in found}
    lines = [by_rank[0], by_rank[1]]
    assert lines[0][:2] == lines[1][:2] == [
        "the processes were given another config: seed is 0 on rank 0 and 1 on rank 1; "
        "expected the same config on all",
        "the processes were given another data set: fingerprint is 'f0' on rank 0 and 'f1' on "
        "rank 1; expected the same data set on all",
    ]  # fmt: skip
    for rank, (*_, line) in enumerate(lines):
        folder = re.escape(str(workdir / str(rank)))
        assert re.match(rf"{folder} is not the same folder .*: rank 1 does not see", line)
    assert [len(one) for one in lines] == [3, 3], "what is the same is not refused"
    assert not list(workdir.rglob(".seen-by-all*"))


def test_an_exception_in_one_rank_ends_the_job_at_once(tmp_path):
    statuses, log, ends = run_two("fail", tmp_path)
    assert statuses == [distributed.FAILED] * 2, log
    (raised,) = (json.loads(line)[1] for line in log.splitlines() if line.startswith('["raised'))
    assert max(ends.values()) - raised < 10
    error = "error: RuntimeError: the disk of this host is on fire"
    first, *others = said(log)
    assert first == f"fgkd: rank 1: {error}"
    assert others == [f"fgkd: rank 0: ends because rank 1 failed: {error}"]
    assert log.index("Traceback") < log.index(first), "the traceback comes with it"
    assert log.count("Traceback") == 1, "that of rank 1 alone"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_vanishes_is_told_by_the_other(rank, tmp_path):
    statuses, log, _ = run_two(f"vanish {rank}", tmp_path, limit=90)
    assert statuses[rank] == -signal.SIGKILL
    if statuses[1 - rank] == -signal.SIGABRT:  # JAX, which lost the coordinator, was first
        assert rank == 0
        assert "another task died" in log
        return
    assert statuses[1 - rank] == distributed.FAILED, log
    (line,) = said(log)
    told = f"fgkd: rank {1 - rank}: error: a connection to another process broke; its log may say"
    assert line.startswith(f"{told} why: "), log


def test_sigterm_saves_the_same_step_and_one_process_goes_on(tmp_path):
    statuses, log, _ = run_two("preempt", tmp_path)
    assert statuses == [75, 75], log
    told = {json.loads(line) for line in log.splitlines() if line.startswith('"stopped')}
    (line,) = told  # of both processes the same
    step = int(re.fullmatch(r"stopped: asked to stop; step (\d+) of 200 is saved", line)[1])
    assert 3 <= step < 100
    assert [p.name for p in (tmp_path / "checkpoints" / "last").iterdir()] == [str(step)]
    resumed = alone(tmp_path, steps=200)
    np.testing.assert_allclose(resumed, alone(tmp_path / "alone", steps=200), atol=1e-6)
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_the_watchdog_ends_a_job_whose_peer_hangs(tmp_path):
    statuses, log, ends = run_two("hang", tmp_path)
    assert statuses == [distributed.FAILED] * 2, log
    assert abs(ends[0] - ends[1]) < 10
    assert re.fullmatch(
        r"fgkd: rank [01]: error: no step was finished for 2 s; a peer may hang", said(log)[0]
    )
    assert "most recent call first" in log, "the threads are shown, with the call that hangs"


@pytest.mark.parametrize(("when", "rank"), [("before", 0), ("after", 1)])
def test_sigterm_without_a_step_under_way_ends_all_at_once(when, rank, tmp_path):
    statuses, log, ends = run_two(f"stopped {when}", tmp_path, limit=60)
    assert statuses == [75, 75], log
    assert abs(ends[0] - ends[1]) < 10
    line = "asked to stop, with no step under way"
    assert said(log) == [
        f"fgkd: rank {rank}: stopped: {line}",
        f"fgkd: rank {1 - rank}: ends because rank {rank} was stopped: {line}",
    ]
    assert "Traceback" not in log


def test_sigterm_while_the_last_step_is_saved_is_not_lost(tmp_path):
    statuses, log, _ = run_two("stopped between", tmp_path, limit=60)
    assert statuses == [75, 75], log
    told = [json.loads(line) for line in log.splitlines() if line.startswith('"stopped')]
    assert told == ["stopped: asked to stop; all steps are saved, and not all is evaluated"] * 2


def test_sigterm_does_not_change_the_status_of_a_process_that_fails(tmp_path):
    statuses, log, _ = run_two("told while failing", tmp_path, limit=60)
    assert statuses == [2, 2], log
    line = "error: workdir is not one"
    assert said(log) == [
        f"fgkd: rank 0: {line}",
        f"fgkd: rank 1: ends because rank 0 failed: {line}",
    ]


def test_an_exception_ends_those_who_wait_for_the_end(tmp_path):
    statuses, log, ends = run_two("fail late", tmp_path, limit=60)
    assert statuses == [distributed.FAILED] * 2, log
    assert abs(ends[0] - ends[1]) < 10
    error = "error: RuntimeError: the disk of this host is on fire"
    assert said(log) == [
        f"fgkd: rank 1: {error}",
        f"fgkd: rank 0: ends because rank 1 failed: {error}",
    ]


def test_the_watchdog_ends_a_job_that_does_not_begin(tmp_path):
    statuses, log, ends = run_two("never begin", tmp_path, limit=60)
    assert statuses == [distributed.FAILED] * 2, log
    assert abs(ends[0] - ends[1]) < 10
    assert "error: the first step was not begun within 2 s; a peer may hang, or" in said(log)[0]
    assert "most recent call first" in log


def test_each_limit_holds_in_its_own_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(distributed, "time", types.SimpleNamespace(monotonic=lambda: now))
    job = distributed.Job(step_timeout=20, start_timeout=10)
    now += 10
    job.beat()
    assert job.late() is None
    now += 1
    assert "the first step was not begun within 10 s" in job.late()
    job.after_step(1)
    now += 20
    assert job.late() is None, "steps have begun, and this one is within its limit"
    job.beat()
    now += 20
    assert job.late() is None, "a batch of an evaluation was finished meanwhile"
    now += 1
    assert "no step was finished for 20 s" in job.late()
    job.steps_are_over()
    job.beat()
    now += 1000
    assert job.late() is None

    without_steps = distributed.Job(step_timeout=20, start_timeout=10)
    without_steps.steps_are_over()
    now += 1000
    assert without_steps.late() is None, "a run that was finished before"


def test_an_unreachable_coordinator_is_named_within_the_timeout():
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    options = ProcessOptions(address, 2, 1, timeout=0.5)
    with (
        pytest.raises(
            UserError, match=rf"coordinator {address} was not reached within 0.5 s: "
        ) as e,
        distributed.job(options),
    ):
        raise AssertionError("there is nobody to meet")
    assert time.monotonic() - started < 5
    assert told(e.value)[1] == distributed.FAILED, "the same command may meet them"


def test_a_coordinator_that_nobody_comes_to_says_so(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    script = (
        "from fgkd_jax.train import distributed as d; from fgkd_jax.train.places import *\n"
        f"with d.job(ProcessOptions({address!r}, 2, 0, timeout=1.0)): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == distributed.FAILED, "the same command may meet them"
    line = f"fgkd: error: coordinator {address}: not all of 2 processes came within 1 s"
    assert said(done.stderr) == [line]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_ends_a_process_that_waits_to_meet_the_others(rank):
    address = f"127.0.0.1:{free_port()}"
    script = (
        "import fgkd_jax.train.meeting as m; from fgkd_jax.train.places import *\n"
        "from fgkd_jax.train import distributed as d\n"
        "wait = m._connect\n"
        "m._connect = lambda *a, **k: (print('waits', flush=True), wait(*a, **k))\n"
        f"with d.job(ProcessOptions({address!r}, 2, {rank}, timeout=60.0)): pass"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, **pipes, env=environment()) as process:
        try:
            assert process.stdout.readline() == "waits\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == EXIT_STATUS[Preempted]
    assert said(errors) == ["fgkd: stopped: SIGTERM came before all processes did"]


def test_a_signal_that_another_ignores_is_left_ignored():
    """As at the end of a process of several: its scheduler may send the signal while it ends."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with ending_at_once("stopped: too early"):
            mine = signal.getsignal(signal.SIGTERM)
            inner = Termination(lambda number, frame: None, watched=True)
            inner.give_back()
            assert signal.getsignal(signal.SIGTERM) is mine
            Termination(lambda number, frame: None, watched=True).ignore()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_alone_stops_at_sigterm_and_gives_the_signal_back():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.job(ProcessOptions(detect="off")) as job:
        assert (job.rank, job.count) == (0, 1)
        assert not job.after_step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert job.after_step(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_alone_that_is_asked_to_stop_at_the_last_step_says_so():
    def body():
        with distributed.job(ProcessOptions(detect="off")) as job:
            job.after_step(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert job.after_step(2)
            job.steps_are_over()

    with pytest.raises(Preempted, match="all steps are saved"):
        body()


def test_a_job_that_nobody_entered_leaves_signals_alone():
    before, job = signal.getsignal(signal.SIGTERM), distributed.Job()
    job.after_step(1)
    job.steps_are_over()
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_are_not_missing_where_jax_was_used_before():
    jax.devices()
    with (
        pytest.raises(UserError, match="must be called before any JAX calls") as raised,
        distributed.job(ProcessOptions(f"127.0.0.1:{free_port()}", 2, 0, timeout=60)),
    ):
        raise AssertionError("JAX cannot be told any more")
    assert told(raised.value)[1] == 2, "the same command would fail again"
    assert jax.config.jax_enable_preemption_service, "what was changed meanwhile is changed back"


@pytest.mark.parametrize("over", [False, True])
def test_a_process_alone_ends_at_once_where_no_step_is_under_way(over):
    def body():
        with distributed.job(ProcessOptions(detect="off")) as job:
            if over:
                job.after_step(1)
                job.steps_are_over()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="asked to stop, with no step under way"):
        body()


def test_a_process_that_is_found_to_be_alone_stops_at_sigterm():
    script = (
        "import os, signal\n"
        "from fgkd_jax.train import distributed as d; from fgkd_jax.train.places import *\n"
        "with d.job(ProcessOptions(detect='on')) as job:\n"
        "    print(job.count, job.after_step(1))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(job.after_step(2))"
    )
    slurm = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**environment(), **slurm},
    )
    assert done.stdout.split() == ["1", "False", "True"], done.stderr
    assert done.returncode == 0


def test_a_thread_cannot_take_signals_and_runs_all_the_same():
    seen = []

    def body():
        with distributed.job(ProcessOptions(detect="off")) as job:
            seen.append(job.after_step(1))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_one_process_agrees_with_itself(tmp_path):
    assert gather({"a": 1}) == [{"a": 1}]
    check_same({"a": 1}, what="config")
    check_shared(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "nothing to check, nothing to write"


VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "host:12",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ({}, {}, None),
        ({"num_processes": 1}, {}, None),
        ({}, VARIABLES, Place("host:12", 4, 3)),
        ({"process_id": 0}, VARIABLES, Place("host:12", 4, 0)),
        ({"coordinator": "[::1]:9", "num_processes": 2}, VARIABLES | {"JAX_PROCESS_ID": "1"},
         Place("[::1]:9", 2, 1)),
        ({}, SLURM, Place(None, None, None)),
        ({}, SLURM | {"JAX_COORDINATOR_ADDRESS": "n1:7"}, Place("n1:7", None, None)),
        ({"detect": "off"}, SLURM, None),
        ({"detect": "on"}, {}, Place(None, None, None)),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, None),
        ({}, SLURM | VARIABLES, Place("host:12", 4, 3)),
    ],
)  # fmt: skip
def test_flags_come_before_the_environment_and_that_before_detection(options, variables, expected):
    assert find_place(ProcessOptions(**options), variables) == expected


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        ({"coordinator": "a:1"}, {}, "needs num_processes; expected --num_processes or JAX_NUM_P"),
        ({"num_processes": 2, "process_id": 0}, {}, "needs coordinator; expected --coordinator or"),
        ({"process_id": 4}, VARIABLES, "process_id is 4; expected 0 to 3"),
        ({"process_id": -1}, VARIABLES, "process_id is -1; expected 0 to 3"),
        ({"num_processes": 0}, VARIABLES, "num_processes is 0; expected at least 1"),
        ({"coordinator": "host"}, VARIABLES, "coordinator is 'host'; expected HOST:PORT"),
        ({"coordinator": "host:70000"}, VARIABLES, "coordinator is 'host:70000'; expected HOST"),
        ({}, VARIABLES | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is 'x'; expected a whole"),
        ({"timeout": 0.0}, {}, "coordinator_timeout is 0.0; expected more than 0"),
        ({"step_timeout": -1.0}, {}, "step_timeout is -1.0; expected 0 or more"),
        ({"start_timeout": -1.0}, {}, "start_timeout is -1.0; expected 0 or more"),
    ],
)
def test_an_impossible_place_is_told(options, variables, message):
    with pytest.raises(UserError, match=message):
        find_place(ProcessOptions(**options), variables)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        (SLURM, True),
        ({"SLURM_NTASKS": "2"}, False),  # in sbatch's own script, outside srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
    ],
)
def test_a_scheduler_shows_in_the_environment(variables, expected):
    assert shows_a_job_of_several(variables) is expected
