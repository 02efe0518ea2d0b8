"""`fgkd train`: trains a method from a config, and resumes by itself."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from absl import flags

from fgkd_jax.cli.command import DEVICE_HELP, Command, define_processes, get, require
from fgkd_jax.errors import NonFiniteError, UserError

DESCRIPTION = """\
Trains a method on a data set, both named by a config. Everything the run makes goes into the
workdir: checkpoints/, metrics.jsonl (one JSON object per line), config.json and, at the end,
summary.json; for a method that matches the stages of networks pictures/, for a detector detections/
in COCO's format. The same command again continues a run that was stopped, from its newest
checkpoint; a workdir that belongs to another config is left alone.

  fgkd train --config configs/classify_birds.py --workdir runs/birds
  fgkd train --config classify_cub50 --workdir runs/cub50 --config.data.data_dir=/data/cub50

Several processes run one training when each is started with --coordinator, --num_processes and
--process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), or under SLURM,
Open MPI or on the hosts of a TPU slice. SIGTERM saves the step under way and ends the run with
exit status 75: the same command continues it, on as many processes as it is then given.
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string(
        "config",
        None,
        "config file, or the name of a config that comes with the project; "
        "NAME:ARGUMENT passes an argument to it",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], DEVICE_HELP, flag_values=values)
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "folder that keeps compiled programs, so that the next run starts at once",
        flag_values=values,
    )
    define_processes(values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: overrides of the config.

    Returns:
      The exit status.

    Raises:
      UserError: an argument is wrong.
    """
    from fgkd_jax.train.termination import ending_at_once

    stray = [argument for argument in arguments if not argument.startswith("--config.")]
    if stray:
        raise UserError(f"fgkd train takes no argument '{stray[0]}'; see fgkd train --help")
    config = require(values, "config", command="train")
    workdir = require(values, "workdir", command="train")
    with ending_at_once("stopped: SIGTERM came before training began"):
        _train(values, arguments, config=config, workdir=workdir)
    return 0


def _train(values: flags.FlagValues, overrides: list[str], *, config: str, workdir: str) -> None:
    # JAX takes seconds to import, in which SIGTERM is no failure either.
    from fgkd_jax.cli.config import load_config
    from fgkd_jax.cli.processes import process_options
    from fgkd_jax.cli.session import use_platform
    from fgkd_jax.train import distributed

    experiment = load_config(config, overrides)
    with distributed.job(process_options(values)) as job:
        use_platform(get(values, "device"), cache=get(values, "compilation_cache"))
        summary = run_experiment(experiment, workdir=workdir, job=job)
        if job.rank == 0:
            print(render_summary(summary))


def run_experiment(experiment: Any, *, workdir: str, job: Any = None) -> dict[str, Any]:
    """Trains to the last step and evaluates what came out.

    Args:
      experiment: every option of the run.
      workdir: the run's folder.
      job: this process's part in the run (`train.distributed.Job`); None where it is the only one
        and nothing stops it early.

    Returns:
      What is written to `summary.json`: `results` holds one entry per split and checkpoint.

    Raises:
      UserError: the data, the weights or the workdir do not fit, or are not the same on all
        processes; or the figure that chooses the best checkpoint cannot be measured here.
      Preempted: the run was asked to stop; it can be continued.
      NonFiniteError: the loss or a gradient was not finite.
    """
    from fgkd_jax.cli import results, session
    from fgkd_jax.cli import workdir as folder
    from fgkd_jax.cli.weights import check_words
    from fgkd_jax.train.distributed import Job
    from fgkd_jax.train.loop import Trainer, fit
    from fgkd_jax.train.processes import on_primary

    started, job = time.monotonic(), job or Job()
    dataset = _checked_data(experiment, workdir)
    trainer = Trainer(session.open_run(experiment, dataset=dataset))
    initial, images = trainer.initial_state(), trainer.run.feed
    with (
        folder.claimed(workdir, experiment),
        session.open_checkpoints(experiment, workdir=workdir) as checkpointer,
        session.counting_left_out(images, workdir=workdir) as left_out,
    ):
        check_words(checkpointer, dataset, experiment)
        feed = session.training_feed(trainer, initial, experiment, dataset, workdir=workdir)
        trainer.run = dataclasses.replace(trainer.run, feed=feed)
        try:
            state, start = fit(
                trainer,
                initial,
                checkpointer,
                workdir=workdir,
                log=session.say,
                after_step=job.after_step,
                after_batch=job.beat,
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {_kept(checkpointer)}") from error
        job.steps_are_over()
        # What is reported goes through the whole network, also where features were stored.
        trainer.run = dataclasses.replace(trainer.run, feed=images)
        summary = on_primary(lambda: folder.read_json(Path(workdir) / folder.SUMMARY_FILE))
        if start == experiment.train.steps and summary:
            return summary
        summary = {
            "title": experiment.report.title,
            "data": {"name": dataset.info.name, "fingerprint": dataset.info.fingerprint},
            "seed": experiment.seed,
            "step": experiment.train.steps,
            "results": _evaluate(trainer, state, checkpointer, experiment, workdir),
            "images_left_out": left_out(),
            "pictures": on_primary(lambda: _draw(experiment, workdir)),
            "versions": results.versions(),
            "timing": _timing(started, start, trainer),
        }
    on_primary(lambda: folder.write_json(Path(workdir) / folder.SUMMARY_FILE, summary))
    return summary


def _checked_data(experiment: Any, workdir: str) -> Any:
    """Opens the data set, once all that can be told before anything is compiled has been."""
    from fgkd_jax.cli import session
    from fgkd_jax.cli import workdir as folder
    from fgkd_jax.cli.measurable import check_best
    from fgkd_jax.cli.processes import check_processes, check_same_weights, open_same_data
    from fgkd_jax.cli.teachers import check_teacher
    from fgkd_jax.cli.weights import check_files, tell_frozen
    from fgkd_jax.train.processes import on_primary

    check_processes(experiment, workdir=workdir)
    on_primary(lambda: folder.check(workdir, experiment))
    check_files(experiment)
    check_best(experiment)
    check_same_weights(experiment)
    dataset = open_same_data(experiment)
    session.check_batches(experiment, dataset)
    check_teacher(experiment, dataset)
    tell_frozen(experiment)
    return dataset


def _timing(started: float, start: int, trainer: Any) -> dict[str, Any]:
    """How long a run took, since a moment and from a step on, and how often it was compiled."""
    return {
        "seconds": round(time.monotonic() - started, 1),
        "resumed_from_step": start,
        "train_step_compilations": trainer.train_step.traces,
        "evaluation_step_compilations": trainer.eval_step.traces,
    }


def _evaluate(
    trainer: Any, state: Any, checkpointer: Any, experiment: Any, workdir: str
) -> list[dict[str, Any]]:
    """Evaluates what came out, and keeps what was detected, if anything was."""
    from fgkd_jax.cli import results
    from fgkd_jax.cli.detections import detection_writer

    keep = detection_writer(workdir, trainer.run.feed.dataset)
    return results.evaluate_checkpoints(trainer, state, checkpointer, experiment, keep=keep)


def _draw(experiment: Any, workdir: str) -> list[str]:
    """Draws what the metrics hold of stages that go together; names the files in the workdir."""
    from fgkd_jax.cli.matrices import write_matrices

    networks = [str(one["name"]) for one in getattr(experiment.method, "networks", ())]
    drawn = write_matrices(workdir, networks=networks)
    return [path.relative_to(workdir).as_posix() for path in drawn]


def _kept(checkpointer: Any) -> str:
    checkpointer.wait()
    steps = checkpointer.steps()
    return f"the checkpoint of step {steps[-1]} is kept" if steps else "none was saved before"


def render_summary(summary: dict[str, Any]) -> str:
    """Lays out what a run came to as a table.

    Args:
      summary: as `run_experiment` returns it.

    Returns:
      Several lines.
    """
    from fgkd_jax.cli.results import results_table

    data, timing, left_out = summary["data"], summary["timing"], summary["images_left_out"]
    step = timing["resumed_from_step"]
    resumed = f" since step {step}" if step else ""
    lines = [
        f"{summary['title'] or 'run'}: {summary['step']} steps on {data['name']}, "
        f"seed {summary['seed']}, {timing['seconds']:.0f} s{resumed}",
        results_table(summary["results"]),
    ]
    # A run of an earlier version did not count those of evaluation.
    counts = {step: timing.get(f"{step}_step_compilations", 0) for step in ("train", "evaluation")}
    if max(counts.values()) > 1:
        lines.append(
            f"{counts['train']} compilations of the training step, one for each size of images, "
            f"and {counts['evaluation']} of that of evaluation"
        )
    if left_out:
        names = ", ".join(list(left_out)[:5]) + (", ..." if len(left_out) > 5 else "")
        lines.append(f"{len(left_out)} images could not be read and were left out: {names}")
    if pictures := summary.get("pictures"):
        lines.append(f"drawn in the workdir: {', '.join(pictures)}")
    return "\n".join(lines)


COMMAND = Command(
    name="train",
    usage="--config CONFIG --workdir FOLDER [--config.OPTION=VALUE ...]",
    description=DESCRIPTION,
    define=define,
    run=run,
    takes_overrides=True,
)
