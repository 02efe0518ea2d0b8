"""Average precision of detectors as PASCAL VOC defines it, and where false positives lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgkd_jax.errors import UserError


class FoundBoxes(NamedTuple):
    """What a detector found in one image.

    Attributes:
      boxes: `[n, 4]`, (x1, y1, x2, y2).
      scores: `[n]`, the higher the surer.
      labels: int `[n]`, classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class TrueBoxes(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes: `[g, 4]`.
      labels: int `[g]`, classes.
      ignored: bool `[g]`, objects that need not be found, and may be.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class ClassPrecision(NamedTuple):
    """The figures of one class.

    Attributes:
      average_precision: in [0, 1]; 0 where there are no objects.
      objects: how many have to be found.
      recall: `[n]`, after each detection, the surest first.
      precision: `[n]`, likewise.
    """

    average_precision: float
    objects: int
    recall: np.ndarray
    precision: np.ndarray


def voc_precision(
    found: Sequence[FoundBoxes],
    truth: Sequence[TrueBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    eleven_points: bool = False,
) -> tuple[ClassPrecision, ...]:
    """Returns the average precision of every class.

    The surest detections of an image choose first. Each belongs to the object of its class that it
    overlaps most: right if the overlap is at least the threshold and the object is still free,
    neither right nor wrong if the object is an ignored one, else wrong.

    Args:
      found: of every image.
      truth: of every image, in the same order.
      num_classes: how many classes there are.
      iou_threshold: least overlap.
      eleven_points: mean of the best precision at recall 0, 0.1, ..., 1, as up to VOC 2007;
        otherwise the area under the precision, made monotone.

    Returns:
      The figures of every class. The mean is over the classes with objects: `mean_precision`.

    Raises:
      UserError: the numbers of images differ, shapes do not fit, or a label is out of range.

    Source:
      Everingham et al., "The PASCAL visual object classes challenge", IJCV 2010, section 4.2; with
      continuous boxes, as mmdet 2.0 evaluates. The devkit counts the last pixel as inside.
    """
    _check(found, truth, num_classes)
    return tuple(
        _one_class(found, truth, label, iou_threshold, eleven_points)
        for label in range(num_classes)
    )


def mean_precision(classes: Sequence[ClassPrecision]) -> float:
    """Returns the mean average precision over the classes with objects; 0 if there are none.

    Args:
      classes: as `voc_precision` returns them.

    Returns:
      In [0, 1].
    """
    counted = [one.average_precision for one in classes if one.objects]
    return float(np.mean(counted)) if counted else 0.0


def background_false_positives(
    found: Sequence[FoundBoxes],
    truth: Sequence[TrueBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
) -> float | None:
    """Returns the share of the false positives that lie on background.

    A false positive, as `voc_precision` counts them, is on background when its IoU with every
    object, of whatever class, is below `background_iou`; else it is a duplicate, badly placed, or
    of the wrong class. With an ignored object, a crowd among them, it is not the IoU that counts
    but, as COCO measures crowds, the share of the detection inside of it; and what lies in one by
    `iou_threshold`, of whatever class, is no false positive here, for what is there is not known.

    Args:
      found: of every image, as confident as they shall count.
      truth: of every image, in the same order.
      num_classes: how many classes there are.
      iou_threshold: least overlap of a true positive, and share of a detection in an ignored
        object by which it does not count.
      background_iou: overlap below which there is only background.

    Returns:
      In [0, 1]; None without false positives, of which there is no share.

    Raises:
      UserError: as `voc_precision`.

    Source:
      Hoiem et al., "Diagnosing error in object detectors", ECCV 2012, section 2; Guo et al.,
      "Distilling object detectors via decoupled features", CVPR 2021, argue with this share.
    """
    _check(found, truth, num_classes)
    wrong = background = 0
    for image, objects in zip(found, truth, strict=True):
        known = overlaps(image.boxes, objects.boxes[~objects.ignored])
        hidden = _shares(image.boxes, objects.boxes[objects.ignored]).max(axis=1, initial=0.0)
        largest = np.maximum(known.max(axis=1, initial=0.0), hidden)
        for label in range(num_classes):
            rows = np.flatnonzero(image.labels == label)
            _, is_wrong = _match(image, objects, rows, label, iou_threshold)
            is_wrong &= hidden[rows] < iou_threshold
            wrong += int(is_wrong.sum())
            background += int((is_wrong & (largest[rows] < background_iou)).sum())
    return background / wrong if wrong else None


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU of every box with every other one, on the host.

    Args:
      boxes: `[n, 4]`.
      others: `[g, 4]`.

    Returns:
      `[n, g]`, in the boxes' precision; 0 where the union has no area.
    """
    inside, area, other_area = _common(boxes, others), _areas(boxes), _areas(others)
    union = area[:, None] + other_area[None] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _shares(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share `[n, g]` of every box inside of every other one; 0 of a box without area."""
    inside, area = _common(boxes, others), _areas(boxes)[:, None]
    return np.divide(inside, area, out=np.zeros_like(inside), where=area > 0)


def _common(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    upper = np.maximum(boxes[:, None, :2], others[None, :, :2])
    lower = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(lower - upper, 0), axis=2)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _one_class(
    found: Sequence[FoundBoxes],
    truth: Sequence[TrueBoxes],
    label: int,
    iou_threshold: float,
    eleven_points: bool,
) -> ClassPrecision:
    scores, right, wrong = [], [], []
    for image, objects in zip(found, truth, strict=True):
        rows = np.flatnonzero(image.labels == label)
        is_right, is_wrong = _match(image, objects, rows, label, iou_threshold)
        scores.append(image.scores[rows])
        right.append(is_right)
        wrong.append(is_wrong)
    total = sum(int(((x.labels == label) & ~x.ignored).sum()) for x in truth)
    order = np.argsort(-np.concatenate([*scores, np.zeros(0)]), kind="stable")
    hits, misses = (np.cumsum(np.concatenate([*x, np.zeros(0)])[order]) for x in (right, wrong))
    recall = hits / max(total, 1)
    precision = hits / np.maximum(hits + misses, np.finfo(np.float32).eps)
    average = _eleven_points(recall, precision) if eleven_points else _area(recall, precision)
    return ClassPrecision(average if total else 0.0, total, recall, precision)


def _match(
    image: FoundBoxes, objects: TrueBoxes, rows: np.ndarray, label: int, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of some detections of an image, of one class: which are right, which are wrong."""
    right, wrong = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    own = objects.labels == label
    # Among equal overlaps those that have to be found come first.
    candidates = np.concatenate(
        [np.flatnonzero(own & ~objects.ignored), np.flatnonzero(own & objects.ignored)]
    )
    if len(candidates) == 0:
        return right, ~wrong
    ious = overlaps(image.boxes[rows], objects.boxes[candidates])
    taken = np.zeros(len(candidates), bool)
    for place in np.argsort(-image.scores[rows], kind="stable"):
        best = int(np.argmax(ious[place]))
        if ious[place, best] < iou_threshold or taken[best]:
            wrong[place] = True
        elif not objects.ignored[candidates[best]]:
            taken[best] = right[place] = True
    return right, wrong


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the largest precision at this or a larger recall."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # 0.1 is not exact: these are the points of the reference, to the last bit.
    points = np.arange(0.0, 1.001, 0.1)
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in points]))


def _check(found: Sequence[FoundBoxes], truth: Sequence[TrueBoxes], num_classes: int) -> None:
    if len(found) != len(truth):
        raise UserError(
            f"detections of {len(found)} images, objects of {len(truth)}; expected the same images"
        )
    for index, (image, objects) in enumerate(zip(found, truth, strict=True)):
        for name, boxes, *columns in (("detections", *image), ("objects", *objects)):
            shapes = {column.shape for column in columns}
            if boxes.ndim != 2 or boxes.shape[1:] != (4,) or shapes != {boxes.shape[:1]}:
                raise UserError(
                    f"image {index}: {name} have boxes of shape {boxes.shape} and columns of "
                    f"{sorted(shapes)}; expected [n, 4] and [n]"
                )
        for labels in (image.labels, objects.labels):
            if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
                raise UserError(
                    f"image {index}: labels from {labels.min()} to {labels.max()}; expected "
                    f"[0, {num_classes})"
                )
