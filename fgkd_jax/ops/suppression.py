"""Greedy non-maximum suppression: exact, with static shapes, tile by tile."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.ops.boxes import box_iou
from fgkd_jax.typing import Array, Bool, Float, Int

TILE = 128
"""Boxes that are compared at once: as wide as a vector of a TPU, and small enough for a cache."""


class Kept(NamedTuple):
    """What survives suppression, in descending order of score.

    Attributes:
      indices: int32 `[m]`, boxes by index; 0 where `valid` is False.
      valid: bool `[m]`, False after the last survivor.
    """

    indices: Int[Array, "m"]
    valid: Bool[Array, "m"]


class Detections(NamedTuple):
    """Boxes found in one image, in descending order of score; zeros where `valid` is False.

    Attributes:
      boxes: `[m 4]`.
      scores: `[m]`.
      labels: int32 `[m]`, classes.
      valid: bool `[m]`.
    """

    boxes: Float[Array, "m 4"]
    scores: Float[Array, "m"]
    labels: Int[Array, "m"]
    valid: Bool[Array, "m"]


def nms(
    boxes: Float[Array, "p 4"],
    scores: Float[Array, "p"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[Array, "p"] | None = None,
) -> Kept:
    """Keeps the best box, drops all that overlap it by more than a threshold, and goes on.

    As `nms_per_class` with one class.

    Args:
      boxes: `[p 4]`.
      scores: `[p]`; of equal scores the lower index comes first, and NaN is dropped.
      iou_threshold: a box is dropped when its IoU with a kept one is above this.
      max_outputs: m; the search ends when so many are kept.
      valid: `[p]`, boxes that take part; None for all.

    Returns:
      `Kept` of m entries. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Greedy suppression as Girshick et al., CVPR 2014, section 2.2, use it. The CPU code of mmdet
      2.0 drops at equality too and returns ascending indices; this is what its CUDA code does.

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [5.0, 0.0, 9.0, 4.0]])
      >>> kept = nms(boxes, jnp.array([0.5, 0.9, 0.7]), iou_threshold=0.5, max_outputs=3)
      >>> kept.indices[kept.valid].tolist()
      [1, 2]
    """
    _check(boxes, scores, iou_threshold, max_outputs, valid)
    labels = jnp.zeros(len(boxes), jnp.int32)
    return nms_per_class(
        boxes, scores, labels, iou_threshold=iou_threshold, max_outputs=max_outputs, valid=valid
    )


def nms_per_class(
    boxes: Float[Array, "p 4"],
    scores: Float[Array, "p"],
    labels: Int[Array, "p"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[Array, "p"] | None = None,
) -> Kept:
    """Suppresses as `nms` does, among boxes of the same label alone.

    The sorted boxes are taken in tiles. A tile is compared with the boxes kept so far, then with
    itself: `keep = alive and not any earlier keep that overlaps` is iterated until nothing changes,
    which takes as many rounds as the longest chain of boxes that drop each other and ends at the
    greedy result, as the first k are right after k rounds. So the work grows with kept boxes times
    boxes, and ends early when enough are kept.

    Args:
      boxes: `[p 4]`.
      scores: `[p]`; of equal scores the lower index comes first, and NaN is dropped.
      labels: `[p]`, classes or levels, any whole numbers.
      iou_threshold: a box is dropped when its IoU with a kept one of its label is above this.
      max_outputs: m; the search ends when so many are kept.
      valid: `[p]`, boxes that take part; None for all.

    Returns:
      `Kept` of m entries, over all labels. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      As `nms`. Labels are compared; the reference shifts the boxes of every label to a place of
      their own instead, which rounds their coordinates.

    Example:
      >>> boxes = jnp.zeros((3, 4)).at[:, 2:].set(4.0)
      >>> scores, labels = jnp.array([0.5, 0.9, 0.7]), jnp.array([0, 1, 0])
      >>> kept = nms_per_class(boxes, scores, labels, iou_threshold=0.5, max_outputs=2)
      >>> kept.indices.tolist(), kept.valid.tolist()
      ([1, 2], [True, True])
    """
    _check(boxes, scores, iou_threshold, max_outputs, valid)
    if labels.shape != scores.shape:
        raise UserError(f"labels have the shape {labels.shape}; expected {scores.shape}")
    count = len(boxes)
    if count == 0:
        return Kept(jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool))
    taking_part = ~jnp.isnan(scores)
    if valid is not None:
        taking_part = taking_part & valid
    # One stable sort: those that take part first, then by score, then by index.
    keys = ~taking_part, -scores, jnp.arange(count, dtype=jnp.int32)
    order = lax.sort(keys, num_keys=2, is_stable=True)[2]
    padded = -(-count // TILE) * TILE
    rows = jnp.pad(order, (0, padded - count))
    sorted_boxes, sorted_labels = lax.stop_gradient((boxes[rows], labels[rows]))
    place, total = _greedy(
        sorted_boxes,
        sorted_labels,
        jnp.sum(taking_part, dtype=jnp.int32),
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
    )
    kept = jnp.arange(max_outputs) < total
    return Kept(jnp.where(kept, order[place], 0).astype(jnp.int32), kept)


def multiclass_nms(
    boxes: Float[Array, "p #k 4"],
    scores: Float[Array, "p k"],
    *,
    iou_threshold: float,
    score_threshold: float,
    max_outputs: int,
    valid: Bool[Array, "p"] | None = None,
) -> Detections:
    """Makes detections of boxes with a score for every class.

    Pairs of box and class that score above the threshold compete within their class; the best
    `max_outputs` survivors of all classes are returned.

    Args:
      boxes: `[p k 4]`, a box of its own for every class, or `[p 1 4]`.
      scores: `[p k]`, without a column for the background.
      iou_threshold: as in `nms_per_class`.
      score_threshold: scores must be above this.
      max_outputs: m.
      valid: `[p]`, boxes that take part; None for all.

    Returns:
      `Detections` of m entries. For many images: `vmap`.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      The post-processing of Fast R-CNN (Girshick, ICCV 2015, section 3.4) as mmdet 2.0 orders it on
      a GPU; its CPU code keeps the lowest indices instead of the best scores.

    Example:
      >>> boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0]], [[0.0, 0.0, 4.0, 3.0]]])
      >>> scores = jnp.array([[0.1, 0.9], [0.0, 0.8]])
      >>> found = multiclass_nms(
      ...     boxes, scores, iou_threshold=0.5, score_threshold=0.05, max_outputs=3
      ... )
      >>> found.labels[found.valid].tolist()
      [1, 0]
    """
    p, k = scores.shape if scores.ndim == 2 else (-1, -1)
    if boxes.shape not in ((p, k, 4), (p, 1, 4)) or (valid is not None and valid.shape != (p,)):
        raise UserError(
            f"boxes have the shape {boxes.shape} and scores {scores.shape}; expected [p, k, 4] or "
            "[p, 1, 4] and [p, k], and valid [p]"
        )
    if not scores.size:
        none = jnp.zeros(max_outputs, bool)
        return Detections(
            boxes=jnp.zeros((max_outputs, 4), boxes.dtype),
            scores=none.astype(scores.dtype),
            labels=none.astype(jnp.int32),
            valid=none,
        )
    candidates = scores > score_threshold
    if valid is not None:
        candidates = candidates & valid[:, None]
    flat_boxes = jnp.broadcast_to(boxes, (p, k, 4)).reshape(-1, 4)
    flat_scores, flat_candidates = scores.reshape(-1), candidates.reshape(-1)
    labels = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None], (p, k)).reshape(-1)
    kept = nms_per_class(
        flat_boxes,
        flat_scores,
        labels,
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        valid=flat_candidates,
    )
    return Detections(
        boxes=jnp.where(kept.valid[:, None], flat_boxes[kept.indices], 0.0),
        scores=jnp.where(kept.valid, flat_scores[kept.indices], 0.0),
        labels=jnp.where(kept.valid, labels[kept.indices], 0),
        valid=kept.valid,
    )


class _Progress(NamedTuple):
    """Tiles done, boxes kept, and of each kept box the corners, the label and the place."""

    tiles: Array
    total: Array
    boxes: Array
    labels: Array
    places: Array


def _greedy(
    boxes: Array, labels: Array, count: Array, *, iou_threshold: float, max_outputs: int
) -> tuple[Array, Array]:
    """Places of the survivors among sorted boxes, of which the first `count` take part."""
    room = -(-max_outputs // TILE) * TILE
    in_tile = jnp.arange(TILE, dtype=jnp.int32)
    earlier = in_tile[:, None] < in_tile[None]

    def overlaps(one: Array, one_labels: Array, other: Array, other_labels: Array) -> Array:
        return (box_iou(one, other) > iou_threshold) & (one_labels[:, None] == other_labels[None])

    def one_tile(done: _Progress) -> _Progress:
        start = done.tiles * TILE
        tile, tile_labels = (lax.dynamic_slice_in_dim(x, start, TILE) for x in (boxes, labels))

        def against_kept(index: Array, alive: Array) -> Array:
            kept, kept_labels = (
                lax.dynamic_slice_in_dim(x, index * TILE, TILE) for x in (done.boxes, done.labels)
            )
            taken = index * TILE + in_tile < done.total
            rivals = overlaps(kept, kept_labels, tile, tile_labels) & taken[:, None]
            return alive & ~jnp.any(rivals, axis=0)

        alive = lax.fori_loop(0, -(-done.total // TILE), against_kept, start + in_tile < count)
        rivals = overlaps(tile, tile_labels, tile, tile_labels) & earlier

        def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
            before, _ = state
            now = alive & ~jnp.any(rivals & before[:, None], axis=0)
            return now, jnp.any(now != before)

        keep, _ = lax.while_loop(lambda state: state[1], again, (alive, jnp.array(True)))
        slot = jnp.where(keep, done.total + jnp.cumsum(keep, dtype=jnp.int32) - 1, room)
        return _Progress(
            tiles=done.tiles + 1,
            total=done.total + jnp.sum(keep, dtype=jnp.int32),
            boxes=done.boxes.at[slot].set(tile, mode="drop"),
            labels=done.labels.at[slot].set(tile_labels, mode="drop"),
            places=done.places.at[slot].set(start + in_tile, mode="drop"),
        )

    zero = jnp.zeros((), jnp.int32)
    done = lax.while_loop(
        lambda done: (done.tiles * TILE < count) & (done.total < max_outputs),
        one_tile,
        _Progress(
            zero,
            zero,
            jnp.zeros((room, 4), boxes.dtype),
            jnp.zeros(room, labels.dtype),
            jnp.zeros(room, jnp.int32),
        ),
    )
    return done.places[:max_outputs], jnp.minimum(done.total, max_outputs)


def _check(
    boxes: Array, scores: Array, iou_threshold: float, max_outputs: int, valid: Array | None
) -> None:
    shapes = {scores.shape, scores.shape if valid is None else valid.shape}
    if boxes.ndim != 2 or boxes.shape[1] != 4 or shapes != {boxes.shape[:1]}:
        raise UserError(
            f"boxes have the shape {boxes.shape} and scores {scores.shape}; expected [p, 4] and "
            "[p], and valid [p]"
        )
    if not 0.0 <= iou_threshold <= 1.0 or max_outputs < 1:
        raise UserError(
            f"iou_threshold is {iou_threshold} and max_outputs {max_outputs}; expected [0, 1] and "
            "at least 1"
        )
