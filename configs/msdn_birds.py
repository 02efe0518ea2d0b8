"""fgkd train --config configs/msdn_birds.py --workdir runs/msdn_birds --config.data.data_dir=FEATURES

MSDN on region features of 36 drawn species, to recognise 12 more by their attributes. FEATURES is
made with a network that was shown 27 of the 36 and none of the 12:

  fgkd train --config configs/classify_birds.py:seen --workdir BACKBONE
  fgkd export --workdir BACKBONE --output WEIGHTS.safetensors
  fgkd features --config configs/classify_birds.py:seen --folder FEATURES --stage 3 \
    --thumbnails 96 --config.pretrained.path=WEIGHTS.safetensors \
    --config.data.extra_keys="('parts',)"

`fgkd eval --workdir runs/msdn_birds --split test_unseen --pictures PICTURES` shows where attributes
were found. `--config.data.validation_classes=0.25 --config.data.validation_fraction=0.1
--config.report.split=validation` makes a run that knows the seen species alone; the nine that then
play unseen ones are those that the network above was not shown. `:paper`, `:text_to_image`,
`:image_to_text` and `:undistilled` as in `msdn_cub`.
"""

from fgkd_jax.cli.zero_shot_recipes import FIGURES, region_features


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: preset and ablation, separated by commas.
    """
    config = region_features(
        "msdn",
        "cub",
        title="MSDN on a narrow ResNet's regions, 48 drawn species",
        variant=variant,
        data={"extra_keys": ("parts",)},
        steps=1000,
        report={
            "paper": "none on drawn birds",
            "figures": (*FIGURES, "pointing", "pointing_gain"),
        },
    )
    config.seed = 0
    return config
