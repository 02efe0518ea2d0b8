import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data import transforms as t
from fgkd_jax.errors import UserError

SIZE = (20, 28)
RANDOM = [
    t.ResizeShorterRandomCrop(SIZE, 0.7),
    t.RandomResizedCrop(SIZE, (0.1, 0.9)),
    t.RandomCropOfBox(SIZE, 0.1, (0.1, 0.9)),
    t.ShiftCrop(SIZE, 5),
    t.HorizontalFlip(0.5, ((0, 1),)),
]
FIXED = [t.Resize(SIZE), t.ResizeShorterCenterCrop(SIZE, 0.7), t.CropToBox(SIZE, 0.1)]
sides = st.integers(1, 70)


def example(height: int, width: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "bbox": np.array([x[0], y[0], x[1], y[1]], np.float32),
        "parts": np.array(
            [[*rng.uniform(0, (width, height)), 1] if i != 3 else [0, 0, 0] for i in range(5)],
            np.float32,
        ),
        "mask": (rng.random((height, width)) < 0.5).astype(np.uint8),
        "name": "bird.jpg",
        "label": 3,
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 10**6), st.sampled_from(RANDOM + FIXED))
def test_everything_stays_in_the_image_and_nothing_is_changed_in_place(h, w, seed, transform):
    before = example(h, w, seed)
    kept = {k: np.copy(v) for k, v in before.items()}
    out = transform(before, np.random.default_rng(seed))
    assert same(before, kept)
    height, width = (h, w) if isinstance(transform, t.HorizontalFlip) else SIZE
    assert out["image"].shape == (height, width, 3)
    assert out["image"].dtype == np.uint8
    assert out["mask"].shape == (height, width)
    assert set(np.unique(out["mask"])) <= {0, 1}
    x0, y0, x1, y1 = out["bbox"]
    assert 0 <= x0 <= x1 <= width
    assert 0 <= y0 <= y1 <= height
    for x, y, visible in out["parts"]:
        assert visible in (0, 1)
        assert 0 <= x <= width
        assert 0 <= y <= height
        assert visible or (x, y) == (0, 0)
    assert {out[k].dtype for k in ("bbox", "parts")} == {np.dtype(np.float32)}
    assert out["label"] == 3


@settings(max_examples=30, deadline=None)
@given(sides, sides, st.integers(0, 10**6))
def test_flipping_twice_changes_nothing(h, w, seed):
    before = t.crop_and_resize(example(h, w, seed), window=(0, 0, w, h), size=(h, w))
    pairs = ((0, 1), (2, 4))
    once = t.flip(before, flip_pairs=pairs)
    twice = t.flip(once, flip_pairs=pairs)
    assert np.array_equal(once["image"], before["image"][:, ::-1])
    for key in ("image", "mask"):
        np.testing.assert_array_equal(twice[key], before[key])
    for key in ("bbox", "parts"):
        np.testing.assert_allclose(twice[key], before[key], atol=1e-4)


def test_a_mirrored_box_lies_on_the_other_side():
    before = {**example(10, 20), "bbox": np.array([2, 3, 7, 9], np.float32)}
    np.testing.assert_array_equal(t.flip(before)["bbox"], [13, 3, 18, 9])


def test_a_mirrored_left_eye_is_a_right_eye():
    before = example(10, 20)
    before["parts"] = np.array([[2, 3, 1], [9, 4, 1], [5, 6, 0]], np.float32)
    out = t.flip(before, flip_pairs=((0, 1),))["parts"]
    np.testing.assert_array_equal(out, [[11, 4, 1], [18, 3, 1], [0, 0, 0]])
    unpaired = t.flip(before)["parts"]
    np.testing.assert_array_equal(unpaired, [[18, 3, 1], [11, 4, 1], [0, 0, 0]])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 60), st.integers(8, 60), st.integers(0, 10**6), st.sampled_from(RANDOM + FIXED)
)
def test_boxes_points_and_masks_move_with_the_pixels(h, w, seed, transform):
    """A rectangle painted into the image is found again where box, parts and mask say."""
    rng = np.random.default_rng(seed)
    (x0, x1), (y0, y1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in (w, h))
    image = np.zeros((h, w, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    before = {
        "image": image,
        "bbox": np.array([x0, y0, x1, y1], np.float32),
        "parts": np.array([[(x0 + x1) / 2, (y0 + y1) / 2, 1]] * 2, np.float32),
        "mask": image[..., 0] // 255,
        "name": "x",
    }
    out = transform(before, np.random.default_rng(seed))
    grey = out["image"][..., 0] / 255
    rows, cols = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]] + 0.5
    left, top, right, bottom = out["bbox"]
    reach = max(grey.shape[0] / 4, grey.shape[1] / 4, 1)  # of the interpolation, generously
    near = (cols > left - reach) & (cols < right + reach)
    near &= (rows > top - reach) & (rows < bottom + reach)
    assert not grey[~near].any()
    # Pixels wholly inside the box, away from its border, are as white as they were.
    scale = max(1.0, *(np.array(grey.shape) / 4))
    deep = (cols > left + scale) & (cols < right - scale)
    deep &= (rows > top + scale) & (rows < bottom - scale)
    assert (grey[deep] == 1).all()
    assert (out["mask"][deep] == 1).all()
    for x, y, visible in out["parts"]:
        if visible:
            assert left - 1e-3 <= x <= right + 1e-3
            assert top - 1e-3 <= y <= bottom + 1e-3


def test_resize_scales_boxes_and_points():
    out = t.Resize((20, 40))(
        {
            "image": np.zeros((10, 10, 3), np.uint8),
            "bbox": np.array([1, 2, 5, 10], np.float32),
            "parts": np.array([[2.5, 5, 1], [11, 5, 1], [-1, 3, 1], [3, 3, 0]], np.float32),
        },
        np.random.default_rng(0),
    )
    np.testing.assert_array_equal(out["bbox"], [4, 4, 20, 20])
    np.testing.assert_array_equal(out["parts"], [[10, 10, 1], [0] * 3, [0] * 3, [0] * 3])


@pytest.mark.parametrize(
    ("shape", "window"), [((100, 200), (62, 12, 75, 75)), ((7, 5), (0, 1, 4, 4))]
)
def test_center_crop_takes_the_middle(shape, window):
    before = example(*shape)
    fraction = 0.75
    out = t.ResizeShorterCenterCrop((30, 30), fraction)(before, np.random.default_rng(0))
    assert same(out, t.crop_and_resize(before, window=window, size=(30, 30)))


def test_center_crop_with_fraction_one_keeps_a_square_whole():
    before = example(40, 40)
    center = t.ResizeShorterCenterCrop((20, 20), 1.0)(before, np.random.default_rng(0))
    assert same(center, t.Resize((20, 20))(before, np.random.default_rng(0)))


def test_shift_crop_moves_by_whole_pixels_and_fills_with_zero():
    image = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    shift = t.ShiftCrop((8, 8), 2)
    seen = {
        shift({"image": image}, np.random.default_rng(i))["image"].tobytes() for i in range(300)
    }
    assert seen == windows


def test_a_shift_beyond_the_image_leaves_nothing():
    before = {"image": np.full((4, 4, 3), 9, np.uint8), "mask": np.ones((4, 4), np.uint8)}
    out = t.crop_and_resize(before, window=(-9, 0, 4, 4), size=(4, 4))
    assert not out["image"].any()
    assert not out["mask"].any()
    half = t.crop_and_resize(before, window=(2, 1, 4, 4), size=(4, 4))["mask"]
    np.testing.assert_array_equal(half, [[1, 1, 0, 0]] * 3 + [[0] * 4])


def test_random_resized_crop_draws_area_and_ratio_as_asked():
    crop = t.RandomResizedCrop((8, 8), (0.2, 0.6), (0.5, 2.0))
    image = {"image": np.zeros((240, 240, 3), np.uint8)}
    windows = np.array([crop._window(image, np.random.default_rng(i)) for i in range(800)])
    area = windows[:, 2] * windows[:, 3] / 240**2
    ratio = np.log(windows[:, 2] / windows[:, 3])
    assert area.min() == pytest.approx(0.2, abs=0.01)
    assert area.max() == pytest.approx(0.6, abs=0.01)
    assert abs(np.mean(area) - 0.4) < 0.02
    assert np.abs(ratio).max() == pytest.approx(np.log(2), abs=0.02)
    assert abs(ratio.mean()) < 0.05
    assert windows[:, 0].min() < 10
    assert (windows[:, 0] + windows[:, 2]).max() > 230


def test_random_resized_crop_falls_back_to_the_largest_central_window():
    crop = t.RandomResizedCrop((8, 8), (1.0, 1.0), (1.0, 1.0))
    image = {"image": np.zeros((100, 200, 3), np.uint8)}
    assert crop._window(image, np.random.default_rng(0)) == (50, 0, 100, 100)


@pytest.mark.parametrize(
    ("box", "size", "window"),
    [
        ((40, 30, 60, 50), (10, 10), (38, 28, 24, 24)),  # margins of a tenth on each side
        ((40, 30, 60, 40), (10, 10), (38, 23, 24, 24)),  # grown to the output's aspect ratio
        ((40, 30, 60, 50), (10, 20), (26, 28, 48, 24)),
        ((0, 0, 20, 20), (10, 10), (0, 0, 24, 24)),  # moved into the image
        ((90, 70, 100, 80), (10, 10), (88, 68, 12, 12)),
        ((0, 0, 100, 80), (10, 10), (0, 0, 100, 80)),  # cut to the image
        ((-30, 10, 200, 70), (10, 10), (0, 0, 100, 80)),
        ((300, 10, 320, 20), (10, 10), (0, 0, 100, 80)),  # no box to speak of
    ],
)
def test_crop_to_box(box, size, window):
    before = {**example(80, 100), "bbox": np.array(box, np.float32)}
    assert t.CropToBox(size, 0.1)._window(before, np.random.default_rng(0)) == window


def test_crop_to_box_needs_a_box():
    before = example(8, 8)
    del before["bbox"]
    with pytest.raises(UserError, match=r"image bird\.jpg: has no box"):
        t.CropToBox(SIZE)(before, np.random.default_rng(0))


@pytest.mark.parametrize("transform", RANDOM)
def test_draws_depend_on_the_generator_alone(transform):
    before = example(50, 60)
    outs = [transform(before, np.random.default_rng(s)) for s in (1, 1, 2, 3, 4, 5)]
    assert same(outs[0], outs[1])
    assert not all(same(outs[0], out) for out in outs[2:])


@pytest.mark.parametrize("transform", FIXED)
def test_fixed_transforms_draw_nothing(transform):
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    transform(example(50, 60), rng)
    assert rng.bit_generator.state == state


def test_flip_happens_as_often_as_asked():
    before = example(4, 6)
    for probability in (0.0, 0.3, 1.0):
        flip = t.HorizontalFlip(probability)
        flipped = [not same(flip(before, np.random.default_rng(i)), before) for i in range(400)]
        assert np.mean(flipped) == pytest.approx(probability, abs=0.07)


def test_compose_applies_in_order():
    before = example(40, 60)
    rng = np.random.default_rng(0)
    both = t.Compose((t.ResizeShorterCenterCrop((20, 20)), t.Resize((5, 7))))(before, rng)
    step = t.Resize((5, 7))(t.ResizeShorterCenterCrop((20, 20))(before, rng), rng)
    assert same(both, step)


def test_random_crop_of_box_stays_in_the_box_and_fills_it():
    before = {"image": np.zeros((200, 300, 3), np.uint8), "name": "a"}
    before["bbox"] = np.array([100, 50, 180, 110], np.float32)
    left, top, width, height = t.CropToBox((8, 12), 0.1)._window(before, np.random.default_rng(0))
    crop = t.RandomCropOfBox((8, 12), 0.1, (0.2, 0.6), (0.75, 2.25))
    windows = np.array([crop._window(before, np.random.default_rng(i)) for i in range(600)])
    first, last = windows[:, :2], windows[:, :2] + windows[:, 2:]
    assert first.min(0).tolist() == pytest.approx([left, top], abs=2)
    assert last.max(0).tolist() == pytest.approx([left + width, top + height], abs=2)
    assert (first >= [left, top]).all()
    assert (last <= [left + width, top + height]).all()
    area = windows[:, 2] * windows[:, 3] / (width * height)
    assert (area.min(), area.max()) == pytest.approx((0.2, 0.6), abs=0.03)
    with pytest.raises(UserError, match="has no box"):
        crop({key: before[key] for key in ("image", "name")}, np.random.default_rng(0))
