"""What the configs of several data sets have in common."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.tasn import PRESETS, tasn_preset

NO_RUN = "not quoted: no run yet"
"""The published figure of a row that was never run."""


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
