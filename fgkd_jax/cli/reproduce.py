"""`fgkd reproduce`: a row of the results table, over several seeds."""

import dataclasses
import shlex
import statistics
from pathlib import Path
from typing import Any

from absl import flags

from fgkd_jax.cli.command import DEVICE_HELP, Command, get
from fgkd_jax.cli.figures import is_share
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Trains a config once per seed and prints its row of the results table: mean and standard deviation
over the seeds, the published figure, the data, how the checkpoint was chosen, and the command. A
config that names controls (report.controls) has a row for each of them as well, on the same seeds.
Finished seeds are not run again; a stopped one continues.

  fgkd reproduce classify_birds --seeds 3
  fgkd reproduce tasn_birds --seeds 3 --controls=false

In the name of a teacher's file {seed} stands for the seed, so that each has a teacher of its own:

  fgkd reproduce pma_birds:student --seeds 5 --config.pretrained.teacher=teacher{seed}.safetensors
"""

HEADER = ("row", "published", "ours", "data", "seeds", "checkpoint", "command")


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_integer("seeds", 3, "number of seeds", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "workdir", "runs/reproduce", "folder that holds one run per seed", flag_values=values
    )
    flags.DEFINE_boolean(
        "controls", True, "run the controls that the config names as well", flag_values=values
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: the config's name, then overrides.

    Returns:
      The exit status.

    Raises:
      UserError: there is no such config, or its figures cannot be measured here.
    """
    from fgkd_jax.cli import session
    from fgkd_jax.cli.config import load_config
    from fgkd_jax.cli.measurable import check_tools

    names = [argument for argument in arguments if not argument.startswith("--config.")]
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    if any(override.startswith("--config.seed=") for override in overrides):
        raise UserError("fgkd reproduce sets the seeds itself; expected no --config.seed")
    if len(names) != 1:
        raise UserError("fgkd reproduce needs one config; see fgkd reproduce --help")
    first = load_config(names[0], overrides)
    controls = first.report.controls if get(values, "controls") else ()
    experiments = {name: load_config(name, overrides) for name in (names[0], *controls)}
    for name, experiment in experiments.items():
        check_tools(experiment, experiment.report.figures, option=f"report.figures of {name}")
    session.use_platform(get(values, "device"))
    rows = []
    for name, experiment in experiments.items():
        rows.append(
            reproduce_row(
                experiment,
                name,
                overrides,
                seeds=get(values, "seeds"),
                workdir=Path(get(values, "workdir")),
            )
        )
    print(markdown(rows))
    return 0


def reproduce_row(
    experiment: Any, name: str, overrides: list[str], *, seeds: int, workdir: Path
) -> dict[str, Any]:
    """Trains an experiment once per seed, and writes its row to `row.json` beside the runs.

    Args:
      experiment: the experiment, whatever its own seed.
      name: of its config, with `:ARGUMENT` where it has one.
      overrides: what the command line changes in it.
      seeds: number of seeds, beginning with 0.
      workdir: folder that holds a folder per config, which holds a run per seed.

    Returns:
      The row, as `table_row` returns it.
    """
    from fgkd_jax.cli import results, session
    from fgkd_jax.cli.train import run_experiment
    from fgkd_jax.cli.workdir import write_json

    config, _, argument = name.partition(":")
    folder = workdir / (Path(config).stem + (f"-{argument}" if argument else ""))
    summaries = []
    for seed in range(seeds):
        session.say(f"{name}: seed {seed} of 0..{seeds - 1}")
        seeded = _of_seed(experiment, seed)
        summaries.append(run_experiment(seeded, workdir=str(folder / f"seed{seed}")))
    command = shlex.join(["fgkd", "reproduce", name, "--seeds", str(seeds), *overrides])
    row = table_row(experiment, summaries, command=command)
    write_json(folder / "row.json", {**row, "versions": results.versions()})
    return row


def _of_seed(experiment: Any, seed: int) -> Any:
    """The experiment with a seed, and with the teacher of that seed."""
    teacher = experiment.pretrained.teacher.replace("{seed}", str(seed))
    pretrained = dataclasses.replace(experiment.pretrained, teacher=teacher)
    return dataclasses.replace(experiment, seed=seed, pretrained=pretrained)


def table_row(experiment: Any, summaries: list[dict[str, Any]], *, command: str) -> dict[str, Any]:
    """Sums up several seeds.

    The checkpoint that counts is the last one, or the one that was best on validation: never one
    that was chosen by a figure of the split that is reported.

    Args:
      experiment: says which figures make up the row, and which checkpoint counts.
      summaries: one per seed, as `run_experiment` returns them.
      command: how the row was made.

    Returns:
      The row's cells by the names of `HEADER`, and `figures`: mean, standard deviation and the
      values behind them; None for what had nothing to measure, small objects where there are none.

    Raises:
      UserError: the evaluation has no figure of a name that the row asks for.
    """
    from fgkd_jax.cli.measurable import check_unmeasured

    report = experiment.report
    chosen = [_chosen(summary, report) for summary in summaries]
    figures = {}
    for name in report.figures:
        for entry in chosen:
            if name not in entry["figures"]:
                check_unmeasured(experiment, name, measured=tuple(entry["figures"]))
        values = [entry["figures"].get(name) for entry in chosen]
        measured = [value for value in values if value is not None]
        figures[name] = {
            "mean": statistics.mean(measured) if measured else None,
            "std": statistics.stdev(measured) if len(measured) > 1 else None,
            "values": values,
        }
    ours = ", ".join(f"{_title(name)} {_spread(name, figure)}" for name, figure in figures.items())
    count = chosen[0]["figures"].get("examples")
    return {
        "row": report.title,
        "published": report.paper,
        "ours": ours,
        "data": f"{summaries[0]['data']['name']}, {report.split} ({count} images)",
        "seeds": len(summaries),
        "checkpoint": _checkpoint(report, chosen),
        "command": f"`{command}`",
        "figures": figures,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lays rows out as a Markdown table.

    Args:
      rows: as `table_row` returns them.

    Returns:
      The table, with its header.
    """
    lines = [
        HEADER,
        ["---"] * len(HEADER),
        *([str(row[name]).replace("|", "\\|") for name in HEADER] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chosen(summary: dict[str, Any], report: Any) -> dict[str, Any]:
    """The evaluation that counts; the last checkpoint may have been the best one."""
    entries = [entry for entry in summary["results"] if entry["split"] == report.split]
    named = {entry["checkpoint"]: entry for entry in entries}
    return named.get(report.checkpoint, named["last"])


def _checkpoint(report: Any, chosen: list[dict[str, Any]]) -> str:
    steps = sorted({entry["step"] for entry in chosen})
    told = ", ".join(map(str, steps))
    kind = "last" if report.checkpoint == "last" else "best on validation"
    return f"{kind} (step {told})"


def _title(name: str) -> str:
    return name.removesuffix("_accuracy").replace("_", " ") if name != "accuracy" else "top-1"


def _spread(name: str, figure: dict[str, Any]) -> str:
    if figure["mean"] is None:
        return "not measurable"
    factor, digits, unit = (100, 1, "%") if is_share(name) else (1, 2, "")
    mean = f"{factor * figure['mean']:.{digits}f}"
    of, count = len(figure["values"]), sum(value is not None for value in figure["values"])
    share = f" ({count} of {of} seeds)" if count < of else ""
    if figure["std"] is None:
        return f"{mean}{unit}{share or ' (one seed)'}"
    return f"{mean} ± {factor * figure['std']:.{digits}f}{unit}{share}"


COMMAND = Command(
    name="reproduce",
    usage="CONFIG [--seeds N] [--workdir FOLDER] [--config.OPTION=VALUE ...]",
    description=DESCRIPTION,
    define=define,
    run=run,
    takes_overrides=True,
)
