import io
import pickle
import struct

import numpy as np
import pytest

from fgkd_jax.data import cifar
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.data.images import decode
from fgkd_jax.errors import UserError

NAMES = [f"class {i}" for i in range(10)]


def rows(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10_dir(tmp_path):
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        labels = [(i + j) % 10 for j in range(4)]
        data = {b"batch_label": b"x", b"labels": labels, b"data": rows(i, 4)}
        (root / name).write_bytes(pickle.dumps(data, protocol=2))
    names = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    (root / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


@pytest.fixture
def cifar100_dir(tmp_path):
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    fine = [*range(100), 5, 6]
    for i, name in enumerate(("train", "test")):
        data = {"fine_labels": fine, "coarse_labels": [f // 5 for f in fine], "data": rows(i, 102)}
        (root / name).write_bytes(pickle.dumps(data, protocol=4))
    meta = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": ["c"] * 20}
    (root / "meta").write_bytes(pickle.dumps(meta))
    return root


@pytest.fixture
def packed_dir(tmp_path, pixels, encode):
    for i, (split, n) in enumerate((("train", 6), ("test", 3))):
        files = [encode(pixels(10 * i + j, 32, 32)) for j in range(n)]
        np.savez(
            tmp_path / f"{split}.npz",
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=np.arange(n, dtype=np.int16) % 3,
            names=np.array([f"{split}/{j}.jpg" for j in range(n)]),
        )
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    return tmp_path


@pytest.mark.parametrize("parent", [False, True])
def test_reads_the_pickles(cifar10_dir, parent):
    dataset = cifar.inspect("cifar10", str(cifar10_dir.parent if parent else cifar10_dir)).usable()
    assert dataset.info.splits == {"train": 20, "test": 4}
    assert dataset.info.class_names == tuple(NAMES)
    train = dataset.source("train")
    labels, ids = labels_and_ids(train)
    assert labels.tolist() == [(i + j) % 10 for i in range(5) for j in range(4)]
    assert ids.tolist() == list(range(20))
    assert labels_and_ids(dataset.source("test"))[1].tolist() == [20, 21, 22, 23]
    example = train[9]  # the second image of the third file
    plane = rows(2, 4)[1].reshape(3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(example["image"][..., channel], plane[channel])
    assert example["name"].endswith("data_batch_3[1]")


def test_written_by_python_2():
    """Protocol 2 as Python 2 and the NumPy of its time wrote it: bytes, and another module."""
    array = np.arange(3072, dtype=np.uint8).reshape(1, 3072)
    data = pickle.dumps(array, protocol=2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data or b"numpy.core" in data
    loaded = cifar._SafeUnpickler(io.BytesIO(old), encoding="bytes").load()
    np.testing.assert_array_equal(loaded, array)


def test_cifar100_has_superclasses(cifar100_dir):
    info = cifar.inspect("cifar100", str(cifar100_dir)).usable().info
    assert info.num_classes == 100
    assert info.splits == {"train": 102, "test": 102}
    assert info.groupings == {"superclass": tuple(i // 5 for i in range(100))}


class Evil:
    def __reduce__(self):
        return print, ("pwned",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused(cifar10_dir, capsys, protocol):
    path = cifar10_dir / "data_batch_2"
    path.write_bytes(pickle.dumps({b"labels": [1], b"data": Evil()}, protocol=protocol))
    with pytest.raises(UserError, match=r"data_batch_2: cannot be unpickled \(asks for .*print"):
        cifar.inspect("cifar10", str(cifar10_dir)).usable()
    assert "pwned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be unpickled"),
        (b"no pickle", "cannot be unpickled"),
        (pickle.dumps([1, 2]), "holds a list; expected a dictionary"),
        (pickle.dumps({"labels": [1, 2], "data": rows(0, 3)}), "expected a list 'labels'"),
        (pickle.dumps({"data": rows(0, 3)}), "expected a list 'labels'"),
    ],
)
def test_damaged_pickles_are_named(cifar10_dir, content, message):
    (cifar10_dir / "test_batch").write_bytes(content)
    (problem,) = cifar.inspect("cifar10", str(cifar10_dir)).problems
    assert problem.startswith(str(cifar10_dir / "test_batch"))
    assert message in problem


def test_missing_files_are_all_named(cifar10_dir):
    for name in ("data_batch_2", "data_batch_5", "batches.meta"):
        (cifar10_dir / name).unlink()
    problems = cifar.inspect("cifar10", str(cifar10_dir)).problems
    assert problems[0].startswith("batches.meta is missing (looked in")
    assert problems[1].startswith("data_batch_2, data_batch_5 are missing (looked in")
    assert all("https://www.cs.toronto.edu/~kriz/cifar.html" in problem for problem in problems)


def test_reads_the_packed_layout(packed_dir, pixels):
    dataset = cifar.inspect("cifar10", str(packed_dir)).usable()
    assert dataset.info.splits == {"train": 6, "test": 3}
    assert dataset.info.class_names == ("ant", "bee", "cat")
    example = dataset.source("test")[2]
    assert (example["label"], example["id"]) == (2, 8)
    assert example["name"] == str(packed_dir / "test/2.jpg")
    decoded = decode(example["image"], "x")
    assert np.abs(decoded.astype(int) - pixels(12, 32, 32)).mean() < 5


def test_images_are_not_pickled_with_the_source(packed_dir):
    source = cifar.inspect("cifar10", str(packed_dir)).usable().source("train")
    before = source[5]
    state = pickle.dumps(source)
    assert len(state) < 2000 < (packed_dir / "train.npz").stat().st_size
    assert pickle.loads(state)[5] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.arange(3)}, "has 6 labels, 3 offsets and 6 names; expected n, n + 1 and n"),
        ({"offsets": np.array([0, 5, 4, 6, 7, 8, 9])}, "offsets decrease"),
        ({"labels": None}, "expected the arrays"),
        ({"names": np.array([None] * 6)}, "is no npz file of plain arrays"),
    ],
)
def test_damaged_packed_files_are_named(packed_dir, change, message):
    path = packed_dir / "train.npz"
    with np.load(path) as data:
        arrays = {**data, **change}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    (problem,) = cifar.inspect("cifar10", str(packed_dir)).problems
    assert problem.startswith(str(path))
    assert message in problem


def test_a_damaged_archive_is_named(packed_dir):
    path = packed_dir / "test.npz"
    path.write_bytes(struct.pack("<I", 0x04034B50) + b"not an archive")
    with pytest.raises(UserError, match=r"test\.npz: is no npz file"):
        cifar.inspect("cifar10", str(packed_dir)).usable()


def test_the_real_one(shared):
    dataset = cifar.inspect("cifar10", str(shared / "data" / "cifar10_jpeg")).usable()
    assert dataset.info.splits == {"train": 50_000, "test": 10_000}
    assert dataset.info.class_names[:2] == ("airplane", "automobile")
    for split, n in dataset.info.splits.items():
        counts = np.bincount(labels_and_ids(dataset.source(split))[0])
        assert counts.tolist() == [n // 10] * 10
    example = dataset.source("test")[9_999]
    assert example["id"] == 59_999
    assert example["label"] == 9
    assert decode(example["image"], example["name"]).shape == (32, 32, 3)
