"""fgkd train --config configs/faster_rcnn_bccd.py --workdir runs/faster_rcnn_bccd --config.data.data_dir=BCCD

Faster R-CNN with a narrow ResNet on photographs of blood cells at 240 x 320 pixels, from random
weights. BCCD is a folder in the format of PASCAL VOC; get it from
https://github.com/Shenggan/BCCD_Dataset.
`:teacher` is the wider network that students learn from, see `configs/defeat_faster_rcnn_bccd.py`.
"""

from fgkd_jax.cli.narrow_detection_recipes import small_detector


def get_config(variant="student"):
    """Returns the config.

    Args:
      variant: a key of `fgkd_jax.cli.narrow_detection_recipes.WIDTHS`.
    """
    return small_detector(
        "faster_rcnn", variant, heads="regions", scene="bccd", title="Faster R-CNN"
    )
