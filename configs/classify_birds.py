"""fgkd train --config configs/classify_birds.py --workdir runs/birds

A narrow ResNet on 24 drawn species at 64 x 64 pixels: the plain network that attention has to
beat. Minutes on two CPU cores, data set included.
"""

from ml_collections import ConfigDict


def get_config():
    """Returns the config."""
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
                "image_size": 64,
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
                "steps": 1800,
                "batch_size": 32,
                "eval_batch_size": 96,
                "log_every": 60,
                "eval_every": 300,
            },
            "checkpoint": {"every_steps": 300, "best_metric": "accuracy"},
            "report": {
                "title": "plain narrow ResNet, 64 x 64",
                "figures": ("accuracy", "genus_accuracy"),
            },
        }
    )
