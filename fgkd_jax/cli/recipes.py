"""What the configs of several data sets have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.tasn import PRESETS, tasn_preset

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of the channels of CIFAR-10's training images, in 0..1."""

CIFAR10_STD = (0.247, 0.2435, 0.2616)
"""Their standard deviation."""

NO_RUN = "not quoted: no run yet"
"""The published figure of a row that was never run."""


def chosen(words: Sequence[str], choices: Sequence[str]) -> str:
    """Returns the word that is one of several choices.

    Args:
      words: of a config's argument.
      choices: the first is the default.

    Returns:
      The choice.

    Raises:
      UserError: there are two of them.
    """
    found = [word for word in words if word in choices]
    if len(found) > 1:
        raise UserError(f"variant '{','.join(words)}' has both {found[0]} and {found[1]}")
    return found[0] if found else choices[0]


def photographs(
    method: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    optim: Mapping[str, Any],
    steps: int,
    batch_size: int,
    every_steps: int,
    report: Mapping[str, Any],
) -> ConfigDict:
    """Completes a config that trains on photographs with SGD.

    Args:
      method: `name` and options.
      data: data set, size and geometry.
      optim: what differs from Nesterov momentum 0.9, decay 1e-4 and a cosine schedule.
      steps: of the whole run.
      batch_size: of training and evaluation.
      every_steps: steps between checkpoints.
      report: title and figures of the row.

    Returns:
      The config.
    """
    base = {
        "name": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "schedule": "cosine",
        "weight_decay": 1e-4,
    }
    return ConfigDict(
        {
            "seed": 0,
            "method": dict(method),
            "data": {"eval_geometry": "center_crop", "num_workers": 8, **data},
            "optim": {**base, **optim},
            "train": {
                "steps": steps,
                "batch_size": batch_size,
                "eval_batch_size": batch_size,
                "log_every": 100,
            },
            "checkpoint": {"every_steps": every_steps},
            "report": {"paper": NO_RUN, **report},
        }
    )


def plain(backbone: str) -> dict[str, Any]:
    """Options of a plain classifier in bfloat16.

    Args:
      backbone: its name.

    Returns:
      Options of the method, without its name.
    """
    return {
        "backbone": {"name": backbone, "norm_groups": 1, "dtype": "bfloat16"},
        "label_smoothing": 0.1,
    }


def tasn_photographs(
    name: str,
    variant: str,
    *,
    data: Mapping[str, Any],
    epoch: float,
    epochs: int,
    report: Mapping[str, Any],
) -> ConfigDict:
    """A TASN that samples 224 or 336 pixels from 512, in batches of 96.

    Args:
      name: of the method.
      variant: words separated by commas: a preset (`default`, `paper`, `reference`), `vgg19` in
        place of ResNet-50, `336` in place of 224.
      data: data set and geometry.
      epoch: steps of an epoch.
      epochs: how many; the preset `reference` has 300, as released.
      report: figures of the row.

    Returns:
      The config.

    Raises:
      UserError: the variant has an unknown word.
    """
    preset, backbone, size = _variant(variant)
    strength = 0.4
    method = {
        "name": name,
        **tasn_preset(preset),
        "backbone": {"name": backbone, "norm_groups": 1, "dtype": "bfloat16"},
        "attention_backbone": {
            "name": "resnet18",
            "strides": (1, 1, 2, 1),
            "norm_groups": 1,
            "dtype": "bfloat16",
        },
        "attention_size": 224,
        "out_size": size,
        "brightness": strength,
        "contrast": strength,
        "saturation": strength,
    }
    optim: dict[str, Any] = {"learning_rate": 0.02, "warmup_steps": round(5 * epoch)}
    if preset == "reference":
        optim, epochs = dict(RELEASED), 300
    return photographs(
        method,
        data={"image_size": 512, **data},
        optim=optim,
        steps=round(epochs * epoch),
        batch_size=96,
        every_steps=round(5 * epoch),
        report={
            "title": f"TASN ({preset}), {backbone}, {size} x {size} sampled from 512 x 512",
            **report,
        },
    )


RELEASED: Mapping[str, Any] = {
    "learning_rate": 0.1,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "schedule": "step",
    "step_boundaries": (1 / 3, 2 / 3),
    "decay_factor": 0.1,
}
"""The optimiser of the released TASN, github.com/researchmm/tasn."""


def drawn_birds(
    method: Mapping[str, Any],
    *,
    image_size: int,
    steps: int,
    report: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    learning_rate: float = 4e-3,
) -> ConfigDict:
    """Completes a config that trains a narrow network on drawn birds, in minutes.

    Args:
      method: `name` and options.
      image_size: side of the images.
      steps: of the whole run.
      report: title, figures and controls of the row.
      data: further options of the data.
      batch_size: of training.
      learning_rate: at its peak.

    Returns:
      The config.
    """
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "image_mean": (0.5, 0.5, 0.5),
                "image_std": (0.25, 0.25, 0.25),
                **method,
            },
            "data": {
                "dataset": "procedural_birds/classification",
                "image_size": image_size,
                "train_geometry": "shift_crop",
                "max_shift": 24,
                "eval_geometry": "resize",
                **(data or {}),
            },
            "optim": {
                "name": "adamw",
                "learning_rate": learning_rate,
                "schedule": "cosine",
                "warmup_steps": 240,
                "weight_decay": 1e-3,
                "clip_norm": 5.0,
            },
            "train": {
                "steps": steps,
                "batch_size": batch_size,
                "eval_batch_size": 96,
                "log_every": 240,
                "eval_every": 1200,
            },
            "checkpoint": {"every_steps": 1200, "best_metric": "accuracy"},
            "report": dict(report),
        }
    )


NARROW: Mapping[str, Any] = {"name": "resnet_narrow", "width": 16, "strides": (2, 2, 2, 2)}
"""The plain network of the drawn birds; every stage halves the map, the first one too."""


def small_cub(
    method: Mapping[str, Any],
    *,
    image_size: int,
    rules: Sequence[Mapping[str, Any]],
    every_steps: int,
    report: Mapping[str, Any],
) -> ConfigDict:
    """Completes a config that fine-tunes MobileNetV2 on small copies of CUB-200-2011.

    Args:
      method: `name` and options.
      image_size: side of the images.
      rules: which parameters are frozen, and which learn faster.
      every_steps: steps between checkpoints.
      report: title and controls of the row.

    Returns:
      The config.
    """
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "backbone": dict(MOBILENET),
                "dropout": 0.2,
                "label_smoothing": 0.1,
                "image_mean": (128 / 255,) * 3,
                "image_std": (128 / 255,) * 3,
                **method,
            },
            "data": {
                "dataset": "cub200_2011",
                "image_size": image_size,
                "train_geometry": "random_resized_crop",
                "crop_scale": (0.5, 1.0),
                "crop_ratio": (0.7, 1.5),
                "eval_geometry": "resize",
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.003,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "warmup_steps": 50,
                "weight_decay": 1e-4,
                "clip_norm": 10.0,
                "rules": tuple(dict(rule) for rule in rules),
            },
            "train": {"steps": 600, "batch_size": 32, "eval_batch_size": 32, "log_every": 30},
            "checkpoint": {"every_steps": every_steps},
            "report": {
                "paper": "none on these 50 species",
                "figures": ("accuracy", "mean_class_accuracy"),
                **report,
            },
        }
    )


MOBILENET: Mapping[str, Any] = {"name": "mobilenet_v2", "norm": "folded", "padding": "same"}
"""MobileNetV2 as TensorFlow trained it, its batch norms folded into the convolutions."""


def small_images(
    name: str,
    dataset: str,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> ConfigDict:
    """A ResNet-18 on CIFAR-10 or CIFAR-100, 200 epochs at batch 128.

    Args:
      name: of the method.
      dataset: its name.
      mean: of the channels of its training images, in 0..1.
      std: likewise.

    Returns:
      The config.
    """
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": name,
                "backbone": {"name": "resnet_narrow", "width": 64, "stage_sizes": (2, 2, 2, 2)},
                "image_mean": mean,
                "image_std": std,
            },
            "data": {
                "dataset": dataset,
                "image_size": 32,
                "train_geometry": "shift_crop",
                "max_shift": 4,
                "eval_geometry": "resize",
                "validation_fraction": 0.02,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "warmup_steps": 400,
                "weight_decay": 5e-4,
            },
            "train": {
                "steps": 76600,
                "batch_size": 128,
                "eval_batch_size": 512,
                "log_every": 100,
                "eval_every": 3830,
            },
            "checkpoint": {"every_steps": 3830},
            "report": {"title": "ResNet-18 for 32 x 32", "paper": NO_RUN},
        }
    )


def _variant(variant: str) -> tuple[str, str, int]:
    """Preset, backbone and size of the samples, from words."""
    words = [word for word in variant.split(",") if word]
    known = (*PRESETS, "vgg19", "336")
    for word in words:
        if word not in known:
            raise UserError(f"TASN has no preset or variant {word!r}{nearest(word, known)}")
    presets = [word for word in words if word in PRESETS]
    if len(presets) > 1:
        raise UserError(f"variant {variant!r} has several presets; expected one")
    return (
        presets[0] if presets else "default",
        "vgg19" if "vgg19" in words else "resnet50",
        336 if "336" in words else 224,
    )
