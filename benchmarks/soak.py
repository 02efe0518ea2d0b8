"""Stops a run of two processes again and again; what comes out is that of an undisturbed one.

    python benchmarks/soak.py --stops 30 --steps 300 --folder soak \\
        --output benchmarks/results/soak.json

A tiny network is trained by `launch/local/launch.py`, two processes by two CPU devices. Each leg is
ended at a random moment, before the first step, between steps, in an evaluation or while a
checkpoint is written, in one of four ways: SIGTERM to all processes or to one of them, SIGKILL to
all or to one. The next leg goes on from the newest checkpoint. After SIGTERM a leg must end with
75, and the step that it says is saved must be the newest that is; after each leg no process of the
run may be left. At the end the run is let finish; its parameters and its metrics are compared with
those of a run that was never stopped, and every checkpoint is read back. The exit status is 1 where
anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from fgkd_jax.cli.results import restore, versions
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.state import abstract_like

ROOT = Path(__file__).resolve().parent.parent
MARK = "FGKD_SOAK_WORKDIR"
"""A variable that all processes of a run have, those that its processes start among them."""
END_SECONDS = 60.0
WAYS = ("SIGTERM to all", "SIGTERM to one", "SIGKILL to all", "SIGKILL to one")
CONFIG = '''"""A narrow network on eight-pixel images."""

from ml_collections import ConfigDict


def get_config():
    """Returns the config."""
    return ConfigDict({
        "method": {"name": "classifier", "dropout": 0.1, "brightness": 0.1, "backbone": {
            "name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
            "dilations": (1,)}},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize"},
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.01, "ema_decay": 0.9},
        "train": {"steps": %d, "batch_size": 16, "eval_batch_size": 8, "log_every": 1,
                  "eval_every": 10, "tensorboard": "off"},
        "mesh": {"data": 4},
        "checkpoint": {"every_steps": %d, "keep_last": 3},
    })
'''


def write_images(root: Path) -> None:
    """Draws a folder of small images of three colours.

    Args:
      root: the folder; made.
    """
    for index, name in enumerate(("blue", "green", "red")):
        for split, count in (("train", 16), ("validation", 80), ("test", 16)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = np.random.default_rng([index, i]).integers(0, 150, (10, 10, 3), np.uint8)
                image[..., index] += 60
                cv2.imwrite(str(folder / f"{i}.png"), image)


class Leg:
    """One start of the run, of which nothing runs any more when the context ends, however it does.

    Attributes:
      launcher: the local launcher, whose children are the processes of the run.
      log: what all of them print.
    """

    def __init__(self, paths: dict[str, Path], name: str, *, seconds: float) -> None:
        self._workdir, self._seconds = paths["workdir"], seconds
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "XLA_"))}
        ours = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), MARK: str(self._workdir)}
        command = [sys.executable, str(ROOT / "launch" / "local" / "launch.py")]
        command += ["--processes", "2", "--devices", "2", "--", sys.executable, "-m"]
        command += ["fgkd_jax.cli.main", "train", "--config", str(paths["config"])]
        command += ["--workdir", str(self._workdir), "--compilation_cache", str(paths["cache"])]
        self.log = paths["logs"] / f"{name}.log"
        self._file = self.log.open("w")
        self.launcher = subprocess.Popen(
            command,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**kept, **ours},
        )

    def __enter__(self) -> "Leg":
        """Returns the leg."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends what still runs."""
        end_all(self._workdir)
        self.launcher.wait()
        self._file.close()

    def ranks(self) -> list[int]:
        """Returns the ids of the run's processes that have not ended, in the order of starting."""
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        try:
            return [int(one) for one in path.read_text().split()]
        except OSError:
            return []

    def wait(self) -> int:
        """Waits for the end and returns the launcher's exit status; raises where it is late."""
        try:
            return self.launcher.wait(timeout=self._seconds)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"a leg did not end within {self._seconds:g} s") from error


def last_step(workdir: Path) -> int:
    """Reads how far a run has come.

    Args:
      workdir: its folder.

    Returns:
      The last step in its metrics; 0 where there is none.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):  # being written
            continue
    return 0


def saved_step(workdir: Path) -> int:
    """Looks for the newest checkpoint.

    Args:
      workdir: of a run.

    Returns:
      Its step; 0 where there is none.
    """
    names = (one.name for one in (workdir / "checkpoints" / "last").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def announced_step(log: Path) -> int | None:
    """Reads which step a leg says that it saved as it was asked to stop.

    Args:
      log: of the leg.

    Returns:
      The step; None where it says of none.

    Raises:
      RuntimeError: its processes say different things.
    """
    steps = set(re.findall(r"asked to stop; step (\d+) of \d+ is saved", log.read_text()))
    if len(steps) > 1:
        raise RuntimeError(f"{log}: the steps {sorted(steps)} are said to be saved")
    return int(steps.pop()) if steps else None


def is_good(leg: dict[str, Any]) -> bool:
    """Says whether a leg ended as it should.

    Args:
      leg: what came of it, as `disturb` returns it.

    Returns:
      True where nothing of it is left, SIGTERM ended it with 75, and what it says is saved is so.
    """
    asked = leg["way"].startswith("SIGTERM")
    said = leg["announced"] in (None, leg["saved"])
    return said and not leg["left_over"] and (leg["status"] == 75 or not asked)


def left_over(workdir: Path) -> list[int]:
    """Finds processes that still work on a run.

    Args:
      workdir: its folder, of which their environment tells.

    Returns:
      Their ids.
    """
    found, mark = [], f"{MARK}={workdir}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_all(workdir: Path) -> None:
    """Ends whatever still works on a run.

    Args:
      workdir: its folder.

    Raises:
      RuntimeError: a process cannot be ended.
    """
    deadline = time.monotonic() + END_SECONDS
    while left := left_over(workdir):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the processes {left} do not end")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def stop(leg: Leg, way: str, rng: random.Random) -> None:
    """Ends a leg in one of the four ways.

    Args:
      leg: the leg.
      way: one of `WAYS`.
      rng: chooses the process.
    """
    number = signal.SIGTERM if way.startswith("SIGTERM") else signal.SIGKILL
    ranks = leg.ranks()
    for pid in ranks if way.endswith("all") else rng.sample(ranks, min(1, len(ranks))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def disturb(
    paths: dict[str, Path], *, stops: int, steps: int, leg_seconds: float, rng: random.Random
) -> list[Any]:
    """Starts the run and stops it, again and again.

    Args:
      paths: `config`, `workdir`, `cache`, `logs`.
      stops: how often.
      steps: of the whole run; it is not let come to the last before the last stop.
      leg_seconds: most seconds that a leg may take to end.
      rng: chooses moments and ways.

    Returns:
      What came of each leg, as JSON values.
    """
    legs = []
    for number in range(stops):
        begun, start = time.monotonic(), last_step(paths["workdir"])
        before_steps = rng.random() < 0.2
        target = start + rng.randint(1, max(1, 2 * ((steps - start) // (stops - number)) - 2))
        with Leg(paths, str(number), seconds=leg_seconds) as leg:
            if before_steps:  # in its first second Python itself starts, as it does in any program
                time.sleep(rng.uniform(1.0, 6.0))
            while not before_steps and leg.launcher.poll() is None:
                now = last_step(paths["workdir"])
                if start < now and (now >= target or now >= steps - 2 * (stops - number)):
                    break
                if time.monotonic() - begun > leg_seconds:
                    raise RuntimeError(f"a leg took no step within {leg_seconds:g} s")
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.1))
            way = rng.choice(WAYS)
            stop(leg, way, rng)
            signalled = time.monotonic()
            status = leg.wait()
            legs.append(
                {
                    "way": way,
                    "before_the_first_step": before_steps,
                    "step": last_step(paths["workdir"]),
                    "status": status,
                    "announced": announced_step(leg.log),
                    "saved": saved_step(paths["workdir"]),
                    "seconds_to_the_end": round(time.monotonic() - signalled, 2),
                    "left_over": len(left_over(paths["workdir"])),
                    "seconds": round(time.monotonic() - begun, 1),
                }
            )
        print(json.dumps({"leg": number, **legs[-1]}), flush=True)
    return legs


def unreadable(workdir: Path) -> list[str]:
    """Reads every checkpoint of a run back.

    Args:
      workdir: its folder.

    Returns:
      One line for each that cannot be read, and for each that a leg found damaged.
    """
    folder = workdir / "checkpoints"
    lines = [f"{path} was damaged" for path in folder.rglob("*.corrupt")]
    restored = restore(str(workdir), checkpoint="last")
    tree = abstract_like(restored.state.to_save())
    with Checkpointer(folder, CheckpointOptions(), read_only=True, log=lines.append) as some:
        steps = list(some.steps())
        while steps:
            some._steps["last"] = steps  # ends with the one that is read
            some.restore_last(tree)
            steps = steps[:-1]
    return lines


def compare(workdir: Path, other: Path) -> dict[str, Any]:
    """Compares what two runs came to.

    Args:
      workdir: of a run that is finished.
      other: likewise.

    Returns:
      The largest difference between parameters, and whether the metrics are the same to the byte.
    """
    ours, theirs = (
        jax.device_get(restore(str(one), checkpoint="last").state.to_save()["params"])
        for one in (workdir, other)
    )
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, theirs)
    metrics = [(one / "metrics.jsonl").read_text().splitlines() for one in (workdir, other)]
    return {
        "largest_parameter_difference": max(jax.tree.leaves(differences)),
        "same_metrics": _figures(metrics[0]) == _figures(metrics[1]),
        "lines_compared": len(_figures(metrics[0])),
    }


def _figures(lines: list[str]) -> list[dict[str, Any]]:
    """All that is logged, but how often the step was compiled since the run went on."""
    read = map(json.loads, lines)
    return [{name: v for name, v in line.items() if name != "compilations"} for line in read]


def report(made: dict[str, Any]) -> str:
    """Lays a result out as Markdown.

    Args:
      made: what is written as JSON.

    Returns:
      The file's text.
    """
    legs, found = made["legs"], made["comparison"]
    rows = []
    for way in WAYS:
        some = [leg for leg in legs if leg["way"] == way]
        if some:
            longest = max(leg["seconds_to_the_end"] for leg in some)
            statuses = Counter(leg["status"] for leg in some)
            text = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            early = sum(leg["before_the_first_step"] for leg in some)
            rows.append(f"| {way} | {len(some)} | {early} | {text} | {longest:.1f} s |")
    return "\n".join(
        [
            f"# {len(legs)} stops of a run of {made['steps']} steps",
            "",
            f"Made by `{made['command']}`: two processes by two CPU devices, a checkpoint every "
            f"{made['every_steps']} steps.",
            "",
            "| stopped by | times | before the first step | exit status | longest to the end |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "| of the finished run | |",
            "| --- | --- |",
            f"| largest difference of a parameter | {found['largest_parameter_difference']:g} |",
            f"| the same figures in all {found['lines_compared']} lines of metrics | "
            f"{'yes' if found['same_metrics'] else '**no**'} |",
            "| legs that said which step is saved, and it was | "
            f"{sum(leg['announced'] == leg['saved'] for leg in legs)} of "
            f"{sum(leg['announced'] is not None for leg in legs)} |",
            f"| checkpoints that could not be read | {len(made['unreadable'])} |",
            f"| processes left over | {sum(leg['left_over'] for leg in legs)} |",
            "",
        ]
    )


def main() -> int:
    """Runs the soak; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=30, help="how often the run is stopped")
    parser.add_argument("--steps", type=int, default=300, help="of the whole run")
    parser.add_argument("--every_steps", type=int, default=5, help="between two checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of moments and ways")
    parser.add_argument(
        "--leg_seconds", type=float, default=300.0, help="most that one start may take to end"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for both runs; a new one")
    parser.add_argument("--output", type=Path, required=True, help="JSON; Markdown beside it")
    options = parser.parse_args()
    folder = options.folder.absolute()
    (folder / "logs").mkdir(parents=True)
    write_images(folder / "images")
    config = folder / "soak_config.py"
    config.write_text(CONFIG % (str(folder / "images"), options.steps, options.every_steps))
    paths = {"config": config, "cache": folder / "cache", "logs": folder / "logs"}
    for name in ("whole", "stopped"):
        paths["workdir"], legs = folder / name, []
        if name == "stopped":
            legs = disturb(
                paths,
                stops=options.stops,
                steps=options.steps,
                leg_seconds=options.leg_seconds,
                rng=random.Random(options.seed),
            )
        with Leg(paths, name, seconds=options.leg_seconds) as leg:
            status = leg.wait()
        if status:
            raise RuntimeError(f"the last leg of {name} ended with {status}")
    made = {
        "command": f"python benchmarks/soak.py --stops {options.stops} --steps {options.steps} "
        f"--seed {options.seed} --every_steps {options.every_steps} --folder soak "
        "--output soak.json",
        "steps": options.steps,
        "every_steps": options.every_steps,
        "comparison": compare(folder / "stopped", folder / "whole"),
        "unreadable": unreadable(folder / "stopped"),
        "legs": legs,
        "versions": versions(),
    }
    options.output.write_text(json.dumps(made, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(report(made))
    print(report(made))
    compared = made["comparison"]
    same = compared["largest_parameter_difference"] == 0 and compared["same_metrics"]
    return 0 if same and not made["unreadable"] and all(map(is_good, legs)) else 1


if __name__ == "__main__":
    sys.exit(main())
