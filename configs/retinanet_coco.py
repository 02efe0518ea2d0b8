"""fgkd train --config configs/retinanet_coco.py --workdir runs/retinanet_coco --config.data.data_dir=COCO --config.pretrained.path=WEIGHTS

RetinaNet with ResNet-50 on COCO 2017, mmdet's schedule of 12 epochs. COCO is a folder with
`annotations` and `train2017`; WEIGHTS a file of torchvision's ResNet-50, or what `fgkd export`
wrote of one. `:resnet101` and `:resnet152` are teachers of `configs/defeat_retinanet_coco.py`;
`:resnet18`, `:shufflenet_v2_x1_0` and the like start from what `configs/lmcl_imagenet.py` trains.
All have WEIGHTS of their own.
"""

from fgkd_jax.cli.detection_recipes import (
    BUCKETS,
    COCO_FIGURES,
    PUBLISHED,
    coco_run,
    photographs_with_boxes,
    variant_of,
)
from fgkd_jax.cli.network_titles import NETWORK_TITLES


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: a key of `NETWORK_TITLES`.
    """
    variant_of("retinanet_coco", backbone, NETWORK_TITLES)
    return photographs_with_boxes(
        {"name": "retinanet", "backbone": {**PUBLISHED["backbone"], "name": backbone}},
        coco_run(learning_rate=0.01, clip_norm=35.0),
        data={"dataset": "coco_json", "buckets": BUCKETS["coco"]},
        report={
            "title": f"RetinaNet, {NETWORK_TITLES[backbone]}, COCO 2017, 12 epochs",
            "split": "validation",
            "figures": COCO_FIGURES,
        },
    )
