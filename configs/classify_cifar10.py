"""fgkd train --config configs/classify_cifar10.py --workdir runs/cifar10 --config.data.data_dir=CIFAR

ResNet-18 with a small stem on CIFAR-10, 200 epochs at batch 128. The folder holds the authors'
Python pickles, or the arrays of JPEG files.
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
                "image_mean": (0.4914, 0.4822, 0.4465),
                "image_std": (0.247, 0.2435, 0.2616),
            },
            "data": {
                "dataset": "cifar10",
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
