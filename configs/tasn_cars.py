"""fgkd train --config configs/tasn_cars.py --workdir runs/tasn_cars --config.pretrained.path=WEIGHTS --config.pretrained.others.attention_backbone=WEIGHTS18

TASN on Stanford Cars, in the variants of `tasn_cub`. The data set is prepared by TensorFlow
Datasets.
"""

from fgkd_jax.cli.recipes import tasn_photographs


def get_config(variant="default"):
    """Returns the config.

    Args:
      variant: preset and other words, see `fgkd_jax.cli.recipes.tasn_photographs`.
    """
    return tasn_photographs(
        "tasn",
        variant,
        data={"dataset": "tfds/cars196", "train_geometry": "random_crop"},
        epoch=8144 / 96,
        epochs=100,
        report={"figures": ("accuracy",)},
    )
