"""Drawn scenes of several birds: what is drawn, stored and frozen."""

import hashlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fgkd_jax.data import check_dataset, open_dataset
from fgkd_jax.data import procedural_birds as birds
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.data.boxes import image_sizes
from fgkd_jax.data.procedural_birds import builder as builder_module
from fgkd_jax.data.procedural_birds import detection, examples
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.tasks import draw_task
from fgkd_jax.errors import UserError


@pytest.fixture(scope="module")
def drawn() -> list[birds.DrawnScene]:
    return [birds.draw_detection("train", index) for index in range(16)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("data")
    return folder, birds.open_birds(folder, config="detection_tiny", workers=0, progress=False)


def test_fields(drawn):
    genus_of = birds.birds_world().genus_of
    for index, scene in enumerate(drawn):
        count = len(scene.boxes)
        assert 1 <= count <= 6
        assert scene.image.shape == (256, 256, 3)
        assert scene.image.dtype == np.uint8
        assert scene.boxes.dtype == np.float32
        assert scene.box_labels.shape == scene.box_ignored.shape == (count,)
        assert scene.box_labels.tolist() == [genus_of[one] for one in scene.box_species]
        assert (scene.boxes[:, :2] < scene.boxes[:, 2:]).all()
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= 256
        assert scene.id == index
        assert scene.name == f"detection/train/{index:06d}"
    assert len({len(scene.boxes) for scene in drawn}) >= 5
    assert len({label for scene in drawn for label in scene.box_labels}) == 8


def test_boxes_are_tight_around_what_is_seen(monkeypatch):
    canvases = []
    draw = examples.draw_scene

    def kept(*args, **options):
        image, canvas = draw(*args, **options)
        canvases.append(canvas)
        return image, canvas

    monkeypatch.setattr(examples, "draw_scene", kept)
    scene = birds.draw_detection("train", 6)
    assert len(scene.boxes) == 6
    for number, box in enumerate(scene.boxes.astype(int), start=1):
        x0, y0, x1, y1 = box
        mask = canvases[0].coverage(number) >= 5
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 50
        assert all(line.any() for line in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


def test_a_bird_that_is_nearly_hidden_need_not_be_found(monkeypatch):
    assert not birds.draw_detection("train", 1).box_ignored.any()
    monkeypatch.setattr(detection, "LEAST_SHOWN", 1.0)
    hidden = birds.draw_detection("train", 1).box_ignored
    assert hidden.any()
    assert not hidden.all()  # some are not covered at all


def test_a_bird_of_which_nothing_is_seen_has_no_box(monkeypatch):
    behind, front = birds.Pose(128.0, 128.0, 12.0), birds.Pose(128.0, 128.0, 90.0)
    monkeypatch.setattr(detection, "scene_poses", lambda stream: [behind, front])
    for index in range(3):
        (box,) = birds.draw_detection("train", index).boxes
        assert box[2] - box[0] > 60


def test_the_place_of_birds_is_decided_by_its_own_stream():
    first, again = (detection.scene_poses(Stream(7, 3, 0, 2, 1)) for _ in range(2))
    assert first == again
    lengths = [pose.length for pose in first]
    assert lengths == sorted(lengths)
    counts = [len(detection.scene_poses(Stream(99, index))) for index in range(300)]
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert min(np.bincount(counts)[1:]) > 20


def test_wrong_arguments():
    with pytest.raises(UserError, match="no split 'trian'; did you mean 'train'"):
        birds.draw_detection("trian", 0)
    with pytest.raises(UserError, match="test has no example 400; expected 0 to 399"):
        birds.draw_detection("test", 400)


def test_tasks_draw_what_they_name():
    config = builder_module.CONFIGS["detection"]
    assert {split: len(config.tasks(split)) for split in config.splits} == dict(birds.SCENES)
    scene = draw_task(*config.tasks("test")[3])
    assert scene.name == "detection/test/000003"
    assert scene.id == config.id_of("test", 3) == 200_003


def test_read_back_is_what_was_drawn(built, drawn):
    dataset = built[1]
    assert dataset.info.name == "procedural_birds/detection_tiny"
    assert dataset.info.class_names == birds.birds_world().genus_names
    assert dataset.info.splits == {"train": 8, "validation": 4, "test": 4}
    source = dataset.source("train")
    for index in range(8):
        example = source[index]
        for key in ("boxes", "box_labels", "box_species", "box_ignored"):
            expected = getattr(drawn[index], key)
            np.testing.assert_array_equal(example[key], expected)
            assert example[key].dtype == expected.dtype
        assert (example["id"], example["name"]) == (drawn[index].id, drawn[index].name)
        stored = np.asarray(Image.open(io.BytesIO(example["image"]))).astype(int)
        assert np.abs(stored - drawn[index].image).mean() < 4
    labels, ids = labels_and_ids(dataset.source("test"))
    assert labels.tolist() == [0] * 4
    assert ids.tolist() == [200_000, 200_001, 200_002, 200_003]
    assert image_sizes(source).tolist() == [[256, 256]] * 8
    assert not hasattr(source, "captions")
    assert len(pickle.dumps(source)) < 500
    with pytest.raises(IndexError, match="expected 0 to 7"):
        source[8]


def test_it_is_opened_and_checked_by_name(built):
    folder = str(built[0])
    name = "procedural_birds/detection_tiny"
    assert open_dataset(name, data_dir=folder).info == built[1].info
    report = check_dataset(name, data_dir=folder)
    assert report.ok, str(report)
    assert dict(report.lines)["train images"] == "8"


def digest(split: str, index: int) -> str:
    scene = birds.draw_detection(split, index)
    found = hashlib.sha256(f"{scene.id} {scene.name}".encode())
    found.update(scene.image.tobytes())
    found.update(scene.boxes.astype("<i4").tobytes())
    found.update(scene.box_species.astype("<i4").tobytes())
    found.update(scene.box_labels.astype("<i4").tobytes())
    found.update(scene.box_ignored.tobytes())
    return found.hexdigest()[:16]


FROZEN: dict[str, str] = {
    "test/0": "7b376a54b957f7ff",
    "test/1": "b0186437bbb4597e",
    "test/6": "983b4f0e00ab78a2",
    "test/150": "9826afaa7ae86024",
    "train/0": "a0d75040ae259aba",
    "train/1": "fa62bf24830538be",
    "train/6": "3c03c227a5eaec61",
    "train/150": "15597bfb9b750189",
    "validation/0": "840f470454fec862",
    "validation/1": "3cd6becce7dc76ae",
    "validation/6": "019c947d71b5244f",
    "validation/150": "09f79018a00db5ef",
}


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_frozen(name):
    """Whoever changes what is drawn bumps the version and measures every figure again."""
    split, index = name.split("/")
    assert digest(split, int(index)) == FROZEN[name]
