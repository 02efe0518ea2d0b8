"""fgkd train --config configs/defeat_faster_rcnn_voc.py --workdir runs/defeat_faster_rcnn_voc --config.data.data_dir=VOC --config.pretrained.path=WEIGHTS --config.pretrained.teacher=TEACHER

DeFeat: a Faster R-CNN on ResNet-50 learns from one on ResNet-101, on the schedule that was released
for VOC 2007 and 2012 trainval, tested on VOC 2007; `:reference` learns as released, from pyramids
alone. VOC is a folder as for `configs/faster_rcnn_voc.py`, WEIGHTS a file of torchvision's
ResNet-50, and TEACHER what `fgkd export` wrote of

  fgkd train --config configs/faster_rcnn_voc.py:resnet101 --workdir runs/teacher ...

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it.
"""

from fgkd_jax.cli.detection_recipes import BUCKETS, photographs_with_boxes, taught_by, voc_run


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: words separated by commas, see `taught_by`.
    """
    taught = taught_by(variant, name="defeat_faster_rcnn_voc", teachers=("resnet101",))
    return photographs_with_boxes(
        {"name": "defeat_faster_rcnn", **taught.options},
        voc_run(),
        data={"dataset": "voc_xml/trainval", "buckets": BUCKETS["voc"]},
        report={
            "title": f"Faster R-CNN, {taught.title}, VOC 2007 + 2012",
            "figures": ("voc07_AP50", "AP", "background_false_positives"),
        },
    )
