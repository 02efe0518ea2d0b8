"""fgkd train --config configs/retinanet_bccd.py --workdir runs/retinanet_bccd --config.data.data_dir=BCCD

RetinaNet with a narrow ResNet on photographs of blood cells at 240 x 320 pixels, from random
weights. BCCD is a folder in the format of PASCAL VOC; get it from
https://github.com/Shenggan/BCCD_Dataset.
`:teacher` is the wider network that students learn from, see `configs/defeat_retinanet_bccd.py`.
"""

from fgkd_jax.cli.detection_recipes import (
    SMALL_SCENES,
    SMALL_STEPS,
    WIDE_BACKBONE,
    narrow_detector,
    variant_of,
)

TITLES = {"student": "narrow ResNet", "teacher": "wider ResNet"}


def get_config(variant="student"):
    """Returns the config.

    Args:
      variant: a key of `TITLES`.
    """
    variant_of("retinanet_bccd", variant, TITLES)
    method, steps = {"name": "retinanet"}, SMALL_STEPS["dense"]
    if variant == "teacher":
        method["backbone"], steps = dict(WIDE_BACKBONE), 2 * steps
    return narrow_detector(
        method,
        heads="dense",
        data=SMALL_SCENES["bccd"],
        steps=steps,
        report={"title": f"RetinaNet, {TITLES[variant]}, BCCD at 240 x 320"},
    )
