"""COCO's average precision by its own tool, `pycocotools`, and detections in its layout."""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.detection import FoundBoxes

FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
"""The twelve figures, in COCO's order."""


class CocoPrecision(NamedTuple):
    """What COCO's tool measures; -1 where there is nothing to measure.

    Attributes:
      figures: the twelve by name, as in `FIGURES`, in [0, 1].
      precision: `[thresholds, recalls, categories, areas, limits]`.
      recall: `[thresholds, categories, areas, limits]`.
      scores: of the detections at which the precision is reached, shaped as `precision`.
    """

    figures: dict[str, float]
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


def coco_is_installed() -> bool:
    """Tells whether COCO's tool is there."""
    return importlib.util.find_spec("pycocotools") is not None


def coco_precision(
    annotations: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> CocoPrecision:
    """Measures detections against annotations.

    Args:
      annotations: a COCO file as a dict, with `images`, `annotations` and `categories`.
      detections: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`, as
        `to_coco` makes them.

    Returns:
      All figures; everything 0 where nothing was detected.

    Raises:
      UserError: `pycocotools` is not installed, or a detection is of an image or a category that
        the annotations do not list.

    Source:
      Lin et al., "Microsoft COCO", ECCV 2014, and the evaluation on its web site.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError(
            "COCO's average precision needs pycocotools: pip install 'fgkd-jax[detection]'"
        ) from error
    _check(annotations, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth = COCO()
        # The tool writes into what it is given.
        truth.dataset = {"info": {}, **copy.deepcopy(dict(annotations))}
        truth.createIndex()
        results = [_complete(one, index) for index, one in enumerate(detections, start=1)]
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": results}
        found.createIndex()
        tool = COCOeval(truth, found, "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    figures = {name: float(value) for name, value in zip(FIGURES, tool.stats, strict=True)}
    return CocoPrecision(figures, tool.eval["precision"], tool.eval["recall"], tool.eval["scores"])


def to_coco(
    found: FoundBoxes, *, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Puts the detections of one image into COCO's layout of results.

    Args:
      found: boxes, scores and labels.
      image_id: of the image.
      category_ids: the category of each label.

    Returns:
      One dict per detection, of plain numbers, ready for JSON.

    Raises:
      UserError: a label has no category.
    """
    labels = np.asarray(found.labels)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(category_ids):
        raise UserError(
            f"image {image_id}: labels from {labels.min()} to {labels.max()}; expected "
            f"[0, {len(category_ids)})"
        )
    rows = zip(np.asarray(found.boxes).tolist(), np.asarray(found.scores).tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for ((x1, y1, x2, y2), score), label in zip(rows, labels.tolist(), strict=True)
    ]


def _complete(detection: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A result with what the tool reads besides."""
    width, height = detection["bbox"][2:]
    return {**detection, "id": index, "area": width * height, "iscrowd": 0}


def _check(annotations: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> None:
    for key in ("images", "annotations", "categories"):
        if key not in annotations:
            raise UserError(
                f"COCO annotations have no '{key}'; expected images, annotations and categories"
            )
    known = {
        "image_id": {one["id"] for one in annotations["images"]},
        "category_id": {one["id"] for one in annotations["categories"]},
    }
    for index, detection in enumerate(detections):
        for key, ids in known.items():
            if detection[key] not in ids:
                raise UserError(
                    f"detection {index} has {key} {detection[key]}; expected one of the "
                    f"{len(ids)} in the annotations"
                )
