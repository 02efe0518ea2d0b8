"""fgkd train --config configs/tasn_cub50.py --workdir runs/tasn_cub50 --config.data.data_dir=CUB --config.pretrained.path=WEIGHTS --config.pretrained.others.attention_backbone=WEIGHTS

TASN with MobileNetV2 from ImageNet weights on CUB-200-2011 or a part of it: 128 x 128 pixels
sampled from 256 x 256, for small copies of the photographs. Both networks keep their early stages
as they are. `:uniform` is the control that takes the pixels evenly; `:plain` the plain network on
128 x 128 pixels, with as many steps.
"""

from ml_collections import ConfigDict

from fgkd_jax.errors import UserError, nearest

TITLES = {
    "attention": "TASN, MobileNetV2 on 128 x 128 sampled from 256 x 256",
    "uniform": "TASN's networks on plain 128 x 128 copies",
    "plain": "MobileNetV2 fine-tuned, 128 x 128",
}
BACKBONE = {"name": "mobilenet_v2", "norm": "folded", "padding": "same"}
FROZEN_STAGES = ("stem", "stage1", "stage2", "stage3")


def get_config(variant="attention"):
    """Returns the config.

    Args:
      variant: a key of `TITLES`.
    """
    if variant not in TITLES:
        raise UserError(f"tasn_cub50 has no variant {variant!r}{nearest(variant, TITLES)}")
    common = {
        "backbone": BACKBONE,
        "dropout": 0.2,
        "label_smoothing": 0.1,
        "image_mean": (128 / 255,) * 3,
        "image_std": (128 / 255,) * 3,
    }
    tasn = {
        "name": "tasn",
        "sampling": variant,
        "attention_backbone": BACKBONE,
        "dilated_head": False,
        "attention_size": 128,
        "out_size": 128,
    }
    plain = variant == "plain"
    heads = "head" if plain else "(part|master|auxiliary|attention)_classifier"
    frozen = f"^(attention_)?backbone/({'|'.join(FROZEN_STAGES)})/"
    return ConfigDict(
        {
            "seed": 0,
            "method": {**common, **({"name": "classifier"} if plain else tasn)},
            "data": {
                "dataset": "cub200_2011",
                "image_size": 128 if plain else 256,
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
                "rules": (
                    {"pattern": frozen, "frozen": True},
                    {"pattern": f"^{heads}/", "learning_rate_scale": 10.0},
                ),
            },
            "train": {
                "steps": 600,
                "batch_size": 32,
                "eval_batch_size": 32,
                "log_every": 30,
            },
            "checkpoint": {"every_steps": 100},
            "report": {
                "title": TITLES[variant],
                "paper": "none on these 50 species",
                "figures": ("accuracy", "mean_class_accuracy"),
                "controls": ()
                if variant != "attention"
                else (
                    "tasn_cub50:uniform",
                    "tasn_cub50:plain",
                ),
            },
        }
    )
