import pickle
import shutil

import pytest

from fgkd_jax.data import image_folder as reader
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.errors import UserError


def test_reads_folders(image_folder):
    dataset = reader.inspect(str(image_folder)).usable()
    assert dataset.info.class_names == ("ant", "bee")
    assert dataset.info.splits == {"train": 6, "test": 4}
    train = dataset.source("train")
    labels, ids = labels_and_ids(train)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels_and_ids(dataset.source("test"))[1].tolist() == [6, 7, 8, 9]
    assert [train[i]["name"].rsplit("/", 2)[1:] for i in (0, 1, 2)] == [
        ["ant", "0.png"],
        ["ant", "1.jpg"],
        ["ant", "2.webp"],
    ]
    path = image_folder / "train" / "bee" / "1.jpg"
    assert train[4]["image"] == path.read_bytes()
    assert pickle.loads(pickle.dumps(train))[4] == train[4]


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_folder_is_a_split_of_its_own(image_folder, name):
    shutil.copytree(image_folder / "test", image_folder / name)
    dataset = reader.inspect(str(image_folder)).usable()
    assert dataset.info.splits == {"train": 6, "validation": 4, "test": 4}
    ids = [i for split in dataset.info.splits for i in labels_and_ids(dataset.source(split))[1]]
    assert sorted(ids) == list(range(14))


def test_other_files_are_left_out(image_folder):
    folder = image_folder / "train" / "ant"
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.jpg").write_bytes(b"")
    (image_folder / "train" / ".cache").mkdir()
    (folder / "LOUD.JPG").write_bytes((folder / "1.jpg").read_bytes())
    info = reader.inspect(str(image_folder)).usable().info
    assert info.class_names == ("ant", "bee")
    assert info.splits["train"] == 7


def test_classes_must_agree(image_folder):
    (image_folder / "test" / "bee").rename(image_folder / "test" / "wasp")
    problems = reader.inspect(str(image_folder)).problems
    train, test = image_folder / "train", image_folder / "test"
    assert problems == (
        f"class 'bee' is in {train} but not in {test}",
        f"class 'wasp' is in {test} but not in {train}",
    )


def test_an_empty_class_is_named(image_folder):
    for path in (image_folder / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="train/bee: has no images"):
        reader.inspect(str(image_folder)).usable()


def test_class_folders_without_a_split(image_folder):
    with pytest.raises(
        UserError, match="has class folders but no split; expected <data_dir>/train"
    ):
        reader.inspect(str(image_folder / "train")).usable()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split(image_folder, split):
    shutil.rmtree(image_folder / split)
    with pytest.raises(UserError, match=f"has no folder '{split}'; expected <data_dir>/train"):
        reader.inspect(str(image_folder)).usable()


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; expected"):
        reader.inspect(str(tmp_path / "nowhere")).usable()


def test_the_fingerprint_follows_the_files(image_folder):
    before = reader.inspect(str(image_folder)).usable().info.fingerprint
    folder = image_folder / "test" / "bee"
    (folder / "0.png").rename(folder / "00.png")
    assert reader.inspect(str(image_folder)).usable().info.fingerprint != before
