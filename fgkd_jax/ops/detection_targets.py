"""What detectors are trained towards: objects assigned to anchors and to proposals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.ops.assign import (
    RCNN_RULE,
    Assignment,
    MatchRule,
    assign_boxes,
    sample_boxes,
)
from fgkd_jax.ops.boxes import encode_boxes
from fgkd_jax.typing import Array, Bool, Float, Int, Key

ROI_STDS = (0.1, 0.1, 0.2, 0.2)
"""Of the box codes that the head on regions predicts."""


class AnchorTargets(NamedTuple):
    """Targets of the anchors of one image.

    Attributes:
      positive: bool `[p]`, anchors that answer for an object.
      negative: bool `[p]`, anchors that answer for the background; the others are ignored.
      labels: int32 `[p]`, class of the object of a positive; `num_classes` elsewhere.
      deltas: `[p 4]`, code of that object; 0 elsewhere.
    """

    positive: Bool[Array, "p"]
    negative: Bool[Array, "p"]
    labels: Int[Array, "p"]
    deltas: Float[Array, "p 4"]


class RoiTargets(NamedTuple):
    """Sampled regions of one image, positives first, and their targets.

    Attributes:
      boxes: `[s 4]`, 0 where `valid` is False.
      positive: bool `[s]`, regions on an object.
      valid: bool `[s]`, False where there were not enough regions.
      labels: int32 `[s]`, class of the object; `num_classes`, the background, elsewhere.
      deltas: `[s 4]`, code of the object; 0 elsewhere.
    """

    boxes: Float[Array, "s 4"]
    positive: Bool[Array, "s"]
    valid: Bool[Array, "s"]
    labels: Int[Array, "s"]
    deltas: Float[Array, "s 4"]


def anchor_targets(
    anchors: Float[Array, "p 4"],
    gt_boxes: Float[Array, "g 4"],
    gt_labels: Int[Array, "g"],
    *,
    gt_valid: Bool[Array, "g"],
    rule: MatchRule,
    num_classes: int,
    anchor_valid: Bool[Array, "p"] | None = None,
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> AnchorTargets:
    """Assigns objects to anchors and encodes them.

    An RPN trains on a sample of them: `sample_mask(key, positive, negative, ...)`.

    Args:
      anchors: `[p 4]`, of all levels.
      gt_boxes: `[g 4]`, objects, padded to any number.
      gt_labels: `[g]`, classes in [0, num_classes).
      gt_valid: `[g]`, False at the padding.
      rule: `RPN_RULE` or `RETINA_RULE`, or another.
      num_classes: how many classes there are; also the label of the background.
      anchor_valid: `[p]`, anchors that take part, see `valid_anchors`; None for all.
      stds: of the codes.

    Returns:
      `AnchorTargets`. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, section 3.1.2; Lin et al., "Focal loss for dense object
      detection", ICCV 2017, section 4.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
      >>> rule = MatchRule(positive=0.5, negative=0.4)
      >>> found = anchor_targets(
      ...     anchors, anchors[:1], jnp.array([2]), gt_valid=jnp.array([True]), rule=rule,
      ...     num_classes=3,
      ... )
      >>> found.labels.tolist()
      [2, 3]
    """
    _check_objects(gt_boxes, gt_labels, num_classes)
    found = assign_boxes(
        anchors, gt_boxes, gt_valid=gt_valid, box_valid=anchor_valid, **rule._asdict()
    )
    labels, deltas = _of_objects(
        anchors, gt_boxes, gt_labels, found.gt, found.positive, num_classes, stds
    )
    return AnchorTargets(found.positive, found.negative, labels, deltas)


def roi_targets(
    key: Key[Array, ""],
    proposals: Float[Array, "p 4"],
    valid: Bool[Array, "p"],
    gt_boxes: Float[Array, "g 4"],
    gt_labels: Int[Array, "g"],
    *,
    gt_valid: Bool[Array, "g"],
    num_classes: int,
    size: int = 512,
    positive_share: float = 0.25,
    rule: MatchRule = RCNN_RULE,
    stds: tuple[float, ...] = ROI_STDS,
    with_objects: bool = True,
) -> RoiTargets:
    """Samples regions among proposals and encodes the objects that they answer for.

    Args:
      key: a typed PRNG key.
      proposals: `[p 4]`; no gradient passes through them.
      valid: `[p]`, False at the padding.
      gt_boxes: `[g 4]`, objects, padded to any number.
      gt_labels: `[g]`, classes in [0, num_classes).
      gt_valid: `[g]`, False at the padding.
      num_classes: how many classes there are; also the label of the background.
      size: regions of the sample.
      positive_share: largest share of regions on objects.
      rule: of the assignment.
      stds: of the codes.
      with_objects: whether the objects themselves stand before the proposals.

    Returns:
      `RoiTargets` of `size` regions. For many images: `vmap` over keys.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Girshick, "Fast R-CNN", ICCV 2015, section 2.3; objects as proposals as in the released
      detectors.

    Example:
      >>> box, label = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([2])
      >>> far, yes = box + 9.0, jnp.array([True])
      >>> found = roi_targets(
      ...     jax.random.key(0), far, yes, box, label, gt_valid=yes, num_classes=3, size=4
      ... )
      >>> found.labels.tolist(), found.valid.tolist()
      ([2, 3, 3, 3], [True, True, False, False])
    """
    _check_objects(gt_boxes, gt_labels, num_classes)
    if proposals.ndim != 2 or valid.shape != proposals.shape[:1]:
        raise UserError(
            f"proposals have the shape {proposals.shape} and valid {valid.shape}; expected [p, 4] "
            "and [p]"
        )
    boxes = jax.lax.stop_gradient(proposals)
    found = assign_boxes(boxes, gt_boxes, gt_valid=gt_valid, box_valid=valid, **rule._asdict())
    if with_objects:
        boxes = jnp.concatenate([gt_boxes.astype(boxes.dtype), boxes])
        found = _with_objects(found, gt_valid)
    if not len(boxes):
        none = jnp.zeros(size, bool)
        background = jnp.full(size, num_classes, jnp.int32)
        nowhere = jnp.zeros((size, 4), boxes.dtype)
        return RoiTargets(nowhere, none, none, background, nowhere)
    sample = sample_boxes(
        key, found.positive, found.negative, size=size, positive_share=positive_share
    )
    chosen = boxes[sample.indices]
    labels, deltas = _of_objects(
        chosen,
        gt_boxes,
        gt_labels,
        found.gt[sample.indices],
        sample.positive,
        num_classes,
        stds,
    )
    chosen = jnp.where(sample.valid[:, None], chosen, 0.0)
    return RoiTargets(chosen, sample.positive, sample.valid, labels, deltas)


def _with_objects(found: Assignment, gt_valid: Array) -> Assignment:
    """Puts the objects before the boxes. Each answers for itself, whatever it overlaps besides."""
    own = Assignment(
        positive=gt_valid,
        negative=jnp.zeros_like(gt_valid),
        gt=jnp.where(gt_valid, jnp.arange(len(gt_valid), dtype=jnp.int32), 0),
        iou=gt_valid.astype(found.iou.dtype),
    )
    return Assignment(*(jnp.concatenate(pair) for pair in zip(own, found, strict=True)))


def _of_objects(
    boxes: Array,
    gt_boxes: Array,
    gt_labels: Array,
    gt: Array,
    positive: Array,
    num_classes: int,
    stds: tuple[float, ...],
) -> tuple[Array, Array]:
    """Label and code of the object of every positive box."""
    if gt_boxes.shape[0] == 0:
        return jnp.full(len(boxes), num_classes, jnp.int32), jnp.zeros_like(boxes)
    labels = jnp.where(positive, gt_labels[gt].astype(jnp.int32), num_classes)
    deltas = encode_boxes(boxes, gt_boxes[gt].astype(boxes.dtype), stds=stds)
    return labels, jnp.where(positive[:, None], deltas, 0.0)


def _check_objects(gt_boxes: Array, gt_labels: Array, num_classes: int) -> None:
    if gt_boxes.ndim != 2 or gt_labels.shape != gt_boxes.shape[:1]:
        raise UserError(
            f"gt_boxes have the shape {gt_boxes.shape} and gt_labels {gt_labels.shape}; expected "
            "[g, 4] and [g]"
        )
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; expected at least 1")
