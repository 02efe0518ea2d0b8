"""fgkd train --config configs/tasn_inat2017.py --workdir runs/tasn_inat2017 --config.pretrained.path=WEIGHTS --config.pretrained.others.attention_backbone=WEIGHTS18

TASN on iNaturalist-2017, in the variants of `tasn_cub`. Its classes are of very different sizes, so
that the mean accuracy per class stands beside top-1. The data set is prepared by TensorFlow
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
        data={"dataset": "tfds/i_naturalist2017", "train_geometry": "random_resized_crop"},
        epoch=579_184 / 96,
        epochs=30,
        report={"figures": ("accuracy", "mean_class_accuracy")},
    )
