"""fgkd train --config configs/classify_cifar100.py --workdir runs/cifar100 --config.data.data_dir=CIFAR

ResNet-18 with a small stem on CIFAR-100, 200 epochs at batch 128. The folder holds the authors'
Python pickles.
"""

from ml_collections import ConfigDict


def get_config():
    """Returns the config."""
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": "classifier",
                "backbone": {"name": "resnet_narrow", "width": 64, "stage_sizes": (2, 2, 2, 2)},
                "image_mean": (0.5071, 0.4865, 0.4409),
                "image_std": (0.2673, 0.2564, 0.2762),
            },
            "data": {
                "dataset": "cifar100",
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
            "report": {
                "title": "ResNet-18 for 32 x 32",
                "paper": "not quoted: no run yet",
            },
        }
    )
