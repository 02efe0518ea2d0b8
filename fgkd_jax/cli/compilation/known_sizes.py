"""What a config of the project leaves to the user's own folder, where shapes must be known."""

from collections.abc import Mapping

SIZES_OF: Mapping[str, str] = {
    "defeat_faster_rcnn_coco": "coco2017",
    "defeat_faster_rcnn_voc": "voc0712",
    "defeat_retinanet_coco": "coco2017",
    "faster_rcnn_coco": "coco2017",
    "faster_rcnn_voc": "voc0712",
    "retinanet_coco": "coco2017",
    "msdn_awa2": "xlsa17/AWA2",
    "msdn_birds": "procedural_birds/zero_shot",
    "msdn_cub": "xlsa17/CUB",
    "msdn_cub50": "xlsa17/CUB",
    "msdn_sun": "xlsa17/SUN",
}
"""The data sets behind folders, by config, as of `--sizes_of`."""

OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "classify_folder": ("--config.method.num_classes=7",),
    "defeat_faster_rcnn_bccd": ("--config.method.num_classes=3",),
    "defeat_faster_rcnn_folder": ("--config.method.num_classes=3",),
    "defeat_retinanet_bccd": ("--config.method.num_classes=3",),
    "faster_rcnn_bccd": ("--config.method.num_classes=3",),
    "faster_rcnn_folder": ("--config.method.num_classes=3",),
    "retinanet_bccd": ("--config.method.num_classes=3",),
}
"""Numbers of classes where no published data set has one, by config."""
