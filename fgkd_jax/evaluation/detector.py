"""The evaluator of detectors: what was found in every image, against what is there."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.coco import (
    FIGURES,
    CocoPrecision,
    coco_is_installed,
    coco_precision,
    to_coco,
)
from fgkd_jax.evaluation.detection import (
    FoundBoxes,
    TrueBoxes,
    background_false_positives,
    mean_precision,
    voc_precision,
)
from fgkd_jax.typing import Array, Batch, Leaf, PyTree

_FOUND = ("boxes", "scores", "labels", "valid")
_TRUE = ("id", "mask", "valid_size", "original_size", "boxes", "box_labels", "box_mask")


@struct.dataclass
class DetectionRows:
    """What is kept of images, one row for each; boxes are in pixels of the batch's images.

    Attributes:
      found: `boxes` [n, m, 4], `scores` [n, m], `labels` [n, m] and `valid` [n, m].
      true: `id`, `mask`, `valid_size`, `original_size`, `boxes` [n, g, 4], `box_labels`, `box_mask`
        and `box_ignored`, as batches have them.
    """

    found: dict[str, Leaf]
    true: dict[str, Leaf]


@dataclasses.dataclass(frozen=True)
class ScenePredictions:
    """What was found in the images of a split and what is there, in pixels of the original images.

    Attributes:
      ids: int [n], of the images, ascending.
      sizes: int [n, 2], their rows and columns.
      found: of every image.
      truth: of every image.
    """

    ids: np.ndarray
    sizes: np.ndarray
    found: tuple[FoundBoxes, ...]
    truth: tuple[TrueBoxes, ...]


@dataclasses.dataclass(frozen=True)
class DetectionEvaluator:
    """Average precision as COCO and as PASCAL VOC define it, on boxes in the original images.

    | figure | what |
    |---|---|
    | `AP`, `AP50`, ..., `AR_large` | COCO's twelve; left out without `pycocotools`, and where -1 |
    | `voc_AP50` | VOC's mean average precision at IoU 0.5, area under the curve |
    | `voc07_AP50` | likewise at eleven points, as up to VOC 2007 |
    | `background_false_positives` | of the false positives that score at least `confidence`, the \
share on background; left out where there are none |
    | `examples` | images |

    COCO's sizes are those of boxes here, where its own files state areas of masks: `AP_small` and
    the like differ a little from what its server says. Objects that need not be found count as
    COCO's crowds and as VOC's difficult objects.

    Reads `boxes`, `scores`, `labels` and `valid` of the predictions, and the batch of detection.

    Attributes:
      class_names: one name per class.
      confidence: least score of a false positive that counts; 0.3 in every run.
    """

    class_names: tuple[str, ...]
    confidence: float = 0.3

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        return (*FIGURES, "voc_AP50", "voc07_AP50", "background_false_positives", "examples")

    def empty(self) -> tuple[()]:
        """Returns what `update` is given for every batch: nothing."""
        return ()

    def update(
        self, counts: tuple[()], predictions: Mapping[str, Array], batch: Batch
    ) -> DetectionRows:
        """Takes the rows of one batch; runs under jit.

        Args:
          counts: as of `empty`.
          predictions: of the detector.
          batch: of detection.

        Returns:
          Its rows.
        """
        del counts
        true = {name: batch[name] for name in _TRUE}
        true["box_ignored"] = batch["box_ignored"] & batch["box_mask"]
        found = {name: predictions[name] for name in _FOUND}
        return DetectionRows({**found, "scores": found["scores"].astype(jnp.float32)}, true)

    def collect(self, counts: Sequence[PyTree]) -> ScenePredictions:
        """Puts the rows of all batches of a split together, on the host.

        Args:
          counts: as `update` returned them.

        Returns:
          One entry per image, whatever the order and padding of the batches.

        Raises:
          UserError: there is no image.
        """
        rows = [row for part in counts for row in _images(part)]
        if not rows:
            raise UserError("no example was evaluated; expected at least one with mask True")
        rows.sort(key=lambda row: row[0])
        ids, sizes, found, truth = zip(*rows, strict=True)
        return ScenePredictions(np.array(ids), np.stack(sizes), found, truth)

    def finalise(self, counts: ScenePredictions) -> dict[str, float]:
        """Turns what was found in a whole split into figures.

        Args:
          counts: as of `collect`.

        Returns:
          The figures of the table above.
        """
        classes = len(self.class_names)
        found, truth = counts.found, counts.truth
        sure = [FoundBoxes(*(part[one.scores >= self.confidence] for part in one)) for one in found]
        area, points = (
            voc_precision(found, truth, num_classes=classes, eleven_points=eleven)
            for eleven in (False, True)
        )
        background = background_false_positives(sure, truth, num_classes=classes)
        return {
            **self._coco(counts),
            "voc_AP50": mean_precision(area),
            "voc07_AP50": mean_precision(points),
            **({} if background is None else {"background_false_positives": background}),
            "examples": len(found),
        }

    def by_class(self, counts: ScenePredictions) -> list[dict[str, float]]:
        """Returns the figures of every class.

        Args:
          counts: as of `collect`.

        Returns:
          A row for each class, in order: `objects` that have to be found and, where there are some,
          `AP` and `AP50` as COCO defines them, left out without `pycocotools`, and `voc_AP50`.
        """
        precisions = voc_precision(counts.found, counts.truth, num_classes=len(self.class_names))
        coco = self._precision(counts)
        rows = []
        for label, one in enumerate(precisions):
            row: dict[str, float] = {"objects": one.objects}
            if one.objects and coco is not None:
                # Thresholds by recalls, of objects of any size and 100 detections.
                curve = coco.precision[:, :, label, 0, -1]
                row |= {"AP": float(curve.mean()), "AP50": float(curve[0].mean())}
            rows.append({**row, "voc_AP50": one.average_precision} if one.objects else row)
        return rows

    def _coco(self, counts: ScenePredictions) -> dict[str, float]:
        precision = self._precision(counts)
        figures = {} if precision is None else precision.figures
        return {name: value for name, value in figures.items() if value >= 0}

    def _precision(self, counts: ScenePredictions) -> CocoPrecision | None:
        if not coco_is_installed():
            logging.log_first_n(
                logging.WARNING,
                "COCO's figures are left out: they need pip install 'fgkd-jax[detection]'",
                1,
            )
            return None
        labels = range(len(self.class_names))
        return coco_precision(
            coco_annotations(counts, class_names=self.class_names),
            coco_detections(counts, category_ids=labels),
        )


def coco_annotations(
    predictions: ScenePredictions, *, class_names: Sequence[str]
) -> dict[str, Any]:
    """Writes the objects of a split in COCO's layout.

    Args:
      predictions: of the split.
      class_names: one name per class; a category's id is its place.

    Returns:
      `images`, `annotations` and `categories`; areas are those of boxes.
    """
    annotations: list[dict[str, Any]] = []
    for image, truth in zip(predictions.ids.tolist(), predictions.truth, strict=True):
        for (x1, y1, x2, y2), label, ignored in zip(*(x.tolist() for x in truth), strict=True):
            annotations.append(
                {
                    # The tool takes an annotation with the id 0 for none.
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [
            {"id": image, "height": height, "width": width}
            for image, (height, width) in zip(
                predictions.ids.tolist(), predictions.sizes.tolist(), strict=True
            )
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def coco_detections(
    predictions: ScenePredictions, *, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Writes what was found in a split in COCO's layout of results.

    Args:
      predictions: of the split.
      category_ids: the category of each label.

    Returns:
      One dict per detection, as `to_coco` makes them, image after image.
    """
    return [
        one
        for image, found in zip(predictions.ids.tolist(), predictions.found, strict=True)
        for one in to_coco(found, image_id=image, category_ids=category_ids)
    ]


def _images(rows: DetectionRows) -> list[tuple[int, np.ndarray, FoundBoxes, TrueBoxes]]:
    """Id, size, detections and objects of every row that holds an image."""
    found, true = ({k: np.asarray(v) for k, v in x.items()} for x in (rows.found, rows.true))
    images = []
    for i in np.flatnonzero(true["mask"]):
        size = true["original_size"][i]
        scale = np.tile(size[::-1] / true["valid_size"][i][::-1], 2)
        kept, there = found["valid"][i], true["box_mask"][i]
        images.append(
            (
                int(true["id"][i]),
                size,
                FoundBoxes(
                    found["boxes"][i][kept] * scale,
                    found["scores"][i][kept],
                    found["labels"][i][kept],
                ),
                TrueBoxes(
                    true["boxes"][i][there] * scale,
                    true["box_labels"][i][there],
                    true["box_ignored"][i][there],
                ),
            )
        )
    return images
