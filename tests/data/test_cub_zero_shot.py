"""CUB with unseen species: images and classes are found by name, whatever their numbers."""

import shutil

import numpy as np
import pytest

from fgkd_jax.data import check_dataset, open_dataset
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.errors import UserError

NAME = "cub200_2011/zero_shot"


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name: change(arrays[name]) for name, change in changes.items()}
    np.savez(path, **arrays)


def test_classes_follow_their_names(cub_dir, cub_split):
    dataset = open_dataset(NAME, data_dir=str(cub_dir))
    info, described = dataset.info, dataset.info.descriptions
    assert info.class_names == described.class_names == ("003.Bird_3", "007.Bird_7", "009.Bird_9")
    assert described.seen.tolist() == [True, False, True]
    # Rows of the attributes are those of CUB's ids, not of the split's labels.
    assert described.attributes[:, 0].tolist() == pytest.approx([0.03, 0.07, 0.09])
    assert described.attribute_names == ("has_bill::long", "has_bill::short")
    assert described.word_vectors is None
    assert info.splits == {"train": 6, "test_seen": 2, "test_unseen": 4}
    for split, classes in (("train", {0, 2}), ("test_seen", {0, 2}), ("test_unseen", {1})):
        source = dataset.source(split)
        labels, ids = labels_and_ids(source)
        assert set(labels.tolist()) == classes
        for i in range(len(source)):
            example = source[i]
            assert info.class_names[example["label"]] in example["name"]
            assert example["id"] == ids[i]
            assert example["bbox"][2] == 10 + 20 + (ids[i] - 101)
    assert check_dataset(NAME, data_dir=str(cub_dir)).ok


def test_word_vectors_beside_the_photographs(cub_dir, cub_split):
    before = open_dataset(NAME, data_dir=str(cub_dir)).info.fingerprint
    np.save(cub_dir.parent / "CUB_attribute_w2v.npy", np.eye(2))
    info = open_dataset(NAME, data_dir=str(cub_dir)).info
    np.testing.assert_array_equal(info.descriptions.word_vectors, np.eye(2))
    assert info.fingerprint != before


def test_the_split_may_lie_beside(cub_dir, cub_split):
    beside = cub_dir.parent / "zsl_meta"
    beside.mkdir()
    shutil.move(cub_split, beside / cub_split.name)
    assert open_dataset(NAME, data_dir=str(cub_dir)).info.splits["train"] == 6
    shutil.rmtree(beside)
    with pytest.raises(UserError, match=r"no zero-shot split of CUB: expected CUB_split\.npz"):
        open_dataset(NAME, data_dir=str(cub_dir))


def test_the_standard_files_say_the_same(cub_dir, cub_split, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    one = open_dataset(NAME, data_dir=str(cub_dir)).info
    with np.load(cub_split) as file:
        arrays = {name: file[name] for name in file.files}
    cub_split.unlink()
    names = ["009.Bird_9", "003.Bird_3", "007.Bird_7", "001.Bird_1"]
    for wrong in (False, True):
        scipy_io.savemat(
            cub_dir / "att_splits.mat",
            {
                "att": np.ones((1, 4)),
                "allclasses_names": np.array(names[::-1] if wrong else names, object)[:, None],
                **{k: v[:, None] + 1 for k, v in arrays.items() if k.endswith("_loc")},
            },
        )
        scipy_io.savemat(
            cub_dir / "res101.mat",
            {
                "labels": arrays["labels"][:, None] + 1,
                "image_files": arrays["image_files"].astype(object)[:, None],
            },
        )
        if not wrong:
            assert open_dataset(NAME, data_dir=str(cub_dir)).info.fingerprint == one.fingerprint
    message = "class 0 of .* is '001.Bird_1'; expected '009.Bird_9'"
    with pytest.raises(UserError, match=message):
        open_dataset(NAME, data_dir=str(cub_dir))


def test_what_is_wrong_is_told(cub_dir, cub_split):
    good = cub_split.read_bytes()

    def fails(message, **changes):
        cub_split.write_bytes(good)
        rewrite(cub_split, **changes)
        with pytest.raises(UserError, match=message):
            open_dataset(NAME, data_dir=str(cub_dir))

    fails(
        "image 003.* has label 0; expected 1 as",
        labels=lambda x: np.where(np.arange(13) == 1, 0, x),
    )
    fails("trainval_loc has 99; expected 0 to 12", trainval_loc=lambda x: np.append(x, 99))
    fails("image 003.* is in no split", trainval_loc=lambda x: x[1:])
    fails(
        r"the class '009.Bird_9' of classes.txt is not in .*, which has '008.Bird_9' instead",
        image_files=lambda x: np.char.replace(x, "009.", "008."),
    )
    fails("0004.jpg is in test_seen and in test_unseen", test_seen_loc=lambda x: np.append(x, 4))

    fails(
        "class '007.Bird_7' has images in test_unseen and in",
        test_seen_loc=lambda x: np.append(x, 4),
        test_unseen_loc=lambda x: x[x != 4],
    )
    cub_split.write_bytes(good)
    (cub_dir / "attributes" / "class_attribute_labels_continuous.txt").unlink()
    with pytest.raises(UserError, match="needs attributes/class_attribute_labels_continuous"):
        open_dataset(NAME, data_dir=str(cub_dir))


def test_the_proposed_split_of_the_real_photographs(shared):
    dataset = open_dataset(NAME, data_dir=str(shared / "data" / "cub50"))
    info, described = dataset.info, dataset.info.descriptions
    assert info.splits == {"train": 1837, "test_seen": 460, "test_unseen": 592}
    assert described.seen.sum() == 40
    assert described.attributes.shape == (50, 312)
    assert described.word_vectors.shape == (312, 300)
    # An albatross has a hooked bill, and a hummingbird none: the rows are those of the names.
    hooked = described.attribute_names.index("has_bill_shape::hooked_seabird")
    assert described.attributes[info.class_names.index("001.Black_footed_Albatross"), hooked] > 0.3
