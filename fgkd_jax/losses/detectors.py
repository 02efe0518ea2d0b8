"""Losses of the heads of detectors, with what each is divided by: sums and counts per image."""

from typing import NamedTuple

import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.losses.detection import absolute_error, sigmoid_cross_entropy, sigmoid_focal
from fgkd_jax.typing import Array, Bool, Float, Int


class HeadLosses(NamedTuple):
    """The two parts of a head's loss, each a sum and a count `[b]`.

    Over a batch a loss is `sum(sums) / max(1, sum(counts))`.

    Attributes:
      classes: of the class scores.
      boxes: of the box codes.
    """

    classes: tuple[Float[Array, "b"], Float[Array, "b"]]
    boxes: tuple[Float[Array, "b"], Float[Array, "b"]]


def proposal_losses(
    logits: Float[Array, "b p"],
    deltas: Float[Array, "b p 4"],
    positive: Bool[Array, "b p"],
    negative: Bool[Array, "b p"],
    target_deltas: Float[Array, "b p 4"],
) -> HeadLosses:
    """Returns the losses of an RPN on sampled anchors.

    Cross-entropy of one logit over positives and negatives, L1 of the codes over positives; both
    counted by max(1, positives) + max(1, negatives).

    Args:
      logits: `[b p]`, of an object.
      deltas: `[b p 4]`.
      positive: `[b p]`, sampled anchors on objects.
      negative: `[b p]`, sampled anchors on background.
      target_deltas: `[b p 4]`.

    Returns:
      `HeadLosses`, of at least float32.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, equation 1; with L1 and the normaliser of mmdet 2.0.

    Example:
      >>> yes, no = jnp.array([[True]]), jnp.array([[False]])
      >>> zeros = jnp.zeros((1, 1, 4))
      >>> found = proposal_losses(zeros[..., 0], zeros, yes, no, zeros + 1.0)
      >>> [[float(x[0]) for x in part] for part in found]
      [[0.6931471824645996, 2.0], [4.0, 2.0]]
    """
    _check(logits.shape, deltas, target_deltas, positive, negative)
    kept = positive | negative
    classes = sigmoid_cross_entropy(_wide(logits), positive.astype(jnp.float32))
    count = _at_least_one(positive) + _at_least_one(negative)
    return HeadLosses(
        classes=(jnp.sum(jnp.where(kept, classes, 0.0), axis=1), count),
        boxes=(_box_sum(deltas, target_deltas, positive), count),
    )


def dense_losses(
    logits: Float[Array, "b p k"],
    deltas: Float[Array, "b p 4"],
    labels: Int[Array, "b p"],
    positive: Bool[Array, "b p"],
    negative: Bool[Array, "b p"],
    target_deltas: Float[Array, "b p 4"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> HeadLosses:
    """Returns the losses of RetinaNet on all anchors.

    Focal loss over positives and negatives, L1 of the codes over positives; both counted by
    max(1, positives).

    Args:
      logits: `[b p k]`.
      deltas: `[b p 4]`.
      labels: `[b p]`, classes of positives; k elsewhere.
      positive: `[b p]`, anchors on objects.
      negative: `[b p]`, anchors on background.
      target_deltas: `[b p 4]`.
      alpha: as in `sigmoid_focal`.
      gamma: as in `sigmoid_focal`.

    Returns:
      `HeadLosses`, of at least float32.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4; with L1 for the
      boxes as in mmdet 2.0, where the paper has smooth L1.

    Example:
      >>> yes, no = jnp.array([[True]]), jnp.array([[False]])
      >>> zeros = jnp.zeros((1, 1, 4))
      >>> found = dense_losses(zeros[..., :1], zeros, jnp.array([[0]]), yes, no, zeros)
      >>> round(float(found.classes[0][0]), 4), float(found.classes[1][0])
      (0.0433, 1.0)
    """
    _check(logits.shape[:2], deltas, target_deltas, positive, negative, labels)
    kept = positive | negative
    classes = sigmoid_focal(_wide(logits), labels, alpha=alpha, gamma=gamma)
    count = _at_least_one(positive)
    return HeadLosses(
        classes=(jnp.sum(jnp.where(kept[..., None], classes, 0.0), axis=(1, 2)), count),
        boxes=(_box_sum(deltas, target_deltas, positive), count),
    )


def region_losses(
    logits: Float[Array, "b s n"],
    deltas: Float[Array, "b s k 4"],
    labels: Int[Array, "b s"],
    positive: Bool[Array, "b s"],
    valid: Bool[Array, "b s"],
    target_deltas: Float[Array, "b s 4"],
) -> HeadLosses:
    """Returns the losses of the head on sampled regions.

    Cross-entropy over all regions, L1 of the codes of the label's class over those on objects; both
    counted by all regions.

    Args:
      logits: `[b s n]`, n = k + 1, the background last.
      deltas: `[b s k 4]`, a code for every class.
      labels: `[b s]`, in [0, k], k being background.
      positive: `[b s]`, regions on objects.
      valid: `[b s]`, False at the padding.
      target_deltas: `[b s 4]`.

    Returns:
      `HeadLosses`, of at least float32.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Girshick, "Fast R-CNN", ICCV 2015, equation 1; with L1 and the normaliser of mmdet 2.0.

    Example:
      >>> yes, zeros = jnp.array([[True]]), jnp.zeros((1, 1, 1, 4))
      >>> found = region_losses(
      ...     zeros[:, :, 0, :2], zeros, jnp.array([[0]]), yes, yes, zeros[:, :, 0] + 1.0
      ... )
      >>> [[float(x[0]) for x in part] for part in found]
      [[0.6931471824645996, 1.0], [4.0, 1.0]]
    """
    b, s, k = deltas.shape[:3] if deltas.ndim == 4 else (-1, -1, -1)
    if logits.shape != (b, s, k + 1) or target_deltas.shape != (b, s, 4):
        raise UserError(
            f"logits have the shape {logits.shape}, deltas {deltas.shape} and target_deltas "
            f"{target_deltas.shape}; expected [b, s, k + 1], [b, s, k, 4] and [b, s, 4]"
        )
    _check((b, s), target_deltas, target_deltas, positive, valid, labels)
    classes = cross_entropy(_wide(logits).reshape(b * s, k + 1), labels.reshape(-1)).reshape(b, s)
    own = jnp.minimum(labels, k - 1)[:, :, None, None]
    chosen = jnp.take_along_axis(deltas, own, axis=2)[:, :, 0]
    count = jnp.sum(valid, axis=1, dtype=jnp.float32)
    return HeadLosses(
        classes=(jnp.sum(jnp.where(valid, classes, 0.0), axis=1), count),
        boxes=(_box_sum(chosen, target_deltas, positive & valid), count),
    )


def _box_sum(deltas: Array, targets: Array, positive: Array) -> Array:
    error = absolute_error(_wide(deltas), targets)
    return jnp.sum(jnp.where(positive[..., None], error, 0.0), axis=(1, 2))


def _at_least_one(mask: Array) -> Array:
    return jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(shape: tuple[int, ...], deltas: Array, targets: Array, *masks: Array) -> None:
    boxes_fit = deltas.shape == targets.shape == (*shape, 4)
    if len(shape) != 2 or not boxes_fit or any(mask.shape != shape for mask in masks):
        raise UserError(
            f"logits are of {shape}, deltas of shape {deltas.shape} and target_deltas "
            f"{targets.shape}, masks and labels {[mask.shape for mask in masks]}; expected [b, p], "
            "[b, p, 4] twice and [b, p]"
        )
