"""What the configs of object detection have in common."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fgkd_jax.cli.network_titles import NETWORK_TITLES
from fgkd_jax.cli.recipes import NO_RUN, chosen
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.defeat_detectors import TEACHING, TEACHING_TITLES, teaching

COCO_IMAGES = 118_287
"""Training images of COCO 2017."""

VOC_IMAGES = 16_551
"""Images of VOC 2007 trainval and VOC 2012 trainval together."""

COCO_FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
VOC_FIGURES = ("voc_AP50", "background_false_positives")

PUBLISHED: Mapping[str, Any] = {
    "backbone": {"name": "resnet50", "frozen_norm": ".", "dtype": "bfloat16"},
    "frozen_stages": 2,
}
"""ResNet-50 whose statistics stay those of ImageNet, its stem and first stage frozen."""


@dataclasses.dataclass(frozen=True)
class DetectionRun:
    """How long a detector is trained, and how fast.

    Attributes:
      steps: of the whole run.
      batch_size: images of a step.
      learning_rate: at its peak.
      warmup_steps: of the linear rise at the start.
      drops: shares of the run after which the rate falls to a tenth.
      clip_norm: greatest norm of the gradient; 0 never clips.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    drops: tuple[float, ...]
    clip_norm: float = 0.0

    def options(self) -> dict[str, Any]:
        """Describes SGD as mmdet's recipes have it.

        Returns:
          Options of `optim`. Everything that is trained decays, vectors too.
        """
        return {
            "name": "sgd",
            "momentum": 0.9,
            "learning_rate": self.learning_rate,
            "weight_decay": 1e-4,
            "decay_vectors": True,
            "clip_norm": self.clip_norm,
            "schedule": "step",
            "warmup_steps": self.warmup_steps,
            "warmup_init": 1e-3 * self.learning_rate,
            "step_boundaries": self.drops,
        }


def coco_run(*, learning_rate: float, clip_norm: float = 0.0, epochs: int = 12) -> DetectionRun:
    """Describes mmdet's schedule for COCO: drops after two thirds and eleven twelfths.

    Args:
      learning_rate: for batches of 16.
      clip_norm: greatest norm of the gradient.
      epochs: 12 are its schedule "1x".

    Returns:
      The run.
    """
    return DetectionRun(
        steps=epochs * COCO_IMAGES // 16,
        batch_size=16,
        learning_rate=learning_rate,
        warmup_steps=500,
        drops=(8 / 12, 11 / 12),
        clip_norm=clip_norm,
    )


def voc_run(*, learning_rate: float = 0.01) -> DetectionRun:
    """Describes the schedule of DeFeat's released detectors for VOC: 12 passes, a drop after 9.

    Args:
      learning_rate: 0.01 of the student, 0.02 of the teacher.

    Returns:
      The run.
    """
    return DetectionRun(
        steps=12 * VOC_IMAGES // 16,
        batch_size=16,
        learning_rate=learning_rate,
        warmup_steps=200,
        drops=(9 / 12,),
        clip_norm=35.0,
    )


def variant_of(name: str, variant: str, known: Collection[str]) -> str:
    """Checks the variant of a config.

    Args:
      name: of the config.
      variant: what is asked for.
      known: what there is.

    Returns:
      The variant.

    Raises:
      UserError: it is not known.
    """
    if variant not in known:
        raise UserError(f"{name} has no variant {variant!r}{nearest(variant, known)}")
    return variant


def photographs_with_boxes(
    method: Mapping[str, Any],
    run: DetectionRun,
    *,
    data: Mapping[str, Any],
    report: Mapping[str, Any],
) -> ConfigDict:
    """Completes a config that trains a detector on photographs from a pretrained backbone.

    Args:
      method: `name` and options.
      run: how long, how fast.
      data: data set and buckets.
      report: title, split and figures of the row.

    Returns:
      The config.
    """
    every = max(1, run.steps // 12)
    return ConfigDict(
        {
            "seed": 0,
            "method": {**PUBLISHED, **method},
            "data": {"num_workers": 8, "max_boxes": 100, **data},
            "optim": run.options(),
            "train": {
                "steps": run.steps,
                "batch_size": run.batch_size,
                "eval_batch_size": run.batch_size,
                "log_every": 50,
                "eval_every": every,
            },
            "checkpoint": {"every_steps": every, "best_metric": "voc_AP50"},
            "report": {"paper": NO_RUN, **report},
        }
    )


BUCKETS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "coco": ((800, 1344), (1344, 800)),
    "voc": ((608, 1024), (1024, 608)),
}
"""(height, width) of photographs by data set. The published recipes resize to 1333 x 800 and
1000 x 600 and fill up to multiples of 32; here an image is made as large as its bucket."""


class Taught(NamedTuple):
    """What a student learns from its teacher.

    Attributes:
      options: of the method.
      title: of both networks and of what is learned.
    """

    options: dict[str, Any]
    title: str


def taught_by(
    variant: str, *, name: str, teachers: Sequence[str], options: Mapping[str, Any] | None = None
) -> Taught:
    """Describes a ResNet-50 that learns from a larger network.

    Args:
      variant: words separated by commas: what the student takes from its teacher, a key of
        `TEACHING`; the teacher's backbone.
      name: of the config.
      teachers: backbones that the teacher may have, keys of `NETWORK_TITLES`, by default the first.
      options: of DeFeat on these data, less what a variant says.

    Returns:
      Options, and a title.

    Raises:
      UserError: the variant has an unknown word, or two of a kind.
    """
    words = [variant_of(name, word, (*TEACHING, *teachers)) for word in variant.split(",")]
    network = chosen(words, teachers)
    kind = chosen(words, tuple(TEACHING))
    kept = dict(options or {})
    if kind != "defeat":
        kept.pop("compared_stages", None)
    taught = teaching(kind)
    if kind == "imitation" and "object_weight" in kept:
        taught["object_weight"] = kept["object_weight"] + kept["background_weight"]
    backbone = {**PUBLISHED["backbone"], "name": network}
    return Taught(
        {**kept, "teacher": {"backbone": backbone}, **taught},
        f"ResNet-50 from {NETWORK_TITLES[network]}, {TEACHING_TITLES[kind]}",
    )
