"""fgkd train --config configs/tasn_cub50.py --workdir runs/tasn_cub50 --config.data.data_dir=CUB --config.pretrained.path=WEIGHTS --config.pretrained.others.attention_backbone=WEIGHTS

TASN with MobileNetV2 from ImageNet weights on CUB-200-2011 or a part of it: 128 x 128 pixels
sampled from 256 x 256, for small copies of the photographs. Both networks keep their early stages
as they are. `:uniform` is the control that takes the pixels evenly; `:plain` the plain network on
128 x 128 pixels, with as many steps.
"""

from fgkd_jax.cli.recipes import MOBILENET, small_cub
from fgkd_jax.errors import UserError, nearest

TITLES = {
    "attention": "TASN, MobileNetV2 on 128 x 128 sampled from 256 x 256",
    "uniform": "TASN's networks on plain 128 x 128 copies",
    "plain": "MobileNetV2 fine-tuned, 128 x 128",
}
FROZEN_STAGES = 4
HEADS = (
    "attention_head",
    "attention_classifier",
    "part_classifier",
    "master_classifier",
    "auxiliary_classifier",
)


def get_config(variant="attention"):
    """Returns the config.

    Args:
      variant: a key of `TITLES`.
    """
    if variant not in TITLES:
        raise UserError(f"tasn_cub50 has no variant {variant!r}{nearest(variant, TITLES)}")
    tasn = {
        "name": "tasn",
        "sampling": variant,
        # Its map is 8 x 8; one of a linear bottleneck, which the head makes non-negative.
        "attention_backbone": dict(MOBILENET),
        "attention_stages": FROZEN_STAGES,
        "attention_size": 128,
        "out_size": 128,
    }
    plain = variant == "plain"
    heads = ("head",) if plain else HEADS
    frozen = f"^(attention_)?backbone/stage[0-{FROZEN_STAGES - 1}]/"
    # Not the plain network: it has no attention net to take the command's weights.
    controls = ("tasn_cub50:uniform",) if variant == "attention" else ()
    return small_cub(
        {"name": "classifier"} if plain else tasn,
        image_size=128 if plain else 256,
        rules=(
            {"pattern": frozen, "frozen": True},
            {"pattern": f"^({'|'.join(heads)})/", "learning_rate_scale": 10.0},
        ),
        every_steps=100,
        report={"title": TITLES[variant], "controls": controls},
    )
