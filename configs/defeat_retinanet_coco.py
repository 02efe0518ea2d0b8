"""fgkd train --config configs/defeat_retinanet_coco.py --workdir runs/defeat_retinanet_coco --config.data.data_dir=COCO --config.pretrained.path=WEIGHTS --config.pretrained.teacher=TEACHER

DeFeat: a RetinaNet on ResNet-50 learns from one on ResNet-101 (`:resnet152` from that one), COCO
2017, mmdet's schedule of 12 epochs. Its coefficients were never published; these are those of
Faster R-CNN, without stages of the backbones. COCO is a folder with `annotations` and `train2017`,
WEIGHTS a file of torchvision's ResNet-50, and TEACHER what `fgkd export` wrote of

  fgkd train --config configs/retinanet_coco.py:resnet101 --workdir runs/teacher ...

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


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: words separated by commas, see `taught_by`.
    """
    taught = taught_by(
        variant,
        name="defeat_retinanet_coco",
        teachers=("resnet101", "resnet152"),
        options={"object_weight": 4.0, "background_weight": 16.0},
    )
    return photographs_with_boxes(
        {"name": "defeat_retinanet", **taught.options},
        coco_run(learning_rate=0.01, clip_norm=35.0),
        data={"dataset": "coco_json", "buckets": BUCKETS["coco"]},
        report={
            "title": f"RetinaNet, {taught.title}, COCO 2017, 12 epochs",
            "split": "validation",
            "figures": COCO_FIGURES,
        },
    )
