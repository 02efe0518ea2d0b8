"""What the configs of detectors on a folder of one's own have in common."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.cli.detection_recipes import DetectionRun, photographs_with_boxes

FOLDER_RUN = DetectionRun(
    steps=3000,
    batch_size=8,
    learning_rate=0.01,
    warmup_steps=200,
    drops=(2 / 3, 11 / 12),
    clip_norm=35.0,
)
"""A thousand images are seen 24 times; mmdet's rate for batches of 16, halved for 8."""

FOLDER_BUCKETS = ((480, 640), (640, 480))
"""(height, width): of photographs that are 640 pixels at their longest."""


def folder_detector(method: Mapping[str, Any], *, title: str) -> ConfigDict:
    """Completes a config that trains a detector on boxes of one's own, in COCO's format.

    Args:
      method: `name` and options.
      title: of the row.

    Returns:
      The config; it reports what the last step has on the validation images.
    """
    return photographs_with_boxes(
        method,
        FOLDER_RUN,
        data={"dataset": "coco_json", "buckets": FOLDER_BUCKETS, "scale": (0.7, 1.0)},
        report={
            "paper": "none on data of one's own",
            "title": f"{title}, a folder with boxes",
            "split": "validation",
            "figures": ("AP", "AP50", "voc_AP50", "background_false_positives"),
        },
    )
