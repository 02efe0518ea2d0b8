"""What the commands share: their flags, their help and how they are run."""

import dataclasses
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from fgkd_jax.errors import UserError, nearest

DEVICE_HELP = "where to run; the best there is by default"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of the program.

    Attributes:
      name: what follows `fgkd`.
      usage: the arguments, as the first line of the help shows them.
      description: what it does, for someone who has not used it before.
      define: adds the command's flags.
      run: does the work with the parsed flags and the other arguments; returns the exit status.
      takes_overrides: whether `--config.option=value` is accepted.
    """

    name: str
    usage: str
    description: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, list[str]], int]
    takes_overrides: bool = False

    def help(self) -> str:
        """Returns the text of `--help`.

        Returns:
          Usage, description and one paragraph per flag.
        """
        values = flags.FlagValues()
        self.define(values)
        lines = [f"usage: fgkd {self.name} {self.usage}", "", self.description.strip(), ""]
        own = [values[name] for name in sorted(values)]
        if own:
            lines.append("flags:")
        for flag in own:
            default = "" if flag.default is None else f" (default: {flag.default})"
            body = textwrap.wrap(f"{flag.help}{default}", 70)
            lines += [f"  --{flag.name}", *(f"      {line}" for line in body)]
        if self.takes_overrides:
            lines += [
                "  --config.OPTION=VALUE",
                "      overrides one option of the config, for example --config.train.steps=100",
            ]
        return "\n".join(lines)

    def parse(self, arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
        """Parses the arguments that follow the command's name.

        Args:
          arguments: flags and other arguments, in any order.

        Returns:
          The flags and the other arguments.

        Raises:
          UserError: a flag is unknown or has a wrong value.
        """
        values = flags.FlagValues()
        self.define(values)
        values.set_gnu_getopt(True)
        try:
            others = values([f"fgkd {self.name}", *arguments])[1:]
        except flags.UnrecognizedFlagError as error:
            hint = nearest(f"--{error.flagname}", [f"--{name}" for name in values])
            raise UserError(f"fgkd {self.name} has no flag --{error.flagname}{hint}") from error
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
        return values, others


def define_run(values: flags.FlagValues) -> None:
    """Adds the flags of a command that works on a run: which one, which checkpoint, and where.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "which checkpoint", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", None, "folder of the data set, where it has moved", flag_values=values
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)


def define_processes(values: flags.FlagValues) -> None:
    """Adds the flags of a command that several processes may run together.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0 in a run of several; JAX_COORDINATOR_ADDRESS otherwise",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "how many processes run together; JAX_NUM_PROCESSES otherwise",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "which of them this is, from 0; JAX_PROCESS_ID otherwise",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "detect_processes",
        "auto",
        ["auto", "on", "off"],
        "whether JAX looks for the other processes itself; auto does under srun, under mpirun and "
        "on the hosts of a TPU slice in Kubernetes; TPU VMs need on",
        flag_values=values,
    )
    flags.DEFINE_float(
        "coordinator_timeout", 300.0, "seconds until all processes have met", flag_values=values
    )
    flags.DEFINE_float(
        "step_timeout",
        1800.0,
        "seconds that a step or a batch of an evaluation between steps may take in a run of "
        "several processes; 0 for no limit",
        flag_values=values,
    )
    flags.DEFINE_float(
        "start_timeout",
        7200.0,
        "seconds until a run of several processes begins its first step; 0 for no limit",
        flag_values=values,
    )


def get(values: flags.FlagValues, name: str) -> Any:
    """Returns the value of a flag.

    Args:
      values: parsed flags.
      name: the flag.

    Returns:
      Its value, of the type that the flag was defined with.
    """
    return values[name].value


def require(values: flags.FlagValues, name: str, *, command: str) -> str:
    """Returns a flag that has to be given.

    Args:
      values: parsed flags.
      name: the flag.
      command: the command, for the message.

    Returns:
      Its value.

    Raises:
      UserError: it is not given.
    """
    value = get(values, name)
    if not value:
        raise UserError(f"fgkd {command} needs --{name}; see fgkd {command} --help")
    return value


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates overrides from the other command-line arguments.

    Args:
      arguments: what follows the command's name.

    Returns:
      The overrides, each as `--config.option=value`, and the other arguments.

    Raises:
      UserError: an override has no value.
    """
    overrides, others = [], []
    waiting = None
    for argument in arguments:
        if waiting is not None:
            if argument.startswith("--"):
                break
            overrides.append(f"{waiting}={argument}")
            waiting = None
        elif not re.match(r"--?config\.", argument):
            others.append(argument)
        elif "=" in argument:
            overrides.append("--" + argument.lstrip("-"))
        else:
            waiting = "--" + argument.lstrip("-")
    if waiting is not None:
        raise UserError(f"{waiting} has no value; expected {waiting}=VALUE")
    return overrides, others
