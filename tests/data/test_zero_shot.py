"""Data sets with unseen classes: what is refused, validation classes, names, word vectors."""

import dataclasses

import numpy as np
import pytest

from fgkd_jax.data import (
    DataOptions,
    eval_iterator,
    hold_out_classes,
    train_iterator,
    with_word_vectors,
)
from fgkd_jax.data.base import Inspection, labels_and_ids, split_source, splits_of
from fgkd_jax.data.check import check_inspection
from fgkd_jax.data.class_descriptions import (
    ClassDescriptions,
    load_descriptions,
    match_names,
    save_descriptions,
)
from fgkd_jax.data.pipeline import divide_train
from fgkd_jax.data.word_vectors import composed_word_vectors, read_word_vectors, words_of
from fgkd_jax.data.zero_shot import check_zero_shot, zero_shot_problems
from fgkd_jax.errors import UserError


class TestSplits:
    def test_a_sound_data_set_has_no_problem(self, zero_shot):
        dataset = zero_shot()
        assert zero_shot_problems(dataset) == []
        assert check_zero_shot(dataset) is dataset

    @pytest.mark.parametrize(
        ("split", "label", "message"),
        [
            (
                "train",
                1,
                "class 'b' has images in the split 'train', the first with id 7",
            ),
            ("test_seen", 4, "the unseen class 'e' has images in the split 'test_seen'"),
            ("test_unseen", 2, "the seen class 'c' has images in the split 'test_unseen'"),
        ],
    )
    def test_a_class_in_the_wrong_split_is_named(self, zero_shot, made, split, label, message):
        sound = zero_shot().source(split)
        source = made(np.append(sound.labels, label), np.append(sound.ids, 7))
        dataset = zero_shot(sources={split: source})
        with pytest.raises(UserError, match=message):
            check_zero_shot(dataset)
        report = check_inspection("made", "here", Inspection(dataset))
        assert message in "\n".join(report.problems)

    def test_a_seen_class_needs_training_images(self, zero_shot, made):
        train = zero_shot().source("train")
        keep = train.labels != 3
        dataset = zero_shot(sources={"train": made(train.labels[keep], train.ids[keep])})
        with pytest.raises(UserError, match="the seen class 'd' has no image in the split 'train'"):
            check_zero_shot(dataset)

    def test_data_sets_without_unseen_classes_are_left_alone(self, zero_shot):
        described = zero_shot().info.descriptions
        every = dataclasses.replace(described, seen=np.ones(6, bool))
        assert zero_shot_problems(zero_shot(descriptions=every)) == []
        assert zero_shot_problems(zero_shot(descriptions=None)) == []

    def test_several_splits_are_read_as_one(self, zero_shot):
        dataset = zero_shot()
        both = split_source(dataset, "test_unseen+test_seen")
        labels, ids = labels_and_ids(both)
        parts = [dataset.source(split) for split in ("test_unseen", "test_seen")]
        assert ids.tolist() == [i for part in parts for i in part.ids]
        assert [both[i]["id"] for i in range(len(both))] == ids.tolist()
        assert [both[i]["label"] for i in range(len(both))] == labels.tolist()
        with pytest.raises(IndexError):
            both[len(both)]
        batches = eval_iterator(dataset, "test_unseen+test_seen", DataOptions(), batch_size=7)
        seen = [b["id"][b["mask"]] for b in batches]
        assert np.concatenate(seen).tolist() == ids.tolist()
        with pytest.raises(UserError, match="no split 'tset_seen'; did you mean 'test_seen'"):
            splits_of(dataset.info, "test_unseen+tset_seen")
        with pytest.raises(UserError, match="name one twice"):
            splits_of(dataset.info, "train+train")

    def test_the_report_counts_what_describes_the_classes(self, zero_shot):
        rows = dict(check_inspection("made", "here", Inspection(zero_shot())).lines)
        assert (rows["unseen classes"], rows["attributes"]) == ("2", "5")
        assert rows["word vectors"] == "none"


class TestHoldOutClasses:
    def test_only_seen_classes_are_left_and_some_play_the_unseen(self, zero_shot):
        dataset = zero_shot(per_class=10)
        part = hold_out_classes(dataset, classes=0.25, fraction=0.2, seed=3)
        info, described = part.info, part.info.descriptions
        assert info.class_names == described.class_names == ("a", "c", "d", "f")
        assert info.groupings == {"pair": (0, 1, 1, 2)}
        assert (~described.seen).sum() == 1
        rows = [0, 2, 3, 5]
        np.testing.assert_array_equal(
            described.attributes, dataset.info.descriptions.attributes[rows]
        )
        assert set(info.splits) == {"train", "validation"}
        labels = {}
        for split in info.splits:
            source = part.source(split)
            labels[split], ids = labels_and_ids(source)
            assert len(source) == info.splits[split]
            for i in range(len(source)):
                example = source[i]
                assert (example["label"], example["id"]) == (labels[split][i], ids[i])
                # The class is still that of the image.
                assert "abcdef"[(ids[i] % 1000) // 10] == info.class_names[example["label"]]
        assert described.seen[labels["train"]].all()
        counts = np.bincount(labels["validation"], minlength=4)
        assert counts[described.seen].tolist() == [2, 2, 2]
        assert counts[~described.seen].tolist() == [10]
        assert len(labels["train"]) == 3 * 8
        assert zero_shot_problems(part) == []

    def test_seeds_hold_out_others_and_the_fingerprint_tells(self, zero_shot):
        parts = [
            hold_out_classes(zero_shot(), classes=0.5, fraction=0.5, seed=s).info for s in range(8)
        ]
        held = {tuple(info.descriptions.seen.tolist()) for info in parts}
        assert len(held) > 2
        assert {sum(row) for row in held} == {2}
        assert len({info.fingerprint for info in parts}) == len(held)

    def test_the_authors_classes(self, zero_shot):
        described = zero_shot().info.descriptions
        held = np.array([False, False, True, False, False, False])
        dataset = zero_shot(descriptions=dataclasses.replace(described, held_out=held))
        part = hold_out_classes(dataset, classes="authors", fraction=0.5)
        assert part.info.descriptions.seen.tolist() == [True, False, True, True]
        assert part.info.descriptions.held_out is None

    def test_through_the_options(self, zero_shot):
        options = DataOptions(validation_classes=0.25, validation_fraction=0.25)
        part = divide_train(zero_shot(), options)
        assert set(part.info.splits) == {"train", "validation"}
        assert divide_train(part, options) is part
        batches = train_iterator(zero_shot(), options, batch_size=6, seed=0)
        batch = next(batches)
        batches.close()
        assert batch["features"].shape == (6, 1, 1, 3)
        assert part.info.descriptions.seen[batch["label"]].all()
        validation = list(eval_iterator(zero_shot(), "validation", options, batch_size=4))
        assert sum(b["mask"].sum() for b in validation) == part.info.splits["validation"]

    def test_mistakes_are_told(self, zero_shot, made):
        def held(dataset, classes=0.25, fraction=0.5):
            return hold_out_classes(dataset, classes=classes, fraction=fraction)

        with pytest.raises(UserError, match="made has no unseen classes"):
            held(zero_shot(descriptions=None))
        with pytest.raises(UserError, match="made names no validation classes"):
            held(zero_shot(), "authors")
        for wrong in (1.0, -0.5, "author"):
            with pytest.raises(UserError, match=r"expected a share in \(0, 1\) or 'authors'"):
                held(zero_shot(), wrong)
        described = zero_shot().info.descriptions
        every = dataclasses.replace(described, held_out=described.seen)
        with pytest.raises(UserError, match="4 of 4 seen classes are held out"):
            held(zero_shot(descriptions=every), "authors")
        with pytest.raises(UserError, match="has a single training image"):
            held(zero_shot(sources={"train": made([0, 2, 3, 5], [1, 2, 3, 4])}))
        with pytest.raises(UserError, match=r"validation_classes is 'all'; expected in \[0, 1\)"):
            DataOptions(validation_classes="all")
        with pytest.raises(
            UserError, match=r"validation_fraction is 0 with validation_classes 0\.2"
        ):
            DataOptions(validation_classes=0.2)


class TestFeaturesInThePipeline:
    def test_batches_have_features_and_no_image(self, zero_shot):
        batch = next(eval_iterator(zero_shot(), "test_seen", DataOptions(), batch_size=20))
        assert set(batch) == {"features", "label", "id", "mask"}
        assert batch["features"].dtype == np.float32
        assert batch["features"].shape == (20, 1, 1, 3)
        assert batch["features"][:16, 0, 0, 0].tolist() == batch["id"][:16].tolist()
        assert batch["mask"].sum() == 16
        assert not batch["features"][16:].any()

    def test_the_shape_is_checked_and_views_are_refused(self, zero_shot):
        for changes in ({"feature_shape": (1, 1, 4)}, {"feature_dtype": "float16"}):
            batches = eval_iterator(zero_shot(**changes), "test_seen", DataOptions(), batch_size=4)
            with pytest.raises(UserError, match=r"features are float32\[1, 1, 3\]; expected float"):
                next(batches)
        with pytest.raises(UserError, match="views is 2, but made has features"):
            train_iterator(zero_shot(), DataOptions(views=2), batch_size=4, seed=0)
        batches = eval_iterator(
            zero_shot(), "test_seen", DataOptions(extra_keys=("bbox",)), batch_size=4
        )
        with pytest.raises(UserError, match="has no 'bbox'"):
            next(batches)

    def test_balanced_batches_of_features(self, zero_shot):
        options = DataOptions(images_per_class=2)
        batches = train_iterator(zero_shot(), options, batch_size=8, seed=1)
        for _ in range(3):
            labels = next(batches)["label"]
            assert np.bincount(labels, minlength=6).tolist() == [2, 0, 2, 2, 0, 2]
        batches.close()


class TestDescriptions:
    def test_they_survive_a_file(self, zero_shot, tmp_path):
        plain = zero_shot().info.descriptions
        full = dataclasses.replace(
            plain,
            attribute_names=tuple("vwxyz"),
            word_vectors=np.ones((5, 2), np.float32),
            held_out=np.array([True] + [False] * 5),
            attribute_parts=np.arange(5, dtype=np.int32),
        )
        for described in (plain, full):
            save_descriptions(tmp_path / "d.npz", described)
            again = load_descriptions(tmp_path / "d.npz")
            assert again.fingerprint == described.fingerprint
            for one in dataclasses.fields(described):
                np.testing.assert_array_equal(
                    getattr(again, one.name), getattr(described, one.name)
                )
        (tmp_path / "d.npz").write_bytes(b"PK no more")
        with pytest.raises(UserError, match="no readable descriptions of classes"):
            load_descriptions(tmp_path / "d.npz")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attributes": np.ones((5, 5))}, r"shape \(5, 5\); expected one row .* 6 classes"),
            ({"seen": np.ones(5, bool)}, "seen has shape"),
            ({"held_out": np.ones(5, bool)}, "held_out has shape"),
            ({"attribute_parts": np.ones(6, int)}, "expected one part for each of 5 attributes"),
            ({"attribute_names": ("a",)}, "1 attribute names for 5 attributes"),
            ({"word_vectors": np.ones((4, 2))}, "one row for each of 5 attributes"),
            ({"word_vectors": np.full((5, 2), np.inf)}, "not finite"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, zero_shot, changes, message):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(zero_shot().info.descriptions, **changes)

    def test_a_nan_names_its_class(self):
        attributes = np.ones((2, 3), np.float32)
        attributes[1, 2] = np.nan
        with pytest.raises(UserError, match="attribute 2 of class 'owl' is nan; expected a finite"):
            ClassDescriptions(("auk", "owl"), attributes, np.array([True, False]))

    def test_names_are_matched(self):
        def match(ours, theirs):
            return match_names(ours, theirs, our_source="A", their_source="B")

        assert match("cab", "abcd").tolist() == [2, 0, 1]
        expected = "the class 'x' .and 1 more. of A is not in B, which has 'b' instead"
        with pytest.raises(UserError, match=expected):
            match("axy", "abc")
        with pytest.raises(UserError, match="B names the class 'b' twice"):
            match("a", "abb")
        with pytest.raises(UserError, match="the class 'c' of A is not in B; expected the same"):
            match("abc", "ab")


class TestWordVectors:
    NAMES = ("has_bill_shape::hooked_seabird", "has_wing_color::blue")

    def read(self, path, names=NAMES):
        return read_word_vectors(str(path), attribute_names=names, num_attributes=2)

    def test_words_of_names(self):
        assert words_of(self.NAMES[0]) == ("bill", "shape", "hooked", "seabird")
        assert words_of("has") == ("has",)
        assert words_of("new world") == ("new", "world")

    def test_a_text_file_is_averaged_by_word(self, tmp_path):
        path = tmp_path / "glove.txt"
        path.write_text("5 2\nBill 1 0\nshape 0 1\nbill 9 9\n\nhooked 2 2\nof 1 1\nblue -1 0.5\n")
        expected = [[1.0, 1.0], [-1.0, 0.5]]
        np.testing.assert_allclose(self.read(path), expected)
        assert self.read(path).dtype == np.float32

    def test_an_array_is_taken_in_order(self, tmp_path):
        np.save(tmp_path / "v.npy", np.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(self.read(tmp_path / "v.npy", ()), [[0, 1, 2], [3, 4, 5]])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("bill 1 2\nblue 1\n", "line 2: expected a word and 2 numbers"),
            ("bill 1 2\nblue 1 x\n", "line 2: expected a word and 2 numbers"),
            ("bill 1 2\nblue 1 nan\n", "line 2: expected a word and 2 numbers"),
            ("bill 1 2\n", "have none of the words of attribute 'has_wing_color::blue'"),
        ],
    )
    def test_wrong_text(self, tmp_path, text, message):
        path = tmp_path / "w.txt"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            self.read(path)

    def test_other_mistakes(self, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            self.read(tmp_path / "none.npy")
        (tmp_path / "w.txt").write_text("bill 1\n")
        with pytest.raises(UserError, match=r"the attributes have no names; expected an \.npy"):
            self.read(tmp_path / "w.txt", ())
        np.save(tmp_path / "v.npy", np.zeros((3, 2)))
        with pytest.raises(UserError, match=r"shape \(3, 2\); expected one row for each of 2"):
            self.read(tmp_path / "v.npy")
        np.save(tmp_path / "v.npy", np.full((2, 2), np.nan))
        with pytest.raises(UserError, match="not a finite number"):
            self.read(tmp_path / "v.npy")
        (tmp_path / "v.npy").write_bytes(b"nothing")
        with pytest.raises(UserError, match=r"not a readable \.npy file"):
            self.read(tmp_path / "v.npy")
        with pytest.raises(UserError, match="two attributes have the same name"):
            composed_word_vectors(["a", "a"])

    def test_a_data_set_gets_others(self, zero_shot, tmp_path):
        np.save(tmp_path / "v.npy", np.ones((5, 7)))
        dataset = with_word_vectors(zero_shot(), str(tmp_path / "v.npy"))
        assert dataset.info.descriptions.word_vectors.shape == (5, 7)
        assert dataset.info.fingerprint != zero_shot().info.fingerprint
        assert len(dataset.source("train")) == 16
        with pytest.raises(UserError, match="made has no class attributes"):
            with_word_vectors(zero_shot(descriptions=None), str(tmp_path / "v.npy"))
