"""fgkd train --config configs/pma_flowers.py --workdir runs/pma_flowers --config.data.data_dir=flowers102 --config.data.text.captions_dir=text_c10 --config.pretrained.path=WEIGHTS

PMA on Oxford Flowers-102 with its ten captions an image, in the variants of `pma_cub`.
"""

from fgkd_jax.cli.bimodal_recipes import attentive_photographs

METHODS = {
    "bimodal": "pma",
    "vision": "pma_vision",
    "text": "pma_text",
    "student": "pma_student",
}


def get_config(variant=""):
    """Returns the config.

    Args:
      variant: words, see `fgkd_jax.cli.bimodal_recipes.attentive_photographs`.
    """
    return attentive_photographs(
        METHODS,
        variant,
        owner="pma_flowers",
        data={"dataset": "flowers102"},
        epoch=1020 / 32,
        report={"figures": ("accuracy", "mean_class_accuracy")},
    )
