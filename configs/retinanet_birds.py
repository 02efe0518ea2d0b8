"""fgkd train --config configs/retinanet_birds.py --workdir runs/retinanet_birds

RetinaNet with a narrow ResNet on drawn scenes of one to six birds, by genus, at 192 x 192 pixels.
`:teacher` is the wider network that students learn from, see `configs/defeat_retinanet_birds.py`.
"""

from fgkd_jax.cli.narrow_detection_recipes import small_detector


def get_config(variant="student"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.cli.narrow_detection_recipes.WIDTHS`.
    """
    return small_detector("retinanet", variant, heads="dense", scene="birds", title="RetinaNet")
