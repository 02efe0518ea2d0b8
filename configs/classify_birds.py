"""fgkd train --config configs/classify_birds.py --workdir runs/birds

A narrow ResNet on 24 drawn species at 64 x 64 pixels: the plain network that attention has to
beat. Minutes on two CPU cores, data set included. `:longer` trains it with at least as much
computation as `tasn_birds` takes, `:full` on the whole 256 x 256 pixels.
"""

from ml_collections import ConfigDict

from fgkd_jax.errors import UserError, nearest

TITLES = {
    "plain": "plain narrow ResNet, 64 x 64",
    "longer": "plain narrow ResNet, 64 x 64, 3.3 times the steps",
    "full": "plain narrow ResNet, 256 x 256",
}
STEPS = 1800
# A step of `tasn_birds` takes 2.7 times the operations of one here, by the compiler's count on CPU
# (8.54e9 against 3.13e9), and 3.2 times as long on two cores; this is 3.3 times as many steps.
LONGER = 6000


def get_config(variant="plain"):
    """Returns the config.

    Args:
      variant: a key of `TITLES`.
    """
    if variant not in TITLES:
        raise UserError(f"classify_birds has no variant {variant!r}{nearest(variant, TITLES)}")
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": "classifier",
                # Every stage halves the map, the first one too: minutes on two CPU cores.
                "backbone": {"name": "resnet_narrow", "width": 16, "strides": (2, 2, 2, 2)},
                "image_mean": (0.5, 0.5, 0.5),
                "image_std": (0.25, 0.25, 0.25),
            },
            "data": {
                "dataset": "procedural_birds/classification",
                "image_size": 256 if variant == "full" else 64,
                "train_geometry": "shift_crop",
                "max_shift": 24,
                "eval_geometry": "resize",
            },
            "optim": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_steps": 60,
                "weight_decay": 1e-3,
                "clip_norm": 5.0,
            },
            "train": {
                "steps": LONGER if variant == "longer" else STEPS,
                "batch_size": 32,
                "eval_batch_size": 96,
                "log_every": 60,
                "eval_every": 300,
            },
            "checkpoint": {"every_steps": 300, "best_metric": "accuracy"},
            "report": {
                "title": TITLES[variant],
                "figures": ("accuracy", "genus_accuracy"),
            },
        }
    )
