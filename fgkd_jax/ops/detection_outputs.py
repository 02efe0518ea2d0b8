"""What detectors put out: proposals, and detections of both kinds of heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.ops.boxes import clip_boxes, decode_boxes
from fgkd_jax.ops.detection_targets import ROI_STDS
from fgkd_jax.ops.suppression import Detections, multiclass_nms, nms_per_class
from fgkd_jax.typing import Array, Bool, Float, Num


class Proposals(NamedTuple):
    """Regions of one image that may hold an object, best first; zeros where `valid` is False.

    Attributes:
      boxes: `[m 4]`.
      scores: `[m]`, probabilities.
      valid: bool `[m]`.
    """

    boxes: Float[Array, "m 4"]
    scores: Float[Array, "m"]
    valid: Bool[Array, "m"]


def region_proposals(
    logits: Float[Array, "p"],
    deltas: Float[Array, "p 4"],
    anchors: Float[Array, "p 4"],
    image_size: Num[Array, "2"],
    *,
    level_sizes: tuple[int, ...],
    pre_nms: int = 1000,
    max_outputs: int = 1000,
    iou_threshold: float = 0.7,
    min_side: float = 0.0,
    anchor_valid: Bool[Array, "p"] | None = None,
) -> Proposals:
    """Makes proposals of what an RPN predicts.

    Of every level the best `pre_nms` anchors are decoded, clipped to the image, and suppressed
    level by level; the best survivors of all levels are kept. No gradient passes.

    Args:
      logits: `[p]`, of an object.
      deltas: `[p 4]`.
      anchors: `[p 4]`, of all levels, one level after the other.
      image_size: `[2]`, rows and columns of the image without its padding.
      level_sizes: anchors of each level; they add up to p.
      pre_nms: candidates of each level.
      max_outputs: m.
      iou_threshold: as in `nms`.
      min_side: proposals with a shorter side are dropped.
      anchor_valid: `[p]`, anchors that take part; None for all.

    Returns:
      `Proposals` of m entries. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, section 3.3; candidates per level as Lin et al.,
      "Feature pyramid networks", CVPR 2017.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.5]])
      >>> found = region_proposals(
      ...     jnp.array([1.0, 2.0]), jnp.zeros((2, 4)), anchors, jnp.array([9, 9]),
      ...     level_sizes=(2,), max_outputs=2,
      ... )
      >>> found.boxes.tolist()
      [[0.0, 0.0, 4.0, 3.5], [0.0, 0.0, 0.0, 0.0]]
    """
    _check(logits[:, None] if logits.ndim == 1 else logits, deltas, anchors, level_sizes, pre_nms)
    logits, deltas = lax.stop_gradient((logits, deltas))
    scores = jax.nn.sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    if anchor_valid is not None:
        scores = jnp.where(anchor_valid, scores, -1.0)
    chosen, levels = _best_of_levels(scores, level_sizes, pre_nms)
    boxes = _boxes(anchors[chosen], deltas[chosen], image_size)
    side = jnp.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    scores = scores[chosen]
    kept = nms_per_class(
        boxes,
        scores,
        levels,
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        valid=(scores >= 0) & (side >= min_side),
    )
    return Proposals(
        boxes=jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0),
        scores=jnp.where(kept.valid, scores[kept.indices], 0.0),
        valid=kept.valid,
    )


def dense_detections(
    logits: Float[Array, "p k"],
    deltas: Float[Array, "p 4"],
    anchors: Float[Array, "p 4"],
    image_size: Num[Array, "2"],
    *,
    level_sizes: tuple[int, ...],
    pre_nms: int = 1000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_outputs: int = 100,
    anchor_valid: Bool[Array, "p"] | None = None,
) -> Detections:
    """Makes detections of what RetinaNet predicts.

    Of every level the `pre_nms` anchors with the best class are decoded, clipped to the image, and
    go through `multiclass_nms` with the sigmoids of their logits.

    Args:
      logits: `[p k]`, one per class.
      deltas: `[p 4]`.
      anchors: `[p 4]`, of all levels, one level after the other.
      image_size: `[2]`, rows and columns of the image without its padding.
      level_sizes: anchors of each level; they add up to p.
      pre_nms: candidates of each level.
      score_threshold: as in `multiclass_nms`.
      iou_threshold: as in `multiclass_nms`.
      max_outputs: m.
      anchor_valid: `[p]`, anchors that take part; None for all.

    Returns:
      `Detections` of m entries. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4. The paper takes the
      best 1,000 pairs of anchor and class of a level; here, as in mmdet 2.0, the best anchors.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0]])
      >>> found = dense_detections(
      ...     jnp.array([[-9.0, 0.0]]), jnp.zeros((1, 4)), anchors, jnp.array([9, 9]),
      ...     level_sizes=(1,), max_outputs=1,
      ... )
      >>> found.labels.tolist(), found.scores.tolist()
      ([1], [0.5])
    """
    _check(logits, deltas, anchors, level_sizes, pre_nms)
    scores = jax.nn.sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    best = jnp.max(scores, axis=1)
    if anchor_valid is not None:
        best = jnp.where(anchor_valid, best, -1.0)
    chosen, _ = _best_of_levels(best, level_sizes, pre_nms)
    return multiclass_nms(
        _boxes(anchors[chosen], deltas[chosen], image_size)[:, None],
        scores[chosen],
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_outputs=max_outputs,
        valid=best[chosen] >= 0,
    )


def roi_detections(
    logits: Float[Array, "p n"],
    deltas: Float[Array, "p k 4"],
    proposals: Float[Array, "p 4"],
    image_size: Num[Array, "2"],
    *,
    valid: Bool[Array, "p"] | None = None,
    stds: tuple[float, ...] = ROI_STDS,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_outputs: int = 100,
) -> Detections:
    """Makes detections of what the head on regions predicts.

    Args:
      logits: `[p n]`, n = k + 1, the background last.
      deltas: `[p k 4]`, a box of its own for every class.
      proposals: `[p 4]`.
      image_size: `[2]`, rows and columns of the image without its padding.
      valid: `[p]`, False at the padding of the proposals; None for all.
      stds: of the codes.
      score_threshold: as in `multiclass_nms`, of the softmax.
      iou_threshold: as in `multiclass_nms`.
      max_outputs: m.

    Returns:
      `Detections` of m entries. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Girshick, "Fast R-CNN", ICCV 2015, section 3.4.

    Example:
      >>> proposals = jnp.array([[0.0, 0.0, 4.0, 4.0]])
      >>> found = roi_detections(
      ...     jnp.zeros((1, 2)), jnp.zeros((1, 1, 4)), proposals, jnp.array([9, 9]), max_outputs=1
      ... )
      >>> found.boxes.tolist(), found.scores.tolist()
      ([[0.0, 0.0, 4.0, 4.0]], [0.5])
    """
    p, k = deltas.shape[:2] if deltas.ndim == 3 else (-1, -1)
    if logits.shape != (p, k + 1) or proposals.shape != (p, 4):
        raise UserError(
            f"logits have the shape {logits.shape}, deltas {deltas.shape} and proposals "
            f"{proposals.shape}; expected [p, k + 1], [p, k, 4] and [p, 4]"
        )
    scores = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))[:, :-1]
    boxes = decode_boxes(proposals[:, None], deltas, stds=stds)
    return multiclass_nms(
        clip_boxes(boxes, image_size.reshape(1, 1, 2)),
        scores,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_outputs=max_outputs,
        valid=valid,
    )


def _boxes(anchors: Array, deltas: Array, image_size: Array) -> Array:
    wide = deltas.astype(jnp.promote_types(deltas.dtype, jnp.float32))
    return clip_boxes(decode_boxes(anchors, wide), image_size.reshape(1, 2))


def _best_of_levels(scores: Array, level_sizes: tuple[int, ...], limit: int) -> tuple[Array, Array]:
    """Indices of the best of every level, and the level of each.

    A level that has no more than the limit keeps its order, which decides between equal scores.
    """
    start, chosen, levels = 0, [], []
    for level, size in enumerate(level_sizes):
        if size > limit:
            best = lax.top_k(scores[start : start + size], limit)[1]
        else:
            best = jnp.arange(size, dtype=jnp.int32)
        chosen.append(best + start)
        levels.append(jnp.full(best.shape, level, jnp.int32))
        start += size
    return jnp.concatenate(chosen), jnp.concatenate(levels)


def _check(
    logits: Array, deltas: Array, anchors: Array, level_sizes: tuple[int, ...], pre_nms: int
) -> None:
    p = anchors.shape[0]
    if logits.ndim != 2 or logits.shape[0] != p or not deltas.shape == (p, 4) == anchors.shape:
        raise UserError(
            f"logits have the shape {logits.shape}, deltas {deltas.shape} and anchors "
            f"{anchors.shape}; expected the same number of each, 4 numbers per box"
        )
    if sum(level_sizes) != p or pre_nms < 1:
        raise UserError(
            f"level_sizes {level_sizes} and pre_nms {pre_nms}; expected sizes that add up to {p} "
            "and at least 1"
        )
