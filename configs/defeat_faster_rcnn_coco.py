"""fgkd train --config configs/defeat_faster_rcnn_coco.py --workdir runs/defeat_faster_rcnn_coco --config.data.data_dir=COCO --config.pretrained.path=WEIGHTS --config.pretrained.teacher=TEACHER

DeFeat: a Faster R-CNN on ResNet-50 learns from one on ResNet-152 (`:resnet101` from that one), COCO
2017, mmdet's schedule of 12 epochs. By the authors' advice for COCO the pyramids, the two coarsest
stages of the backbones and the heads are compared. COCO is a folder with `annotations` and
`train2017`, WEIGHTS a file of torchvision's ResNet-50, and TEACHER what `fgkd export` wrote of

  fgkd train --config configs/faster_rcnn_coco.py:resnet152 --workdir runs/teacher ...

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it,
and `:reference` what the released code takes for VOC; a network may follow after a comma.
"""

from fgkd_jax.cli.detection_recipes import (
    BUCKETS,
    COCO_FIGURES,
    coco_run,
    photographs_with_boxes,
    taught_by,
)

COCO = {
    "object_weight": 4.0,
    "background_weight": 16.0,
    "compared_stages": (3, 4),
    "stage_object_weight": 4.0,
    "stage_background_weight": 16.0,
}


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: words separated by commas, see `taught_by`.
    """
    taught = taught_by(
        variant, name="defeat_faster_rcnn_coco", teachers=("resnet152", "resnet101"), options=COCO
    )
    return photographs_with_boxes(
        {"name": "defeat_faster_rcnn", **taught.options},
        coco_run(learning_rate=0.02),
        data={"dataset": "coco_json", "buckets": BUCKETS["coco"]},
        report={
            "title": f"Faster R-CNN, {taught.title}, COCO 2017, 12 epochs",
            "split": "validation",
            "figures": COCO_FIGURES,
        },
    )
