"""fgkd train --config configs/classify_cub50.py --workdir runs/cub50 --config.data.data_dir=CUB --config.pretrained.path=WEIGHTS

MobileNetV2 from ImageNet weights, fine-tuned on CUB-200-2011 or a part of it at 224 x 224 pixels.
The early stages stay as they are; their output is computed once, for a few augmented views of
each training image, so that a laptop's processor is enough.
"""

from ml_collections import ConfigDict


def get_config():
    """Returns the config."""
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": "classifier",
                "backbone": {"name": "mobilenet_v2", "norm": "folded", "padding": "same"},
                "frozen_stages": 4,
                "dropout": 0.2,
                "label_smoothing": 0.1,
                "image_mean": (128 / 255,) * 3,
                "image_std": (128 / 255,) * 3,
            },
            "data": {
                "dataset": "cub200_2011",
                "image_size": 224,
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
                "rules": ({"pattern": "^head/", "learning_rate_scale": 10.0},),
            },
            "train": {
                "steps": 600,
                "batch_size": 32,
                "eval_batch_size": 32,
                "log_every": 30,
            },
            "checkpoint": {"every_steps": 200},
            "features": {"views": 4},
            "report": {
                "title": "MobileNetV2 fine-tuned, 224 x 224",
                "paper": "none on these 50 species",
                "figures": ("accuracy", "mean_class_accuracy"),
            },
        }
    )
