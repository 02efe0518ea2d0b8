"""fgkd train --config configs/defeat_faster_rcnn_folder.py --workdir runs/student --config.data.data_dir=BOXES --config.pretrained.path=WEIGHTS --config.pretrained.teacher=TEACHER

DeFeat: a Faster R-CNN on ResNet-50 learns from one on ResNet-101 (`:resnet152` from that one), on
boxes of your own, which `configs/faster_rcnn_folder.py` describes. WEIGHTS is a file of
torchvision's ResNet-50; TEACHER is what `fgkd export` wrote of

  fgkd train --config configs/faster_rcnn_folder.py:resnet101 --workdir runs/teacher ...

`:imitation`, `:object`, `:background`, `:fine_grained` and `:gaussian` take something else from it,
and `:reference` what the released code takes for VOC; a network may follow after a comma.
"""

from fgkd_jax.cli.detection_recipes import taught_by
from fgkd_jax.cli.folder_recipes import folder_detector


def get_config(variant="defeat"):
    """Returns the config.

    Args:
      variant: words separated by commas, see `taught_by`.
    """
    taught = taught_by(
        variant, name="defeat_faster_rcnn_folder", teachers=("resnet101", "resnet152")
    )
    return folder_detector(
        {"name": "defeat_faster_rcnn", **taught.options}, title=f"Faster R-CNN, {taught.title}"
    )
