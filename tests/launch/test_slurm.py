"""A SLURM cluster of two nodes on this machine: a job is preempted, queued again, and finishes.

    pytest -m slurm tests/launch

needs Debian's `slurm-wlm` and root. The cluster has a folder of its own, ports of its own and no
`munge`; it ends with the test, and so do all processes that it started, however they take it.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
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
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "srun", "sinfo")
STEPS = 300
FREE_STEPS = 10
PREEMPTED_WITHIN = 120
"""Seconds. The first start takes a second for each step after the free ones, on any machine: the
run is not over before the urgent job comes."""
assert STEPS - FREE_STEPS > 2 * PREEMPTED_WITHIN

pytestmark = pytest.mark.slurm

CONF = """
ClusterName=fgkd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def free_ports(count):
    """Ports that nobody listens on; found together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(what, ready, *, seconds, log=lambda: ""):
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{log()}"
        time.sleep(0.1)
    return found


class Cluster:
    """The daemons of a cluster, and its commands."""

    def __init__(self, folder, processes_with):
        self.folder, self._processes_with = folder, processes_with
        self.host = socket.gethostname().partition(".")[0]
        # JAX takes the first of the names for the coordinator's host: it is to resolve.
        self.names = (self.host, f"{self.host}b")
        controller, *ports = free_ports(3)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} CPUs=1 "
            "State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        )
        text = CONF.format(host=self.host, controller=controller, folder=folder, nodes=nodes)
        self.conf = folder / "slurm.conf"
        self.conf.write_text(text)
        (folder / "state").mkdir()
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "XLA_", "SLURM"))}
        self.environment = {**kept, "SLURM_CONF": str(self.conf), "JAX_PLATFORMS": "cpu"}
        self.daemons = []

    def start(self):
        commands = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in self.names)]
        for command in commands:
            program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            self.daemons.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    env=self.environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        wait_for("the nodes", self._idle, seconds=60, log=self.logs)

    def _idle(self):
        done = self.run("sinfo", "--noheader", "--Node", "--format=%T", "-p", "low", check=False)
        return done.split() == ["idle", "idle"]

    def run(self, *command, check=True, **variables):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**self.environment, **variables}
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def job(self, number):
        """What the controller knows of a job, by name."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", number)))

    def logs(self):
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def processes(self):
        """Everything that runs by this cluster: its daemons, what watches tasks, and tasks."""
        return self._processes_with(f"SLURM_CONF={self.conf}")

    def stop(self):
        """Ends jobs, then daemons, then with force what is left of either.

        SLURM gives tasks half a minute to end by themselves; that is not waited for.
        """
        with contextlib.suppress(AssertionError):
            self.run("scancel", "--user=root", check=False)
            wait_for("no job", lambda: not self.run("squeue", "-h", check=False), seconds=5)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=5)
        wait_for("no process left", self._killed, seconds=30, log=self.logs)

    def _killed(self):
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons:
            daemon.poll()
        return not left


def start_cluster(folder, processes_with):
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"needs SLURM (slurm-wlm): there is no {missing[0]}")
    if os.geteuid() != 0:
        pytest.skip("needs root, as whom the daemons of SLURM start jobs")
    one = Cluster(folder, processes_with)
    try:
        one.start()
    except BaseException:
        one.stop()
        raise
    return one


@pytest.fixture
def cluster(tmp_path_factory, processes_with):
    one = start_cluster(tmp_path_factory.mktemp("slurm"), processes_with)
    yield one
    one.stop()


CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"name": "classifier", "dropout": 0.1, "backbone": {
            "name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
            "dilations": (1,)}},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize"},
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.01},
        "train": {"steps": %d, "batch_size": 8, "eval_batch_size": 8, "log_every": 5,
                  "tensorboard": "off"},
        "mesh": {"data": 2},
        "checkpoint": {"every_steps": 100000},
    })
"""


PROGRAM = """#!%s
import os, sys, time

from fgkd_jax.cli.main import main
from fgkd_jax.train.distributed import Job

free = Job.after_step


def slow(self, step):
    if step > %d:
        time.sleep(1)
    return free(self, step)


if "SLURM_RESTART_COUNT" not in os.environ:  # the first start
    Job.after_step = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    for k, name in enumerate(("blue", "green", "red")):
        for split in ("train", "test"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(8):
                image = np.random.default_rng([k, i]).integers(0, 150, (10, 10, 3), np.uint8)
                image[..., k] += 60
                cv2.imwrite(str(folder / "images" / split / name / f"{i}.png"), image)
    path = folder / "tiny.py"
    path.write_text(CONFIG % (str(folder / "images"), STEPS))
    program = folder / "fgkd"
    program.write_text(PROGRAM % (sys.executable, FREE_STEPS))
    program.chmod(0o755)
    return path


def losses(workdir):
    path = workdir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def by_itself(config, workdir, environment):
    command = [sys.executable, "-m", "fgkd_jax.cli.main", "train", "--config", str(config)]
    done = subprocess.run(
        [*command, "--workdir", str(workdir)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_preempted_job_is_queued_again_and_ends_as_one_that_was_not(cluster, config, tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "job.out"
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=2", f"--output={output}", "--chdir", str(ROOT),
        str(SCRIPT), "--config", str(config), "--workdir", str(workdir),
        FGKD=str(config.with_name("fgkd")), PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES="1",
    ).strip()  # fmt: skip

    def log():
        said = output.read_text()[-3000:] if output.exists() else ""
        return f"{cluster.run('scontrol', 'show', 'job', number)}\n{said}\n{cluster.logs()}"

    wait_for("the first steps", lambda: losses(workdir), seconds=240, log=log)
    assert cluster.job(number)["NodeList"] == ",".join(cluster.names)
    urgent = cluster.run(
        "sbatch", "--parsable", "--nodes=2", "--partition=high", "--output=/dev/null",
        "--wrap", "sleep 1",
    ).strip()  # fmt: skip
    wait_for(
        "preempted",
        lambda: cluster.job(number)["JobState"] == "PENDING",
        seconds=PREEMPTED_WITHIN,
        log=log,
    )
    before = losses(workdir)
    assert max(before) < STEPS, "the run was over before it could be preempted"
    wait_for(
        "the urgent job",
        lambda: cluster.job(urgent)["JobState"] == "COMPLETED",
        seconds=60,
        log=log,
    )
    # SLURM waits for two minutes before it starts a job again; the test does not.
    cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
    wait_for(
        "the end", lambda: cluster.job(number)["JobState"] == "COMPLETED", seconds=400, log=log
    )
    assert cluster.job(number)["Restarts"] == "1"
    said = output.read_text()
    assert said.count("stopped: asked to stop; step") >= 1, said
    assert "the job is queued again" in said
    step = int(re.search(r"resumed from step (\d+)", said)[1])
    assert 0 < step < STEPS

    by_itself(config, tmp_path / "alone", cluster.environment)
    expected, ours = losses(tmp_path / "alone"), losses(workdir)
    common = sorted(expected.keys() & ours.keys())
    assert common[-1] == STEPS
    # A window that was cut short by the stop is averaged over other steps.
    whole = [one for one in common if not 0 <= one - step < 5]
    np.testing.assert_allclose(
        [ours[one] for one in whole], [expected[one] for one in whole], rtol=1e-3
    )
    results = [
        json.loads((folder / "summary.json").read_text())["results"]
        for folder in (workdir, tmp_path / "alone")
    ]
    assert results[0] == results[1]


def test_a_job_that_is_cancelled_is_not_queued_again(cluster, tmp_path):
    """The tasks end alike where SLURM asks them alone to stop, after which it is."""
    program, output = tmp_path / "fgkd", tmp_path / "job.out"
    program.write_text(
        "#!/bin/bash\ntrap 'exit 75' TERM\necho begun\nwhile :; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    idle = len(cluster.processes())
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=2", f"--output={output}", str(SCRIPT), FGKD=str(program)
    ).strip()

    def log():
        return f"{cluster.run('scontrol', 'show', 'job', number)}\n{cluster.logs()}"

    def begun(times):
        return output.exists() and output.read_text().count("begun") == times

    def over():
        state = cluster.job(number)["JobState"]
        return len(cluster.processes()) <= idle and state in ("PENDING", "CANCELLED")

    wait_for("the tasks", lambda: begun(2), seconds=60, log=log)
    cluster.run("scancel", "--signal=TERM", number)
    wait_for("the end of the tasks", over, seconds=60, log=log)
    assert cluster.job(number)["JobState"] == "PENDING"
    cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
    wait_for("the tasks again", lambda: begun(4), seconds=60, log=log)
    cluster.run("scancel", number)
    wait_for("the end", over, seconds=60, log=log)
    job = cluster.job(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "1")


def test_nothing_is_left_of_a_cluster_whose_tasks_do_not_end(tmp_path, processes_with):
    cluster = start_cluster(tmp_path, processes_with)
    try:
        stubborn = "trap '' TERM; touch %s; while :; do sleep 0.2; done"
        ready = [tmp_path / name for name in ("batch", "task")]
        script = f"srun bash -c {shlex.quote(stubborn % ready[1])} & {stubborn % ready[0]}"
        cluster.run("sbatch", "--output=/dev/null", "--wrap", f"exec bash -c {shlex.quote(script)}")
        wait_for("the tasks", lambda: all(one.exists() for one in ready), seconds=60)
        assert len(cluster.processes()) > len(cluster.daemons)
    finally:
        started = time.monotonic()
        cluster.stop()
    assert not cluster.processes()
    assert time.monotonic() - started < 30, "this is shorter than SLURM waits for tasks"
