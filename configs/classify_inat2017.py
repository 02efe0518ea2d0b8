"""fgkd train --config configs/classify_inat2017.py --workdir runs/inat2017 --config.pretrained.path=WEIGHTS

ResNet-50 from ImageNet weights on iNaturalist-2017 at 448 x 448 pixels, 30 epochs. Its classes are
of very different sizes, so that the mean accuracy per class stands beside top-1. The data set is
prepared by TensorFlow Datasets.
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
                "dataset": "tfds/i_naturalist2017",
                "image_size": 448,
                "train_geometry": "random_resized_crop",
                "eval_geometry": "center_crop",
                "num_workers": 8,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.05,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "warmup_steps": 3395,
                "weight_decay": 1e-4,
            },
            "train": {
                "steps": 67900,
                "batch_size": 256,
                "eval_batch_size": 256,
                "log_every": 100,
            },
            "checkpoint": {"every_steps": 1358},
            "report": {
                "title": f"{backbone}, 448 x 448",
                "paper": "not quoted: no run yet",
                "figures": ("accuracy", "mean_class_accuracy"),
            },
        }
    )
