"""fgkd train --config configs/faster_rcnn_birds.py --workdir runs/faster_rcnn_birds

Faster R-CNN with a narrow ResNet on drawn scenes of one to six birds, by genus, at 192 x 192 pixels.
Minutes on two CPU cores, data set included.
`:teacher` is the wider network that students learn from, see `configs/defeat_faster_rcnn_birds.py`.
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
    variant_of("faster_rcnn_birds", variant, TITLES)
    method, steps = {"name": "faster_rcnn"}, SMALL_STEPS["regions"]
    if variant == "teacher":
        method["backbone"], steps = dict(WIDE_BACKBONE), 2 * steps
    return narrow_detector(
        method,
        heads="regions",
        data=SMALL_SCENES["birds"],
        steps=steps,
        report={"title": f"Faster R-CNN, {TITLES[variant]}, 192 x 192"},
    )
