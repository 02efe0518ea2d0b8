"""A run's folder: whose it is, and what is in it."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgkd_jax.cli.experiment import Experiment, experiment_to_dict, parse_experiment
from fgkd_jax.cli.weights import say
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import ChoosingMethod
from fgkd_jax.train.processes import on_primary

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
CHECKPOINT_FOLDER = "checkpoints"

LEFT_OUT_FILE = "images_left_out.json"

MAY_CHANGE = (
    "mesh.",
    "report.",
    "data.data_dir",
    "data.num_workers",
    "data.read_threads",
    "data.prefetch_batches",
    "pretrained.path",
    "pretrained.teacher",
    "train.tensorboard",
    "checkpoint.keep_last",
    "checkpoint.asynchronous",
    "checkpoint.verify_hashes",
)
"""Options that a resumed run may change: where and how fast it runs, not what it computes."""


def check(workdir: str, experiment: Experiment) -> None:
    """Checks that a folder may become or already is this experiment's; writes nothing.

    Args:
      workdir: the folder; it may be missing.
      experiment: what is to run in it.

    Raises:
      UserError: the folder holds a run of another config, or files that are not a run's.
    """
    folder = Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"workdir {workdir} is a file; expected a folder")
    if (folder / CONFIG_FILE).exists():
        _check_same(workdir, read_experiment(workdir), experiment)
        return
    present = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if present:
        raise UserError(
            f"workdir {workdir} holds '{present[0]}' but no {CONFIG_FILE}; "
            "expected an empty or new folder, or that of an earlier run"
        )


@contextlib.contextmanager
def claimed(workdir: str, experiment: Experiment) -> Iterator[None]:
    """Makes a folder this experiment's, and keeps every other run out meanwhile.

    Args:
      workdir: the folder; created where it is missing.
      experiment: what is to run in it; options that may change are written anew.

    Yields:
      Nothing.

    Raises:
      UserError: as of `check`, the folder cannot be written, or another process uses it.
    """
    with contextlib.ExitStack() as held:
        on_primary(lambda: _claim(workdir, experiment, held))
        yield


def _claim(workdir: str, experiment: Experiment, held: contextlib.ExitStack) -> None:
    """Locks the folder for as long as `held` is open, and writes whose it is."""
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context((folder / ".lock").open("w"))
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise UserError(
                f"workdir {workdir} is in use by another run; expected one run per folder"
            ) from error
        say(
            f"note: workdir {workdir} cannot be locked ({error.strerror}), so that a second run in "
            "it would not be noticed"
        )
    check(workdir, experiment)
    write_json(folder / CONFIG_FILE, experiment_to_dict(experiment))


def read_experiment(workdir: str) -> Experiment:
    """Reads the experiment that a folder belongs to.

    Args:
      workdir: folder of a run.

    Returns:
      The experiment.

    Raises:
      UserError: the folder holds no run, or its config cannot be read.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"workdir {workdir} holds no run: {CONFIG_FILE} is missing")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return parse_experiment(values)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that may be missing.

    Args:
      path: the file.

    Returns:
      Its values; none where the file is missing or unreadable.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file whole or not at all.

    Args:
      path: the file.
      values: what to write.

    Raises:
      UserError: the file cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            json.dump(values, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _check_same(workdir: str, before: Experiment, experiment: Experiment) -> None:
    old, new = _options(before), _options(experiment)
    for name in sorted(old.keys() | new.keys()):
        if name.startswith(MAY_CHANGE) or old.get(name) == new.get(name):
            continue
        raise UserError(
            f"workdir {workdir} holds a run of another config: {name} is {old.get(name)!r} there "
            f"and {new.get(name)!r} here; expected the same config or another --workdir"
        )


def _options(experiment: Experiment) -> dict[str, Any]:
    """Options by name; what is chosen where it is None is as if it had been given."""
    method = experiment.method
    if isinstance(method, ChoosingMethod):
        experiment = dataclasses.replace(experiment, method=method.chosen())
    # Through JSON, so that tuples and lists compare equal.
    return flatten(json.loads(json.dumps(experiment_to_dict(experiment))))


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested mappings with dots.

    Args:
      values: nested mappings.
      prefix: put before every key.

    Returns:
      One mapping.

    Example:
      >>> flatten({"train": {"steps": 3}, "seed": 0})
      {'train.steps': 3, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, prefix=f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
