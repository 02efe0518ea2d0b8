"""Boxes: overlaps bit by bit, the code of box regression, and what is degenerate."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import (
    box_area,
    box_iof,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    paired_box_iof,
    paired_box_iou,
)

PAIRED = {"iou_aligned": paired_box_iou, "iof_aligned": paired_box_iof}
EVERY = {"iou": box_iou, "iof": box_iof}


def make(count=7, seed=0, shift=50.0):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, shift, (count, 2)), rng.uniform(1, 30, (count, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def overlap_by_hand(a, b, whole):
    """With whole pixels of a fine raster for areas: only for boxes of whole numbers."""
    raster = np.zeros((2, 100, 100), bool)
    for plane, (x1, y1, x2, y2) in zip(raster, (a, b), strict=True):
        plane[int(y1) : int(y2), int(x1) : int(x2)] = True
    area = raster[0].sum() if whole == "iof" else raster.any(axis=0).sum()
    return raster.all(axis=0).sum() / area if area else 0.0


@pytest.mark.parametrize("name", EVERY)
def test_overlaps_are_shares_of_pixels(name):
    rng = np.random.default_rng(1)
    corners = np.sort(rng.integers(0, 40, (2, 9, 2, 2)), axis=2)  # some without an area
    a, b = np.concatenate([corners[:, :, 0], corners[:, :, 1]], axis=-1).astype(np.float32)
    expected = [[overlap_by_hand(x, y, name) for y in b] for x in a]
    found = jax.jit(EVERY[name])(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    paired = PAIRED[f"{name}_aligned"](jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_array_equal(paired, np.diag(found))


def test_overlaps_of_the_reference(shared):
    golden = np.load(shared / "golden" / "detection" / "iou.npz")
    a, b = jnp.asarray(golden["a"]), jnp.asarray(golden["b"])
    for name, function in EVERY.items():
        found = jax.jit(lambda a, b, f=function: f(a, b, undefined=jnp.nan))(a, b)
        np.testing.assert_array_equal(found, golden[name])
        ours = function(a, b)
        assert np.isnan(golden[name]).any()
        np.testing.assert_array_equal(ours, np.nan_to_num(golden[name]))
    for name, function in PAIRED.items():
        found = jax.jit(function)(a[: len(b)], b)
        np.testing.assert_array_equal(found, golden[name])


def test_a_product_is_not_contracted_into_a_sum():
    # As NumPy rounds: otherwise ties and thresholds fall elsewhere.
    a, b = make(300, 2), make(200, 3)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inside = np.prod(np.maximum(side, 0), axis=2, dtype=np.float32)
    expected = inside / (area_a[:, None] + area_b[None] - inside)
    found = jax.jit(box_iou)(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(-40, 40))
def test_overlap_is_symmetric_bounded_and_moves_along(seed, shift):
    a, b = jnp.round(make(5, seed)), jnp.round(make(4, seed + 1))
    found = box_iou(a, b)
    np.testing.assert_array_equal(found, box_iou(b, a).T)
    np.testing.assert_array_equal(found, box_iou(a + shift, b + shift))
    assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_array_equal(np.diag(box_iou(a, a)), 1.0)
    assert np.all(box_iof(a, b) >= found)


def test_overlaps_under_vmap_and_in_half_precision():
    a, b = jnp.asarray(make(6)).reshape(2, 3, 4), jnp.asarray(make(8, 1)).reshape(2, 4, 4)
    np.testing.assert_array_equal(box_iou(a, b), jax.vmap(box_iou)(a, b))
    assert box_iou(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("case", ["unit", "rcnn"])
def test_the_code_of_the_reference(shared, case):
    golden = np.load(shared / "golden" / "detection" / "boxcoder.npz")
    at = {
        key.removeprefix(f"{case}_"): jnp.asarray(golden[key])
        for key in golden.files
        if key.startswith(case)
    }
    stds = tuple(float(x) for x in at["stds"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    encoded = jax.jit(lambda p, g: encode_boxes(p, g, stds=stds))(at["proposals"], at["gt"])
    np.testing.assert_allclose(encoded, at["encoded"], **close)

    def decode(deltas):
        return decode_boxes(at["proposals"], deltas, stds=stds)

    found, pull = jax.vjp(jax.jit(decode), at["deltas"])
    np.testing.assert_allclose(found, at["decoded"], **close)
    np.testing.assert_allclose(pull(at["cot"])[0], at["grad_deltas"], **close)
    size = jnp.array([[150, 200]])
    np.testing.assert_allclose(
        clip_boxes(found, size), at["decoded_clip_h150_w200"], rtol=1e-5, atol=2e-5
    )
    many = at["deltas_multi"].reshape(50, 5, 4)
    decoded = clip_boxes(decode_boxes(at["proposals"][:, None], many, stds=stds), size[None])
    np.testing.assert_allclose(decoded.reshape(50, 20), at["decoded_multi"], rtol=1e-5, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_decoding_undoes_encoding(seed):
    anchors, boxes = jnp.asarray(make(5, seed)), jnp.asarray(make(5, seed + 1))
    options = {"means": (0.1, -0.2, 0.0, 0.3), "stds": (0.1, 0.2, 0.3, 2.0)}
    code = encode_boxes(anchors, boxes, **options)
    np.testing.assert_allclose(decode_boxes(anchors, code, **options), boxes, atol=1e-3)


def test_the_clamp_ends_box_and_gradient():
    anchor = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    for delta, side, slope in ((3.0, 16 * np.exp(3.0), True), (9.0, 1000.0, False)):
        for sign in (1, -1):
            deltas = jnp.array([[0.0, 0.0, sign * delta, 0.0]])
            expected = side if sign > 0 else 16.0**2 / side
            box = decode_boxes(anchor, deltas)
            np.testing.assert_allclose(box[0, 2] - box[0, 0], expected, rtol=1e-5)
            grad = jax.grad(lambda d: decode_boxes(anchor, d)[0, 2])(deltas)
            assert (grad[0, 2] != 0) == slope
    at_clamp = jnp.array([[0.0, 0.0, 1.5, 0.0]])
    grad = jax.grad(lambda d: decode_boxes(anchor, d, max_log_scale=1.5)[0, 2])(at_clamp)
    np.testing.assert_allclose(grad[0, 2], 8 * np.exp(1.5), rtol=1e-6)


def test_degenerate_boxes_give_finite_codes_and_overlaps():
    flat = jnp.array([[5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    box = jnp.asarray(make(2))
    for one, other in ((flat, box), (box, flat), (flat, flat)):
        assert np.all(np.isfinite(encode_boxes(one, other)))
        assert np.all(np.isfinite(box_iou(one, other)))
        assert np.all(np.isfinite(box_iof(one, other)))
    np.testing.assert_array_equal(box_area(flat), 0.0)
    assert box_area(jnp.array([[2.0, 0.0, 0.0, 3.0]]))[0] == -6.0


def test_gradients_and_dtypes():
    anchors, deltas = jnp.asarray(make(3)), jnp.asarray(make(3, 1)) / 50
    decode = jax.jit(lambda d: decode_boxes(anchors, d))
    check_grads(decode, (deltas,), order=1, modes=("rev",), rtol=2e-2)
    half = decode_boxes(anchors, deltas.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    rounded = decode_boxes(anchors, deltas.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(half, rounded.astype(jnp.bfloat16))


def test_clipping_takes_a_size_for_each_image():
    boxes = jnp.array([[[-3.0, -3.0, 50.0, 50.0]]] * 2)
    found = clip_boxes(boxes, jnp.array([[[10, 20]], [[60, 5]]]))
    np.testing.assert_array_equal(found[:, 0], [[0, 0, 20, 10], [0, 0, 5, 50]])


def test_on_the_border_the_whole_gradient_passes():
    """Neither half of it, as of a minimum or maximum of equal numbers, nor none."""
    size = jnp.array([[150, 200]])
    boxes = jnp.array([[0.0, 0.0, 200.0, 150.0], [-1.0, 3.0, 201.0, 9.0]])
    grad = jax.grad(lambda x: jnp.sum(clip_boxes(x, size) * jnp.arange(1.0, 5.0)[None]))(boxes)
    assert grad.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 0.0, 4.0]]


def test_mistakes_are_told():
    boxes = jnp.zeros((2, 4))
    jaxtyping.config.update("jaxtyping_disable", True)  # told by us, as users call it
    try:
        for call, message in (
            (lambda: box_area(jnp.zeros((2, 3))), r"boxes have the shape \(2, 3\)"),
            (lambda: box_iou(boxes, jnp.zeros(4)), r"others \(4,\)"),
            (lambda: paired_box_iou(boxes, jnp.zeros((3, 4))), r"\(2, 4\) and \(3, 4\)"),
            (lambda: clip_boxes(boxes, jnp.zeros(2)), r"image_size has the shape \(2,\)"),
            (lambda: decode_boxes(boxes, jnp.zeros((2, 1, 4))), "expected one rank"),
            (lambda: decode_boxes(boxes, boxes, max_log_scale=0.0), "max_log_scale is 0.0"),
            (lambda: encode_boxes(boxes, boxes, stds=(1.0, 1.0, 0.0, 1.0)), "stds above 0"),
            (lambda: encode_boxes(boxes, boxes, means=(0.0,)), "four of each"),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
