"""Stored features: whole or not at all, shuffled by seed and step alone."""

import numpy as np
import pytest

from fgkd_jax.data.feature_cache import (
    eval_batches,
    read_features,
    train_batches,
    write_features,
)
from fgkd_jax.errors import UserError


def stream(count, size=4, shape=(2, 2, 3)):
    for start in range(0, count, size):
        ids = np.arange(start, start + size)
        yield {
            "features": np.broadcast_to(ids[:, None, None, None], (size, *shape)).astype(float),
            "label": (ids % 3).astype(np.int32),
            "id": ids.astype(np.int32),
            "mask": ids < count,
        }


@pytest.fixture
def split(tmp_path):
    return write_features(tmp_path / "train", stream(10), limit=10, fingerprint="a")


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_rows_come_back_without_the_padding(split):
    assert split.features.shape == (10, 2, 2, 3)
    assert split.features.dtype == np.float16
    assert split.ids.tolist() == list(range(10))
    np.testing.assert_array_equal(split.features[:, 0, 0, 0], np.arange(10))


def test_features_of_something_else_are_not_read(tmp_path, split):
    assert read_features(tmp_path / "train", fingerprint="b") is None
    assert read_features(tmp_path / "test", fingerprint="a") is None


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield from stream(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "train", broken(), limit=10, fingerprint="a")
    assert read_features(tmp_path / "train", fingerprint="a") is None
    write_features(tmp_path / "train", stream(10), limit=10, fingerprint="a")
    assert read_features(tmp_path / "train", fingerprint="a") is not None


def test_a_limit_ends_an_endless_stream_and_a_short_one_is_kept(tmp_path):
    cut = write_features(tmp_path / "train", stream(100), limit=10, fingerprint="a")
    assert cut.ids.tolist() == list(range(10))
    short = write_features(tmp_path / "test", stream(6), limit=10, fingerprint="a")
    assert short.ids.tolist() == list(range(6))
    with pytest.raises(UserError, match="no image to compute them of"):
        write_features(tmp_path / "none", iter(()), limit=10, fingerprint="a")


@pytest.mark.parametrize("name", ["features.bin", "labels.npy", "ids.npy", "features.json"])
def test_a_truncated_file_is_not_read(tmp_path, split, name):
    path = tmp_path / "train" / name
    path.write_bytes(path.read_bytes()[:-3])
    assert read_features(tmp_path / "train", fingerprint="a") is None


def test_a_file_with_rows_too_many_is_not_read(tmp_path, split):
    with (tmp_path / "train" / "features.bin").open("ab") as file:
        file.write(bytes(24))
    assert read_features(tmp_path / "train", fingerprint="a") is None


def test_every_epoch_has_every_row_once_in_another_order(split):
    ids = np.concatenate([b["id"] for b in take(train_batches(split, batch_size=4, seed=1), 5)])
    first, second = ids[:10], ids[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    other = np.concatenate([b["id"] for b in take(train_batches(split, batch_size=4, seed=2), 5)])
    assert other.tolist() != ids.tolist()


def test_a_resumed_stream_agrees(split):
    whole = take(train_batches(split, batch_size=4, seed=1), 6)
    resumed = take(train_batches(split, batch_size=4, seed=1, start_step=3), 3)
    for one, other in zip(whole[3:], resumed, strict=True):
        np.testing.assert_array_equal(one["features"], other["features"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_evaluation_sees_every_row_once(split):
    batches = list(eval_batches(split, batch_size=4))
    assert [len(batch["id"]) for batch in batches] == [4, 4, 4]
    seen = np.concatenate([batch["id"][batch["mask"]] for batch in batches])
    assert seen.tolist() == list(range(10))
