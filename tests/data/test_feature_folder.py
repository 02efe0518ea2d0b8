"""Folders of features: written in shards, resumed, refused, and read as a data set."""

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fgkd_jax.data import (
    DataOptions,
    check_dataset,
    eval_iterator,
    feature_folder,
    feature_writer,
    open_dataset,
    train_iterator,
)
from fgkd_jax.data.base import CorruptImageError
from fgkd_jax.data.feature_folder import FeatureIdentity, pack, read_shards, unpack, verify
from fgkd_jax.data.feature_writer import writing
from fgkd_jax.errors import UserError

SHAPE = (2, 3, 4)
SIZES = {"train": 10, "test": 3}


def identity(**changes):
    options = {
        "dataset": "birds",
        "dataset_fingerprint": "d",
        "backbone": "b",
        "about": {"backbone": {"name": "resnet18"}, "image_size": (8, 8)},
        "shape": SHAPE,
        "storage": "float16",
        "splits": SIZES,
        "class_names": tuple("abcdef"),
        "groupings": {"pair": (0, 0, 1, 1, 2, 2)},
        "extra_keys": ("parts",),
    }
    return FeatureIdentity(**{**options, **changes})


def row(split, i):
    rng = np.random.default_rng([len(split), i])
    return {
        "features": rng.normal(size=SHAPE).astype(np.float32),
        "label": np.int32((0, 2, 3, 5)[i % 4]),  # the seen classes
        "id": np.int32(i + 100 * len(split)),
        "parts": np.full((2, 3), i, np.float32),
    }


def fill(folder, described=None, *, until=10**6, **changes):
    """Writes shards of four rows, from where the folder ends; stops after some of them."""
    with writing(folder, identity(**changes), described) as writer:
        for split, size in SIZES.items():
            while writer.done(split) < size and until > 0:
                start = writer.done(split)
                stop = min(start + 4, size)
                writer.write(split, [row(split, i) for i in range(start, stop)], stop=stop)
                until -= 1
    return folder


@pytest.fixture
def folder(tmp_path, zero_shot):
    return fill(tmp_path / "features", zero_shot().info.descriptions)


def test_it_reads_back_as_a_data_set(folder, zero_shot):
    dataset = open_dataset("features", data_dir=str(folder))
    info = dataset.info
    assert info.name == "features of birds"
    assert info.splits == SIZES
    assert info.feature_shape == SHAPE
    assert info.feature_backbone == "b"
    assert info.groupings == {"pair": (0, 0, 1, 1, 2, 2)}
    assert info.descriptions.fingerprint == zero_shot().info.descriptions.fingerprint
    for split, size in SIZES.items():
        source = dataset.source(split)
        assert len(source) == size
        for i in (size - 1, 0, 1):
            example, expected = source[i], row(split, i)
            assert example["label"] == expected["label"]
            assert example["id"] == expected["id"]
            np.testing.assert_array_equal(example["parts"], expected["parts"])
            np.testing.assert_array_equal(
                example["features"], expected["features"].astype(np.float16)
            )
    batches = train_iterator(dataset, DataOptions(extra_keys=("parts",)), batch_size=4, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["features"].shape == (4, *SHAPE)
    assert batch["features"].dtype == np.float16
    assert batch["parts"].shape == (4, 2, 3)
    options = DataOptions(extra_keys=("parts",))
    *_, last = eval_iterator(dataset, "test", options, batch_size=2)
    assert last["mask"].tolist() == [True, False]
    assert last["id"].tolist()[1] == -1
    assert check_dataset("features", data_dir=str(folder)).ok


def test_batches_depend_on_seed_and_step_alone(folder):
    dataset, options = open_dataset("features", data_dir=str(folder)), DataOptions()

    def ids(**where):
        batches = train_iterator(dataset, options, batch_size=4, seed=3, **where)
        found = [next(batches)["id"].tolist() for _ in range(2)]
        batches.close()
        return found

    whole = ids(start_step=2)
    parts = [ids(start_step=2, process_index=p, process_count=2) for p in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_eight_bits_are_off_by_half_a_step(tmp_path):
    folder = fill(tmp_path / "f", storage="uint8")
    source = open_dataset("features", data_dir=str(folder)).source("train")
    for i in range(10):
        values = row("train", i)["features"]
        step = (values.max() - values.min()) / 255
        error = np.abs(source[i]["features"].astype(np.float32) - values)
        assert source[i]["features"].dtype == np.float16
        # Half a step, and the rounding of what comes out to float16.
        assert error.max() <= step / 2 + 2.0**-11 * np.abs(values).max()
    sizes = [
        len(pack(np.zeros(SHAPE, np.float32), label=1, number=2, storage=storage))
        for storage in ("float16", "uint8")
    ]
    assert sizes[0] - sizes[1] == 24
    for constant in (0.0, -2.5):
        packed = pack(np.full(SHAPE, constant, np.float32), label=1, number=2, storage="uint8")
        label, number, features = unpack(packed, shape=SHAPE, storage="uint8")
        assert (label, number) == (1, 2)
        assert (features == constant).all()


def test_a_stopped_run_goes_on(tmp_path, folder):
    other = tmp_path / "other"
    fill(other, until=2)
    assert [shard.stop for shard in read_shards(other, "train")] == [4, 8]
    with pytest.raises(UserError, match="features of 8 of 10 examples of the split 'train' are"):
        open_dataset("features", data_dir=str(other))
    # What a kill in the middle of a shard leaves: the records without what belongs beside them.
    (other / "train-00002.partial").write_bytes(b"half")
    (other / "train-00002.array_record").write_bytes(b"half")
    fill(other)
    for split in SIZES:
        hashes = [[shard.sha256 for shard in read_shards(f, split)] for f in (folder, other)]
        assert hashes[0] == hashes[1]
    assert verify(str(other)) == []


def test_an_example_that_could_not_be_read_has_no_row(tmp_path):
    with writing(tmp_path / "f", identity(), None) as writer:
        writer.write("train", [row("train", i) for i in (0, 2, 9)], stop=10)
        writer.write("test", [row("test", 0)], stop=3)
    dataset = open_dataset("features", data_dir=str(tmp_path / "f"))
    assert dataset.info.splits == {"train": 3, "test": 1}
    assert dataset.source("train").ids.tolist() == [500, 502, 509]
    fill(tmp_path / "f")  # nothing is left to do
    assert len(read_shards(tmp_path / "f", "train")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone": "c", "about": {"backbone": {"name": "vgg16"}, "image_size": (8, 8)}},
            "backbone is {'name': 'resnet18'} there and {'name': 'vgg16'} here; expected the same",
        ),
        (
            {"backbone": "c", "about": {"backbone": {"name": "resnet18"}, "image_size": (9, 9)}},
            r"another backbone: image_size is \[8, 8\] there and \[9, 9\] here",
        ),
        ({"backbone": "c"}, "another backbone: b there and c here"),
        ({"dataset": "fish"}, "with another dataset: birds there and fish here"),
        ({"dataset_fingerprint": "e"}, "with another dataset_fingerprint: d there and e here"),
        ({"storage": "uint8"}, "with another storage: float16 there and uint8 here"),
        ({"splits": {"train": 10}}, "with another splits"),
    ],
)
def test_features_of_something_else_are_refused(folder, changes, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with (
        pytest.raises(UserError, match=message),
        writing(folder, identity(**changes), None),
    ):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_folders_are_refused(tmp_path, folder):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    for place, message in (
        (tmp_path / "photos", "holds 'a.jpg'; expected an empty or new folder"),
        (tmp_path / "photos" / "a.jpg", "is a file; expected a folder"),
    ):
        with pytest.raises(UserError, match=message), writing(place, identity(), None):
            pass
    with (
        writing(folder, identity(), None),
        pytest.raises(UserError, match="is in use by another fgkd features"),
        writing(folder, identity(), None),
    ):
        pass
    with pytest.raises(UserError, match=r"features\.json is missing \(looked in /nowhere\); write"):
        open_dataset("features", data_dir="/nowhere")


def test_damage_is_found(folder):
    records = folder / "train-00001.array_record"
    good = records.read_bytes()
    changed = bytearray(good)
    changed[len(good) // 2] ^= 1
    records.write_bytes(changed)
    assert verify(str(folder)) == [f"{records}: its bytes have changed since they were written"]
    report = check_dataset("features", data_dir=str(folder))
    assert not report.ok
    assert "train-00001.array_record: its bytes have changed" in "\n".join(report.problems)
    records.write_bytes(good[:-1])
    with pytest.raises(UserError, match=f"has {len(good) - 1} bytes; expected {len(good)} bytes"):
        open_dataset("features", data_dir=str(folder))
    records.unlink()
    with pytest.raises(UserError, match=r"array_record: is missing; expected"):
        open_dataset("features", data_dir=str(folder))
    records.write_bytes(good)
    (folder / "train-00001.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"train-00001\.npz: cannot be read"):
        open_dataset("features", data_dir=str(folder))
    for text, message in (("{", "no readable index"), ('{"format": 9}', "format 9; expected 1")):
        (folder / "features.json").write_text(text)
        with pytest.raises(UserError, match=message):
            open_dataset("features", data_dir=str(folder))


def test_records_of_another_example_are_not_taken_for_it(folder):
    one, other = folder / "train-00000.array_record", folder / "train-00001.array_record"
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)
    feature_folder._records.cache_clear()
    source = open_dataset("features", data_dir=str(folder)).source("train")
    with pytest.raises(CorruptImageError, match="its record is of id 504 and label 0"):
        source[0]


def test_values_beyond_float16_are_refused(tmp_path):
    for value in (np.inf, np.nan, 1e5):
        wrong = row("train", 0) | {"features": np.full(SHAPE, value, np.float32)}
        with (
            writing(tmp_path / "f", identity(), None) as writer,
            pytest.raises(UserError, match="features of id 500 are not finite, or beyond"),
        ):
            writer.write("train", [wrong], stop=1)
    assert read_shards(tmp_path / "f", "train") == []


def test_it_pickles_small_and_is_read_from_threads(folder):
    source = open_dataset("features", data_dir=str(folder)).source("train")
    expected = [source[i]["id"] for i in range(10)]
    copy = pickle.loads(pickle.dumps(source))
    feature_folder._records.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: copy[i]["id"], list(range(10)) * 5))
    assert found == expected * 5


def test_the_fingerprint_tells_backbone_data_and_storage(tmp_path):
    marks = set()
    for number, changes in enumerate(
        ({}, {"backbone": "c"}, {"dataset_fingerprint": "e"}, {"storage": "uint8"})
    ):
        where = fill(tmp_path / str(number), **changes)
        marks.add(open_dataset("features", data_dir=str(where)).info.fingerprint)
    assert len(marks) == 4


def test_shards_are_of_a_size_that_is_soon_written_again(tmp_path):
    with writing(tmp_path / "f", identity(), None) as writer:
        assert writer.rows_per_shard == feature_writer.SHARD_BYTES // (2 * 24)
        large = dataclasses.replace(identity(), shape=(14, 14, 10**6))
        writer.identity = large
        assert writer.rows_per_shard == 1
