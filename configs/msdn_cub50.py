"""fgkd train --config configs/msdn_cub50.py --workdir runs/msdn_cub50 --config.data.data_dir=FEATURES

MSDN on region features of MobileNetV2, for CUB-200-2011 or a part of it: 30 passes over the 1,837
training images of 40 species, with the released hyperparameters of CUB. CUB, which holds the
proposed split too, becomes FEATURES by

  fgkd features --config configs/classify_cub50.py --folder FEATURES \
    --config.data.dataset=cub200_2011/zero_shot --config.data.data_dir=CUB \
    --config.pretrained.path=WEIGHTS

`--config.data.validation_classes=0.25 --config.data.validation_fraction=0.2` makes a run that
knows the seen classes alone, to choose steps, weights and `report.unseen_offset` by. `:paper`,
`:text_to_image`, `:image_to_text` and `:undistilled` as in `msdn_cub`.
"""

from fgkd_jax.cli.zero_shot_recipes import CALIBRATED, FIGURES, region_features


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: preset and ablation, separated by commas.
    """
    config = region_features(
        "msdn",
        "cub",
        title="MSDN on MobileNetV2's regions, 50 species",
        variant=variant,
        steps=1837 * 30 // 50,
        report={"paper": "none on 50 species", "figures": (*FIGURES, *CALIBRATED)},
    )
    config.train.eval_every = config.train.steps // 3
    return config
