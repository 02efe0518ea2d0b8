"""fgkd train --config configs/faster_rcnn_bccd.py --workdir runs/faster_rcnn_bccd --config.data.data_dir=BCCD

Faster R-CNN with a narrow ResNet on photographs of blood cells at 240 x 320 pixels, from random
weights. BCCD is a folder in the format of PASCAL VOC; get it from
https://github.com/Shenggan/BCCD_Dataset.
"""

from fgkd_jax.cli.detection_recipes import BUCKETS, narrow_detector


def get_config():
    """Returns the config."""
    return narrow_detector(
        {"name": "faster_rcnn"},
        heads="regions",
        data={
            "dataset": "voc_xml",
            "buckets": BUCKETS["bccd"],
            "max_boxes": 40,
            "scale": (0.7, 1.0),
            "crop_probability": 0.5,
        },
        steps=1200,
        report={"title": "Faster R-CNN, narrow ResNet, BCCD at 240 x 320"},
    )
