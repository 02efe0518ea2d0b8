import numpy as np
import pytest
from PIL import Image

from fgkd_jax.data import (
    DetectionOptions,
    detection_eval_iterator,
    detection_train_iterator,
    open_dataset,
)
from fgkd_jax.data.base import CorruptImageError, DatasetInfo, SplitSources
from fgkd_jax.data.boxes import BoxTable, make_dataset
from fgkd_jax.data.detection_buckets import BucketOrder, bucket_members
from fgkd_jax.errors import UserError

BUCKETS = ((32, 48), (48, 32))


@pytest.fixture
def photos(tmp_path, encode, pixels):
    """12 wide, 4 high and 2 square images, the last one of 1 x 1; image i has i % 3 boxes."""
    table = BoxTable(str(tmp_path))
    sizes = [(20, 30)] * 12 + [(30, 20)] * 4 + [(24, 24), (1, 1)]
    for i, (height, width) in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(encode(pixels(i, height, width), "PNG"))
        boxes = np.array([[1, 2, 10, 12], [0, 0, 15, 18]], np.float32)[: i % 3]
        table.add(
            f"{i}.png", 100 + i, (height, width), boxes, np.arange(len(boxes)), boxes[:, 0] > 0
        )
    return make_dataset(
        "photos",
        class_names=("a", "b"),
        category_ids=(0, 1),
        tables={"train": table, "test": table},
    )


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_batches_have_the_documented_keys(photos):
    options = DetectionOptions(buckets=BUCKETS, max_boxes=5)
    (batch,) = take(detection_train_iterator(photos, options, batch_size=4, seed=0), 1)
    height, width = batch["image"].shape[1:3]
    assert (height, width) in BUCKETS
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (4, height, width, 3)),
        "valid_size": (np.int32, (4, 2)),
        "original_size": (np.int32, (4, 2)),
        "boxes": (np.float32, (4, 5, 4)),
        "box_labels": (np.int32, (4, 5)),
        "box_mask": (bool, (4, 5)),
        "box_ignored": (bool, (4, 5)),
        "dropped_boxes": (np.int32, (4,)),
        "id": (np.int32, (4,)),
        "mask": (bool, (4,)),
    }
    assert batch["mask"].all()


def test_every_image_comes_equally_often_in_its_bucket(photos):
    options = DetectionOptions(buckets=BUCKETS, scale=(0.5, 1.0), crop_probability=0.5)
    members = bucket_members(photos.source("train"), BUCKETS)
    assert [len(m) for m in members] == [14, 4]
    # 14 and 4 images: a cycle of 9 batches, 7 of them wide.
    batches = take(detection_train_iterator(photos, options, batch_size=4, seed=3), 18)
    wide = [batch["image"].shape[1:3] == (32, 48) for batch in batches]
    assert sum(wide[:9]) == sum(wide[9:]) == 7
    assert wide[:9] != wide[9:] or len({tuple(b["id"]) for b in batches}) > 9
    ids = np.concatenate([batch["id"] for batch in batches]) - 100
    assert np.bincount(ids, minlength=18).tolist() == [4] * 18
    for batch, is_wide in zip(batches, wide, strict=True):
        assert set(batch["id"] - 100) <= set(members[0 if is_wide else 1])


def test_buckets_are_mixed_evenly():
    members = tuple(np.arange(n) for n in (60, 30, 10))
    for seed in range(5):
        order = BucketOrder(members, 2, seed)
        buckets = [order.image(2 * step)[0] for step in range(1000)]
        assert all(order.image(2 * step + 1)[0] == buckets[step] for step in range(0, 1000, 7))
        for bucket, share in enumerate((0.6, 0.3, 0.1)):
            seen = np.cumsum(np.array(buckets) == bucket)
            assert np.abs(seen - share * np.arange(1, 1001)).max() <= 1 + share


def test_the_mixture_differs_from_cycle_to_cycle_and_from_seed_to_seed():
    members = (np.arange(5), np.arange(3))
    mixtures = {
        tuple(BucketOrder(members, 1, seed).image(8 * cycle + step)[0] for step in range(8))
        for seed in range(3)
        for cycle in range(3)
    }
    assert len(mixtures) > 4


def test_batches_follow_the_order(photos):
    options = DetectionOptions(buckets=BUCKETS)
    order = BucketOrder(bucket_members(photos.source("train"), BUCKETS), 4, 9)
    batches = take(detection_train_iterator(photos, options, batch_size=4, seed=9), 5)
    ids = np.concatenate([batch["id"] for batch in batches]) - 100
    assert ids.tolist() == [order.image(position)[1] for position in range(20)]


def test_a_pass_holds_every_image_once_and_passes_differ():
    order = BucketOrder((np.arange(7) * 10, np.zeros(0, np.int64)), 3, 5)
    rows = [order.image(position)[1] for position in range(70)]
    passes = np.array(rows).reshape(10, 7)
    assert (np.sort(passes) == np.arange(7) * 10).all()
    assert len({tuple(one) for one in passes}) > 7
    other = BucketOrder((np.arange(7) * 10,), 3, 6)
    assert [other.image(position)[1] for position in range(70)] != rows


def test_processes_share_the_batches_of_one(photos):
    options = DetectionOptions(buckets=BUCKETS, scale=(0.5, 1.0), crop_probability=0.5)
    arguments = {"batch_size": 4, "seed": 7}
    whole = take(detection_train_iterator(photos, options, **arguments), 6)
    for count in (2, 4):
        parts = [
            take(
                detection_train_iterator(
                    photos, options, process_index=index, process_count=count, **arguments
                ),
                6,
            )
            for index in range(count)
        ]
        for step, batch in enumerate(whole):
            joined = {k: np.concatenate([part[step][k] for part in parts]) for k in batch}
            equal(joined, batch)
    late = take(detection_train_iterator(photos, options, start_step=4, **arguments), 2)
    equal(late[0], whole[4])
    equal(late[1], whole[5])


def test_draws_differ_from_pass_to_pass(photos):
    options = DetectionOptions(buckets=((32, 32),), scale=(0.3, 1.0))
    batches = take(detection_train_iterator(photos, options, batch_size=6, seed=0), 12)
    sizes = {}
    for batch in batches:
        for number, size in zip(batch["id"], batch["valid_size"], strict=True):
            sizes.setdefault(int(number), set()).add(tuple(size))
    assert all(len(sizes[100 + i]) >= 3 for i in range(17))


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_holds_every_image_once(photos, count):
    options = DetectionOptions(buckets=BUCKETS, max_boxes=2)
    batches = []
    for index in range(count):
        batches += list(
            detection_eval_iterator(
                photos, "test", options, batch_size=8, process_index=index, process_count=count
            )
        )
    assert len(batches) == count * 3  # two of the wide ones, one of the high ones
    kept = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    assert sorted(kept) == list(range(100, 118))
    source = photos.source("test")
    for batch in batches:
        for row in np.flatnonzero(batch["mask"]):
            example = source[int(batch["id"][row]) - 100]
            size, valid = batch["original_size"][row], batch["valid_size"][row]
            assert size.tolist() == example["annotated_size"].tolist()
            back = batch["boxes"][row] * np.tile((size / valid)[::-1], 2)
            there = batch["box_mask"][row]
            np.testing.assert_allclose(back[there], example["boxes"], rtol=1e-5)
            np.testing.assert_array_equal(batch["box_ignored"][row][there], example["box_ignored"])
        blank = ~batch["mask"]
        assert (batch["id"][blank] == -1).all()
        for key in ("image", "valid_size", "original_size", "boxes", "box_mask"):
            assert not batch[key][blank].any()


def test_an_image_that_cannot_be_read(photos, tmp_path):
    (tmp_path / "3.png").write_bytes(b"")
    options = DetectionOptions(buckets=BUCKETS)
    with pytest.raises(CorruptImageError, match=r"3.png: is empty"):
        take(detection_train_iterator(photos, options, batch_size=4, seed=0), 9)
    skip = DetectionOptions(buckets=BUCKETS, on_corrupt="skip")
    iterator = detection_train_iterator(photos, skip, batch_size=4, seed=0)
    ids = np.concatenate([batch["id"] for batch in take(iterator, 18)]) - 100
    assert np.bincount(ids, minlength=18).tolist() == [4, 4, 4, 0, 8] + [4] * 13
    assert [name.rsplit("/", 1)[1] for name in iterator.corrupt] == ["3.png"]
    batches = list(detection_eval_iterator(photos, "test", skip, batch_size=8))
    assert sum(batch["mask"].sum() for batch in batches) == 17
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="photos: no image of size"):
        next(detection_train_iterator(photos, skip, batch_size=4, seed=0))


def test_an_image_that_is_not_as_annotated(photos, tmp_path, encode, pixels):
    (tmp_path / "16.png").write_bytes(encode(pixels(0, 24, 25), "PNG"))
    options = DetectionOptions(buckets=BUCKETS)
    with pytest.raises(UserError, match=r"16.png: is 25 x 24; its annotation says 24 x 24$"):
        list(detection_eval_iterator(photos, "test", options, batch_size=8))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_exif_turns_is_told(photos, tmp_path, encode, pixels, orientation):
    """The size that is annotated is often the one before it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "0.png").write_bytes(encode(pixels(0, 20, 30), "PNG", exif=exif))
    options = DetectionOptions(buckets=BUCKETS)
    if orientation == 3:  # upside down: the sides are the same
        list(detection_eval_iterator(photos, "test", options, batch_size=8))
        return
    match = (
        r"0.png: is 20 x 30; its annotation says 30 x 20 \(where the file's EXIF orientation turns "
        r"the image: expected the size and the boxes of the turned one\)"
    )
    with pytest.raises(UserError, match=match):
        list(detection_eval_iterator(photos, "test", options, batch_size=8))


def test_labels_out_of_range_and_data_without_boxes(photos, image_folder):
    few = SplitSources(DatasetInfo("few", ("a",), {"train": 18}), photos.sources)
    options = DetectionOptions(buckets=BUCKETS)
    with pytest.raises(UserError, match="a box has label 1; expected 0 to 0"):
        take(detection_train_iterator(few, options, batch_size=4, seed=0), 9)
    folder = open_dataset("image_folder", data_dir=str(image_folder))
    with pytest.raises(UserError, match="has no boxes; expected a data set for detection"):
        next(detection_train_iterator(folder, options, batch_size=2, seed=0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"buckets": ()}, "buckets is (); expected one or more, at least 1x1"),
        ({"buckets": ((0, 5),)}, "buckets is ((0, 5),); expected one or more"),
        ({"max_boxes": 0}, "max_boxes is 0; expected at least 1"),
        ({"scale": (0.5, 1.5)}, "scale is (0.5, 1.5); expected 0 < least <= largest <= 1"),
        ({"crop_scale": (0, 1)}, "crop_scale is (0, 1); expected 0 < least"),
        ({"crop_probability": 2}, "crop_probability is 2; expected in [0, 1]"),
        ({"least_visible": -1}, "least_visible is -1; expected in [0, 1]"),
        ({"flip_probability": 1.1}, "flip_probability is 1.1; expected in [0, 1]"),
        ({"least_side": -1}, "least_side is -1; expected at least 0"),
        ({"num_workers": -1}, "num_workers is -1; expected at least 0"),
        ({"read_threads": 0}, "read_threads is 0; expected at least 1"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(UserError) as caught:
        DetectionOptions(**given)
    assert str(caught.value).startswith(message)


def test_wrong_arguments(photos):
    options = DetectionOptions(buckets=BUCKETS)
    for given, message in (
        ({"batch_size": 3, "seed": 0, "process_count": 2}, "expected a multiple of 2 processes"),
        ({"batch_size": 4, "seed": -1}, "seed is -1; expected in"),
        ({"batch_size": 4, "seed": 0, "start_step": -1}, "start_step is -1; expected at least 0"),
        ({"batch_size": 4, "seed": 0, "split": "tset"}, "has no split 'tset'; did you mean 'test'"),
    ):
        with pytest.raises(UserError, match=message):
            detection_train_iterator(photos, options, **given)


def test_workers_make_the_same_batches(photos):
    options = DetectionOptions(buckets=BUCKETS, scale=(0.5, 1.0))
    with_workers = DetectionOptions(buckets=BUCKETS, scale=(0.5, 1.0), num_workers=1)
    own = take(detection_train_iterator(photos, options, batch_size=4, seed=1), 3)
    other = take(detection_train_iterator(photos, with_workers, batch_size=4, seed=1), 3)
    for first, second in zip(own, other, strict=True):
        equal(first, second)


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [("coco_json", "coco128", "validation"), ("voc_xml", "bccd", "test")],
)
def test_photographs(shared, name, folder, split):
    if not (shared / "data" / folder).is_dir():
        pytest.skip(f"needs {shared / 'data' / folder}")
    dataset = open_dataset(name, data_dir=str(shared / "data" / folder))
    options = DetectionOptions(buckets=((192, 320), (320, 192)), crop_probability=0.5)
    batches = list(detection_eval_iterator(dataset, split, options, batch_size=16))
    assert sum(batch["mask"].sum() for batch in batches) == dataset.info.splits[split]
    assert sum(batch["box_mask"].sum() for batch in batches) == dataset.counts[split].boxes
    train = take(detection_train_iterator(dataset, options, batch_size=16, seed=0), 4)
    assert {batch["image"].shape[1:3] for batch in train} <= set(options.buckets)
    assert sum(batch["box_mask"].sum() for batch in train) > 64
