"""Oxford Flowers-102 and FGVC-Aircraft, on fixtures in their authors' layouts."""

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from fgkd_jax.data import TextOptions, check_dataset, open_dataset, with_text
from fgkd_jax.data.base import captions_of
from fgkd_jax.errors import UserError


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((12, 10, 3), 99, np.uint8))


@pytest.fixture
def flowers(tmp_path):
    root = tmp_path / "flowers102"
    for number in range(1, 7):
        write_image(root / "jpg" / f"image_{number:05}.jpg")
        k = (number - 1) // 2 + 1
        (root / "text_c10" / f"class_{k:05}").mkdir(parents=True, exist_ok=True)
        file = root / "text_c10" / f"class_{k:05}" / f"image_{number:05}.txt"
        file.write_text(f"the petals of number {number} are pink\n" * 10)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 1, 2, 2, 3, 3]], np.uint8)})
    sets = {"trnid": [[5, 1, 3]], "valid": [[2]], "tstid": [[4, 6]]}
    savemat(root / "setid.mat", {name: np.array(value) for name, value in sets.items()})
    return root


def test_flowers(flowers):
    dataset = open_dataset("flowers102", data_dir=str(flowers.parent))
    assert dataset.info.splits == {"train": 3, "validation": 1, "test": 2}
    assert dataset.info.class_names == ("class_00001", "class_00002", "class_00003")
    train = dataset.source("train")
    assert (train.ids.tolist(), train.labels.tolist()) == ([1, 3, 5], [0, 1, 2])
    assert train[1]["name"].endswith("image_00003.jpg")
    assert check_dataset("flowers102", data_dir=str(flowers)).ok
    told = with_text(dataset, TextOptions(captions_dir=str(flowers)))
    assert captions_of(told.source("test"), 1)[0] == "the petals of number 6 are pink"


def test_damaged_flowers_are_told_in_one_line(flowers):
    (flowers / "setid.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"setid\.mat: is no file of Matlab's"):
        open_dataset("flowers102", data_dir=str(flowers))
    savemat(flowers / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[7]]})
    with pytest.raises(UserError, match=r"setid\.mat: tstid has image 7; expected 1 to 6"):
        open_dataset("flowers102", data_dir=str(flowers))
    savemat(flowers / "setid.mat", {"trnid": [[1]]})
    with pytest.raises(UserError, match=r"has no 'valid'; expected trnid, valid, tstid"):
        open_dataset("flowers102", data_dir=str(flowers))
    (flowers / "setid.mat").unlink()
    with pytest.raises(UserError, match=r"setid\.mat is missing .*; get 102flowers\.tgz"):
        open_dataset("flowers102", data_dir=str(flowers))
    with pytest.raises(UserError, match="jpg is missing"):
        open_dataset("flowers102", data_dir=str(flowers / "jpg"))


@pytest.fixture
def aircraft(tmp_path):
    root = tmp_path / "fgvc-aircraft-2013b" / "data"
    lists = {"train": ("0001", "A 1"), "val": ("0002", "B-2"), "test": ("0003", "A 1")}
    for split, (image, variant) in lists.items():
        write_image(root / "images" / f"{image}.jpg")
        (root / f"images_variant_{split}.txt").write_text(f"{image} {variant}\n")
    (root / "variants.txt").write_text("A 1\nB-2\n")
    (root / "images_box.txt").write_text("0001 1 2 9 12\n0002 2 2 4 4\n0003 1 1 3 3\n")
    return root


def test_aircraft(aircraft):
    dataset = open_dataset("fgvc_aircraft", data_dir=str(aircraft.parent.parent))
    assert dataset.info.splits == {"train": 1, "validation": 1, "test": 1}
    assert dataset.info.class_names == ("A 1", "B-2")
    example = dataset.source("train")[0]
    assert (example["label"], example["id"]) == (0, 1)
    np.testing.assert_array_equal(example["bbox"], [0, 1, 9, 12])
    both = open_dataset("fgvc_aircraft/trainval", data_dir=str(aircraft))
    assert both.info.splits == {"train": 2, "test": 1}
    assert both.source("train").labels.tolist() == [0, 1]
    assert check_dataset("fgvc_aircraft", data_dir=str(aircraft)).ok


def test_damaged_aircraft_are_told_in_one_line(aircraft):
    (aircraft / "images_variant_val.txt").write_text("0002 C\n")
    with pytest.raises(UserError, match="line 1 is '0002 C'; expected '<number> <variant of"):
        open_dataset("fgvc_aircraft", data_dir=str(aircraft))
    (aircraft / "images_variant_val.txt").write_text("0002 B-2\n")
    (aircraft / "images_box.txt").write_text("0001 1 2 9\n")
    with pytest.raises(UserError, match=r"images_box\.txt: line 1 is '0001 1 2 9'; expected"):
        open_dataset("fgvc_aircraft", data_dir=str(aircraft))
    (aircraft / "variants.txt").unlink()
    with pytest.raises(UserError, match=r"variants\.txt is missing .*; get fgvc-aircraft-2013b"):
        open_dataset("fgvc_aircraft", data_dir=str(aircraft.parent))
