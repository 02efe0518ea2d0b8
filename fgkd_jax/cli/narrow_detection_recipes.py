"""What the configs of narrow detectors of small scenes have in common."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.cli.detection_recipes import variant_of
from fgkd_jax.methods.defeat_detectors import TEACHING, TEACHING_TITLES, teaching

SMALL_FIGURES = ("AP", "AP50", "background_false_positives")

NARROW_DETECTOR: Mapping[str, Any] = {
    "backbone": {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2, 2, 2), "width": 8},
    "frozen_stages": 0,
    "pyramid_features": 64,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.25, 0.25, 0.25),
}
"""A narrow network that learns from random weights, in minutes."""

WIDE_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "bccd": {**NARROW_DETECTOR["backbone"], "width": 32},
    "birds": {**NARROW_DETECTOR["backbone"], "width": 64},
}
"""Of the teacher of a narrow detector by the scene, as wide as 20 minutes on two cores allow."""

NARROW_HEADS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"head_features": 64, "head_depth": 2, "anchor_scale": 3.0, "candidates": 300},
    "regions": {
        "proposal_features": 64,
        "region_features": 256,
        "anchor_scale": 6.0,
        "anchor_samples": 128,
        "region_samples": 128,
        "train_candidates": 300,
        "candidates": 300,
        "proposals": 200,
    },
}
"""Small heads: of a detector that predicts for every anchor, and of one that reads regions."""

SMALL_STEPS: Mapping[str, int] = {"regions": 400, "dense": 800}
"""Steps of a narrow detector by its heads, the same whether it learns alone or from a teacher,
which had twice as many."""

SMALL_SCENES: Mapping[str, Mapping[str, Any]] = {
    "bccd": {
        "dataset": "voc_xml",
        "buckets": ((240, 320),),
        "max_boxes": 40,
        "scale": (0.7, 1.0),
        "crop_probability": 0.5,
    },
    "birds": {
        "dataset": "procedural_birds/detection",
        "buckets": ((192, 192),),
        "max_boxes": 6,
        "crop_probability": 0.5,
    },
}
"""Options of the data that narrow detectors are trained on."""

SCENE_TITLES: Mapping[str, str] = {"bccd": "BCCD at 240 x 320", "birds": "192 x 192"}
"""What `SMALL_SCENES` are called in a table."""

WIDTHS: Mapping[str, str] = {"student": "narrow ResNet", "teacher": "wider ResNet"}
"""Variants of a narrow detector, and what they are called in a table."""


def narrow_detector(
    method: Mapping[str, Any],
    *,
    heads: str,
    data: Mapping[str, Any],
    steps: int,
    report: Mapping[str, Any],
    batch_size: int = 8,
    learning_rate: float = 2e-3,
) -> ConfigDict:
    """Completes a config that trains a narrow detector on small images, in minutes.

    Args:
      method: `name` and options.
      heads: a key of `NARROW_HEADS`.
      data: data set, buckets and augmentation.
      steps: of the whole run.
      report: title of the row.
      batch_size: of training.
      learning_rate: at its peak.

    Returns:
      The config.
    """
    every = max(1, steps // 4)
    return ConfigDict(
        {
            "seed": 0,
            "method": {**NARROW_DETECTOR, **NARROW_HEADS[heads], **method},
            "data": dict(data),
            "optim": {
                "name": "adamw",
                "learning_rate": learning_rate,
                "schedule": "cosine",
                "warmup_steps": steps // 20,
                "weight_decay": 1e-3,
                "clip_norm": 10.0,
            },
            "train": {
                "steps": steps,
                "batch_size": batch_size,
                "eval_batch_size": 16,
                "log_every": max(1, steps // 40),
                "eval_every": every,
            },
            "checkpoint": {"every_steps": every, "best_metric": "voc_AP50"},
            "report": {
                "paper": "none: no published figure on these data",
                "figures": SMALL_FIGURES,
                **report,
            },
        }
    )


def small_detector(name: str, variant: str, *, heads: str, scene: str, title: str) -> ConfigDict:
    """Completes a config that trains a detector of small scenes alone.

    Args:
      name: of the method.
      variant: a key of `WIDTHS`.
      heads: a key of `NARROW_HEADS`.
      scene: a key of `SMALL_SCENES`.
      title: of the detector.

    Returns:
      The config.

    Raises:
      UserError: the variant is not known.
    """
    variant_of(f"{name}_{scene}", variant, WIDTHS)
    wide = variant == "teacher"
    return narrow_detector(
        {"name": name, **({"backbone": dict(WIDE_BACKBONES[scene])} if wide else {})},
        heads=heads,
        data=SMALL_SCENES[scene],
        steps=SMALL_STEPS[heads] * (2 if wide else 1),
        report={"title": f"{title}, {WIDTHS[variant]}, {SCENE_TITLES[scene]}"},
    )


def small_student(name: str, variant: str, *, heads: str, scene: str, title: str) -> ConfigDict:
    """Completes a config that trains a detector of small scenes by a wider one.

    Args:
      name: of the method.
      variant: a key of `TEACHING`.
      heads: a key of `NARROW_HEADS`.
      scene: a key of `SMALL_SCENES`.
      title: of the detector.

    Returns:
      The config.

    Raises:
      UserError: the variant is not known.
    """
    variant_of(f"{name}_{scene}", variant, TEACHING)
    taught = {
        "name": name,
        "teacher": {"backbone": dict(WIDE_BACKBONES[scene])},
        **teaching(variant),
    }
    told = f"{WIDTHS['student']}, {TEACHING_TITLES[variant]}, {SCENE_TITLES[scene]}"
    return narrow_detector(
        taught,
        heads=heads,
        data=SMALL_SCENES[scene],
        steps=SMALL_STEPS[heads],
        report={"title": f"{title}, {told}"},
    )
