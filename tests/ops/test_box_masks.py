"""Masks of boxes: the released ones bit by bit, ours by pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.ops import (
    base_anchors,
    box_mask,
    box_masks,
    gaussian_mask,
    grid_anchors,
    near_object_mask,
    pyramid_levels,
    resize_mask,
)

SCALES = {"fpn4": (8.0,), "retina8": tuple(4 * 2 ** (i / 3) for i in range(3))}
SETS = ("rand0", "rand1", "edge", "empty")


def padded(boxes, to=20):
    return jnp.pad(jnp.asarray(boxes), ((0, to - len(boxes)), (0, 0))), jnp.arange(to) < len(boxes)


@pytest.mark.parametrize("case", SCALES)
def test_the_released_masks(shared, case):
    golden = np.load(shared / "golden" / "defeat" / "masks.npz")
    strides = tuple(golden[f"{case}_strides"].astype(float).tolist())
    sizes = tuple(tuple(size) for size in golden[f"{case}_sizes"].tolist())
    boxes, valid = (
        jnp.stack(x) for x in zip(*(padded(golden[f"boxes_{s}"]) for s in SETS), strict=True)
    )
    levels = pyramid_levels(boxes, num_levels=5, inclusive=True)
    of_levels = jax.jit(partial(box_masks, strides=strides, sizes=sizes, single_cell=True))
    for index, mask in enumerate(of_levels(boxes, valid, levels)):
        np.testing.assert_array_equal(mask, golden[f"{case}_gtmask_l{index}"])
        stride, size = strides[index], sizes[index]
        base = base_anchors(sizes=[stride * s for s in SCALES[case]], ratios=(0.5, 1.0, 2.0))
        anchors = grid_anchors(base, stride=stride, size=size)
        near = jax.vmap(lambda b, v, a=anchors, s=size: near_object_mask(b, v, a, size=s))
        found = jax.jit(near)(boxes, valid & (levels == index))
        np.testing.assert_array_equal(found, golden[f"{case}_roimask_phi05_l{index}"])
    whole = box_mask(boxes, valid, stride=strides[0], size=sizes[0], single_cell=True)
    np.testing.assert_array_equal(whole, golden[f"{case}_bbgtmask"])


def paint(boxes, stride, size, single_cell):
    mask = np.zeros(size, bool)
    for box in np.asarray(boxes):
        x1, y1, x2, y2 = (int(v / np.float32(stride)) for v in box)
        x1, y1 = max(x1, 0), max(y1, 0)
        if single_cell and (x1 == x2 or y1 == y2):
            x2, y2 = x1 + 1, y1 + 1
        x2, y2 = x2 + (x1 == x2), y2 + (y1 == y2)
        if x2 > 0 and y2 > 0:
            mask[y1:y2, x1:x2] = True
    return mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans())
def test_masks_are_painted_rectangles(seed, single_cell):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(-10, 70, (4, 2)), np.exp(rng.uniform(-1, 4, (4, 2)))
    boxes = jnp.asarray(np.concatenate([corner, corner + side], axis=1), jnp.float32)
    found = box_mask(boxes, jnp.ones(4, bool), stride=8.0, size=(7, 9), single_cell=single_cell)
    np.testing.assert_array_equal(found, paint(boxes, 8.0, (7, 9), single_cell))


def test_a_thin_box_marks_its_line_or_as_released_one_cell():
    box, valid = jnp.array([[4.5, 0.0, 5.0, 16.0]]), jnp.array([True])
    line = box_mask(box, valid, stride=4, size=(5, 3))
    np.testing.assert_array_equal(np.argwhere(line), [[y, 1] for y in range(4)])
    cell = box_mask(box, valid, stride=4, size=(5, 3), single_cell=True)
    np.testing.assert_array_equal(np.argwhere(cell), [[0, 1]])


def test_boxes_outside_mark_nothing():
    boxes = jnp.array([[20.0, 0.0, 20.5, 3.0], [40.0, 0.0, 60.0, 9.0], [-20.0, -9.0, -4.0, -4.0]])
    for single_cell in (False, True):
        mask = box_mask(boxes, jnp.ones(3, bool), stride=4, size=(4, 5), single_cell=single_cell)
        assert not mask.any()


def test_nothing_is_marked_near_objects_without_overlap():
    anchors = jnp.array([[0.0, 0.0, 4.0, 4.0]] * 2)
    far = jnp.array([[9.0, 9.0, 12.0, 12.0]])
    assert not near_object_mask(far, jnp.array([True]), anchors, size=(1, 2)).any()


def test_the_gaussian_by_hand():
    boxes = jnp.array([[2.0, 4.0, 10.0, 8.0], [8.0, 4.0, 12.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
    valid = jnp.array([True, True, False])
    found = jax.jit(lambda b: gaussian_mask(b, valid, stride=2.0, size=(6, 8), spread=1.5))(boxes)
    inside = np.asarray(box_mask(boxes, valid, stride=2.0, size=(6, 8)))
    assert ((found > 0) == inside).all()
    for y, x in np.argwhere(inside):
        values = []
        for x1, y1, x2, y2 in np.asarray(boxes[:2]):
            if x1 <= 2 * x < x2 and y1 <= 2 * y < y2:
                across = (2 * x + 1 - (x1 + x2) / 2) / (1.5 * (x2 - x1) / 2)
                down = (2 * y + 1 - (y1 + y2) / 2) / (1.5 * (y2 - y1) / 2)
                values.append(np.exp(-(across**2) - down**2))
        np.testing.assert_allclose(found[y, x], max(values), rtol=1e-5)


def test_empty_sets_and_batches():
    none, nobody = jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool)
    assert not box_mask(none, nobody, stride=4, size=(2, 2)).any()
    assert gaussian_mask(none, nobody, stride=4, size=(2, 2)).shape == (2, 2, 2)
    anchors = jnp.zeros((4, 4))
    assert not near_object_mask(none[0], nobody[0], anchors, size=(2, 2)).any()
    boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0]], [[4.0, 4.0, 8.0, 8.0]]])
    valid = jnp.ones((2, 1), bool)
    for function in (box_mask, gaussian_mask):
        both = function(boxes, valid, stride=4, size=(2, 2))
        mapped = jax.vmap(lambda b, v, f=function: f(b, v, stride=4, size=(2, 2)))(boxes, valid)
        np.testing.assert_array_equal(both, mapped)
        assert (both[0, 0, 0] > 0) & (both[1, 1, 1] > 0)


def test_resizing_takes_the_nearest():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    mask = np.random.default_rng(0).uniform(size=(2, 13, 10)) < 0.5
    for size in ((7, 5), (4, 3), (1, 1), (20, 11)):
        found = resize_mask(jnp.asarray(mask), size=size)
        theirs = torch.nn.functional.interpolate(torch.tensor(mask)[None].float(), size=size)
        np.testing.assert_array_equal(found, theirs[0].numpy() > 0)


def test_corners_are_cut_exactly_at_any_stride():
    mask = jax.jit(lambda x: box_mask(x, jnp.array([True]), stride=41, size=(1, 12)))
    for first in range(10):
        box = jnp.array([[41.0 * first, 0.0, 41.0 * (first + 2), 41.0]])
        assert np.flatnonzero(mask(box)[0]).tolist() == [first, first + 1]


def test_mistakes_are_told():
    boxes, valid = jnp.zeros((2, 4)), jnp.ones(2, bool)
    jaxtyping.config.update("jaxtyping_disable", True)
    fine = {"stride": 4.0, "size": (2, 2)}
    try:
        for call, message in (
            (lambda: box_mask(boxes, valid[:1], **fine), r"valid \(1,\)"),
            (lambda: box_mask(boxes, valid, stride=0.0, size=(2, 2)), "stride 0.0"),
            (
                lambda: box_masks(boxes, valid, valid, strides=(4.0,), sizes=()),
                "1 strides, 0 sizes",
            ),
            (lambda: near_object_mask(boxes, valid, boxes, size=(2, 2)), "same number of anchors"),
            (lambda: gaussian_mask(boxes, valid, spread=0.0, **fine), "spread is 0.0"),
            (lambda: resize_mask(valid, size=(1, 1)), r"mask of shape \(2,\)"),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
