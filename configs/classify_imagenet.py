"""fgkd train --config configs/classify_imagenet.py --workdir runs/imagenet

ResNet-50 on ImageNet at 224 x 224 pixels, 90 epochs at batch 1,024; `:resnet18` and the like take
another backbone. The data set is prepared by TensorFlow Datasets.
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
                "dataset": "tfds/imagenet2012",
                "image_size": 224,
                "train_geometry": "random_resized_crop",
                "eval_geometry": "center_crop",
                "num_workers": 8,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.4,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "warmup_steps": 5629,
                "weight_decay": 1e-4,
            },
            "train": {
                "steps": 112590,
                "batch_size": 1024,
                "eval_batch_size": 1024,
                "log_every": 100,
            },
            "checkpoint": {"every_steps": 2251},
            "report": {
                "title": f"{backbone}, 224 x 224",
                "paper": "not quoted: no run yet",
                "figures": ("accuracy",),
            },
        }
    )
