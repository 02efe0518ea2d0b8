"""fgkd train --config configs/tasn_cub.py --workdir runs/tasn_cub --config.data.data_dir=CUB_200_2011 --config.pretrained.path=WEIGHTS --config.pretrained.others.attention_backbone=WEIGHTS18

TASN on CUB-200-2011: ResNet-50 from ImageNet weights on 224 x 224 pixels sampled from 512 x 512,
with a ResNet-18 that attends. `:reference` trains as the released code does, `:paper` as the
equations say, `:vgg19` takes the paper's other network, `:336` larger samples; `:reference,336`
combines them.
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
        data={"dataset": "cub200_2011", "train_geometry": "random_crop"},
        epoch=5994 / 96,
        epochs=100,
        report={"figures": ("accuracy", "mean_class_accuracy")},
    )
