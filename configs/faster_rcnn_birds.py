"""fgkd train --config configs/faster_rcnn_birds.py --workdir runs/faster_rcnn_birds

Faster R-CNN with a narrow ResNet on drawn scenes of one to six birds, by genus, at 192 x 192 pixels.
Minutes on two CPU cores, data set included.
"""

from fgkd_jax.cli.detection_recipes import BUCKETS, narrow_detector


def get_config():
    """Returns the config."""
    return narrow_detector(
        {"name": "faster_rcnn"},
        heads="regions",
        data={
            "dataset": "procedural_birds/detection",
            "buckets": BUCKETS["birds"],
            "max_boxes": 6,
            "crop_probability": 0.5,
        },
        steps=1600,
        report={"title": "Faster R-CNN, narrow ResNet, 192 x 192"},
    )
