import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data import detection_transforms as geometry
from fgkd_jax.data.detection_transforms import Scene
from fgkd_jax.errors import UserError

sides = st.integers(1, 60)


def scene(image, boxes, ignored=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    flags = np.zeros(count, bool) if ignored is None else np.array(ignored)
    return Scene(image, boxes, np.arange(count, dtype=np.int32), flags)


def painted(height, width, box):
    """A black image with a white box, and that box."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return scene(image, [box])


def example(one: Scene):
    return {
        "image": one.image,
        "boxes": one.boxes,
        "box_labels": one.labels,
        "box_ignored": one.ignored,
        "name": "x.jpg",
    }


def found(image):
    """The box around what is white."""
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_the_bucket_in_which_an_image_becomes_largest():
    buckets = ((800, 1344), (1344, 800), (1024, 1024))
    choose = [geometry.choose_bucket(s, buckets=buckets) for s in ((480, 640), (640, 480), (9, 9))]
    assert choose == [0, 1, 2]
    assert geometry.choose_bucket((5, 5), buckets=((10, 20), (20, 10))) == 0
    assert geometry.choose_bucket((5, 5), buckets=((10, 30), (20, 10))) == 1  # the smaller one
    assert geometry.choose_bucket((0, 0), buckets=((8, 8),)) == 0


@given(sides, sides, sides, sides, st.floats(0.01, 1))
@settings(deadline=None, max_examples=200)
def test_a_fitted_size_fits_and_keeps_the_aspect_ratio(height, width, rows, columns, scale):
    h, w = geometry.fitted_size((height, width), bucket=(rows, columns), scale=scale)
    assert 1 <= h <= rows
    assert 1 <= w <= columns
    factor = scale * min(rows / height, columns / width)
    assert abs(h - max(1, height * factor)) <= 0.5
    assert abs(w - max(1, width * factor)) <= 0.5


def test_boxes_keep_to_what_they_hold():
    one = painted(40, 60, (12, 8, 30, 20))
    double = geometry.resize_scene(one, size=(80, 120))
    assert double.boxes.tolist() == [[24, 16, 60, 40]]
    assert found(double.image) == [24, 16, 60, 40]
    half = geometry.resize_scene(one, size=(20, 15))  # the axes have factors of their own
    assert half.boxes.tolist() == [[3, 4, 7.5, 10]]
    mirrored = geometry.flip_scene(one)
    assert mirrored.boxes.tolist() == [[30, 8, 48, 20]] == [found(mirrored.image)]
    cut = geometry.crop_scene(one, window=(20, 5, 30, 30))
    assert cut.boxes.tolist() == [[0, 3, 10, 15]] == [found(cut.image)]
    assert cut.image.shape == (30, 30, 3)
    assert one.boxes.tolist() == [[12, 8, 30, 20]]


def test_boxes_that_are_lost_are_counted():
    image = np.zeros((40, 60, 3), np.uint8)
    one = scene(image, [[0, 0, 10, 10], [8, 0, 18, 10], [30, 0, 40, 40]], [True, False, True])
    cut = geometry.crop_scene(one, window=(10, 0, 20, 40))
    assert cut.boxes.tolist() == [[0, 0, 8, 10]]
    assert (cut.labels.tolist(), cut.ignored.tolist(), cut.dropped) == ([1], [False], 2)
    assert geometry.crop_scene(one, window=(10, 0, 20, 40), least_visible=0.8).dropped == 2
    assert geometry.crop_scene(one, window=(10, 0, 20, 40), least_visible=0.81).dropped == 3
    small = geometry.resize_scene(cut, size=(4, 2), least_side=1.0)
    assert (len(small.boxes), small.dropped) == (0, 3)
    kept = geometry.resize_scene(cut, size=(4, 2))
    assert kept.boxes.tolist() == [[0, 0, np.float32(0.8), 1]]


def test_padding():
    image = np.full((3, 2, 3), 7, np.uint8)
    row = geometry.pad_scene(
        scene(image, [[0, 0, 1, 2], [0, 1, 2, 3]], [False, True])._replace(dropped=4),
        bucket=(4, 5),
        max_boxes=3,
    )
    assert row["image"].shape == (4, 5, 3)
    assert (row["image"][:3, :2] == 7).all()
    assert row["image"].sum() == image.sum()
    assert row["valid_size"].tolist() == [3, 2]
    assert row["boxes"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert row["box_labels"].tolist() == [0, 1, 0]
    assert row["box_mask"].tolist() == [True, True, False]
    assert row["box_ignored"].tolist() == [False, True, False]
    assert row["dropped_boxes"] == 4
    assert {k: v.dtype for k, v in row.items()} == {
        "image": np.uint8,
        "valid_size": np.int32,
        "boxes": np.float32,
        "box_labels": np.int32,
        "box_mask": bool,
        "box_ignored": bool,
        "dropped_boxes": np.int32,
    }


@given(st.integers(0, 2**32 - 1), sides, sides)
@settings(deadline=None, max_examples=100)
def test_training_boxes_lie_in_the_image(seed, height, width):
    rng = np.random.default_rng(seed)
    ends = rng.uniform(0, 1, (5, 2, 2)) * (width, height)
    boxes = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    one = scene(np.zeros((height, width, 3), np.uint8), boxes)
    train = geometry.TrainGeometry(
        max_boxes=4, scale=(0.3, 1.0), crop_probability=0.7, least_side=0.5
    )
    row = train(example(one), (24, 32), np.random.default_rng(seed))
    again = train(example(one), (24, 32), np.random.default_rng(seed))
    assert all(np.array_equal(row[key], again[key]) for key in row)
    count = row["box_mask"].sum()
    assert count + row["dropped_boxes"] == 5
    kept, (h, w) = row["boxes"][:count], row["valid_size"]
    assert (kept[:, 2:] - kept[:, :2] > 0.5).all()
    assert (kept >= 0).all()
    assert (kept <= np.array([w, h, w, h])).all()
    assert not row["boxes"][count:].any()


def test_training_draws_scales_crops_and_mirror_images():
    one = painted(40, 60, (10, 10, 20, 30))
    train = geometry.TrainGeometry(max_boxes=2, scale=(0.5, 1.0), crop_probability=0.5)
    rows = [train(example(one), (40, 60), np.random.default_rng(seed)) for seed in range(60)]
    sizes = {tuple(row["valid_size"]) for row in rows}
    assert len(sizes) > 20
    assert min(h for h, _ in sizes) < 25
    for row in rows:
        assert row["dropped_boxes"] == 1 - row["box_mask"][0]
        if row["box_mask"][0]:
            h, w = row["valid_size"]
            np.testing.assert_allclose(row["boxes"][0], found(row["image"][:h, :w]), atol=1.5)
    still = geometry.TrainGeometry(max_boxes=2, flip_probability=0.0)
    row = still(example(one), (40, 60), np.random.default_rng(0))
    assert row["boxes"][0].tolist() == [10, 10, 20, 30]
    np.testing.assert_array_equal(row["image"], one.image)
    mirrored = geometry.TrainGeometry(max_boxes=2, flip_probability=1.0)
    row = mirrored(example(one), (40, 60), np.random.default_rng(0))
    assert row["boxes"][0].tolist() == [40, 10, 50, 30]


def test_more_boxes_than_there_is_room_for():
    boxes = [[i, 0, i + 5, 9] for i in range(30)]
    one = scene(np.zeros((40, 40, 3), np.uint8), boxes)
    train = geometry.TrainGeometry(max_boxes=4, flip_probability=0.0)
    chosen = [
        train(example(one), (40, 40), np.random.default_rng(seed))["box_labels"].tolist()
        for seed in range(40)
    ]
    assert all(len(set(labels)) == 4 for labels in chosen)
    assert len({label for labels in chosen for label in labels}) > 25
    with pytest.raises(UserError, match=r"x.jpg: has 30 boxes; expected at most max_boxes, wh"):
        geometry.EvalGeometry(29)(example(one), (40, 40), np.random.default_rng(0))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10_000), (10_000, 1), (30, 10_000)])
def test_images_of_extreme_shapes(height, width):
    one = scene(np.full((height, width, 3), 9, np.uint8), [[0, 0, width, height], [0, 0, 1, 1]])
    evaluated = geometry.EvalGeometry(3)(example(one), (64, 96), np.random.default_rng(0))
    h, w = evaluated["valid_size"]
    assert 1 <= h <= 64
    assert 1 <= w <= 96
    assert h == 64 or w == 96
    assert evaluated["box_mask"].tolist() == [True, True, False]
    assert evaluated["boxes"][0].tolist() == [0, 0, w, h]
    assert (evaluated["image"][:h, :w] == 9).all()
    train = geometry.TrainGeometry(max_boxes=3, crop_probability=1.0, least_side=0.0)
    row = train(example(one), (64, 96), np.random.default_rng(1))
    assert row["image"].shape == (64, 96, 3)
    assert row["box_mask"][0]


def test_an_image_without_boxes():
    one = scene(np.zeros((8, 8, 3), np.uint8), [])
    train = geometry.TrainGeometry(max_boxes=2, crop_probability=1.0, flip_probability=1.0)
    row = train(example(one), (8, 8), np.random.default_rng(0))
    assert not row["box_mask"].any()
    assert row["dropped_boxes"] == 0
