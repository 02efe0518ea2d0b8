"""From boxes and parts to features with thumbnails, the pointing game and pictures of attention."""

import json

import cv2
import numpy as np
import pytest

from fgkd_jax.cli import attention, features, pictures
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.data import open_dataset, registry
from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.data.feature_folder import read_identity
from fgkd_jax.errors import UserError

NAMES = ("a", "b", "c", "d", "e")
PARTS = ("head", "tail")
SEEN = np.array([True, True, False, True, False])
SPLITS = {
    "train": (0, 1, 3) * 6,
    "test_seen": (0, 1, 3) * 2,
    "test_unseen": (2, 4) * 3,
}


class Dots:
    """Images with a white dot at the head, which is in a box away from the border."""

    def __init__(self, labels, first):
        self.labels = np.array(labels, np.int64)
        self.ids = first + np.arange(len(labels))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        rng = np.random.default_rng(int(self.ids[index]))
        image = rng.integers(0, 60, (120, 160, 3)).astype(np.uint8)
        x, y = int(rng.integers(50, 90)), int(rng.integers(40, 70))
        image[y - 3 : y + 3, x - 3 : x + 3] = 255
        return {
            "image": image,
            "label": int(self.labels[index]),
            "id": int(self.ids[index]),
            "name": f"{self.ids[index]}.png",
            "bbox": np.array([40, 30, 100, 80], np.float32),
            "parts": np.array([[x, y, 1], [0, 0, 0]], np.float32),
        }


def dots():
    rng = np.random.default_rng(0)
    described = ClassDescriptions(
        NAMES,
        rng.random((5, 6)).astype(np.float32),
        SEEN,
        attribute_names=tuple("uvwxyz"),
        word_vectors=rng.normal(size=(6, 4)).astype(np.float32),
        attribute_parts=np.array([0, -1, 1, 0, 0, 1], np.int32),
    )
    sources = {split: Dots(labels, 100 * n) for n, (split, labels) in enumerate(SPLITS.items())}
    info = DatasetInfo(
        "dots",
        NAMES,
        {split: len(labels) for split, labels in SPLITS.items()},
        part_names=PARTS,
        descriptions=described,
        fingerprint="dots",
    )
    return SplitSources(info, sources)


def write(config, folder, *overrides, thumbnails=24, keys="('parts',)"):
    experiment = load_config(
        str(config),
        [
            "--config.data.eval_geometry=box",
            "--config.data.image_size=(16, 24)",
            f"--config.data.extra_keys={keys}",
            *overrides,
        ],
    )
    return features.write_features(experiment, str(folder), stage=3, thumbnails=thumbnails)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "dots"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "open_dataset", lambda name, data_dir=None: dots())
        write(config, folder)
    return folder


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "dots"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "open_dataset", lambda name, data_dir=None: dots())
        write(config, folder, thumbnails=0)
    return folder


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        "train",
        "--config",
        "msdn_birds",
        "--workdir",
        str(workdir),
        f"--config.data.data_dir={folder}",
        "--config.train.steps=2",
        "--config.train.batch_size=8",
        "--config.train.eval_batch_size=8",
    ]
    assert main(arguments) == 0
    return workdir


class TestFeatures:
    def test_points_go_through_the_crop_into_cells(self, folder):
        dataset = open_dataset("features", data_dir=str(folder))
        assert dataset.info.feature_shape[:2] == (4, 6)
        for split in SPLITS:
            stored, images = dataset.source(split), dots().source(split)
            for i in range(len(images)):
                x, y, _ = images[i]["parts"][0]
                # The box and a tenth on each side, 72 x 60, grown to 3:2: 90 x 60 around (70, 55).
                cells = [(x - 25) * 6 / 90, (y - 25) * 4 / 60, 1]
                np.testing.assert_allclose(stored[i]["parts"], [cells, [0, 0, 0]], atol=1e-4)

    def test_a_thumbnail_is_what_the_backbone_saw(self, folder):
        source = open_dataset("features", data_dir=str(folder)).source("test_seen")
        for i in range(len(source)):
            row = source[i]
            picture, (x, y, _) = row["thumbnail"], row["parts"][0]
            assert picture.shape == (16, 24, 3)
            assert picture.dtype == np.uint8
            bright = np.argwhere(picture.min(2) > 128) + 0.5
            np.testing.assert_allclose(bright.mean(0), (y * 16 / 4, x * 24 / 6), atol=1.0)

    @pytest.mark.parametrize(
        ("side", "shape"), [(24, (16, 24)), (12, (8, 12)), (100, (16, 24)), (1, (1, 1))]
    )
    def test_thumbnails_keep_the_aspect_ratio_and_never_grow(self, side, shape):
        images = np.full((2, 16, 24, 3), 77, np.uint8)
        small = features.shrunk(images, side=side)
        assert small.shape == (2, *shape, 3)
        assert (small == 77).all()

    def test_without_thumbnails_and_with_others(self, config, folder, plain, monkeypatch):
        one, other = (open_dataset("features", data_dir=str(f)) for f in (plain, folder))
        assert set(one.source("train")[0]) == {"features", "label", "id", "name", "parts"}
        # The network and what it saw are the same.
        assert one.info.feature_backbone == other.info.feature_backbone
        monkeypatch.setattr(registry, "open_dataset", lambda name, data_dir=None: dots())
        with pytest.raises(UserError, match="with another extra_keys"):
            write(config, folder, thumbnails=0)
        with pytest.raises(UserError, match="with another thumbnails: 24 there and 12 here"):
            write(config, folder, thumbnails=12)

    def test_folders_from_before_there_were_thumbnails(self, folder, tmp_path):
        index = json.loads((folder / "features.json").read_text())
        assert index.pop("thumbnails") == 24
        (tmp_path / "features.json").write_text(json.dumps(index))
        assert read_identity(tmp_path).thumbnails == 0


class TestEvaluation:
    def test_the_pointing_game_is_played(self, workdir, capsys):
        assert main(["eval", "--workdir", str(workdir), "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)["figures"]
        assert 0 <= figures["pointing"] <= 1
        assert figures["pointing_gain"] >= 0

    def test_pictures_of_images_spread_over_the_split(self, workdir, folder, tmp_path, capsys):
        where = tmp_path / "pictures"
        arguments = ["eval", "--workdir", str(workdir), "--pictures", str(where)]
        assert main([*arguments, "--split", "test_unseen", "--examples", "3"]) == 0
        ids = open_dataset("features", data_dir=str(folder)).source("test_unseen").ids
        assert sorted(path.name for path in where.iterdir()) == [
            f"{ids[i]}.attention.png" for i in (0, 2, 5)
        ]
        picture = cv2.imread(str(where / f"{ids[0]}.attention.png"))
        # The image and one tile for each of two parts.
        assert picture.shape[1] > attention.COLUMNS * attention.TILE
        assert picture.shape[0] < 2 * attention.TILE

    def test_pictures_need_thumbnails(self, workdir, plain, tmp_path, capsys):
        arguments = ["eval", "--workdir", str(workdir), "--data_dir", str(plain)]
        assert main([*arguments, "--pictures", str(tmp_path / "pictures")]) == 2
        message = "has no thumbnails to draw on; expected features that were written with"
        assert message in capsys.readouterr().err


class TestPictures:
    def test_the_strongest_attribute_of_each_part(self):
        table = np.array([[0.1, 0.9, 0.3, 0.8, 0.2, 0.3]], np.float32)
        described = ClassDescriptions(
            ("a",), table, np.array([True]), attribute_parts=np.array([1, -1, 0, 1, 1, 0], np.int32)
        )
        assert attention.attributes_to_show(described, 0) == [2, 3]
        plain = ClassDescriptions(("a",), np.tile(table, (1, 3)), np.array([True]))
        shown = attention.attributes_to_show(plain, 0)
        assert len(shown) == attention.MAPS
        assert shown[:4] == [1, 7, 13, 3]

    def test_maps_and_circles_lie_on_the_image(self):
        image = np.full((8, 12, 3), 90, np.uint8)
        maps = np.zeros((2, 2, 3), np.float32)
        maps[0, 1, 2] = maps[1, 0, 0] = 1.0
        points = np.array([[5 / 6, 3 / 4, 1], [0.5, 0.5, 0]], np.float32)
        picture = attention.draw_attention(image, maps, points, titles=["x", "y"], heading="h")
        step, top = attention.TILE + attention.GAP, 2 * attention.TEXT + 2 * attention.GAP + 6
        tiles = [
            picture[top : top + 200, attention.GAP + n * step :][:, : attention.TILE]
            for n in range(3)
        ]
        assert (tiles[0] == 90).all()
        light = [tile.astype(int).sum(2) for tile in tiles]
        assert light[1][170, 280] > light[1][20, 20] + 150
        assert light[2][20, 20] > light[2][170, 280] + 150
        circled = [np.argwhere((tile == pictures.YELLOW).all(2)) for tile in tiles]
        assert len(circled[0]) == len(circled[2]) == 0
        np.testing.assert_allclose(circled[1].mean(0), (150, 250), atol=1.5)
