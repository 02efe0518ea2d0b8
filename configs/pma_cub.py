"""fgkd train --config configs/pma_cub.py --workdir runs/pma_cub --config.data.data_dir=CUB_200_2011 --config.data.text.captions_dir=text_c10 --config.pretrained.path=WEIGHTS

PMA on CUB-200-2011 with its ten captions an image: ResNet-50 from ImageNet weights, 448 x 448
pixels. `:vision` looks at the image alone, `:text` reads the text alone, `:student` learns from the
file of an exported bi-modal run (`--config.pretrained.teacher=FILE`) and needs no text afterwards.
`:vgg16` and `:vgg19` are the paper's other networks, as in `:vision,vgg19`.
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
        owner="pma_cub",
        data={"dataset": "cub200_2011"},
        epoch=5994 / 32,
        report={"figures": ("accuracy", "mean_class_accuracy")},
    )
