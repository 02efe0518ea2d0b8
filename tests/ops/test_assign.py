"""Assignment of boxes to objects, and samples of a fixed size."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.ops import assign_boxes, box_iou, sample_boxes, sample_mask

RULES = {
    "rpn": {"positive": 0.7, "negative": 0.3, "min_positive": 0.3, "low_quality": True},
    "rcnn": {"positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    "retina": {"positive": 0.5, "negative": 0.4, "min_positive": 0.0, "low_quality": True},
}
BOXES = {"rpn": "anchors", "rcnn": "proposals", "retina": "anchors"}


def as_reference(found):
    return np.where(found.positive, found.gt + 1, np.where(found.negative, 0, -1))


def by_hand(overlaps, rule):
    """One box, then one object, after the other; -1 ignored, 0 background, 1 + object."""
    out = np.full(len(overlaps), -1)
    for p, row in enumerate(overlaps):
        if len(row) == 0 or row.max() < rule["negative"]:
            out[p] = 0
        elif row.max() >= rule["positive"]:
            out[p] = 1 + list(row).index(row.max())
    if rule.get("low_quality"):
        for g, column in enumerate(overlaps.T):
            if column.max() >= rule["min_positive"]:
                out[column == column.max()] = g + 1
    return out


def make(p=40, g=4, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (p + g, 2)) * 2.0
    side = rng.integers(1, 8, (p + g, 2)) * 2.0  # coarse: many ties
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    return jnp.asarray(boxes[:p]), jnp.asarray(boxes[p:])


@pytest.mark.parametrize("name", RULES)
def test_the_reference_assigns_the_same(shared, name):
    golden = np.load(shared / "golden" / "detection" / "assigner.npz")
    boxes, gt = jnp.asarray(golden[BOXES[name]]), jnp.asarray(golden["gt"])
    run = jax.jit(lambda b, g, v: assign_boxes(b, g, gt_valid=v, **RULES[name]))
    for pad in (0, 3):  # padding changes nothing
        padded = jnp.pad(gt, ((0, pad), (0, 0)))
        found = run(boxes, padded, jnp.arange(len(padded)) < len(gt))
        np.testing.assert_array_equal(as_reference(found), golden[f"{name}_gt_inds"])
        np.testing.assert_allclose(found.iou, golden[f"{name}_max_overlaps"], rtol=1e-6)
        labels = np.where(found.positive, golden["gt_labels"][found.gt], golden[f"{name}_labels"])
        np.testing.assert_array_equal(labels, golden[f"{name}_labels"])


def test_without_objects_all_is_background(shared):
    golden = np.load(shared / "golden" / "detection" / "assigner.npz")
    boxes = jnp.asarray(golden["proposals"])
    for gt in (jnp.zeros((0, 4)), jnp.zeros((3, 4))):
        valid = jnp.zeros(len(gt), bool)
        found = assign_boxes(boxes, gt, gt_valid=valid, **RULES["rpn"])
        np.testing.assert_array_equal(as_reference(found), golden["nogt_gt_inds"])
        np.testing.assert_array_equal(found.iou, 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(sorted(RULES)))
def test_it_follows_the_definition(seed, name):
    boxes, gt = make(seed=seed)
    found = assign_boxes(boxes, gt, gt_valid=jnp.ones(len(gt), bool), **RULES[name])
    np.testing.assert_array_equal(
        as_reference(found), by_hand(np.asarray(box_iou(boxes, gt)), RULES[name])
    )
    assert not np.any(found.positive & found.negative)


def test_boxes_that_take_no_part_are_nothing_and_nobody_s_best():
    boxes, gt = make(seed=3)
    part = jnp.arange(len(boxes)) % 3 > 0
    valid = jnp.ones(len(gt), bool)
    found = assign_boxes(boxes, gt, gt_valid=valid, box_valid=part, **RULES["rpn"])
    alone = assign_boxes(boxes[part], gt, gt_valid=valid, **RULES["rpn"])
    np.testing.assert_array_equal(as_reference(found)[part], as_reference(alone))
    assert not np.any((found.positive | found.negative) & ~part)


def test_an_object_of_no_area_is_found_by_nobody():
    gt = jnp.array([[3.0, 3.0, 3.0, 3.0]])
    found = assign_boxes(make()[0], gt, gt_valid=jnp.array([True]), **RULES["rpn"])
    assert not found.positive.any()
    assert found.negative.all()


@pytest.mark.parametrize(("name", "expected"), [("rpn", -1), ("retina", -1), ("rcnn", -1)])
def test_two_without_an_area_are_neither_alike_nor_apart(name, expected):
    """Their overlap is 0 / 0: the box is ignored, and the object is nobody's."""
    boxes = [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0], [50.0, 50.0, 60.0, 60.0]]
    boxes = jnp.array([*boxes, [0.0, 0.0, 8.0, 10.0]])
    gt = jnp.array([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    found = assign_boxes(boxes, gt, gt_valid=jnp.array([True, True, False]), **RULES[name])
    assert as_reference(found).tolist() == [1, expected, 0, 1]
    assert np.isnan(found.iou).tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", RULES)
def test_no_boxes_are_assigned_to_nothing(name):
    found = assign_boxes(
        jnp.zeros((0, 4)), make()[1], gt_valid=jnp.ones(len(make()[1]), bool), **RULES[name]
    )
    assert [len(x) for x in found] == [0] * 4


def test_many_images_at_once():
    one, other = make(seed=5), make(seed=6)
    boxes, gt = (jnp.stack(pair) for pair in zip(one, other, strict=True))
    valid = jnp.array([[True] * 4, [True, False, True, False]])
    run = jax.vmap(lambda b, g, v: assign_boxes(b, g, gt_valid=v, **RULES["retina"]))
    for index, found in enumerate(zip(*run(boxes, gt, valid), strict=True)):
        single = assign_boxes(boxes[index], gt[index], gt_valid=valid[index], **RULES["retina"])
        for a, b in zip(found, single, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1, 8, 30]), st.sampled_from([0.25, 1.0]))
def test_samples_hold_what_they_promise(seed, size, share):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, 20)
    positive, negative = kind == 1, kind == 2
    draw = jax.jit(sample_boxes, static_argnames=("size", "positive_share"))
    key = jax.random.key(seed)
    found = draw(key, jnp.asarray(positive), jnp.asarray(negative), size=size, positive_share=share)
    index, is_positive, valid = (np.asarray(x) for x in found)
    positives = min(int(size * share), positive.sum())
    negatives = min(size - positives, negative.sum())
    assert valid.sum() == positives + negatives
    assert is_positive.sum() == positives
    kept = index[valid]
    assert len(set(kept)) == len(kept)
    assert positive[index[is_positive]].all()
    assert negative[index[valid & ~is_positive]].all()
    assert (np.diff(index[:positives]) > 0).all()
    assert (np.diff(index[positives : positives + negatives]) > 0).all()
    assert not valid[positives + negatives :].any()


def test_masks_are_the_same_draw_and_keys_matter():
    positive = jnp.arange(50) < 20
    few = {"size": 10, "positive_share": 0.5}
    draws = []
    for seed in range(5):
        sample = sample_boxes(jax.random.key(seed), positive, ~positive, **few)
        masks = sample_mask(jax.random.key(seed), positive, ~positive, **few)
        kept = np.flatnonzero(masks[0] | masks[1])
        np.testing.assert_array_equal(kept, np.sort(sample.indices))
        assert [int(mask.sum()) for mask in masks] == [5, 5]
        draws.append(tuple(kept))
    assert len(set(draws)) == 5


def test_large_enough_samples_keep_everything_whatever_the_key():
    positive = jnp.arange(50) % 3 == 0
    negative = jnp.arange(50) % 3 == 1
    for seed in range(3):
        masks = sample_mask(jax.random.key(seed), positive, negative, size=100, positive_share=1.0)
        np.testing.assert_array_equal(masks, [positive, negative])


def test_every_box_is_drawn_equally_often():
    positive, negative = jnp.arange(12) < 6, jnp.arange(12) >= 6
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.vmap(lambda k: sample_mask(k, positive, negative, size=4, positive_share=0.5)[0])
    share = jnp.mean(draw(keys)[:, :6], axis=0)
    np.testing.assert_allclose(share, 2 / 6, atol=0.05)


def test_mistakes_are_told():
    boxes, gt = make(3, 2)
    valid = jnp.ones(2, bool)
    jaxtyping.config.update("jaxtyping_disable", True)
    rule = {"positive": 0.5, "negative": 0.5}
    mask = jnp.ones(3, bool)
    key = jax.random.key(0)
    try:
        for call, message in (
            (lambda: assign_boxes(boxes, gt, gt_valid=mask, **rule), r"gt_valid \(3,\)"),
            (
                lambda: assign_boxes(boxes, gt, gt_valid=valid, box_valid=valid, **rule),
                r"box_valid has the shape \(2,\)",
            ),
            (
                lambda: assign_boxes(boxes, gt, gt_valid=valid, positive=0.3, negative=0.5),
                "negative <= positive",
            ),
            (
                lambda: sample_boxes(key, mask, valid, size=1, positive_share=0.5),
                r"negative \(2,\)",
            ),
            (
                lambda: sample_mask(key, mask, mask, size=0, positive_share=0.5),
                "size is 0",
            ),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
