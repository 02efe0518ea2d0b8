"""fgkd train --config configs/faster_rcnn_folder.py --workdir runs/boxes --config.data.data_dir=BOXES --config.pretrained.path=WEIGHTS

Faster R-CNN with a feature pyramid on ResNet-50 and boxes of your own, in COCO's format:

  BOXES/annotations/instances_train.json, instances_val.json
  BOXES/train/*.jpg, BOXES/val/*.jpg

or in that of PASCAL VOC, with `--config.data.dataset=voc_xml`:

  BOXES/JPEGImages/*.jpg, BOXES/Annotations/*.xml
  BOXES/ImageSets/Main/train.txt, val.txt

`fgkd data check coco_json --data_dir BOXES` (or `voc_xml`) says what is wrong with them. Classes are
those of the annotations. WEIGHTS is a file of torchvision's ResNet-50, or what `fgkd export` wrote
of a classifier with such a backbone; without it the frozen stem and first stage stay random. Yours
to choose are `--config.train.steps`, `--config.data.buckets="((480, 640), (640, 480))"`, the heights
and widths that images are padded to, and `--config.data.max_boxes`, the most of an image.
`:resnet101` and `:resnet152` are teachers of `configs/defeat_faster_rcnn_folder.py`; `:resnet18`,
`:shufflenet_v2_x1_0` and the like start from such networks, with WEIGHTS of their own.
"""

from fgkd_jax.cli.detection_recipes import PUBLISHED, variant_of
from fgkd_jax.cli.folder_recipes import folder_detector
from fgkd_jax.cli.network_titles import NETWORK_TITLES


def get_config(backbone="resnet50"):
    """Returns the config.

    Args:
      backbone: a key of `NETWORK_TITLES`.
    """
    variant_of("faster_rcnn_folder", backbone, NETWORK_TITLES)
    return folder_detector(
        {"name": "faster_rcnn", "backbone": {**PUBLISHED["backbone"], "name": backbone}},
        title=f"Faster R-CNN, {NETWORK_TITLES[backbone]}",
    )
