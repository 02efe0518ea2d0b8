"""fgkd train --config configs/retinanet_coco.py --workdir runs/retinanet_coco --config.data.data_dir=COCO --config.pretrained.path=WEIGHTS

RetinaNet with ResNet-50 on COCO 2017, mmdet's schedule of 12 epochs. COCO is a folder with
`annotations` and `train2017`; WEIGHTS a file of torchvision's ResNet-50, or what `fgkd export`
wrote of one.
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
        {"name": "retinanet"},
        coco_run(learning_rate=0.01, clip_norm=35.0),
        data={"dataset": "coco_json", "buckets": BUCKETS["coco"]},
        report={
            "title": "RetinaNet, ResNet-50, COCO 2017, 12 epochs",
            "split": "validation",
            "figures": COCO_FIGURES,
        },
    )
