"""A builder made here stands in for TFDS's own: with their features, without their downloads."""

import io
import pickle
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fgkd_jax.data import tfds_names
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.data.images import decode
from fgkd_jax.data.pipeline import DataOptions, train_iterator
from fgkd_jax.errors import UserError


def encoded(value: int, height: int, kind: str, channels: int) -> io.BytesIO:
    pixels = np.full((height, 30, channels), value, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind)
    buffer.seek(0)
    return buffer


# TFDS looks for a builder's files beside its module, through a package that it does not install,
# unless the module is at the top level.
MODULE = "tiny"


class TinyCars(tfds.core.GeneratorBasedBuilder):
    """The features of cars196, stanford_dogs and caltech_birds2011 taken together."""

    __module__ = MODULE
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = "."

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    "bbox": tfds.features.BBoxFeature(),
                    "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
                    "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, n) for split, n in (("train", 7), ("test", 4))
        }

    def _generate_examples(self, split, n):
        box = tfds.features.BBox(0.1, 0.2, 0.5, 0.6)
        for i in range(n):
            yield (
                i,
                {
                    "id": f"{split}{i}",
                    "image": encoded(i * 9, 20 + i, "JPEG", 3),
                    "label": i % 3,
                    "bbox": box,
                    "objects": [{"bbox": box}] * i,
                    "segmentation_mask": encoded(i, 20 + i, "PNG", 1),
                },
            )


class TinyText(tfds.core.GeneratorBasedBuilder):
    """No image data set."""

    __module__ = MODULE
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = "."

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "hello"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS folder with both."""
    root = tmp_path_factory.mktemp("tfds")
    for builder in (TinyCars, TinyText):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return str(root)


def test_reads_encoded_images_and_their_annotations(prepared):
    dataset = tfds_names.inspect("tiny_cars", prepared).usable()
    assert dataset.info.name == "tfds/tiny_cars"
    assert dataset.info.splits == {"train": 7, "test": 4}
    assert dataset.info.class_names == ("a", "b", "c")
    source = dataset.source("test")
    for i in range(4):
        example = source[i]
        number = int(example["name"].removeprefix("tfds/tiny_cars/test/test"))
        assert example["label"] == number % 3
        assert example["id"] == 7 + i  # ids go by position, after those of train
        assert isinstance(example["image"], bytes)
        image = decode(example["image"], "x")
        assert image.shape == (20 + number, 30, 3)
        assert np.abs(image.astype(int) - number * 9).max() <= 2
        height = 20 + number
        # TFDS gives (y_min, x_min, y_max, x_max) as shares of the image.
        np.testing.assert_allclose(example["bbox"], [6, 0.1 * height, 18, 0.5 * height], rtol=1e-6)
    assert source[-1]["id"] == source[3]["id"]
    with pytest.raises(IndexError):
        source[4]


def test_labels_and_ids_agree_with_the_examples(prepared):
    dataset = tfds_names.inspect("tiny_cars", prepared).usable()
    ids = []
    for split, source in dataset.sources.items():
        labels, own = labels_and_ids(source)
        assert labels.tolist() == [source[i]["label"] for i in range(len(source))]
        assert own.tolist() == [source[i]["id"] for i in range(len(source))]
        assert len(labels) == dataset.info.splits[split]
        ids += own.tolist()
    assert sorted(ids) == list(range(11))


def test_its_images_can_be_grouped_by_class(prepared):
    dataset = tfds_names.inspect("tiny_cars", prepared).usable()
    options = DataOptions(image_size=8, images_per_class=2)
    iterator = train_iterator(dataset, options, batch_size=6, seed=0)
    for batch in islice(iterator, 4):
        assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2, 2]
        assert len(set(batch["id"].tolist())) == 6
    iterator.close()


def test_a_source_is_small_and_opens_again_after_pickling(prepared):
    source = tfds_names.inspect("tiny_cars", prepared).usable().source("train")
    before = source[3]
    state = pickle.dumps(source)
    assert len(state) < 1000
    assert pickle.loads(state)[3]["image"] == before["image"]


def test_a_process_without_the_builder_class_reads_the_folder(prepared):
    code = (
        "import sys; from fgkd_jax.data import tfds_names\n"
        f"dataset = tfds_names.inspect('tiny_cars', {prepared!r}).usable()\n"
        "print(dataset.source('train')[0]['name'])\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("tfds/tiny_cars/train/train")


def test_a_corrupt_image_keeps_its_other_annotations():
    record = {"image": b"no image", "label": 1, "bbox": np.array([0, 0, 1, 1], np.float32)}
    assert tfds_names._box(record, {"image": record["image"]}) == {}


def test_a_data_set_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(UserError) as caught:
        tfds_names.inspect("cars196", str(tmp_path)).usable()
    message = str(caught.value)
    assert message.startswith(f"tfds/cars196 is not prepared as array_record (looked in {tmp_path}")
    command = f"tfds build cars196 --file_format=array_record --data_dir={tmp_path} "
    assert f"; prepare it with: {command}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cars19", "TFDS knows no data set 'cars19'; did you mean 'cars196'?"),
        ("tiny_text", "tfds/tiny_text has the features text; expected an image and a class"),
        ("tiny_cars:9.9.9", "TFDS cannot open 'tiny_cars:9.9.9'"),
    ],
)
def test_what_cannot_be_opened_is_one_line(prepared, name, message):
    (problem,) = tfds_names.inspect(name, prepared).problems
    assert problem.startswith(message)
    assert "\n" not in problem


def test_names_that_were_asked_for_exist_and_have_what_we_read(tmp_path):
    for name in ("cars196", "i_naturalist2017", "cifar100", "imagenet2012", "oxford_flowers102"):
        features = tfds.builder(name, data_dir=tmp_path).info.features
        assert isinstance(features["image"], tfds.features.Image)
        assert isinstance(features["label"], tfds.features.ClassLabel)


@pytest.mark.parametrize(
    ("name", "available", "roles"),
    [
        ("cars196", "train test", {"train": "train", "test": "test"}),
        ("imagenet2012", "train validation test", {"train": "train", "test": "validation"}),
        (
            "i_naturalist2017:0.1.0",
            "train validation test",
            {"train": "train", "test": "validation"},
        ),
        ("i_naturalist2021", "train mini val test", {"train": "train", "test": "val"}),
        ("food101", "train validation", {"train": "train", "test": "validation"}),
        (
            "oxford_flowers102",
            "test train validation",
            {"train": "train", "validation": "validation", "test": "test"},
        ),
    ],
)
def test_split_roles(name, available, roles):
    assert tfds_names.split_roles(name, dict.fromkeys(available.split())) == roles


@pytest.mark.parametrize("available", ["train", "test", "validation", ""])
def test_a_data_set_without_two_splits_is_an_error(available):
    with pytest.raises(UserError, match="tfds/odd has no split"):
        tfds_names.split_roles("odd", dict.fromkeys(available.split()))
