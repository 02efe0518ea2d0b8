"""Whether the figures that are asked for can be measured here, and why one is missing."""

from collections.abc import Sequence

from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import DetectionEvaluator
from fgkd_jax.evaluation.coco import FIGURES, coco_is_installed

INSTALL = "pip install 'fgkd-jax[detection]'"
"""How COCO's tool is installed."""


def check_tools(experiment: Experiment, figures: Sequence[str], *, option: str) -> None:
    """Raises before a run begins where what shall be measured needs a tool that is not installed.

    Args:
      experiment: the experiment.
      figures: their names.
      option: that names them, for the message.

    Raises:
      UserError: one of them is COCO's, of a detector, and its tool is missing.
    """
    if not isinstance(experiment.data, DetectionOptions) or coco_is_installed():
        return
    for name in figures:
        if name in FIGURES:
            raise UserError(
                f"{option} has '{name}', which needs pycocotools: {INSTALL}; without it there are "
                "voc_AP50 and voc07_AP50"
            )


def check_best(experiment: Experiment) -> None:
    """Raises before a run begins where its best checkpoint cannot be told.

    Args:
      experiment: the experiment.

    Raises:
      UserError: the figure that decides cannot be measured here.
    """
    if experiment.checkpoint.keep_best:
        decisive = experiment.checkpoint.best_metric
        check_tools(experiment, (decisive,), option="checkpoint.best_metric")


def check_unmeasured(experiment: Experiment, name: str, *, measured: Sequence[str]) -> None:
    """Raises where a figure is missing for another reason than that there was nothing to measure.

    Args:
      experiment: the experiment.
      name: of the figure.
      measured: names of those that its evaluation has.

    Raises:
      UserError: there is no such figure, or the evaluation was made without COCO's tool.
    """
    known = DetectionEvaluator(()).figures if isinstance(experiment.data, DetectionOptions) else ()
    if name not in known:
        raise UserError(f"report.figures has '{name}'; expected some of {', '.join(measured)}")
    if name in FIGURES and not set(FIGURES) & set(measured):
        raise UserError(
            f"report.figures has '{name}', but a run was evaluated without pycocotools; expected "
            f"{INSTALL}, and then its summary.json removed, so that the same command evaluates it "
            "again"
        )
