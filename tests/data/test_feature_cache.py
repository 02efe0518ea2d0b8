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
    write_features(tmp_path / "train", stream(10), count=10, fingerprint="a")
    return read_features(tmp_path / "train", fingerprint="a")


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
        write_features(tmp_path / "train", broken(), count=10, fingerprint="a")
    assert read_features(tmp_path / "train", fingerprint="a") is None
    write_features(tmp_path / "train", stream(10), count=10, fingerprint="a")
    assert read_features(tmp_path / "train", fingerprint="a") is not None


def test_a_stream_that_ends_early_is_told(tmp_path):
    with pytest.raises(UserError, match="ended after 6 rows; expected 10"):
        write_features(tmp_path / "train", stream(6), count=10, fingerprint="a")
    assert not (tmp_path / "train").exists()


def test_every_epoch_has_every_row_once_in_another_order(split):
    ids = np.concatenate([b["id"] for b in take(train_batches(split, batch_size=4, seed=1), 5)])
    first, second = ids[:10], ids[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    other = np.concatenate([b["id"] for b in take(train_batches(split, batch_size=4, seed=2), 5)])
    assert other.tolist() != ids.tolist()


def test_a_resumed_stream_and_the_shares_of_processes_agree(split):
    whole = take(train_batches(split, batch_size=4, seed=1), 6)
    resumed = take(train_batches(split, batch_size=4, seed=1, start_step=3), 3)
    for one, other in zip(whole[3:], resumed, strict=True):
        np.testing.assert_array_equal(one["features"], other["features"])
        np.testing.assert_array_equal(one["label"], other["label"])
    shares = [
        take(train_batches(split, batch_size=4, seed=1, process_index=p, process_count=2), 6)
        for p in range(2)
    ]
    for step, batch in enumerate(whole):
        joined = np.concatenate([shares[p][step]["id"] for p in range(2)])
        np.testing.assert_array_equal(joined, batch["id"])


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_row_once(split, processes):
    shares = [
        list(eval_batches(split, batch_size=4, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    assert {len(share) for share in shares} == {3}
    seen = [b["id"][b["mask"]] for parts in zip(*shares, strict=True) for b in parts]
    assert np.concatenate(seen).tolist() == list(range(10))
