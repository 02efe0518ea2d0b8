"""fgkd train --config configs/pma_cars.py --workdir runs/pma_cars --config.pretrained.path=WEIGHTS

PMA on images alone, on Stanford Cars: ResNet-50 from ImageNet weights, 448 x 448 pixels. `:vgg16`
and `:vgg19` are the paper's other networks. The data set is prepared by TensorFlow Datasets.
"""

from fgkd_jax.cli.bimodal_recipes import attentive_photographs


def get_config(backbone=""):
    """Returns the config.

    Args:
      backbone: `resnet50`, `vgg16` or `vgg19`.
    """
    return attentive_photographs(
        {"vision": "pma_vision"},
        backbone,
        owner="pma_cars",
        data={"dataset": "tfds/cars196"},
        epoch=8144 / 32,
        report={"figures": ("accuracy",)},
    )
