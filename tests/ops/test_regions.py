"""RoIAlign: both lowerings against loops over samples, the reference, and each other."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.ops import RoiOptions, pyramid_levels, pyramid_roi_align, region_lowerings, roi_align
from fgkd_jax.ops import regions as module

CONVENTIONS = {
    "v2_o{o}_al1_sr{s}": {"aligned": True},
    "v2_o{o}_al0_sr{s}": {"aligned": False},
    "v1cuda_o{o}_sr{s}": {"aligned": False, "inclusive": True},
}
LOWERINGS = ("windows", "products")


@pytest.fixture(params=LOWERINGS)
def lowering(request, monkeypatch):
    """Runs a test with the CPU's lowering and with that of the other platforms."""
    used = []

    def spy(function):
        def call(*arguments, **options):
            used.append(function)
            return function(*arguments, **options)

        return call

    for name in ("align_by_windows", "transpose_by_windows"):
        replacement = getattr(region_lowerings, name.replace("windows", request.param))
        monkeypatch.setattr(module, name, spy(replacement))
    yield request.param
    assert used


def read(image, y, x):
    """One bilinear sample, by the rules of the border."""
    height, width, channels = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    total = np.zeros(channels)
    for row in {top, min(top + 1, height - 1)}:
        for column in {left, min(left + 1, width - 1)}:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


def align_by_hand(image, box, stride, options):
    """Bin after bin, sample after sample."""
    x1, y1, x2, y2 = (float(v) for v in box)
    if options.inclusive:
        x2, y2 = x2 + 1, y2 + 1
    shift = 0.5 if options.aligned else 0.0
    x1, y1, x2, y2 = (v / stride - shift for v in (x1, y1, x2, y2))
    width, height = x2 - x1, y2 - y1
    if not options.aligned and not options.inclusive:
        width, height = max(width, 1.0), max(height, 1.0)
    n = options.size
    rows = options.sampling_ratio or int(np.ceil(height / n))
    columns = options.sampling_ratio or int(np.ceil(width / n))
    out = np.zeros((n, n, image.shape[2]))
    for i, j in np.ndindex(n, n):
        for k in range(rows):
            for m in range(columns):
                y = y1 + (i + (k + 0.5) / rows) * height / n
                x = x1 + (j + (m + 0.5) / columns) * width / n
                out[i, j] += read(image, y, x) / (rows * columns)
    return out


def make(seed=0, size=(40, 70), boxes=5, batch=2, channels=2):
    """Boxes within, across and outside the map, one of them very long."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(batch, *size, channels)).astype(np.float32)
    corner = rng.uniform(-20, 60, (batch, boxes, 2)) * [2, 1]
    extent = np.exp(rng.uniform(0, 4.5, (batch, boxes, 2)))
    found = np.concatenate([corner, corner + extent], axis=2)
    found[:, 0] = [3.0, 31.0, 270.0, 35.5]
    found[:, 1] = [900.0, 1.0, 950.0, 60.0]
    found[:, 2] = found[:, 2, [0, 1, 0, 1]]
    return jnp.asarray(features), jnp.asarray(found, jnp.float32)


@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_it_follows_the_definition(lowering, convention, ratio):
    features, boxes = make()
    options = RoiOptions(size=3, sampling_ratio=ratio, **CONVENTIONS[convention])
    run = jax.jit(partial(roi_align, stride=4.0, options=options))
    found = run(features, boxes)
    for b, p in np.ndindex(boxes.shape[:2]):
        expected = align_by_hand(np.asarray(features[b]), boxes[b, p], 4.0, options)
        np.testing.assert_allclose(found[b, p], expected, atol=2e-5)


@pytest.mark.parametrize("size", [7, 14])
def test_a_whole_number_of_cells_in_each_bin_takes_as_many_samples(lowering, size):
    """21 cells by 7 bins are 3 samples, not 4, although 21 times the reciprocal of 7 is above 3."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 110, 110, 1)), jnp.float32)
    for cells in (21, 42, 49, 77, 84, 98):
        boxes = jnp.array([[[4.0, 4.0, 4.0 + cells, 4.0 + cells]]])
        options = RoiOptions(size=size)
        run = jax.jit(partial(roi_align, stride=1.0, options=options))
        expected = align_by_hand(np.asarray(features[0]), boxes[0, 0], 1.0, options)
        np.testing.assert_allclose(run(features, boxes)[0, 0], expected, atol=2e-5)


@pytest.mark.parametrize("ratio", [0, 2])
def test_double_precision_is_double(lowering, ratio):
    with jax.enable_x64(True):
        features, boxes = (jnp.asarray(np.asarray(x), jnp.float64) for x in make())
        options = RoiOptions(size=3, sampling_ratio=ratio)
        align = jax.jit(partial(roi_align, stride=3.0, options=options))
        found, pull = jax.vjp(lambda x: align(x, boxes), features)
        assert found.dtype == jnp.float64
        for b, p in np.ndindex(boxes.shape[:2]):
            expected = align_by_hand(np.asarray(features[b]), boxes[b, p], 3.0, options)
            np.testing.assert_allclose(found[b, p], expected, atol=1e-12)
        [grad] = pull(found)
        assert float(jnp.vdot(grad, features)) == pytest.approx(float(jnp.vdot(found, found)))
        narrow = align(features.astype(jnp.float32), boxes)
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, found, atol=2e-5)


def test_no_boxes_give_no_features():
    features, boxes = make()
    found, pull = jax.vjp(lambda x: roi_align(x, boxes[:, :0], stride=4.0), features)
    assert found.shape == (2, 0, 7, 7, 2)
    np.testing.assert_array_equal(pull(found)[0], jnp.zeros_like(features))


def by_image(rois):
    """The rows of each of two images, and the boxes of both padded to one number."""
    rows = [np.flatnonzero(rois[:, 0] == b) for b in (0, 1)]
    boxes = np.zeros((2, max(map(len, rows)), 4), np.float32)
    for b, row in enumerate(rows):
        boxes[b, : len(row)] = rois[row, 1:]
    return rows, boxes


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_reference_gives_the_same(shared, lowering, convention, size):
    golden = np.load(shared / "golden" / "detection" / "roi_align.npz")
    features = jnp.asarray(golden["feat"].transpose(0, 2, 3, 1))
    rows, boxes = by_image(golden["rois"])
    cotangent = np.zeros((2, boxes.shape[1], size, size, features.shape[3]), np.float32)
    for b, row in enumerate(rows):
        cotangent[b, : len(row)] = golden[f"cot_o{size}"][row].transpose(0, 2, 3, 1)
    for ratio in (2, 0):
        name = convention.format(o=size, s=ratio)
        options = RoiOptions(size=size, sampling_ratio=ratio, **CONVENTIONS[convention])
        stride = 1 / float(golden["spatial_scale"])
        align = jax.jit(
            partial(roi_align, boxes=jnp.asarray(boxes), stride=stride, options=options)
        )
        found, pull = jax.vjp(align, features)
        for b, row in enumerate(rows):
            ours = found[b, : len(row)].transpose(0, 3, 1, 2)
            np.testing.assert_allclose(ours, golden[name][row], rtol=1e-5, atol=1e-5)
        [grad] = pull(jnp.asarray(cotangent))
        expected = golden[f"{name}_grad"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=2e-5)


def pyramid(seed=0, batch=2, channels=2):
    rng = np.random.default_rng(seed)
    sizes = ((24, 32), (12, 16), (6, 8), (3, 4))
    features = tuple(
        jnp.asarray(rng.normal(size=(batch, *size, channels)), jnp.float32) for size in sizes
    )
    corner = rng.uniform(0, 90, (batch, 12, 2))
    extent = np.exp(rng.uniform(2.5, 6.5, (batch, 12, 2)))
    return features, jnp.asarray(np.concatenate([corner, corner + extent], 2), jnp.float32)


STRIDES = (4.0, 8.0, 16.0, 32.0)


def test_every_box_is_read_on_its_own_level(lowering):
    features, boxes = pyramid()
    levels = pyramid_levels(boxes, num_levels=4)
    assert len(np.unique(levels)) == 4
    run = jax.jit(partial(pyramid_roi_align, strides=STRIDES))
    found, pull = jax.vjp(lambda x: run(x, boxes, levels), features)
    align = [jax.jit(partial(roi_align, boxes=boxes, stride=stride)) for stride in STRIDES]
    single = [one(x) for one, x in zip(align, features, strict=True)]
    for b, p in np.ndindex(levels.shape):
        np.testing.assert_allclose(found[b, p], single[int(levels[b, p])][b, p], atol=1e-5)
    grads = pull(found)[0]
    for index, (x, one) in enumerate(zip(features, align, strict=True)):
        there = (levels == index)[..., None, None, None]
        _, alone = jax.vjp(one, x)
        np.testing.assert_allclose(
            grads[index], alone(jnp.where(there, found, 0.0))[0], atol=1e-4, rtol=1e-5
        )


def test_the_gradient_is_the_transpose(lowering):
    # The map is linear in the features: <Ax, y> = <x, A'y>, whatever x and y.
    features, boxes = pyramid(3)
    levels = pyramid_levels(boxes, num_levels=4)
    rng = np.random.default_rng(0)
    align = jax.jit(lambda x: pyramid_roi_align(x, boxes, levels, strides=STRIDES))
    found, pull = jax.vjp(align, features)
    cotangent = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    other = tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in features)
    left = jnp.sum(align(other) * cotangent)
    right = sum(jnp.sum(a * b) for a, b in zip(other, pull(cotangent)[0], strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3)
    by_boxes = jax.jit(jax.grad(lambda b: jnp.sum(roi_align(features[0], b, stride=4.0))))
    assert not np.asarray(by_boxes(boxes)).any()


def test_a_constant_map_gives_the_constant_inside_and_zero_outside(lowering):
    features = jnp.full((1, 20, 20, 1), 3.0)
    boxes = jnp.array(
        [[[8.0, 8.0, 70.0, 33.0], [400.0, 400.0, 500.0, 500.0], [9.0, 9.0, 9.0, 9.0]]]
    )
    align = jax.jit(partial(roi_align, stride=4.0))
    found = align(features, boxes)
    np.testing.assert_allclose(found[0, 0], 3.0, rtol=1e-6)
    np.testing.assert_array_equal(found[0, 1:], 0.0)
    # A box past all bounds: a bin holds too many samples to count, and the map is in one of them.
    huge = align(features, jnp.array([[[-1e11, -1e11, 1e11, 1e11]]]))
    assert np.isfinite(huge).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_a_linear_map_is_read_at_the_centres_of_the_bins(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:30, :30]
    features = jnp.asarray(np.stack([y, x], axis=-1)[None], jnp.float32)
    low, high = rng.uniform(8, 40, 2), rng.uniform(60, 110, 2)
    box = jnp.asarray([[[low[1], low[0], high[1], high[0]]]], jnp.float32)
    found = fixed_size(features, box)
    for axis in (0, 1):
        centres = low[axis] + (np.arange(4) + 0.5) * (high[axis] - low[axis]) / 4
        expected = np.broadcast_to(centres / 4 - 0.5, (4, 4))
        expected = expected.T if axis == 0 else expected
        np.testing.assert_allclose(found[0, 0, :, :, axis], expected, atol=1e-4)


fixed_size = jax.jit(partial(roi_align, stride=4.0, options=RoiOptions(size=4)))


def test_vmap_and_half_precision(lowering):
    features, boxes = pyramid()
    levels = pyramid_levels(boxes, num_levels=4)
    run = jax.jit(partial(pyramid_roi_align, strides=STRIDES, options=RoiOptions(size=2)))
    plain = run(features, boxes, levels)
    extra = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), features)
    twice = jnp.stack([boxes] * 2), jnp.stack([levels] * 2)
    mapped = jax.vmap(run)(extra, *twice)
    np.testing.assert_allclose(mapped, np.stack([plain, 2 * plain]), rtol=1e-4, atol=1e-5)
    grads = jax.jit(jax.vmap(jax.grad(lambda x, b, n: jnp.sum(run(x, b, n)))))(extra, *twice)
    assert [x.shape for x in grads] == [x.shape for x in extra]
    half = tuple(x.astype(jnp.bfloat16) for x in features)
    found = run(half, boxes, levels)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype("float32"), plain, atol=0.05)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(run(x, boxes, levels).astype(jnp.float32))))(half)
    assert all(x.dtype == jnp.bfloat16 for x in grad)


def test_levels_by_hand_and_of_the_released_masks(shared):
    side = jnp.array([1.0, 111.9, 112.0, 223.0, 224.0, 448.0, 2000.0])
    boxes = jnp.stack([0 * side, 0 * side, side, side], axis=1)
    assert pyramid_levels(boxes, num_levels=4).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert pyramid_levels(boxes, num_levels=4, inclusive=True).tolist() == [0, 1, 1, 2, 2, 3, 3]
    # RetinaNet: sizes 32 to 51 belong to the first level.
    side = jnp.array([29.0, 32.0, 50.0, 58.0, 64.0, 102.0, 115.0])
    boxes = jnp.stack([0 * side, 0 * side, side, side], axis=1)
    found = pyramid_levels(boxes, num_levels=5, base_size=32 / 2 ** (1 / 6))
    assert found.tolist() == [0, 0, 0, 1, 1, 1, 2]
    golden = np.load(shared / "golden" / "defeat" / "masks.npz")
    for name in ("rand0", "rand1", "edge", "empty"):
        found = pyramid_levels(jnp.asarray(golden[f"boxes_{name}"]), num_levels=5, inclusive=True)
        np.testing.assert_array_equal(found, golden[f"levels_{name}"])


def test_mistakes_are_told():
    features, boxes = jnp.zeros((2, 3, 4, 1)), jnp.zeros((2, 5, 4))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in (
            (lambda: roi_align(features, boxes[0], stride=4.0), "expected"),
            (lambda: roi_align(features[:1], boxes, stride=4.0), r"levels have the shape \(2, 5\)"),
            (lambda: roi_align(features, boxes, stride=0.0), "stride above 0"),
            (
                lambda: roi_align(features, boxes, stride=4.0, options=RoiOptions(size=0)),
                "size at least 1",
            ),
            (
                lambda: roi_align(features, boxes, stride=4.0, options=RoiOptions(inclusive=True)),
                "aligned=False",
            ),
            (lambda: pyramid_levels(boxes, num_levels=0), "num_levels is 0"),
            (lambda: pyramid_levels(jnp.zeros(3), num_levels=1), r"shape \(3,\)"),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
