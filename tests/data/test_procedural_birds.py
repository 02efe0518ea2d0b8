"""The embedded data set: species, drawing, independence of the scene, building and reading."""

import dataclasses
import hashlib
import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from fgkd_jax.data import procedural_birds as birds
from fgkd_jax.data.base import labels_and_ids
from fgkd_jax.data.procedural_birds import (
    anatomy,
    bird,
    dataset,
    examples,
    records,
    scene,
    world,
)
from fgkd_jax.data.procedural_birds import builder as builder_module
from fgkd_jax.data.procedural_birds.canvas import Canvas
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.tasks import draw_task
from fgkd_jax.data.procedural_birds.world import check_traits, class_attributes
from fgkd_jax.data.zero_shot import check_zero_shot
from fgkd_jax.errors import UserError

SPLITS = {"train": 80, "validation": 20, "test": 40}


def same(first: birds.DrawnExample, second: birds.DrawnExample) -> bool:
    pairs = ((getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    return all(np.array_equal(a, b) for a, b in pairs)


def grown(mask: np.ndarray, pixels: int = 3) -> np.ndarray:
    """The mask and what is near it: sharp tips cover too little of a pixel to be in the mask."""
    return cv2.dilate(mask, np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


@pytest.fixture(scope="module")
def drawn() -> list[birds.DrawnExample]:
    """Two examples of every species."""
    return [birds.draw_example("train", index) for index in range(48)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("data")
    return folder, birds.open_birds(folder, config="tiny", workers=0, progress=False)


class TestStream:
    def test_raw_words_are_what_they_always_were(self):
        # NumPy promises that Philox and SeedSequence never change; nothing here may either.
        stream = Stream(7, 1, 2)
        assert [stream.integer(0, 1000) for _ in range(6)] == FROZEN_INTEGERS
        assert Stream(7).octets(2, 3).tolist() == FROZEN_OCTETS

    def test_key_decides(self):
        draws = {tuple(Stream(*key).octets(8)) for key in ((1,), (2,), (1, 0), (1, 2), (2, 1))}
        assert len(draws) == 5

    def test_ranges(self):
        stream = Stream(3)
        numbers = [stream.integer(-2, 5) for _ in range(2000)]
        assert set(numbers) == set(range(-2, 5))
        units = [stream.unit() for _ in range(2000)]
        assert 0 <= min(units) < 0.01
        assert 0.99 < max(units) < 1
        assert abs(np.mean(units) - 0.5) < 0.03
        assert abs(np.mean([stream.chance(0.2) for _ in range(2000)]) - 0.2) < 0.04
        assert sorted(stream.permutation("abcde")) == list("abcde")


class TestWorld:
    def test_counts(self):
        world = birds.birds_world()
        assert len(world.species) == 24
        assert world.genus_of == tuple(np.repeat(range(8), 3))
        assert len({one.name for one in world.species}) == 24
        assert len(set(world.genus_names)) == 8
        assert all(one.name.endswith(world.genus_names[one.genus]) for one in world.species)
        assert 45 <= len(birds.ATTRIBUTES) <= 60
        assert len(set(birds.ATTRIBUTES)) == len(birds.ATTRIBUTES)

    @pytest.mark.parametrize("seed", range(5))
    def test_species_of_a_genus_differ_in_one_or_two_small_parts(self, seed):
        world = birds.make_world(seed, genera=16)
        for genus in range(16):
            members = [one.traits for one in world.species if one.genus == genus]
            varying = {g for g in birds.GROUPS if len({traits[g] for traits in members}) > 1}
            assert 1 <= len(varying) <= 2
            assert varying <= set(birds.SMALL_GROUPS)
            assert len({tuple(traits.values()) for traits in members}) == 3

    def test_genera_differ_in_large_parts(self):
        large = [group for group in birds.GROUPS if group not in birds.SMALL_GROUPS]
        world = birds.birds_world()
        kinds = [[one.traits[group] for group in large] for one in world.species[::3]]
        assert len({kind[0] for kind in kinds}) == 8
        for first, second in itertools.combinations(kinds, 2):
            assert sum(a != b for a, b in zip(first, second, strict=True)) >= 2

    def test_no_mark_in_the_colour_of_what_it_lies_on(self):
        for one in birds.make_world(3, genera=16).species:
            clash = {"crimson": "red", "rufous": "red", "rose": "red", "gold": "yellow"}
            colour = clash.get(one.traits["body_colour"])
            assert colour not in [one.traits[group] for group in birds.SMALL_GROUPS]

    def test_class_attributes(self):
        world = birds.birds_world()
        table = world.class_attributes
        assert table.shape == (24, len(birds.ATTRIBUTES))
        assert table.dtype == np.float32
        assert table.min() >= 0
        assert table.max() <= 1
        assert not table.flags.writeable
        # Continuous, as annotators are: neither binary nor equal for equal traits.
        assert len(np.unique(table)) > 20
        assert not np.array_equal(table[0], table[1])
        indicators = np.stack([one.indicators for one in world.species])
        assert (indicators.sum(axis=1) == len(birds.GROUPS)).all()
        assert table[indicators == 1].min() > table[indicators == 0].max()
        start = 0
        for values in birds.GROUPS.values():
            stop = start + len(values)
            assert (table[:, start:stop].argmax(1) == indicators[:, start:stop].argmax(1)).all()
            start = stop
        assert np.array_equal(table, class_attributes(world.species, seed=birds.SEED))

    def test_an_unseen_species_is_a_vector_of_traits(self):
        seen, other = (birds.birds_world().species[i] for i in (0, 9))
        traits = dict(seen.traits) | {"body_colour": "teal", "crest": other.traits["crest"]}
        unseen = birds.Species("Unseen Bird", 3, traits)
        assert birds.traits_of(unseen.indicators) == traits
        canvas = Canvas(np.zeros((128, 128, 3), np.uint8))
        canvas.number = 5
        birds.draw_bird(canvas, unseen.traits, birds.Pose(64.0, 64.0, 80.0), Stream(0))
        assert 800 < (canvas.coverage(5) > 4).sum() < 4000
        assert not canvas.coverage(1).any()

    def test_wrong_traits(self):
        traits = dict(birds.birds_world().species[0].traits)
        with pytest.raises(UserError, match="'crestt'; did you mean 'crest'"):
            check_traits(traits | {"crestt": "smooth"})
        with pytest.raises(UserError, match="brow = 'whit'; did you mean 'white'"):
            check_traits(traits | {"brow": "whit"})
        del traits["throat"]
        with pytest.raises(UserError, match="lack the group 'throat'"):
            birds.Species("x", 0, traits)
        indicators = birds.birds_world().species[0].indicators
        with pytest.raises(UserError, match=r"body_colour are \[.*\]; expected a single 1"):
            birds.traits_of(np.maximum(indicators, np.arange(len(indicators)) < 2))
        with pytest.raises(UserError, match=r"shape \(3,\); expected \(57,\)"):
            birds.traits_of(np.ones(3, int))
        with pytest.raises(UserError, match="genera = 17; expected 1 to 16"):
            birds.make_world(0, genera=17)


class TestDrawing:
    def test_same_seed_same_pixels_in_any_order(self, drawn):
        for index in (7, 3, 40):
            assert same(birds.draw_example("train", index), drawn[index])

    def test_seed_split_and_index_each_decide(self, drawn):
        others = [
            birds.draw_example("train", 3, seed=birds.SEED + 1),
            birds.draw_example("test", 3),
            birds.draw_example("validation", 3),
            birds.draw_example("train", 27),
        ]
        images = [drawn[3].image, *(other.image for other in others)]
        assert {other.label for other in others} == {3}
        for first, second in itertools.combinations(images, 2):
            assert (first != second).mean() > 0.5

    def test_fields(self, drawn):
        genus_of = birds.birds_world().genus_of
        for index, example in enumerate(drawn):
            assert example.image.shape == (256, 256, 3)
            assert example.image.dtype == np.uint8
            assert example.mask.shape == (256, 256)
            assert set(np.unique(example.mask)) == {0, 1}
            assert example.label == index % 24
            assert example.genus == genus_of[example.label]
            assert example.parts.shape == (len(birds.PARTS), 3)
            assert example.parts.dtype == example.attributes.dtype == np.float32
            assert example.visible_attributes.shape == (len(birds.ATTRIBUTES),)
            assert example.visible_attributes.dtype == np.uint8
            indicators = birds.birds_world().species[example.label].indicators
            assert (example.visible_attributes <= indicators).all()

    def test_box_is_tight_around_the_mask(self, drawn):
        for example in drawn:
            x0, y0, x1, y1 = example.bbox.astype(int)
            assert 0 <= x0 < x1 <= 256
            assert 0 <= y0 < y1 <= 256
            assert example.mask[y0:y1, x0:x1].sum() == example.mask.sum() > 400
            edges = [example.mask[y0], example.mask[y1 - 1], example.mask[:, x0]]
            assert all(edge.any() for edge in (*edges, example.mask[:, x1 - 1]))

    def test_parts_lie_in_the_image_and_visible_ones_on_the_bird(self, drawn):
        shown = np.stack([example.parts for example in drawn])
        assert (shown[..., :2] >= 0).all()
        assert (shown[..., :2] < 256).all()
        for example in drawn:
            for x, y, visible in example.parts:
                assert visible == example.mask[int(y), int(x)]
        # Every part is seen in most pictures, and covered in some.
        assert (shown[..., 2].mean(axis=0) > 0.8).all()
        assert (shown[..., 2].min(axis=0) == 0).sum() >= 8

    def test_occlusion_is_what_hides_parts_and_attributes(self, drawn, monkeypatch):
        monkeypatch.setattr(scene, "before", lambda *args, **options: None)
        hidden = 0
        for index in range(24):
            bare, example = birds.draw_example("train", index), drawn[index]
            assert bare.parts[:, 2].all()
            indicators = birds.birds_world().species[bare.label].indicators
            assert np.array_equal(bare.visible_attributes, indicators)
            assert (example.mask <= bare.mask).all()
            hidden += (example.visible_attributes < indicators).sum()
            assert (example.visible_attributes < indicators).any() <= (
                example.mask != bare.mask
            ).any()
        assert hidden > 10

    def test_flip_is_a_mirror_image_of_the_pose(self):
        pose = birds.Pose(100.0, 90.0, 80.0, tilt=0.2, head=0.1, tail=-0.1)
        left = dataclasses.replace(pose, flip=True)
        mirrored = bird.part_points(left) * (-1, 1) + (200, 0)
        np.testing.assert_allclose(mirrored, bird.part_points(pose), atol=1e-9)

    def test_wrong_arguments(self):
        with pytest.raises(UserError, match="no split 'trian'; did you mean 'train'"):
            birds.draw_example("trian", 0)
        with pytest.raises(UserError, match="test has no example 960; expected 0 to 959"):
            birds.draw_example("test", 960)
        with pytest.raises(UserError, match="no species 24"):
            birds.draw_example("test", 0, label=24)


class TestSceneIsBlind:
    """Nothing but the bird may tell the species."""

    def test_another_species_leaves_the_scene_alone(self):
        for index, label in ((0, 5), (1, 23), (2, 12), (3, 4), (30, 17)):
            own, other = (
                birds.draw_example("test", index),
                birds.draw_example("test", index, label=label),
            )
            assert other.label == label
            outside = ~(grown(own.mask) | grown(other.mask))
            assert np.array_equal(own.image[outside], other.image[outside])
            assert not np.array_equal(own.image, other.image)
            assert np.array_equal(own.parts[:, :2], other.parts[:, :2])

    def test_without_the_bird_the_rest_is_the_same(self):
        for index in (0, 11, 22):
            own = birds.draw_example("test", index)
            empty = birds.draw_example("test", index, with_bird=False)
            other = birds.draw_example("test", index, with_bird=False, label=3)
            outside = ~grown(own.mask)
            assert np.array_equal(own.image[outside], empty.image[outside])
            assert not np.array_equal(own.image, empty.image)
            assert np.array_equal(empty.image, other.image)
            assert not empty.mask.any()
            assert not empty.bbox.any()
            assert not empty.parts[:, 2].any()
            assert not empty.visible_attributes.any()

    def test_species_of_a_genus_differ_in_few_pixels(self, monkeypatch):
        monkeypatch.setattr(scene, "before", lambda *args, **options: None)
        for genus in range(8):
            trio = [birds.draw_example("test", 7, label=3 * genus + k) for k in range(3)]
            for first, second in itertools.combinations(trio, 2):
                changed = np.abs(first.image.astype(int) - second.image).max(axis=2) > 40
                assert 8 <= changed.sum() <= 0.12 * first.mask.sum()


class TestSplits:
    def test_balanced_and_complete(self):
        ids = []
        for split, count in SPLITS.items():
            size = examples.split_size(split)
            assert size == 24 * count
            labels = [examples.label_of(index) for index in range(size)]
            assert (np.bincount(labels, minlength=24) == count).all()
            ids += [examples.id_of(split, index) for index in range(size)]
        assert len(set(ids)) == len(ids) == 3360
        assert 0 <= min(ids) <= max(ids) < 2**31

    def test_description(self, built):
        info = built[1].info
        assert info.name == "procedural_birds/tiny"
        assert info.num_classes == 24
        assert info.splits == {"train": 48, "validation": 24, "test": 24}
        assert info.groupings["genus"] == birds.birds_world().genus_of
        assert info.part_names == birds.PARTS
        assert info.attribute_names == birds.ATTRIBUTES
        assert len(info.fingerprint) == 16


class TestBuilt:
    def test_separating_parts_are_the_nearest_to_what_differs(self, built):
        species = birds.birds_world().species
        for one, parts in zip(species, built[1].info.separating_parts, strict=True):
            expected = set()
            for group, points in anatomy.GROUP_POINTS.items():
                values = {other.traits[group] for other in species if other.genus == one.genus}
                if len(values) == 1:
                    continue
                middle = np.mean([point[:2] for point in points], axis=0)
                gaps = [np.hypot(*(middle - anatomy.PART_POINTS[name][:2])) for name in birds.PARTS]
                expected.add(int(np.argmin(gaps)))
            assert set(parts) == expected
            assert 1 <= len(parts) <= 2

    def test_read_back_is_what_was_drawn(self, built, drawn):
        source = built[1].source("train")
        assert len(source) == 48
        for index in (0, 1, 24, 47):
            example, fields = source[index], vars(drawn[index])
            assert set(example) == set(fields)
            for name in set(fields) - {"image"}:
                assert np.array_equal(example[name], fields[name]), name
                assert getattr(example[name], "dtype", None) == getattr(fields[name], "dtype", None)
            stored = np.asarray(Image.open(io.BytesIO(example["image"]))).astype(int)
            assert np.abs(stored - fields["image"]).mean() < 4

    def test_labels_and_ids_need_no_reading(self, built):
        for split in SPLITS:
            source = built[1].source(split)
            labels, ids = labels_and_ids(source)
            read = [source[index] for index in range(0, len(source), 5)]
            assert [one["label"] for one in read] == labels[::5].tolist()
            assert [one["id"] for one in read] == ids[::5].tolist()

    def test_pickles_small_and_reads_from_threads(self, built):
        source = built[1].source("test")
        packed = pickle.dumps(source)
        assert len(packed) < 500
        copy = pickle.loads(packed)
        expected = [source[index]["image"] for index in range(24)]
        dataset._records.cache_clear()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda index: copy[index]["image"], list(range(24)) * 4))
        assert found == expected * 4

    def test_wrong_index_split_and_configuration(self, built, tmp_path):
        with pytest.raises(IndexError, match="expected 0 to 23"):
            built[1].source("test")[24]
        with pytest.raises(UserError, match="'tests'; did you mean 'test'"):
            built[1].source("tests")
        with pytest.raises(UserError, match="'tinny'; did you mean 'tiny'"):
            birds.open_birds(tmp_path, config="tinny")

    def test_opening_again_draws_nothing(self, built, monkeypatch):
        def never(*args, **options):
            raise AssertionError("drawn again")

        monkeypatch.setattr(builder_module, "draw_records", never)
        again = birds.open_birds(built[0], config="tiny")
        assert again.info == built[1].info

    def test_processes_draw_the_same_in_the_same_order(self, drawn):
        tasks = [("train", index) for index in (0, 5, 2, 7, 1)]
        found = list(records.draw_records(tasks, workers=2))
        assert found[3]["image"] == records.encode(drawn[7])["image"]
        assert [one["id"] for one in found] == [0, 5, 2, 7, 1]

    def test_a_process_that_dies_is_told(self, capfd):
        with pytest.raises(RuntimeError, match="ended early, with exit status 1"):
            list(records.draw_records([("train", 10**6)], workers=1))
        assert "no example 1000000" in capfd.readouterr().err

    def test_progress_bar(self, tmp_path, monkeypatch, capfd):
        monkeypatch.setattr(builder_module, "draw_records", quick)
        birds.build_birds(tmp_path, config="tiny", workers=0)
        captured = capfd.readouterr()
        assert "drawing 96 birds" in captured.err
        assert captured.out == ""


def quick(tasks, *, workers):
    """Stands in for the drawing: one picture, the right labels and ids."""
    del workers
    record = records.encode(birds.draw_example("train", 0))
    for split, index in tasks:
        yield record | {"label": examples.label_of(index), "id": examples.id_of(split, index)}


class TestInterrupted:
    def test_nothing_is_left_and_the_next_build_is_whole(self, tmp_path, monkeypatch):
        def interrupted(tasks, *, workers):
            yield from itertools.islice(quick(tasks, workers=workers), 60)
            raise KeyboardInterrupt

        folder = birds.birds_folder(tmp_path, config="tiny")
        monkeypatch.setattr(builder_module, "draw_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            birds.open_birds(tmp_path, config="tiny", progress=False)
        assert not folder.exists()
        assert not list(folder.parent.glob("*incomplete*"))
        monkeypatch.setattr(builder_module, "draw_records", quick)
        found = birds.open_birds(tmp_path, config="tiny", progress=False)
        assert [found.source("test")[i]["id"] for i in (0, 23)] == [200_000, 200_023]

    def test_what_a_killed_build_left_is_not_read_but_removed(self, tmp_path, monkeypatch):
        folder = birds.birds_folder(tmp_path, config="tiny")
        left = folder.parent / "incomplete.ABC123_1.0.0"
        left.mkdir(parents=True)
        (left / "procedural_birds-train.array_record-00000-of-00001").write_bytes(b"half")
        monkeypatch.setattr(builder_module, "draw_records", quick)
        found = birds.open_birds(tmp_path, config="tiny", progress=False)
        assert len(found.source("train")[47]["image"]) > 1000
        assert not left.exists()

    def test_records_in_the_wrong_order_are_refused(self, tmp_path, monkeypatch):
        def backwards(tasks, *, workers):
            return quick(tasks[::-1], workers=workers)

        monkeypatch.setattr(builder_module, "draw_records", backwards)
        with pytest.raises(RuntimeError, match="where train/0 was due"):
            birds.build_birds(tmp_path, config="tiny", progress=False)

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write to"):
            birds.build_birds(tmp_path / "file", config="tiny")


def digest(split: str, index: int) -> str:
    return digest_of(birds.draw_example(split, index))


def digest_of(example: birds.DrawnExample) -> str:
    found = hashlib.sha256(f"{example.label} {example.genus} {example.id} {example.name}".encode())
    found.update(example.image.tobytes())
    found.update(example.mask.tobytes())
    found.update(np.rint(example.attributes * 100).astype(np.uint8).tobytes())
    found.update(example.visible_attributes.tobytes())
    found.update(example.bbox.astype("<i4").tobytes())
    found.update(np.rint(example.parts * 8).astype("<i4").tobytes())
    return found.hexdigest()[:16]


class TestFrozen:
    """Whoever changes what is drawn bumps the version and measures every figure again."""

    def test_version(self):
        assert birds.VERSION == "1.0.0"

    @pytest.mark.parametrize(("split", "index"), list(itertools.product(SPLITS, (0, 1, 100, 479))))
    def test_examples(self, split, index):
        assert digest(split, index) == FROZEN[f"{split}/{index}"]

    def test_species(self):
        told = "\n".join(
            f"{s.name} {sorted(s.traits.items())}" for s in birds.birds_world().species
        )
        assert hashlib.sha256(told.encode()).hexdigest()[:16] == FROZEN["species"]


FROZEN_ZERO_SHOT = {
    "train/0": "d1be54f158a3e1c8",
    "train/2159": "72fa227fec7f58ac",
    "test_seen/7": "316f84f8411aec08",
    "test_unseen/0": "8a09723227c888a9",
    "test_unseen/479": "fff49c626082b0fb",
    "species": "6e5c5d17bea13388",
}
FROZEN_INTEGERS = [672, 564, 734, 49, 462, 841]
FROZEN_OCTETS = [[76, 83, 23], [85, 224, 5]]
FROZEN = {
    "train/0": "3a1b5ea810304281",
    "train/1": "9ff2484fc1efe3a5",
    "train/100": "d157e1b82f2db2b4",
    "train/479": "bf0433624951eec9",
    "validation/0": "68d199262626d93c",
    "validation/1": "2cfdf23cc8149235",
    "validation/100": "196b6eb16f4d9bc3",
    "validation/479": "f12f2f9ae0eec31e",
    "test/0": "0d1e2138e7451635",
    "test/1": "032434e17ab053b0",
    "test/100": "576e62e5158e6d14",
    "test/479": "7ebdd7dadd23b240",
    "species": "d6c74343c65050cd",
}


class TestZeroShot:
    """Species of another world, some of which training never sees."""

    def test_species_and_splits(self):
        species, seen = birds.zero_shot_world().species, np.array(birds.seen_species())
        assert len(species) == len(seen) == 48
        assert (~seen).sum() == 12
        assert len({one.name for one in species}) == 48
        table = np.stack([one.indicators for one in species]).astype(int)
        # Every attribute of an unseen species is one that training can learn.
        assert table[seen].sum(axis=0).min() >= 4
        shared = table @ table.T - len(birds.GROUPS) * np.eye(48, dtype=int)
        assert shared.max() <= len(birds.GROUPS) - 5
        for genus in range(8):
            colours = {o.traits["body_colour"] for o in species if o.genus == genus}
            assert len(colours) == 1
            assert 1 <= (~seen[6 * genus : 6 * genus + 6]).sum() <= 2
        for one in species:
            barred = world.BARRED_VALUES.get(one.traits["body_colour"], frozenset())
            assert not barred & {one.traits[group] for group in birds.SMALL_GROUPS}

    def test_groups_say_little_of_each_other(self):
        # In `classification`, one of these large parts tells the other.
        tables = {}
        for name, other in (("zero_shot", birds.zero_shot_world()), ("other", birds.birds_world())):
            pairs = [(o.traits["bill_shape"], o.traits["tail_shape"]) for o in other.species]
            tables[name] = len(set(pairs))
        assert tables["zero_shot"] >= 12
        assert tables["other"] <= 8

    def test_descriptions(self):
        described = birds.describe_species()
        assert described.attributes.shape == (48, 57)
        assert described.word_vectors.shape[0] == 57
        np.testing.assert_allclose((described.word_vectors**2).sum(1), 1, rtol=1e-6)
        parts = dict(zip(birds.ATTRIBUTES, described.attribute_parts, strict=True))
        assert parts["body_colour::teal"] == -1
        assert birds.PARTS[parts["eye_ring::red"]] == "eye"
        assert birds.PARTS[parts["tail_shape::fan"]] == "tail"

    @pytest.mark.parametrize("split", ["train", "test_seen", "test_unseen"])
    def test_examples_are_of_the_split(self, split):
        seen = birds.seen_species()
        config = builder_module.CONFIGS["zero_shot"]
        tasks = config.tasks(split)
        labels = [config.label_of(split, i) for i in range(len(tasks))]
        assert {seen[label] for label in labels} == {split != "test_unseen"}
        counts = np.bincount(labels, minlength=48)
        assert set(counts[counts > 0]) == {config.per_species[split]}
        example = birds.draw_zero_shot(split, 5)
        assert example.label == labels[5]
        assert example.id == config.id_of(split, 5)
        assert example.name == f"zero_shot/{split}/000005"
        assert same(draw_task(*tasks[5]), example)

    def test_scenes_are_not_those_of_the_other_configuration(self):
        one, other = birds.draw_zero_shot("train", 0), birds.draw_example("train", 0)
        assert (one.image != other.image).mean() > 0.5

    def test_read_back(self, tmp_path, monkeypatch):
        config = builder_module.CONFIGS["zero_shot"]
        monkeypatch.setattr(config, "per_species", dict.fromkeys(config.per_species, 1))
        found = birds.open_birds(tmp_path, config="zero_shot", workers=0, progress=False)
        assert found.info.name == "procedural_birds/zero_shot"
        assert found.info.splits == {"train": 36, "test_seen": 36, "test_unseen": 12}
        assert found.info.descriptions.seen.tolist() == list(birds.seen_species())
        for split in found.info.splits:
            source = found.source(split)
            labels, ids = labels_and_ids(source)
            for i in (0, len(source) - 1):
                assert (source[i]["label"], source[i]["id"]) == (labels[i], ids[i])
        assert check_zero_shot(found) is found

    def test_wrong_splits_and_indices(self):
        with pytest.raises(UserError, match="zero_shot has no split 'test'; did you mean"):
            birds.draw_zero_shot("test", 0)
        with pytest.raises(UserError, match="test_unseen has no example 480; expected 0 to 479"):
            birds.draw_zero_shot("test_unseen", 480)

    @pytest.mark.parametrize("name", list(FROZEN_ZERO_SHOT))
    def test_frozen(self, name):
        if name == "species":
            told = "\n".join(
                f"{s.name} {sorted(s.traits.items())}" for s in birds.zero_shot_world().species
            )
            told += str(birds.seen_species())
            assert hashlib.sha256(told.encode()).hexdigest()[:16] == FROZEN_ZERO_SHOT[name]
        else:
            split, index = name.split("/")
            example = birds.draw_zero_shot(split, int(index))
            assert digest_of(example) == FROZEN_ZERO_SHOT[name]
