"""fgkd train --config configs/faster_rcnn_voc.py --workdir runs/faster_rcnn_voc --config.data.data_dir=VOC --config.pretrained.path=WEIGHTS

Faster R-CNN with a feature pyramid on ResNet-50, trained on VOC 2007 and 2012 trainval as the
released detectors of DeFeat are, tested on VOC 2007. VOC is one folder that holds `JPEGImages` and
`Annotations` of both years, and in `ImageSets/Main` the lists `train.txt` and `val.txt` of both,
each year's appended to the other's, and `test.txt` of VOC 2007. WEIGHTS is a file of torchvision's
ResNet-50. `:resnet101` is the teacher there, at twice the rate.
"""

from fgkd_jax.cli.detection_recipes import (
    BUCKETS,
    PUBLISHED,
    photographs_with_boxes,
    variant_of,
    voc_run,
)
from fgkd_jax.cli.network_titles import NETWORK_TITLES

LEARNING_RATES = {"resnet50": 0.01, "resnet101": 0.02}


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: a key of `LEARNING_RATES`.
    """
    variant_of("faster_rcnn_voc", backbone, LEARNING_RATES)
    return photographs_with_boxes(
        {"name": "faster_rcnn", "backbone": {**PUBLISHED["backbone"], "name": backbone}},
        voc_run(learning_rate=LEARNING_RATES[backbone]),
        data={"dataset": "voc_xml/trainval", "buckets": BUCKETS["voc"]},
        report={
            "title": f"Faster R-CNN, {NETWORK_TITLES[backbone]}, VOC 2007 + 2012",
            "figures": ("voc07_AP50", "AP", "background_false_positives"),
        },
    )
