"""fgkd train --config configs/retinanet_birds.py --workdir runs/retinanet_birds

RetinaNet with a narrow ResNet on drawn scenes of one to six birds, by genus, at 192 x 192 pixels.
Minutes on two CPU cores, data set included.
`:teacher` is the wider network that students learn from, see `configs/defeat_retinanet_birds.py`.
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
    variant_of("retinanet_birds", variant, TITLES)
    method, steps = {"name": "retinanet"}, SMALL_STEPS["dense"]
    if variant == "teacher":
        method["backbone"], steps = dict(WIDE_BACKBONE), 2 * steps
    return narrow_detector(
        method,
        heads="dense",
        data=SMALL_SCENES["birds"],
        steps=steps,
        report={"title": f"RetinaNet, {TITLES[variant]}, 192 x 192"},
    )
