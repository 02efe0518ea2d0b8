"""`fgkd eval`: evaluates a checkpoint of a run."""

import json

from absl import flags

from fgkd_jax.cli.command import DEVICE_HELP, Command, get, require
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Evaluates a run's checkpoint on every example of a split and prints the figures. The newest
checkpoint is evaluated unless --checkpoint=best asks for the one that was best on validation.

  fgkd eval --workdir runs/birds
  fgkd eval --workdir runs/birds --split validation --checkpoint best --json
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string(
        "split", None, "split; the one the config reports by default", flag_values=values
    )
    flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "which checkpoint", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)
    flags.DEFINE_string(
        "data_dir", None, "folder of the data set, where it has moved", flag_values=values
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: none are expected.

    Returns:
      The exit status.

    Raises:
      UserError: the workdir holds no run or no checkpoint, or there is no such split.
    """
    from fgkd_jax.cli import results, session

    if arguments:
        raise UserError(f"fgkd eval takes no argument '{arguments[0]}'; see fgkd eval --help")
    workdir = require(values, "workdir", command="eval")
    session.use_platform(get(values, "device"))
    restored = results.restore(
        workdir, checkpoint=get(values, "checkpoint"), data_dir=get(values, "data_dir")
    )
    split = get(values, "split") or restored.experiment.report.split
    figures = restored.trainer.evaluate(restored.state, split)
    result = {
        "split": split,
        "checkpoint": get(values, "checkpoint"),
        "step": restored.step,
        "figures": figures,
    }
    print(json.dumps(result, indent=2) if get(values, "json") else results.results_table([result]))
    return 0


COMMAND = Command(
    name="eval",
    usage="--workdir FOLDER [--split SPLIT] [--checkpoint last|best]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
