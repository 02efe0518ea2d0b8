"""fgkd train --config configs/faster_rcnn_bccd.py --workdir runs/faster_rcnn_bccd --config.data.data_dir=BCCD

Faster R-CNN with a narrow ResNet on photographs of blood cells at 240 x 320 pixels, from random
weights. BCCD is a folder in the format of PASCAL VOC; get it from
https://github.com/Shenggan/BCCD_Dataset.
`:teacher` is the wider network that students learn from, see `configs/defeat_faster_rcnn_bccd.py`.
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
    variant_of("faster_rcnn_bccd", variant, TITLES)
    method, steps = {"name": "faster_rcnn"}, SMALL_STEPS["regions"]
    if variant == "teacher":
        method["backbone"], steps = dict(WIDE_BACKBONE), 2 * steps
    return narrow_detector(
        method,
        heads="regions",
        data=SMALL_SCENES["bccd"],
        steps=steps,
        report={"title": f"Faster R-CNN, {TITLES[variant]}, BCCD at 240 x 320"},
    )
