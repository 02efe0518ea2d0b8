"""`fgkd eval`: evaluates a checkpoint of a run."""

import json

from absl import flags

from fgkd_jax.cli.command import Command, define_run, get, require
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
    define_run(values)
    flags.DEFINE_string(
        "split", None, "split; the one the config reports by default", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)


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
    from fgkd_jax.cli import results

    if arguments:
        raise UserError(f"fgkd eval takes no argument '{arguments[0]}'; see fgkd eval --help")
    workdir = require(values, "workdir", command="eval")
    restored = results.restore_run(values, workdir)
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
