"""`fgkd eval`: evaluates a checkpoint of a run."""

import dataclasses
import json
from typing import Any

from absl import flags

from fgkd_jax.cli.command import Command, define_run, get, require
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import ByClass

DESCRIPTION = """\
Evaluates a run's checkpoint on every example of a split and prints the figures. The newest
checkpoint is evaluated unless --checkpoint=best asks for the one that was best on validation.

  fgkd eval --workdir runs/birds
  fgkd eval --workdir runs/birds --split validation --checkpoint best --json

--per_class adds a table of the classes. Of a detector, what it found is written to
WORKDIR/detections, in COCO's format of results.

Several splits with "+" between them are evaluated as one. With unseen classes, --curve draws
accuracy on seen classes over accuracy on unseen ones at all offsets, and --unseen_offset adds the
figures at one of them, chosen on validation classes:

  fgkd eval --workdir runs/msdn --split test_seen+test_unseen --unseen_offset 0.8 --curve su.png

--predictions stores ids, labels and scores of the split's images, for fgkd compare; of networks
that learn together, the scores are those of their ensemble.

On features with thumbnails, --pictures draws where attributes are found, over --examples images
of the split; a circle is around the part that the attribute is of:

  fgkd eval --workdir runs/msdn --split test_unseen --pictures attention --examples 12
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
    flags.DEFINE_float(
        "unseen_offset",
        None,
        "added to the scores of unseen classes; that of the config by default",
        flag_values=values,
    )
    flags.DEFINE_string(
        "curve", None, "PNG file of the seen-unseen accuracy curve", flag_values=values
    )
    flags.DEFINE_string("predictions", None, ".npz file to write scores to", flag_values=values)
    flags.DEFINE_string(
        "pictures", None, "folder for pictures of attention to attributes", flag_values=values
    )
    flags.DEFINE_integer(
        "examples", 8, "how many images --pictures draws", lower_bound=1, flag_values=values
    )
    flags.DEFINE_boolean("per_class", False, "also the figures of each class", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: none are expected.

    Returns:
      The exit status.

    Raises:
      UserError: the workdir holds no run or no checkpoint, there is no such split, or a file or
        picture cannot be made.
    """
    from fgkd_jax.cli import attention, curves, predictions, results
    from fgkd_jax.cli.detections import detection_writer
    from fgkd_jax.cli.session import check_boxes
    from fgkd_jax.cli.weights import say
    from fgkd_jax.evaluation import ZeroShotEvaluator, calibrated

    if arguments:
        raise UserError(f"fgkd eval takes no argument '{arguments[0]}'; see fgkd eval --help")
    workdir = require(values, "workdir", command="eval")
    scores = get(values, "predictions")
    if scores:
        predictions.check_path(scores)
    restored = results.restore_run(values, workdir)
    split = get(values, "split") or restored.experiment.report.split
    check_boxes(restored.experiment, restored.dataset, split=split)
    trainer = restored.trainer
    if get(values, "unseen_offset") is not None:
        evaluator = calibrated(trainer.run.evaluator, offset=get(values, "unseen_offset"))
        trainer.run = dataclasses.replace(trainer.run, evaluator=evaluator)
    curve = get(values, "curve")
    if curve and not isinstance(trainer.run.evaluator, ZeroShotEvaluator):
        raise UserError("--curve needs unseen classes, which the run's task does not have")
    counts = trainer.count(restored.state, split)
    figures = trainer.run.evaluator.finalise(counts)
    detection_writer(workdir, restored.dataset)(split, get(values, "checkpoint"), counts)
    if curve and isinstance(trainer.run.evaluator, ZeroShotEvaluator):
        title = f"{split}, step {restored.step}"
        curves.write_curve(curve, trainer.run.evaluator.curve(counts), figures, title=title)
    if scores:
        predictions.write_predictions(scores, predictions.predict_split(restored, split))
    if get(values, "pictures"):
        drawn = attention.write_attention(
            get(values, "pictures"), restored, split, examples=get(values, "examples")
        )
        say(f"drawn: {len(drawn)} pictures in {get(values, 'pictures')}")
    by_class = _by_class(restored, counts) if get(values, "per_class") else []
    result = {
        "split": split,
        "checkpoint": get(values, "checkpoint"),
        "step": restored.step,
        "figures": figures,
    }
    if get(values, "json"):
        print(json.dumps({**result, **({"classes": by_class} if by_class else {})}, indent=2))
        return 0
    print(results.results_table([result]))
    if by_class:
        print("\n" + results.figures_table(by_class))
    return 0


def _by_class(restored: Any, counts: Any) -> list[dict[str, Any]]:
    """The figures of each class, and its name."""
    evaluator = restored.trainer.run.evaluator
    if not isinstance(evaluator, ByClass):
        raise UserError("--per_class: this run has figures of all classes together only")
    rows = evaluator.by_class(counts)
    names = restored.dataset.info.class_names
    return [{"class": name, **row} for name, row in zip(names, rows, strict=True)]


COMMAND = Command(
    name="eval",
    usage="--workdir FOLDER [--split SPLIT] [--checkpoint last|best]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
