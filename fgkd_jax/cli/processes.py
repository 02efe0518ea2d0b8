"""What the processes of one run must have in common, and the flags that bring them together."""

import jax
from absl import flags

from fgkd_jax.cli.command import get
from fgkd_jax.cli.experiment import Experiment, experiment_to_dict
from fgkd_jax.cli.session import open_data
from fgkd_jax.cli.weights import weight_hashes
from fgkd_jax.cli.workdir import flatten
from fgkd_jax.data.base import Dataset
from fgkd_jax.errors import UserError
from fgkd_jax.train.places import ProcessOptions
from fgkd_jax.train.processes import check_same, check_shared

MAY_DIFFER = (
    "data.data_dir",
    "data.num_workers",
    "data.read_threads",
    "pretrained.path",
    "pretrained.others.",
    "pretrained.teacher",
)
"""Options that depend on the machine: where it keeps what all of them have, how fast it reads."""


def process_options(values: flags.FlagValues) -> ProcessOptions:
    """Reads the flags of `command.define_processes`.

    Args:
      values: parsed flags.

    Returns:
      Where the process stands, as far as it was given.

    Raises:
      UserError: a time is impossible.
    """
    return ProcessOptions(
        coordinator=get(values, "coordinator"),
        num_processes=get(values, "num_processes"),
        process_id=get(values, "process_id"),
        detect=get(values, "detect_processes"),
        timeout=get(values, "coordinator_timeout"),
        step_timeout=get(values, "step_timeout"),
        start_timeout=get(values, "start_timeout"),
    )


def check_processes(experiment: Experiment, *, workdir: str) -> None:
    """Checks that all processes were given the same run, one for several, and see its folder.

    Args:
      experiment: every option of the run, as this process has it.
      workdir: the run's folder.

    Raises:
      UserError: on every process, where they do not.
    """
    options = flatten(experiment_to_dict(experiment))
    common = {name: value for name, value in options.items() if not name.startswith(MAY_DIFFER)}
    check_same(common, what="config")
    if experiment.features.views and jax.process_count() > 1:
        raise UserError(
            f"features.views is {experiment.features.views}, but there are {jax.process_count()} "
            "processes, and features are computed by one alone; expected 0, or a run of one process"
        )
    check_shared(workdir)


def check_same_weights(experiment: Experiment) -> None:
    """Checks that the files of weights are the same for all processes, wherever they lie.

    Args:
      experiment: names the files.

    Raises:
      UserError: on every process, where they are not; a file cannot be read.
    """
    check_same(weight_hashes(experiment), what="set of weights")


def open_same_data(experiment: Experiment) -> Dataset:
    """Opens the data set, and checks that all processes have the same one.

    Args:
      experiment: names the data set.

    Returns:
      The data set.

    Raises:
      UserError: it cannot be opened, or differs between the processes in its labels or its ids.
    """
    dataset = open_data(experiment)
    info = dataset.info
    check_same(
        {"name": info.name, "fingerprint": info.fingerprint, "splits": dict(info.splits)},
        what="data set",
    )
    return dataset
