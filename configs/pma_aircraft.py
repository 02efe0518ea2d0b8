"""fgkd train --config configs/pma_aircraft.py --workdir runs/pma_aircraft --config.data.data_dir=fgvc-aircraft-2013b --config.pretrained.path=WEIGHTS

PMA on images alone, on the training and validation images of FGVC-Aircraft: ResNet-50 from ImageNet
weights, 448 x 448 pixels. `:vgg16` and `:vgg19` are the paper's other networks.
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
        owner="pma_aircraft",
        data={"dataset": "fgvc_aircraft/trainval"},
        epoch=6667 / 32,
        report={"figures": ("accuracy", "mean_class_accuracy")},
    )
