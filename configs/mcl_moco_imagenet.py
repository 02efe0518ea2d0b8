"""fgkd train --config configs/mcl_moco_imagenet.py --workdir runs/mcl_moco

Networks that learn from the images of ImageNet without labels, each by momentum contrast and all by
mutual contrast, 200 epochs: two ResNet-18, or `:resnet50` and the like. The accuracy is that of
linear probes, which are trained on the side. The data set is prepared by TensorFlow Datasets.
"""

from fgkd_jax.cli.mutual_recipes import mutual_imagenet


def get_config(networks="resnet18"):
    """Returns the config.

    Args:
      networks: their names, separated by commas.
    """
    strength = 0.4
    return mutual_imagenet(
        lambda backbones: {
            "name": "mcl_moco",
            "networks": backbones,
            "brightness": strength,
            "contrast": strength,
            "saturation": strength,
        },
        networks=networks,
        title="MCL on MoCo",
        data={"views": 2, "crop_scale": (0.2, 1.0)},
        optim={"learning_rate": 0.03, "nesterov": False, "step_boundaries": (0.6, 0.8)},
        epochs=200,
    )
