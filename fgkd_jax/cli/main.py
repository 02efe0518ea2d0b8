"""The program `fgkd`: finds the command, turns errors a person can act on into one line."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from fgkd_jax import __version__
from fgkd_jax.errors import FAILED, NonFiniteError, Preempted, UserError, nearest, told

COMMANDS = {
    "train": "train a method from a config; resumes by itself",
    "eval": "evaluate a checkpoint of a run",
    "compare": "say how sure it is that one run is better than another",
    "predict": "classify image files with a run, or find objects in them",
    "export": "write the network that ships, alone, to a file",
    "data": "build or check a data set",
    "features": "write region features of a backbone over a data set",
    "ridge": "the linear baseline of zero-shot recognition, on features",
    "bench": "measure speed, as a ratio to the alternative",
    "compile": "what a TPU pod would do with a config: memory, operations, exchanges",
    "reproduce": "run a row of the results table over several seeds",
}


def usage() -> str:
    """Returns what `fgkd --help` prints.

    Returns:
      A line per command.
    """
    rows = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fgkd COMMAND ...",
            "",
            "Fine-grained recognition and knowledge distillation in JAX.",
            "",
            "commands:",
            *rows,
            "",
            "fgkd COMMAND --help says more; fgkd --version prints the version.",
            "A first run: fgkd train --config configs/classify_birds.py --workdir runs/birds",
        ]
    )


def dispatch(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
      arguments: the command's name and what follows it.

    Returns:
      The exit status.

    Raises:
      UserError: there is no such command, or it does not accept its arguments.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"fgkd_jax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"fgkd has no command '{name}'{nearest(name, COMMANDS)}")
    command = importlib.import_module(f"fgkd_jax.cli.{name}").COMMAND
    if any(argument in ("-h", "--help", "--helpfull") for argument in rest):
        print(command.help())
        return 0
    overrides: list[str] = []
    if command.takes_overrides:
        from fgkd_jax.cli.command import split_overrides

        overrides, rest = split_overrides(rest)
    values, others = command.parse(rest)
    if command.takes_overrides:
        return command.run(values, [*others, *overrides])
    return command.run(values, others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
      arguments: the command line without the program's name; that of the process by default.

    Returns:
      0 on success, 1 when a run stopped by itself (non-finite loss, a failed check), 2 when
      something given was wrong, 13 when the processes of a run did not meet, 75 when it was asked
      to stop and can be continued, 130 when interrupted.
    """
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except (KeyboardInterrupt, UserError, NonFiniteError, Preempted) as error:
        line, status = told(error) or (str(error), 1)
        print(f"fgkd: {line}", file=sys.stderr)
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def program() -> int:
    """Runs the program, and ends with a status of its own where it meets a defect.

    Returns:
      As of `main`; 13 behind the traceback of an exception that nobody expected.
    """
    try:
        return main()
    except Exception:
        traceback.print_exc()
        return FAILED


if __name__ == "__main__":
    sys.exit(program())
