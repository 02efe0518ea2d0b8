"""fgkd train --config configs/faster_rcnn_birds.py --workdir runs/faster_rcnn_birds

Faster R-CNN with a narrow ResNet on drawn scenes of one to six birds, by genus, at 192 x 192 pixels.
`:teacher` is the wider network that students learn from, see `configs/defeat_faster_rcnn_birds.py`.
"""

from fgkd_jax.cli.narrow_detection_recipes import small_detector


def get_config(variant="student"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.cli.narrow_detection_recipes.WIDTHS`.
    """
    return small_detector(
        "faster_rcnn", variant, heads="regions", scene="birds", title="Faster R-CNN"
    )
