"""fgkd train --config configs/classify_cub.py --workdir runs/cub --config.data.data_dir=CUB_200_2011 --config.pretrained.path=WEIGHTS

ResNet-50 from ImageNet weights on CUB-200-2011 at 448 x 448 pixels, 100 epochs: the plain network
that fine-grained methods are compared with. `:resnet34` and the like take another backbone.
"""

from ml_collections import ConfigDict


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: name of the backbone.
    """
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": "classifier",
                "backbone": {"name": backbone, "norm_groups": 1, "dtype": "bfloat16"},
                "label_smoothing": 0.1,
            },
            "data": {
                "dataset": "cub200_2011",
                "image_size": 448,
                "train_geometry": "random_crop",
                "eval_geometry": "center_crop",
                "num_workers": 8,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.004,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "warmup_steps": 935,
                "weight_decay": 1e-4,
            },
            "train": {
                "steps": 18700,
                "batch_size": 32,
                "eval_batch_size": 32,
                "log_every": 100,
            },
            "checkpoint": {"every_steps": 500},
            "report": {
                "title": f"{backbone}, 448 x 448",
                "paper": "not quoted: no run yet",
                "figures": ("accuracy", "mean_class_accuracy"),
            },
        }
    )
