"""fgkd train --config configs/faster_rcnn_coco.py --workdir runs/faster_rcnn_coco --config.data.data_dir=COCO --config.pretrained.path=WEIGHTS

Faster R-CNN with a feature pyramid on ResNet-50, COCO 2017, mmdet's schedule of 12 epochs. COCO is
a folder with `annotations` and `train2017`; WEIGHTS a file of torchvision's ResNet-50, or what
`fgkd export` wrote of one.
"""

from fgkd_jax.cli.detection_recipes import (
    BUCKETS,
    COCO_FIGURES,
    coco_run,
    photographs_with_boxes,
)


def get_config():
    """Returns the config."""
    return photographs_with_boxes(
        {"name": "faster_rcnn"},
        coco_run(learning_rate=0.02),
        data={"dataset": "coco_json", "buckets": BUCKETS["coco"]},
        report={
            "title": "Faster R-CNN, ResNet-50, COCO 2017, 12 epochs",
            "split": "validation",
            "figures": COCO_FIGURES,
        },
    )
