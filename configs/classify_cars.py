"""fgkd train --config configs/classify_cars.py --workdir runs/cars --config.pretrained.path=WEIGHTS

ResNet-50 from ImageNet weights on Stanford Cars at 448 x 448 pixels, 100 epochs. The data set is
prepared by TensorFlow Datasets.
"""

from fgkd_jax.cli.recipes import photographs, plain


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: name of the backbone.
    """
    return photographs(
        {"name": "classifier", **plain(backbone)},
        data={"dataset": "tfds/cars196", "image_size": 448, "train_geometry": "random_crop"},
        optim={"learning_rate": 0.008, "warmup_steps": 1270},
        steps=25400,
        batch_size=32,
        every_steps=508,
        report={"title": f"{backbone}, 448 x 448", "figures": ("accuracy",)},
    )
