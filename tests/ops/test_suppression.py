"""Suppression keeps exactly what the greedy loop keeps."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.ops import box_iou, multiclass_nms, nms, nms_per_class
from fgkd_jax.ops.suppression import TILE

overlap = jax.jit(box_iou)


def greedy(boxes, scores, labels, threshold, limit, valid=None):
    """One box after the other, each against all that are kept."""
    overlaps = np.asarray(overlap(boxes, boxes))
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if valid is not None and not valid[i]:
            continue
        if all(labels[i] != labels[j] or not overlaps[j, i] > threshold for j in kept):
            kept.append(i)
    return kept[:limit]


def make(count, seed=0, labels=3, steps=None, side=100.0):
    rng = np.random.default_rng(seed)
    corner, extent = rng.uniform(0, side, (count, 2)), rng.uniform(5, 40, (count, 2))
    if steps:
        corner, extent = np.round(corner / steps) * steps, np.round(extent / steps + 1) * steps
    boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    scores = rng.uniform(size=count).astype(np.float32)
    if steps:
        scores = np.round(scores * 5) / 5
    return boxes, scores, rng.integers(0, labels, count).astype(np.int32)


def survivors(kept):
    """The indices, after checking that they come first and that the rest is empty."""
    valid = np.asarray(kept.valid)
    assert (np.diff(valid.astype(int)) <= 0).all()
    assert not np.asarray(kept.indices)[~valid].any()
    return np.asarray(kept.indices)[valid].tolist()


STATIC = ("iou_threshold", "max_outputs")
run = jax.jit(nms_per_class, static_argnames=STATIC)
run_alike = jax.jit(nms, static_argnames=STATIC)
run_multiclass = jax.jit(multiclass_nms, static_argnames=(*STATIC, "score_threshold"))


def case(golden, name, threshold):
    boxes = jnp.asarray(golden[f"{name}_dets"])
    limit = len(boxes)
    kept = nms(boxes[:, :4], boxes[:, 4], iou_threshold=threshold, max_outputs=limit)
    return survivors(kept)


@pytest.mark.parametrize("name", ["rand", "ties", "exact"])
def test_the_reference_keeps_the_same(shared, name):
    golden = np.load(shared / "golden" / "detection" / "nms.npz")
    for key in [k for k in golden.files if k.startswith(f"{name}_t") and k.endswith("_thr")]:
        threshold = float(golden[key])
        expected = golden[key.replace("_thr", "_keep_gt_scoreorder")].tolist()
        assert case(golden, name, threshold) == expected
        # Dropping at equality is the next threshold below, in ascending order of the index.
        below = float(np.nextafter(np.float32(threshold), np.float32(0)))
        expected = golden[key.replace("_thr", "_keep_ge_indexorder")].tolist()
        assert sorted(case(golden, name, below)) == expected


def test_the_reference_keeps_the_same_per_class(shared):
    golden = np.load(shared / "golden" / "detection" / "nms.npz")
    boxes, scores = golden["batched_boxes"], golden["batched_scores"]
    labels = golden["batched_labels"].astype(np.int32)
    kept = run(boxes, scores, labels, iou_threshold=0.5, max_outputs=100)
    assert survivors(kept) == golden["batched_gpu_keep"].tolist()


def test_the_reference_makes_the_same_detections(shared):
    golden = np.load(shared / "golden" / "detection" / "nms.npz")
    found = run_multiclass(
        golden["mc_boxes"].reshape(40, 5, 4),
        golden["mc_scores"][:, :-1],
        iou_threshold=float(golden["mc_iou_thr"]),
        score_threshold=float(golden["mc_score_thr"]),
        max_outputs=int(golden["mc_max"]),
    )
    assert found.valid.all()
    np.testing.assert_array_equal(found.boxes, golden["mc_gpu_dets"][:, :4])
    np.testing.assert_array_equal(found.scores, golden["mc_gpu_dets"][:, 4])
    np.testing.assert_array_equal(found.labels, golden["mc_gpu_labels"])


@pytest.mark.parametrize("count", [1, 2, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
def test_every_number_of_tiles(count):
    boxes, scores, labels = make(count)
    threshold = 0.3
    for limit in (1, count + 9):
        kept = run(boxes, scores, labels, iou_threshold=threshold, max_outputs=limit)
        assert survivors(kept) == greedy(boxes, scores, labels, threshold, limit)
        assert kept.indices.shape == (limit,)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1 / 3, 0.5]))
def test_ties_of_scores_and_of_overlaps(seed, threshold):
    boxes, scores, labels = make(60, seed, steps=10.0)
    valid = np.random.default_rng(seed).uniform(size=60) < 0.8
    kept = run(boxes, scores, labels, iou_threshold=threshold, max_outputs=30, valid=valid)
    assert survivors(kept) == greedy(boxes, scores, labels, threshold, 30, valid)


def test_a_long_chain_within_a_tile():
    # Each box drops the next alone, so every second one stays: as many rounds as boxes.
    start = np.arange(100, dtype=np.float32)
    boxes = np.stack([start, 0 * start, start + 2.5, 0 * start + 1], axis=1)
    scores = np.linspace(1.0, 0.0, 100, dtype=np.float32)
    kept = run_alike(boxes, scores, iou_threshold=0.3, max_outputs=100)
    assert survivors(kept) == list(range(0, 100, 2))


def test_scores_that_are_no_numbers():
    scores = np.array([0.1, np.nan, np.inf, -np.inf, 0.2], np.float32)
    kept = run_alike(make(5, side=1000.0)[0], scores, iou_threshold=0.9, max_outputs=5)
    assert survivors(kept) == [2, 4, 0, 3]


def test_nothing_to_keep():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert survivors(run_alike(*none, iou_threshold=0.5, max_outputs=3)) == []
    boxes, scores, _ = make(5)
    kept = run_alike(boxes, scores, iou_threshold=0.5, max_outputs=3, valid=np.zeros(5, bool))
    assert survivors(kept) == []
    found = run_multiclass(
        boxes[:, None], scores[:, None], iou_threshold=0.5, score_threshold=2.0, max_outputs=4
    )
    assert all(not np.asarray(x).any() for x in found)


def test_many_images_at_once():
    images = [make(2 * TILE + 3, seed) for seed in (1, 2, 3)]
    boxes, scores, labels = (np.stack(x) for x in zip(*images, strict=True))
    of_image = jax.vmap(lambda *x: nms_per_class(*x, iou_threshold=0.4, max_outputs=50))
    kept = jax.device_get(jax.jit(of_image)(boxes, scores, labels))
    for index, image in enumerate(images):
        one = jax.tree.map(lambda x, index=index: x[index], kept)
        assert survivors(one) == greedy(*image, 0.4, 50)


def test_boxes_of_half_precision_and_gradients_of_scores():
    boxes, scores, labels = make(40)
    half = boxes.astype(jnp.bfloat16)
    kept = run(half, scores, labels, iou_threshold=0.5, max_outputs=9)
    assert len(survivors(kept)) == 9

    def best(scores, boxes):
        found = multiclass_nms(
            boxes[:, None], scores[:, None], iou_threshold=0.5, score_threshold=0.0, max_outputs=9
        )
        return jnp.sum(found.scores) + jnp.sum(found.boxes)

    by_scores, by_boxes = jax.jit(jax.grad(best, (0, 1)))(scores, boxes)
    assert by_scores.sum() == 9
    assert by_boxes.sum() == 36


def test_one_box_for_all_classes():
    boxes, scores, _ = make(20)
    scores = np.stack([scores, 1 - scores], axis=1)
    options = {"iou_threshold": 0.3, "score_threshold": 0.4, "max_outputs": 15}
    valid = np.arange(20) > 3
    one = run_multiclass(boxes[:, None], scores, valid=valid, **options)
    many = run_multiclass(boxes[:, None].repeat(2, axis=1), scores, valid=valid, **options)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    flat = np.repeat(boxes, 2, axis=0)
    part = (scores > 0.4) & valid[:, None]
    expected = greedy(flat, scores.ravel(), np.tile([0, 1], 20), 0.3, 15, part.ravel())
    np.testing.assert_array_equal(np.asarray(one.boxes)[np.asarray(one.valid)], flat[expected])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_no_boxes_or_no_classes_give_no_detections(shape):
    found = multiclass_nms(
        jnp.zeros((shape[0], 1, 4)),
        jnp.zeros(shape),
        iou_threshold=0.5,
        score_threshold=0.05,
        max_outputs=2,
    )
    assert [x.shape for x in found] == [(2, 4), (2,), (2,), (2,)]
    assert not found.valid.any()


def test_mistakes_are_told():
    boxes, scores = jnp.zeros((3, 4)), jnp.zeros(3)
    fine = {"iou_threshold": 0.5, "max_outputs": 3}
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in (
            (lambda: nms(boxes, jnp.zeros(2), **fine), r"scores \(2,\)"),
            (lambda: nms(boxes, scores, iou_threshold=1.5, max_outputs=3), "iou_threshold is 1.5"),
            (lambda: nms(boxes, scores, iou_threshold=0.5, max_outputs=0), "max_outputs 0"),
            (
                lambda: nms_per_class(boxes, scores, jnp.zeros(2, int), **fine),
                r"labels have the shape \(2,\)",
            ),
            (
                lambda: multiclass_nms(boxes, scores[:, None], score_threshold=0.1, **fine),
                r"expected \[p, k, 4\]",
            ),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
