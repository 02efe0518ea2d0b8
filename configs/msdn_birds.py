"""fgkd train --config configs/msdn_birds.py --workdir runs/msdn_birds --config.data.data_dir=FEATURES

MSDN on region features of 36 drawn species, to recognise 12 more by their attributes. What it reads
is made by

  fgkd train --config configs/classify_birds.py:seen --workdir BACKBONE
  fgkd export --workdir BACKBONE --output WEIGHTS.safetensors
  fgkd features --config configs/classify_birds.py:seen --folder FEATURES --thumbnails 96 \
    --config.pretrained.path=WEIGHTS.safetensors --config.data.extra_keys="('parts',)"
"""

from fgkd_jax.cli.zero_shot_recipes import region_features


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: preset and ablation, separated by commas.
    """
    return region_features(
        "msdn",
        "cub",
        title="MSDN on a narrow ResNet's regions, 48 drawn species",
        variant=variant,
        data={"extra_keys": ("parts",)},
        steps=2160 * 30 // 50,
        report={"paper": "none on drawn birds"},
    )
