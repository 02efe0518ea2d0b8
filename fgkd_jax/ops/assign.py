"""Which box answers for which object, and which of them are trained on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.ops.boxes import box_iou
from fgkd_jax.typing import Array, Bool, Float, Int, Key


class MatchRule(NamedTuple):
    """The options of `assign_boxes` that a detector fixes: `assign_boxes(..., **rule._asdict())`.

    Attributes:
      positive: least overlap of a positive.
      negative: overlap below which a box is background.
      low_quality: whether an object without a good box gets its best ones.
      min_positive: least overlap of those.
    """

    positive: float
    negative: float
    low_quality: bool = False
    min_positive: float = 0.0


RPN_RULE = MatchRule(positive=0.7, negative=0.3, low_quality=True, min_positive=0.3)
"""Anchors of a region proposal network."""

RCNN_RULE = MatchRule(positive=0.5, negative=0.5)
"""Proposals of Fast R-CNN."""

RETINA_RULE = MatchRule(positive=0.5, negative=0.4, low_quality=True)
"""Anchors of RetinaNet."""


class Assignment(NamedTuple):
    """What `assign_boxes` finds.

    Attributes:
      positive: bool `[p]`, boxes that answer for an object.
      negative: bool `[p]`, boxes that answer for the background; the others are ignored.
      gt: int32 `[p]`, the object of a positive box, elsewhere 0.
      iou: `[p]`, largest overlap with any object, 0 if there is none; NaN of a box without an
        area and such an object, by which the box is neither positive nor negative.
    """

    positive: Bool[Array, "p"]
    negative: Bool[Array, "p"]
    gt: Int[Array, "p"]
    iou: Float[Array, "p"]


class Sample(NamedTuple):
    """A fixed number of boxes, positives first.

    Attributes:
      indices: int32 `[s]`, boxes by index; 0 where `valid` is False.
      positive: bool `[s]`, whether the box answers for an object.
      valid: bool `[s]`, False where there were not enough boxes.
    """

    indices: Int[Array, "s"]
    positive: Bool[Array, "s"]
    valid: Bool[Array, "s"]


def assign_boxes(
    boxes: Float[Array, "p 4"],
    gt_boxes: Float[Array, "g 4"],
    *,
    gt_valid: Bool[Array, "g"],
    positive: float,
    negative: float,
    box_valid: Bool[Array, "p"] | None = None,
    low_quality: bool = False,
    min_positive: float = 0.0,
) -> Assignment:
    """Assigns every box to an object by its largest overlap, or to the background, or to neither.

    With u the largest IoU of a box: background below `negative`, its object (the first, of several
    with the same u) from `positive` on, ignored between. With `low_quality`, every box whose IoU
    with an object is the best that this object gets goes to that object besides, if the best is at
    least `min_positive`; the last such object wins, also over an object with a larger overlap.

    Args:
      boxes: `[p 4]`, anchors or proposals.
      gt_boxes: `[g 4]`, objects, padded to any number.
      gt_valid: `[g]`, False at the padding. Without objects all boxes are background.
      positive: least overlap of a positive.
      negative: overlap below which a box is background.
      box_valid: `[p]`, boxes that take part; the others are neither positive nor negative, and no
        object counts them as its best. None for all.
      low_quality: whether an object without a good box gets its best ones.
      min_positive: least overlap of those. At 0 an object that no box touches gets all the boxes
        that touch none, as released; at anything above, it gets none.

    Returns:
      An `Assignment`. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit, or a threshold is out of [0, 1] or in the wrong order.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, section 3.1.2; as mmdet 2.0 does it, whose -1, 0 and
      1 + gt are `positive`, `negative` and `gt` here.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
      >>> objects, valid = jnp.array([[0.0, 0.0, 4.0, 3.0]]), jnp.array([True])
      >>> found = assign_boxes(anchors, objects, gt_valid=valid, positive=0.5, negative=0.5)
      >>> found.positive.tolist(), found.negative.tolist()
      ([True, False], [False, True])
    """
    _check(boxes, gt_boxes, gt_valid, box_valid)
    if not 0.0 <= negative <= positive <= 1.0 or not 0.0 <= min_positive <= 1.0:
        raise UserError(
            f"thresholds positive={positive}, negative={negative}, min_positive={min_positive}; "
            "expected 0 <= negative <= positive <= 1 and min_positive in [0, 1]"
        )
    taking_part = jnp.ones(len(boxes), bool) if box_valid is None else box_valid
    if not len(boxes) or not len(gt_boxes):
        zeros = jnp.zeros(len(boxes), jnp.int32)
        return Assignment(zeros > 0, taking_part, zeros, jnp.zeros(len(boxes), boxes.dtype))
    overlaps = jnp.where(gt_valid[None], box_iou(boxes, gt_boxes, undefined=jnp.nan), -1.0)
    overlaps = jnp.where(taking_part[:, None], overlaps, -1.0)
    largest = jnp.max(overlaps, axis=1)
    gt = jnp.argmax(overlaps, axis=1).astype(jnp.int32)
    found = largest >= positive
    if low_quality:
        best = jnp.max(overlaps, axis=0, keepdims=True)
        is_best = (overlaps == best) & (best >= min_positive)
        order = jnp.arange(1, gt_boxes.shape[0] + 1, dtype=jnp.int32)
        last = jnp.max(jnp.where(is_best, order[None], 0), axis=1)
        gt = jnp.where(last > 0, last - 1, gt)
        found = found | (last > 0)
    found = found & taking_part & jnp.any(gt_valid)
    return Assignment(
        positive=found,
        negative=taking_part & ~found & (largest < negative),
        gt=jnp.where(found, gt, 0),
        iou=jnp.maximum(largest, 0.0),
    )


def sample_boxes(
    key: Key[Array, ""],
    positive: Bool[Array, "p"],
    negative: Bool[Array, "p"],
    *,
    size: int,
    positive_share: float,
) -> Sample:
    """Draws positives up to their share, and fills up with negatives.

    Each kind is drawn uniformly without replacement. Where all of a kind fit, all are kept, and the
    key does not matter: with `size` at least p and a share of 1, everything is kept. Kept positives
    come first, then negatives, each in ascending order of their index.

    Args:
      key: a typed PRNG key.
      positive: `[p]`.
      negative: `[p]`, disjoint from `positive`.
      size: boxes of the sample.
      positive_share: largest share of positives, in [0, 1]; the product is rounded down.

    Returns:
      A `Sample` of `size` entries. For many images: `vmap` over keys.

    Raises:
      UserError: the shapes differ or an option is out of range.

    Source:
      Ren et al., NIPS 2015, section 3.1.3; Girshick, "Fast R-CNN", ICCV 2015, section 2.3.

    Example:
      >>> few = jnp.array([False, True, False]), jnp.array([True, False, True])
      >>> sample_boxes(jax.random.key(0), *few, size=4, positive_share=0.5).indices
      Array([1, 0, 2, 0], dtype=int32)
    """
    kept_positive, kept_negative = sample_mask(
        key, positive, negative, size=size, positive_share=positive_share
    )
    count = positive.shape[0]
    place = jnp.arange(count, dtype=jnp.int32)
    # Positives sort before negatives, and both before what was left out.
    rank = jnp.where(kept_positive, place, jnp.where(kept_negative, place + count, 2 * count))
    ranked = jnp.sort(jnp.pad(rank, (0, max(0, size - count)), constant_values=2 * count))[:size]
    valid = ranked < 2 * count
    return Sample(jnp.where(valid, ranked % max(count, 1), 0), ranked < count, valid)


def sample_mask(
    key: Key[Array, ""],
    positive: Bool[Array, "p"],
    negative: Bool[Array, "p"],
    *,
    size: int,
    positive_share: float,
) -> tuple[Bool[Array, "p"], Bool[Array, "p"]]:
    """Draws as `sample_boxes` does, as masks over all boxes.

    Anchors stay where they are and are weighted; only proposals need gathering.

    Args:
      key: a typed PRNG key.
      positive: `[p]`.
      negative: `[p]`, disjoint from `positive`.
      size: boxes of the sample.
      positive_share: largest share of positives, in [0, 1].

    Returns:
      The kept positives and the kept negatives, each `[p]`.

    Raises:
      UserError: the shapes differ or an option is out of range.

    Source:
      As `sample_boxes`.

    Example:
      >>> few = jnp.array([False, True, False]), jnp.array([True, False, True])
      >>> [x.tolist() for x in sample_mask(jax.random.key(0), *few, size=1, positive_share=1.0)]
      [[False, True, False], [False, False, False]]
    """
    if positive.ndim != 1 or positive.shape != negative.shape:
        raise UserError(
            f"positive has the shape {positive.shape} and negative {negative.shape}; expected [p]"
        )
    if size < 1 or not 0.0 <= positive_share <= 1.0:
        raise UserError(
            f"size is {size} and positive_share {positive_share}; expected at least 1 and [0, 1]"
        )
    for_positives, for_negatives = jax.random.split(key)
    most = min(int(size * positive_share), len(positive))
    kept = _draw(for_positives, positive, most, most=most)
    rest = size - jnp.sum(kept, dtype=jnp.int32)
    return kept, _draw(for_negatives, negative, rest, most=min(size, len(negative)))


def _draw(key: Array, among: Array, count: int | Array, *, most: int) -> Array:
    """Marks `count` of those that are True, at most `most`, or all of them if there are fewer."""
    lots = jnp.where(among, jax.random.uniform(key, among.shape), -1.0)
    _, drawn = lax.top_k(lots, most)
    chosen = among[drawn] & (jnp.arange(most) < count)
    return jnp.zeros(among.shape, bool).at[drawn].set(chosen)


def _check(boxes: Array, gt_boxes: Array, gt_valid: Array, box_valid: Array | None) -> None:
    if boxes.ndim != 2 or gt_boxes.ndim != 2 or gt_valid.shape != gt_boxes.shape[:1]:
        raise UserError(
            f"boxes have the shape {boxes.shape}, gt_boxes {gt_boxes.shape} and gt_valid "
            f"{gt_valid.shape}; expected [p, 4], [g, 4] and [g]"
        )
    if box_valid is not None and box_valid.shape != boxes.shape[:1]:
        raise UserError(
            f"box_valid has the shape {box_valid.shape}; expected one entry per box, "
            f"{boxes.shape[:1]}"
        )
