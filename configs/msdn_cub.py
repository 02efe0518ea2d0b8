"""fgkd train --config configs/msdn_cub.py --workdir runs/msdn_cub --config.data.data_dir=FEATURES

MSDN on region features of CUB-200-2011 with the released hyperparameters. FEATURES is a folder that
`fgkd features` wrote of a data set with unseen classes. Of the paper's equations
where the released code differs: `:paper`. One sub-net by itself, or both without distillation:
`:text_to_image`, `:image_to_text`, `:undistilled`.
"""

from fgkd_jax.cli.zero_shot_recipes import region_features


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: preset and ablation, separated by commas.
    """
    return region_features("msdn", "cub", variant=variant, title="MSDN, CUB-200-2011")
