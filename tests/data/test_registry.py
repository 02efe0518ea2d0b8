import subprocess
import sys

import pytest

from fgkd_jax.data import (
    DataOptions,
    build_dataset,
    check_dataset,
    open_dataset,
    train_iterator,
)
from fgkd_jax.data.base import Dataset, DatasetInfo, Inspection, Repeated, SplitSources
from fgkd_jax.data.registry import DATASETS, default_data_dir
from fgkd_jax.errors import UserError


def test_opens_by_name(cub_dir, image_folder):
    birds = open_dataset("cub200_2011", data_dir=str(cub_dir))
    assert isinstance(birds, Dataset)
    assert birds.info.num_classes == 3
    photos = open_dataset("image_folder", data_dir=str(image_folder))
    assert photos.info.num_classes == 2


def test_unknown_names_and_splits_come_with_a_suggestion(cub_dir):
    for call in (open_dataset, check_dataset, build_dataset):
        with pytest.raises(
            UserError, match="there is no data set 'cub200'; did you mean 'cub200_2011'"
        ):
            call("cub200")
    with pytest.raises(UserError, match="there is no data set 'tfds/'"):
        open_dataset("tfds/")
    birds = open_dataset("cub200_2011", data_dir=str(cub_dir))
    with pytest.raises(UserError, match="cub200_2011 has no split 'tst'; did you mean 'test'"):
        birds.source("tst")


def test_the_folder_comes_from_the_environment_unless_it_is_given(cub_dir, monkeypatch):
    monkeypatch.delenv("FGKD_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_data_dir() == "/home/somebody/.cache/fgkd_jax"
    monkeypatch.setenv("FGKD_DATA_DIR", str(cub_dir.parent))
    assert open_dataset("cub200_2011").info.splits == {"train": 6, "test": 6}
    assert check_dataset("cub200_2011").ok
    with pytest.raises(UserError, match=r"images.txt is missing \(looked in /nowhere\)"):
        open_dataset("cub200_2011", data_dir="/nowhere")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("cub200_2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("cifar100", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("image_folder", "expected <data_dir>/train/<class>/<image>"),
        ("tfds/cars196", "tfds build cars196 --file_format=array_record"),
    ],
)
def test_what_cannot_be_drawn_says_where_to_get_it(name, where):
    with pytest.raises(UserError) as caught:
        build_dataset(name)
    assert str(caught.value).startswith(f"{name} cannot be drawn here; ")
    assert where in str(caught.value)


def test_every_documented_name_is_registered():
    for name in ("procedural_birds/classification", "cub200_2011", "cifar10", "cifar100"):
        assert name in DATASETS
        assert f'"{name}"' in open_dataset.__doc__


def test_opening_names_the_first_problem_and_counts_the_rest():
    info = DatasetInfo("x", (), {})
    with pytest.raises(UserError, match=r"^one \(and 2 more problems\)$"):
        Inspection(SplitSources(info, {}), ("one", "two", "three")).usable()
    with pytest.raises(UserError, match=r"^one$"):
        Inspection(None, ("one",)).usable()
    with pytest.raises(UserError, match=r"^one \(and 1 more problem\)$"):
        Inspection(None, ("one", "two")).usable()


def test_problems_told_as_one_are_counted_once_and_all():
    assert Repeated(["one"], kind="such row") == "one"
    assert Repeated(["one", "two"], kind="such row") == "one (and 1 more such row)"
    many = Repeated(["one", "two", "three"], kind="such row")
    assert many == "one (and 2 more such rows)"
    assert Repeated(["one", "two", "three"]) == "one (and 2 more)"
    for problems, expected in (
        ((many,), r"^one \(and 2 more problems\)$"),
        ((many, "four"), r"^one \(and 3 more problems\)$"),
        (("four", many), r"^four \(and 3 more problems\)$"),
        (("four", Repeated(["one"])), r"^four \(and 1 more problem\)$"),
    ):
        with pytest.raises(UserError, match=expected):
            Inspection(None, problems).usable()


@pytest.mark.parametrize("name", ["coco_json", "cub200_2011", "image_folder"])
def test_a_default_folder_that_has_nothing_asks_for_another(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_DATA_DIR", str(tmp_path / "nothing"))
    hint = "; give --data_dir, for this is the default folder"
    assert check_dataset(name).problems[0].endswith(hint)
    given = check_dataset(name, data_dir=str(tmp_path / "nothing")).problems
    assert not any("--data_dir" in problem for problem in given)


@pytest.mark.parametrize(
    "name", ["coco_json", "voc_xml", "voc_xml/trainval", "procedural_birds/detection"]
)
def test_captions_of_scenes_are_refused(name, tmp_path):
    with pytest.raises(UserError) as caught:
        check_dataset(name, data_dir=str(tmp_path), captions_dir=str(tmp_path))
    assert str(caught.value) == f"{name} has boxes, no labels; expected no --captions_dir"


def test_importing_brings_neither_jax_nor_tensorflow_nor_grain():
    code = (
        "import fgkd_jax.data, sys\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_drawn_birds_are_built_checked_and_read(tmp_path):
    name, folder = "procedural_birds/tiny", str(tmp_path)
    (problem,) = check_dataset(name, data_dir=folder).problems
    assert "is not there; draw it with: fgkd data build procedural_birds/tiny" in problem
    build_dataset(name, data_dir=folder)
    dataset = open_dataset(name, data_dir=folder)
    report = check_dataset(name, data_dir=folder)
    assert report.ok, str(report)
    options = DataOptions(image_size=32, extra_keys=("mask", "bbox", "parts", "attributes"))
    iterator = train_iterator(dataset, options, batch_size=4, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["image"].shape == (4, 32, 32, 3)
    assert batch["object_mask"].shape == (4, 32, 32)
    assert batch["parts"].shape[1] == len(dataset.info.part_names)
    assert batch["attributes"].shape[1] == len(dataset.info.attribute_names)
