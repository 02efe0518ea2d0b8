"""fgkd train --config configs/classify_cub50.py --workdir runs/cub50 --config.data.data_dir=CUB --config.pretrained.path=WEIGHTS

MobileNetV2 from ImageNet weights, fine-tuned on CUB-200-2011 or a part of it at 224 x 224 pixels.
The early stages stay as they are; their output is computed once, for a few augmented views of
each training image, so that a laptop's processor is enough.
"""

from fgkd_jax.cli.recipes import small_cub


def get_config():
    """Returns the config."""
    config = small_cub(
        {"name": "classifier", "frozen_stages": 4},
        image_size=224,
        rules=({"pattern": "^head/", "learning_rate_scale": 10.0},),
        every_steps=200,
        report={"title": "MobileNetV2 fine-tuned, 224 x 224"},
    )
    config.features = {"views": 4}
    return config
