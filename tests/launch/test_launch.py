"""What starts a run elsewhere: scripts are clean and do what they say, manifests are whole."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fgkd_jax.cli.config import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"
LOCAL = LAUNCH / "local" / "launch.py"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
OVERLAYS = sorted((LAUNCH / "k8s" / "overlays").iterdir())


def read_env(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_clean_under_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def run_local(*command, processes=2, grace=5.0):
    arguments = [f"--processes={processes}", f"--grace={grace}", "--", *command]
    return subprocess.run(
        [sys.executable, str(LOCAL), *arguments], capture_output=True, text=True, timeout=60
    )


def test_the_local_launcher_numbers_processes_and_their_lines():
    line = "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
    done = run_local("sh", "-c", line, processes=3)
    assert done.returncode == 0
    found = [
        re.fullmatch(r"\[(\d)\] \1 of 3 at (127\.0\.0\.1:\d+)", line)
        for line in done.stdout.splitlines()
    ]
    assert sorted(one[1] for one in found) == ["0", "1", "2"]
    assert len({one[2] for one in found}) == 1


@pytest.mark.parametrize(
    ("flag", "expected"), [("--devices", ["cpu 3 -"] * 2), ("--gpus", ["- - 0,1,2", "- - 3,4,5"])]
)
def test_the_local_launcher_shares_out_devices(flag, expected):
    names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_LOCAL_DEVICE_IDS")
    show = "echo " + " ".join(f"${{{name}:--}}" for name in names)
    kept = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, str(LAUNCH / "local" / "launch.py"), flag, "3", "--"]
    done = subprocess.run([*command, "sh", "-c", show], capture_output=True, text=True, env=kept)
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {one}" for i, one in enumerate(expected)]


def test_the_local_launcher_ends_all_at_the_first_failure(tmp_path):
    orphan = tmp_path / "orphan"
    command = f"if [ $JAX_PROCESS_ID = 1 ]; then exit 9; fi; (sleep 3; touch {orphan}) & sleep 60"
    started = time.monotonic()
    done = run_local("sh", "-c", command, grace=0.2)
    assert done.returncode == 9
    assert time.monotonic() - started < 30
    time.sleep(3.2)
    assert not orphan.exists(), "children of the processes end with them"


def test_the_local_launcher_passes_sigterm_on_and_75_back():
    command = "trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done"
    arguments = [sys.executable, str(LOCAL), "--", "sh", "-c", command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as launcher:
        assert sorted(launcher.stdout.readline() for _ in range(2)) == [
            "[0] ready\n",
            "[1] ready\n",
        ]
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=30) == 75


def test_the_local_launcher_names_a_program_that_is_not_there():
    done = run_local("no-such-program")
    assert done.returncode == 2
    assert done.stderr == ("launch: error: cannot run no-such-program: No such file or directory\n")


def fake(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def recording(folder: Path, name: str) -> Path:
    """A program that notes down its arguments, one to a line, and a blank line after each call."""
    calls = folder / f"{name}.calls"
    fake(folder / "bin", name, f"printf '%s\\n' {name} \"$@\" '' >> {shlex.quote(str(calls))}")
    return calls


def run_script(script: Path, *arguments: str, folder: Path, **variables: str):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": path, "HOME": str(folder), **variables},
    )


@pytest.mark.parametrize("cores", [{}, {"SLURM_CPUS_PER_TASK": "3"}])
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (13, False), (2, False)])
def test_the_slurm_script_queues_a_preempted_run_again(status, requeued, cores, tmp_path):
    calls = recording(tmp_path, "scontrol")
    fake(tmp_path / "bin", "srun", f'echo srun "$@" flags="$A_FLAG"; exit {status}')
    flags = tmp_path / "flags.env"
    flags.write_text("A_FLAG=--a=b\n")
    done = run_script(
        LAUNCH / "slurm" / "train.sbatch",
        "--config", "a b", folder=tmp_path, SLURM_JOB_ID="7", FGKD_ENV_FILE=str(flags),
        **cores,
    )  # fmt: skip
    assert done.returncode == status
    asked = "--cpus-per-task=3 " if cores else ""  # without it a task has all of its node
    expected = f"srun --kill-on-bad-exit=1 {asked}fgkd train --config a b flags=--a=b"
    assert done.stdout.splitlines()[0] == expected
    assert (calls.read_text().split() if calls.exists() else []) == (
        ["scontrol", "requeue", "7"] if requeued else []
    )


def test_a_cancelled_job_waits_for_its_tasks_and_is_not_queued_again(tmp_path):
    """`scancel` signals this shell as well as the tasks; a preemption the tasks alone."""
    calls = recording(tmp_path, "scontrol")
    fake(tmp_path / "bin", "srun", "echo started; sleep 1; echo saved; exit 75")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", str(LAUNCH / "slurm" / "train.sbatch")]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, text=True, env={"PATH": path, "SLURM_JOB_ID": "7"}
    ) as job:
        assert job.stdout.readline() == "started\n"
        job.send_signal(signal.SIGTERM)
        assert job.stdout.read() == "saved\n"
        assert job.wait(timeout=30) == 75
    assert not calls.exists()


@pytest.mark.parametrize("content", [None, "A_FLAG=1\nno-such-command\n", "if\n"])
def test_flags_that_cannot_be_sourced_end_the_job(content, tmp_path):
    fake(tmp_path / "bin", "srun", "echo started")
    flags = tmp_path / "flags.env"
    if content is not None:
        flags.write_text(content)
    script = LAUNCH / "slurm" / "train.sbatch"
    done = run_script(script, folder=tmp_path, SLURM_JOB_ID="7", FGKD_ENV_FILE=str(flags))
    assert (done.returncode, done.stdout) == (2, "")
    *bash, line = done.stderr.splitlines()
    said = f"FGKD_ENV_FILE is {flags}, which cannot be sourced"
    assert line == f"train.sbatch: error: {said}"
    assert all(str(flags) in one for one in bash), "what bash says of the file's content"
    assert bool(bash) == (content is not None)


def test_the_slurm_script_asks_for_what_a_preemption_needs():
    text = (LAUNCH / "slurm" / "train.sbatch").read_text()
    options = re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE)
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(options)


GKE = {"CLUSTER": "c", "LOCATION": "l", "PROJECT": "p", "IMAGE": "i:tpu", "MOUNT": "r:/runs:rw"}
TPU = {"TPU_NAME": "birds", "TPU_ZONE": "us-west4-a"}


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (
            ["create"],
            {"TPU_TYPE": "v5litepod-16"},
            "create birds --zone=us-west4-a --accelerator-type=v5litepod-16 "
            "--version=v2-alpha-tpuv5-lite",
        ),
        (
            ["create"],
            {"TPU_TYPE": "v6e-8", "TPU_SPOT": "1"},
            "create birds --zone=us-west4-a --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e "
            "--spot",
        ),
        (
            ["create"],
            {"TPU_TYPE": "v9-8", "TPU_VERSION": "another"},
            "create birds --zone=us-west4-a --accelerator-type=v9-8 --version=another",
        ),
        (["delete"], {}, "delete birds --zone=us-west4-a --quiet"),
    ],
)
def test_tpu_vms_are_asked_for_through_gcloud(arguments, variables, expected, tmp_path):
    calls = recording(tmp_path, "gcloud")
    script = LAUNCH / "tpu" / "tpu_vm.sh"
    done = run_script(script, *arguments, folder=tmp_path, **TPU, **variables)
    assert done.returncode == 0, done.stderr
    call = calls.read_text().splitlines()[:-1]
    assert call == ["gcloud", "compute", "tpus", "tpu-vm", *shlex.split(expected)]


def test_the_wheel_is_copied_to_all_tpu_vms_and_installed(tmp_path):
    calls = recording(tmp_path, "gcloud")
    wheel = tmp_path / "fgkd_jax-1-py3-none-any.whl"
    wheel.touch()
    done = run_script(LAUNCH / "tpu" / "tpu_vm.sh", "install", str(wheel), folder=tmp_path, **TPU)
    assert done.returncode == 0, done.stderr
    copied, installed = calls.read_text().strip().split("\n\n")
    assert copied.splitlines()[4:7] == ["scp", str(wheel), "birds:"]
    assert "--worker=all" in copied
    assert "--worker=all" in installed
    assert "uv venv --quiet --allow-existing --python 3.12 fgkd" in installed
    assert f"--python fgkd/bin/python './{wheel.name}[tpu]'" in installed


TPU_VM = LAUNCH / "tpu" / "tpu_vm.sh"


def on_hosts(folder: Path, body: str, *, hosts: int = 1, ssh: str = "all") -> None:
    """Hosts, each a folder with the program that it runs; `gcloud` connects to all of them."""
    for host in range(hosts):
        home = folder / f"host{host}"
        (home / "fgkd").mkdir(parents=True)
        fake(home / "fgkd" / "bin", "fgkd", f"host={host}; {body}")
    fake(folder / "bin", "hostname", "basename $PWD")
    connect_by(folder, ssh, hosts=hosts)


def connect_by(folder: Path, ssh: str, *, hosts: int = 1) -> None:
    """A `gcloud` that runs here what hosts are told to, by `all` or by `connect NUMBER`."""
    gcloud = f"""
cd {shlex.quote(str(folder))}
case $4 in describe) echo {hosts}; exit ;; esac
for one in "$@"; do case "$one" in --command=*) command=${{one#*=}} ;; esac; done
connect() {{ (cd host$1 && exec bash -c "$command"); }}
all() {{
  status=0
  for i in $(seq 0 {hosts - 1}); do connect $i & ids[i]=$!; done
  for one in ${{ids[*]}}; do wait $one || status=$?; done
  return $status
}}
{ssh}"""
    fake(folder / "bin", "gcloud", gcloud)


def shown(stdout: str) -> list[str]:
    """The log in what `train` prints."""
    return [line for line in stdout.splitlines() if not line.startswith("tpu_vm.sh: ")]


def train_on(folder: Path, *arguments: str, **variables: str):
    given = arguments or ("--config=x",)
    return run_script(TPU_VM, "train", *given, folder=folder, **TPU, **variables)


def test_a_run_that_was_killed_is_one_to_start_again(tmp_path):
    on_hosts(tmp_path, "echo begun; kill -KILL 0")
    done = train_on(tmp_path)
    assert (shown(done.stdout), done.returncode) == (["begun"], 13), done.stderr


@pytest.mark.parametrize("status", [0, 1, 13])
def test_a_host_shows_the_log_and_ends_with_the_status(status, tmp_path):
    on_hosts(tmp_path, f'printf "<%s>" "$@"; echo " $LIBTPU_INIT_ARGS"; exit {status}')
    for i in range(2):  # one that ended is started again, and its log is kept
        done = train_on(tmp_path, "--config", "it's a b")
        (flags,) = read_env(LAUNCH / "env/tpu.env").values()
        given = "<train><--detect_processes=on><--device=tpu><--config><it's a b>"
        assert shown(done.stdout) == [f"{given} {flags}"]
        assert done.returncode == status, done.stderr
        assert len(list(tmp_path.glob("host0/fgkd.*.log"))) == i + 1


@pytest.mark.parametrize(
    ("ssh", "status", "reason"),
    [
        ("all", 75, "all told"),
        ("all; exit 1", 75, "what gcloud adds"),
        ("exit 1", 13, "gcloud itself failed"),
        ("connect 0; connect 1; exit 255", 13, "a host was not reached"),
        ("connect 0; connect 0; connect 1; exit 75", 13, "one host told it twice"),
    ],
)
def test_the_status_of_a_run_is_what_all_hosts_told(ssh, status, reason, tmp_path):
    on_hosts(tmp_path, "exit 75", hosts=3, ssh=ssh)
    done = train_on(tmp_path)
    assert done.returncode == status, (reason, done.stderr)
    assert ("not all hosts told" in done.stderr) == (status == 13)


def test_hosts_that_ended_otherwise_are_to_start_again(tmp_path):
    on_hosts(tmp_path, "exit $((1 + host))", hosts=2)
    assert train_on(tmp_path).returncode == 13


def test_a_slice_that_is_not_found_is_no_status_of_a_run(tmp_path):
    fake(tmp_path / "bin", "gcloud", "echo 'gcloud: no such slice' >&2; exit 1")
    done = train_on(tmp_path)
    assert done.returncode == 13
    assert done.stderr.startswith("gcloud: no such slice\n")


def test_gcloud_may_connect_again_to_a_run_that_has_ended(tmp_path):
    broken = "{ connect 0 | head -n 2; connect 0; }"
    on_hosts(tmp_path, "echo begun >>begun; echo begun; exit 1", ssh=broken)
    done = train_on(tmp_path)
    assert (shown(done.stdout), done.returncode) == (["begun", "begun"], 1), done.stderr
    assert (tmp_path / "host0" / "begun").read_text() == "begun\n", "once"


def test_a_run_that_ended_unseen_is_shown_by_its_name(tmp_path):
    on_hosts(tmp_path, "echo begun >>begun; echo begun; exit 1", ssh="all >/dev/null; exit 255")
    assert train_on(tmp_path, TPU_RUN="one").returncode == 13
    connect_by(tmp_path, "all")
    done = train_on(tmp_path, TPU_RUN="one")
    assert (shown(done.stdout), done.returncode) == (["begun"], 1), done.stderr
    assert "the run of TPU_RUN=one has ended here" in done.stdout
    assert (tmp_path / "host0" / "begun").read_text() == "begun\n", "once"


def test_a_run_outlives_the_connection_and_saves_when_it_is_told_to_stop(tmp_path):
    on_hosts(tmp_path, "trap 'echo saved; exit 75' TERM; echo begun; while :; do sleep 0.1; done")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    train = ["bash", str(TPU_VM), "train", "--config=x"]
    options = {"stdout": subprocess.PIPE, "text": True, "env": {"PATH": path, **TPU}}
    try:
        with subprocess.Popen(train, start_new_session=True, **options) as broken:
            (run,) = re.findall("TPU_RUN=([^ ]+) begins here", broken.stdout.readline())
            assert broken.stdout.readline() == "begun\n"
            os.killpg(broken.pid, signal.SIGKILL)
        with subprocess.Popen(train, **options) as again:
            goes_on = f"tpu_vm.sh: the run of TPU_RUN={run} goes on here\n"
            assert again.stdout.readline() == goes_on
            assert again.stdout.readline() == "begun\n"
            done = run_script(TPU_VM, "stop", folder=tmp_path, **TPU)
            assert done.returncode == 0, done.stderr
            assert shown(again.stdout.read())[-1] == "saved", "the same run, not another"
            assert again.wait(timeout=30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((tmp_path / "host0" / "fgkd.pid").read_text()), signal.SIGKILL)


def test_to_stop_where_nothing_runs_is_no_failure(tmp_path):
    on_hosts(tmp_path, "exit 0")
    for _ in range(2):  # before a run, and after one
        done = run_script(TPU_VM, "stop", folder=tmp_path, **TPU)
        assert (done.stdout, done.returncode) == ("no run goes on\n", 0), done.stderr
        assert train_on(tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "message"),
    [
        ("tpu_vm.sh", [], TPU, "usage: tpu_vm.sh create"),
        ("tpu_vm.sh", ["create"], {"TPU_NAME": "a"}, "TPU_ZONE is not set; expected a zone"),
        ("tpu_vm.sh", ["create"], TPU, "TPU_TYPE is not set; expected an accelerator type"),
        ("tpu_vm.sh", ["create"], {**TPU, "TPU_TYPE": "v9-8"}, "TPU_TYPE is v9-8, whose image"),
        ("tpu_vm.sh", ["crate"], TPU, "there is no action 'crate'; usage"),
        ("tpu_vm.sh", ["install", "no.whl"], TPU, "install takes the wheel"),
        ("tpu_vm.sh", ["train"], TPU, "train takes the flags of fgkd train"),
        ("tpu_vm.sh", ["train", "a"], {**TPU, "TPU_RUN": "a b"}, "TPU_RUN is a b; expected what"),
        ("cluster_toolkit.sh", [], {}, "CLUSTER is not set"),
        (
            "cluster_toolkit.sh",
            ["a", "b", "c"],
            {**GKE, "MOUNT": "runs:/runs"},
            "MOUNT is runs:/runs; expected it to end with :rw",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(script, arguments, variables, message, tmp_path):
    calls = recording(tmp_path, "gcloud")
    done = run_script(LAUNCH / "tpu" / script, *arguments, folder=tmp_path, **variables)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: {message}")
    assert not calls.exists()


def test_cluster_toolkit_is_given_the_job(tmp_path):
    calls = recording(tmp_path, "gcluster")
    given = {**GKE, "QUEUE": "q"}
    script = LAUNCH / "tpu" / "cluster_toolkit.sh"
    done = run_script(script, "birds", "v5litepod-16", "--config=x", folder=tmp_path, **given)
    assert done.returncode == 0, done.stderr
    head, *options = calls.read_text().splitlines()[:-1]
    assert [head, *options[:2]] == ["gcluster", "job", "submit"]
    (flag,) = (f"--env={name}={value}" for name, value in read_env(LAUNCH / "env/tpu.env").items())
    assert set(options[2:]) == {
        *("--cluster=c", "--location=l", "--project=p", "--name=birds", "--image=i:tpu"),
        *("--compute-type=v5litepod-16", "--queue=q", flag, "--mount=r:/runs:rw"),
        *("--restarts=50", "--grace-period=120s"),
        "--command=fgkd train --detect_processes=on --device=tpu --config=x ",
    }


def documents(text: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(text) if one]


@pytest.mark.parametrize(
    "path", sorted(LAUNCH.rglob("*.yaml")), ids=lambda p: p.parent.name + p.name
)
def test_every_manifest_parses(path):
    for one in documents(path.read_text()):
        if path.name != "workers.yaml":  # a list of patches
            assert {"apiVersion", "kind"} <= one.keys()


@pytest.fixture(scope="session")
def built(kustomize):
    return lambda folder: {one["kind"]: one for one in kustomize.build(folder)}


@pytest.mark.parametrize("folder", [LAUNCH / "k8s/base", *OVERLAYS], ids=lambda p: p.name)
def test_every_overlay_is_a_run_that_fits_together(folder, built):
    by_kind = built(folder)
    jobset = by_kind["JobSet"]
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": name}
    (workers,) = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one for one in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert str(job["parallelism"]) == str(job["completions"])
    assert variables["JAX_NUM_PROCESSES"]["value"] == str(job["completions"])
    host, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert int(port) in [one["containerPort"] for one in container["ports"]]
    assert "job-completion-index" in str(variables["JAX_PROCESS_ID"])
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0), "podFailurePolicy needs it"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert 75 not in rule["onExitCodes"]["values"]
    assert {one["name"] for one in container["volumeMounts"]} == {
        one["name"] for one in pod["volumes"]
    }
    assert "PersistentVolumeClaim" not in by_kind, "who deletes a run keeps what it saved"
    (volume,) = built(LAUNCH / "k8s/volume").values()
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert (volume["kind"], volume["metadata"]["name"]) == ("PersistentVolumeClaim", claim)
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert container["volumeMounts"][0]["mountPath"] == "/runs"
    for source in container.get("envFrom", ()):
        assert source["configMapRef"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "resource"), [("tpu", "google.com/tpu"), ("gpu", "nvidia.com/gpu")]
)
def test_an_overlay_asks_for_its_devices_and_sets_its_flags(name, resource, built):
    by_kind = built(LAUNCH / "k8s/overlays" / name)
    job = by_kind["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"][resource]) > 0
    assert by_kind["ConfigMap"]["data"] == read_env(LAUNCH / "env" / f"{name}.env")
    assert container["image"] == f"registry.example/fgkd:{name}"
    assert container["args"][-1] == f"--device={name}", "or the CPU is taken where there is none"
    queue = built(LAUNCH / "k8s/queue")["LocalQueue"]["metadata"]["namespace"]
    volume = built(LAUNCH / "k8s/volume")["PersistentVolumeClaim"]["metadata"]["namespace"]
    assert {one["metadata"]["namespace"] for one in by_kind.values()} == {queue, volume}
    assert queue == volume
    chips = job["completions"] * int(container["resources"]["limits"][resource])
    given = [one for one in container["args"] if one.startswith("--config.")]
    (config,) = (one for one in container["args"] if one.startswith("--config="))
    experiment = load_config(config.removeprefix("--config="), given)
    assert experiment.train.batch_size % chips == 0, "or the run is refused"
    if name == "tpu":
        topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        rows, columns = map(int, topology.split("x"))
        assert chips == rows * columns


@pytest.mark.parametrize("script", ["README.md", "tpu/tpu_vm.sh", "tpu/cluster_toolkit.sh"])
def test_the_batch_of_an_example_on_sixteen_devices_divides_by_them(script):
    (size,) = re.findall(r"--config\.train\.batch_size=(\d+)", (LAUNCH / script).read_text())
    assert int(size) % 16 == 0


def test_the_queue_leads_from_the_label_to_the_quota(built):
    by_kind = built(LAUNCH / "k8s/queue")
    label = built(LAUNCH / "k8s/base")["JobSet"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert by_kind["LocalQueue"]["metadata"]["name"] == label
    queue = by_kind["ClusterQueue"]
    assert by_kind["LocalQueue"]["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == by_kind["ResourceFlavor"]["metadata"]["name"]
    assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]


def test_xla_accepts_the_flags_for_gpus_and_refuses_others():
    flags = read_env(LAUNCH / "env/gpu.env")["XLA_FLAGS"]
    script = "import jax; jax.devices()"

    def status(flags):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, env=environment).returncode

    assert status(flags) == 0
    assert status(flags.replace("hiding", "hyding")) != 0


def test_libtpu_accepts_the_flags_for_tpus_and_refuses_others():
    pytest.importorskip("libtpu", reason="needs libtpu, whose compiler runs without a TPU")
    flags = read_env(LAUNCH / "env/tpu.env")["LIBTPU_INIT_ARGS"]
    script = (
        "from jax.experimental.topologies import get_topology_desc as f;"
        "f(platform='tpu', topology_name='v5e:2x2')"
    )

    def status(flags):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another test may be compiling
            "LIBTPU_INIT_ARGS": flags,
        }
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, env=environment).returncode

    assert status(flags) == 0
    assert status(flags.replace("hiding", "hyding")) != 0


def test_the_image_runs_the_program_and_copies_what_exists():
    text = (LAUNCH / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--", "fgkd"]' in text
    variables = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", text, re.MULTILINE))
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64", "where GKE has the driver"
    assert variables["FGKD_DATA_DIR"].startswith("/runs/"), "on the volume of the manifests"
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
