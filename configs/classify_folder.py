"""fgkd train --config configs/classify_folder.py --workdir runs/mine --config.data.data_dir=PHOTOS

ResNet-18 on a folder of your own photographs: PHOTOS/train/CLASS/*.jpg and PHOTOS/test/CLASS/*.jpg.
A tenth of the training images is held out to choose a checkpoint by; weights to start from go into
`--config.pretrained.path`.
"""

from ml_collections import ConfigDict


def get_config(backbone="resnet18"):
    """Returns the config.

    Args:
      backbone: name of the backbone.
    """
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "name": "classifier",
                "backbone": {"name": backbone},
                "label_smoothing": 0.1,
                "brightness": 0.2,
                "contrast": 0.2,
                "saturation": 0.2,
            },
            "data": {
                "dataset": "image_folder",
                "image_size": 224,
                "train_geometry": "random_resized_crop",
                "crop_scale": (0.25, 1.0),
                "eval_geometry": "center_crop",
                "validation_fraction": 0.1,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.01,
                "momentum": 0.9,
                "schedule": "cosine",
                "warmup_steps": 200,
                "weight_decay": 1e-4,
            },
            "train": {
                "steps": 5000,
                "batch_size": 64,
                "eval_batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
            },
            "checkpoint": {"every_steps": 500},
            "report": {
                "title": f"{backbone} on an image folder",
                "figures": ("accuracy", "mean_class_accuracy"),
            },
        }
    )
