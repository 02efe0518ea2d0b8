"""Small photographs, a config that trains on them in seconds, and commands that leave nothing."""

import contextlib
import os
import signal
import subprocess
import textwrap
import time
import uuid

import cv2
import numpy as np
import pytest

MARK = "FGKD_TEST_COMMAND"
"""A variable that a command has, and all processes that it starts, whatever session they are in."""


def write_images(root, *, split, per_class, size=20):
    """Three classes told apart by colour, with noise."""
    for index, name in enumerate(("blue", "green", "red")):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            rng = np.random.default_rng([index, i, len(split)])
            image = rng.integers(0, 120, (size, size, 3)).astype(np.uint8)
            image[..., index] += 120
            cv2.imwrite(str(folder / f"{i:02}.png"), image)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_images(root, split="train", per_class=16)
    write_images(root, split="validation", per_class=4)
    write_images(root, split="test", per_class=6)
    return root


@pytest.fixture(scope="session")
def config(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        textwrap.dedent(f'''
        """A narrow network on twenty-pixel images."""

        from ml_collections import ConfigDict


        def get_config():
            return ConfigDict(
                {{
                    "method": {{
                        "name": "classifier",
                        "backbone": {{"name": "resnet_narrow", "width": 4, "norm_groups": 2}},
                        "brightness": 0.1,
                        "dropout": 0.1,
                    }},
                    "data": {{
                        "dataset": "image_folder",
                        "data_dir": {str(photographs)!r},
                        "image_size": 16,
                        "train_geometry": "shift_crop",
                        "eval_geometry": "resize",
                    }},
                    "optim": {{
                        "name": "sgd", "momentum": 0.9, "learning_rate": 0.05,
                        "ema_decay": 0.9, "warmup_steps": 2,
                    }},
                    "train": {{
                        "steps": 12, "batch_size": 16, "eval_batch_size": 8,
                        "log_every": 2, "eval_every": 4, "tensorboard": "off",
                    }},
                    "mesh": {{"data": 2}},
                    "checkpoint": {{"every_steps": 4}},
                    "report": {{"title": "tiny", "figures": ("accuracy",)}},
                }}
            )
        ''')
    )
    return path


class Commands:
    """Starts commands whose processes do not outlive the context, however it ends."""

    def __init__(self, processes_with):
        self.mark = uuid.uuid4().hex
        self._processes_with = processes_with
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        deadline = time.monotonic() + 60
        while left := self.left():
            assert time.monotonic() < deadline, f"{left} do not end"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self.started:
            process.wait()
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()

    def start(self, command, *, env, **options):
        process = subprocess.Popen(command, env={**env, MARK: self.mark}, **options)
        self.started.append(process)
        return process

    def left(self):
        """Processes that have not ended."""
        return self._processes_with(f"{MARK}={self.mark}")


@pytest.fixture
def commands(processes_with):
    with Commands(processes_with) as some:
        yield some


@pytest.fixture(scope="module")
def module_commands(processes_with):
    with Commands(processes_with) as some:
        yield some


@pytest.fixture
def run_to_the_end(commands):
    """Like `subprocess.run`; what is too slow is ended with all that it started."""

    def run(command, *, env, timeout):
        process = commands.start(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, error = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    return run
