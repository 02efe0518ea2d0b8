"""The standard files of zero-shot features: a small copy in their layout."""

import numpy as np
import pytest
import scipy.io

from fgkd_jax.data import DataOptions, check_dataset, eval_iterator, open_dataset
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.data.xlsa17 import read_splits
from fgkd_jax.data.zero_shot import hold_out_classes, zero_shot_problems
from fgkd_jax.errors import UserError

NAMES = ("auk", "grizzly+bear", "owl", "tern")
# From 1, as in the files. The third class is unseen, and the fourth kept for validation.
LABELS = [1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 1]
LOCS = {
    "trainval_loc": [12, 1, 2, 4, 5, 9, 10],
    "test_seen_loc": [3, 6, 11],
    "test_unseen_loc": [7, 8],
    "train_loc": [1, 2, 3, 4, 5, 6, 12],
    "val_loc": [9, 10, 11],
}


def cells(texts):
    column = np.empty((len(texts), 1), object)
    for i, text in enumerate(texts):
        column[i, 0] = np.array([text])
    return column


def arrays(kind):
    rng = np.random.default_rng(0)
    if kind == "res101":
        return {
            "features": rng.random((5, 12)),
            "labels": np.array(LABELS, np.float64)[:, None],
            "image_files": cells([f"/BS/photos/{i:02d}.jpg" for i in range(12)]),
        }
    locs = {name: np.array(rows, np.float64)[:, None] for name, rows in LOCS.items()}
    return {**locs, "att": rng.random((3, 4)), "allclasses_names": cells(NAMES)}


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("res101", "att_splits"):
        values = arrays(kind)
        values |= {name: value for name, value in changes.items() if name in values}
        values = {name: value for name, value in values.items() if value is not None}
        scipy.io.savemat(folder / f"{kind}.mat", values)
    return folder


@pytest.fixture
def birds(tmp_path):
    write(tmp_path / "xlsa17" / "data" / "BIRDS")
    return tmp_path


def test_splits_labels_and_features(birds):
    dataset = open_dataset("xlsa17/BIRDS", data_dir=str(birds))
    info = dataset.info
    assert info.name == "xlsa17/BIRDS"
    assert info.class_names == NAMES
    assert info.splits == {"train": 7, "test_seen": 3, "test_unseen": 2}
    assert info.descriptions.seen.tolist() == [True, True, False, True]
    assert info.descriptions.held_out.tolist() == [False, False, False, True]
    np.testing.assert_allclose(info.descriptions.attributes, arrays("att_splits")["att"].T)
    labels, ids = labels_and_ids(dataset.source("train"))
    assert ids.tolist() == [row - 1 for row in LOCS["trainval_loc"]]
    assert labels.tolist() == [LABELS[i] - 1 for i in ids]
    example = dataset.source("train")[0]
    assert example["name"] == "/BS/photos/11.jpg"
    assert (example["id"], example["label"]) == (11, 0)
    expected = arrays("res101")["features"][:, 11].astype(np.float32)
    np.testing.assert_array_equal(example["features"], expected[None, None])
    batch = next(eval_iterator(dataset, "test_unseen", DataOptions(), batch_size=4))
    assert batch["features"].shape == (4, 1, 1, 5)
    assert batch["label"][:2].tolist() == [2, 2]
    part = hold_out_classes(dataset, classes="authors", fraction=0.5)
    assert part.info.descriptions.seen.tolist() == [True, True, False]


@pytest.mark.parametrize("place", ["xlsa17/data/BIRDS", "data/BIRDS", "BIRDS", "."])
def test_it_is_found_in_several_places(tmp_path, place):
    write(tmp_path / place)
    assert open_dataset("xlsa17/BIRDS", data_dir=str(tmp_path)).info.num_classes == 4


def test_the_same_arrays_in_npz_files(birds, tmp_path):
    folder = tmp_path / "npz"
    folder.mkdir()
    for kind in ("res101", "att_splits"):
        values = arrays(kind)
        for name in ("image_files", "allclasses_names"):
            if name in values:
                values[name] = np.array([cell[0] for cell in values[name][:, 0]])
        np.savez(folder / f"{kind}.npz", **values)
    one = open_dataset("xlsa17/BIRDS", data_dir=str(birds)).info
    other = open_dataset("xlsa17/BIRDS", data_dir=str(folder)).info
    assert one.fingerprint == other.fingerprint


def test_it_can_be_checked(birds):
    report = check_dataset("xlsa17/BIRDS", data_dir=str(birds))
    assert report.ok, str(report)
    rows = dict(report.lines)
    assert (rows["unseen classes"], rows["train images"], rows["attributes"]) == ("1", "7", "3")
    report = check_dataset("xlsa17/FISH", data_dir=str(birds / "nowhere"))
    assert "att_splits.mat of FISH is missing" in report.problems[0]


BAD = np.ones((3, 4))
BAD[1, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"att": np.ones((3, 5))}, r"shape \(5, 3\); expected one row for each of 4 classes"),
        ({"att": BAD}, "attribute 1 of class 'owl' is nan; expected a finite number"),
        ({"labels": np.full((12, 1), 5.0)}, "labels has 5; expected 1 to 4"),
        ({"labels": np.ones((11, 1))}, "12 image files and 11 labels"),
        ({"features": np.ones((5, 11))}, "expected a column for each of 12 images"),
        ({"features": np.full((5, 12), np.inf)}, "the features of image 1 are not finite"),
        ({"trainval_loc": np.array([[0.0]])}, "trainval_loc has 0; expected 1 to 12"),
        ({"test_seen_loc": np.array([[1.0]])}, "image 1 is in two splits"),
        ({"test_unseen_loc": None}, "no array 'test_unseen_loc'; expected the layout of xlsa17"),
        (
            {
                "trainval_loc": np.array([[1.0], [4], [9], [7]]),
                "test_unseen_loc": np.array([[8.0]]),
            },
            "the unseen class 'owl' has images in the split 'train', the first with id 6",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changes, message):
    write(tmp_path / "BIRDS", **changes)
    with pytest.raises(UserError, match=message):
        open_dataset("xlsa17/BIRDS", data_dir=str(tmp_path))
    assert not check_dataset("xlsa17/BIRDS", data_dir=str(tmp_path)).ok


def test_a_damaged_file_is_told(birds):
    folder = birds / "xlsa17" / "data" / "BIRDS"
    (folder / "res101.mat").write_bytes(b"MATLAB it was" * 20)
    with pytest.raises(UserError, match=r"res101\.mat: cannot be read"):
        open_dataset("xlsa17/BIRDS", data_dir=str(birds))
    (folder / "res101.mat").unlink()
    with pytest.raises(UserError, match=r"res101\.mat is missing"):
        open_dataset("xlsa17/BIRDS", data_dir=str(birds))


@pytest.mark.parametrize(
    ("name", "classes", "unseen", "held"), [("AWA2", 50, 10, 13), ("SUN", 717, 72, 65)]
)
def test_published_splits(shared, tmp_path, name, classes, unseen, held):
    """The real splits, with labels and no features: the numbers are those of the paper."""
    meta = shared / "data" / "zsl_meta"
    (tmp_path / "att_splits.npz").symlink_to(meta / f"{name}_att_splits.npz")
    split = np.load(meta / f"{name}_split.npz")
    np.savez(
        tmp_path / "res101.npz",
        labels=split["labels"] + 1,
        image_files=split["image_files"],
        features=np.zeros((1, len(split["labels"])), np.float32),
    )
    described, rows, _, _ = read_splits(tmp_path)
    assert len(described.class_names) == classes
    assert (~described.seen).sum() == unseen
    assert described.held_out.sum() == held
    for key, ours in (("trainval_loc", "train"), ("test_unseen_loc", "test_unseen")):
        assert rows[ours].tolist() == split[key].tolist()
    assert np.flatnonzero(described.seen).tolist() == sorted(split["seenclasses"].tolist())
    assert zero_shot_problems(open_dataset(f"xlsa17/{name}", data_dir=str(tmp_path))) == []
