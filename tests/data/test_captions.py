"""Captions: the layout of their authors, those of drawn birds, batches with phrases."""

import contextlib
import hashlib

import cv2
import numpy as np
import pytest

from fgkd_jax.data import (
    DataOptions,
    TextOptions,
    divide_train,
    eval_iterator,
    open_dataset,
    train_iterator,
    with_text,
)
from fgkd_jax.data.base import captions_of
from fgkd_jax.data.captions import inspect_captions, partners
from fgkd_jax.data.noun_phrases import rule_chunker
from fgkd_jax.data.procedural_birds import ATTRIBUTES, CAPTIONS_VERSION, ERROR_RATE, draw_example
from fgkd_jax.data.procedural_birds.captions import SPOKEN, caption_words, tell
from fgkd_jax.data.procedural_birds.examples import captions_of as bird_captions
from fgkd_jax.data.procedural_birds.streams import Stream
from fgkd_jax.data.procedural_birds.world import GROUPS, SMALL_GROUPS
from fgkd_jax.data.procedural_birds.zero_shot import captions_of as unseen_captions
from fgkd_jax.errors import UserError

CLASSES = ("001.Red_bird", "002.Blue_bird", "003.Green_bird")


def write_cub(root):
    """Four images a class, the last of them for testing, with captions as CUB has them."""
    lists = {"images": [], "image_class_labels": [], "train_test_split": []}
    for k, name in enumerate(CLASSES):
        (root / "CUB" / "images" / name).mkdir(parents=True)
        (root / "text_c10" / name).mkdir(parents=True)
        for i in range(4):
            number, stem = 4 * k + i + 1, f"{name[4:]}_{i:04}_{k}{i}"
            image = np.full((9, 9, 3), 20 * number, np.uint8)
            cv2.imwrite(str(root / "CUB" / "images" / name / f"{stem}.jpg"), image)
            colour = name[4:].split("_")[0].lower()
            lines = [f"this is a {colour} bird with {n} spots and a tail of word{number}x{n}"
                     for n in range(10)]  # fmt: skip
            (root / "text_c10" / name / f"{stem}.txt").write_text("\n".join(lines) + "\n")
            lists["images"].append(f"{number} {name}/{stem}.jpg")
            lists["image_class_labels"].append(f"{number} {k + 1}")
            lists["train_test_split"].append(f"{number} {int(i < 3)}")
    lists["classes"] = [f"{k + 1} {name}" for k, name in enumerate(CLASSES)]
    for name, lines in lists.items():
        (root / "CUB" / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def cub(tmp_path):
    write_cub(tmp_path)
    return tmp_path


def open_text(root, **options):
    dataset = open_dataset("cub200_2011", data_dir=str(root / "CUB"))
    return with_text(dataset, TextOptions(captions_dir=str(root), **options))


def options(root=None, **text):
    folder = None if root is None else str(root)
    return DataOptions(
        image_size=8,
        train_geometry="resize",
        eval_geometry="resize",
        text=TextOptions(captions_dir=folder, **text),
    )


def test_captions_are_found_by_the_name_of_the_image(cub):
    dataset = open_text(cub)
    train = dataset.source("train")
    captions = captions_of(train, 4)
    assert captions[3] == "this is a blue bird with 3 spots and a tail of word6x3"
    assert len(captions) == 10
    assert "blue" in train[4]["name"].lower()
    again = with_text(
        open_dataset("cub200_2011", data_dir=str(cub / "CUB")),
        TextOptions(captions_dir=str(cub / "text_c10")),
    )
    assert again.info == dataset.info


def test_the_vocabulary_is_that_of_training(cub):
    words = open_text(cub).info.vocabulary.words
    assert {"red", "word1x0", "word11x9"} <= set(words)
    assert not {"word4x0", "word12x9", "this", "a"} & set(words)
    assert "word1x0" not in open_text(cub, min_count=2).info.vocabulary.words


def test_a_smaller_training_split_keeps_its_captions(cub):
    asked = DataOptions(validation_fraction=0.4)
    divided = divide_train(open_text(cub), asked)
    for split in ("train", "validation"):
        source = divided.source(split)
        for i in range(len(source)):
            colour = source[i]["name"].rsplit("/", 1)[1].split("_")[0].lower()
            assert f" {colour} bird" in captions_of(source, i)[0]
    assert len(divided.info.vocabulary) == len(open_text(cub).info.vocabulary)


def test_flowers_have_captions_by_number(tmp_path):
    for k in range(1, 3):
        (tmp_path / "train" / f"class_{k:05}").mkdir(parents=True)
        (tmp_path / "test" / f"class_{k:05}").mkdir(parents=True)
        (tmp_path / "text_c10" / f"class_{k:05}").mkdir(parents=True)
        for i, split in enumerate(("train", "test")):
            name = f"image_{10 * k + i:05}"
            image = np.zeros((9, 9, 3), np.uint8)
            cv2.imwrite(str(tmp_path / split / f"class_{k:05}" / f"{name}.jpg"), image)
            file = tmp_path / "text_c10" / f"class_{k:05}" / f"{name}.txt"
            file.write_text("\n".join([f"a flower of {k}{i}"] * 10), "utf-8-sig")
    dataset = open_dataset("image_folder", data_dir=str(tmp_path))
    dataset = with_text(dataset, TextOptions(captions_dir=str(tmp_path)))
    assert captions_of(dataset.source("test"), 1) == ("a flower of 21",) * 10


def test_two_images_of_one_name_are_told(tmp_path):
    """In folders of their own they are apart; from one folder to the other split they are not."""
    for split, k in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
        (tmp_path / split / f"c{k}").mkdir(parents=True)
        (tmp_path / "text_c10" / f"c{k}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "text_c10" / f"c{k}" / "0.txt").write_text(f"a bird of {k}")
        cv2.imwrite(str(tmp_path / split / f"c{k}" / "0.png"), np.zeros((9, 9, 3), np.uint8))
    dataset = open_dataset("image_folder", data_dir=str(tmp_path))
    _, problems = inspect_captions(dataset, str(tmp_path))
    assert len(problems) == 2
    assert "are those of train: c0/0.png and of test: c0/0.png; expected names" in problems[0]
    (tmp_path / "test" / "c0" / "0.png").rename(tmp_path / "test" / "c0" / "1.png")
    (tmp_path / "test" / "c1" / "0.png").rename(tmp_path / "test" / "c1" / "1.png")
    for k in range(2):
        (tmp_path / "text_c10" / f"c{k}" / "1.txt").write_text(f"a flower of {k}")
    dataset = open_dataset("image_folder", data_dir=str(tmp_path))
    told, problems = inspect_captions(dataset, str(tmp_path))
    assert not problems
    assert captions_of(told.source("test"), 1) == ("a flower of 1",)
    assert captions_of(told.source("train"), 0) == ("a bird of 0",)


def refused(root, expected):
    with pytest.raises(UserError) as caught:
        open_text(root)
    line = str(caught.value)
    assert "\n" not in line
    assert expected in line, line


def test_bad_captions_are_told_in_one_line(cub):
    folder = cub / "text_c10" / CLASSES[1]
    files = sorted(folder.iterdir())
    good = files[0].read_bytes()
    files[0].write_bytes(b"\n  \n")
    refused(cub, f"captions {files[0]}: is empty; expected one sentence a line")
    files[0].write_bytes(b"\xff\xfea\x00 \x00b\x00")
    refused(cub, f"captions {files[0]}: byte 0 is 0xff, which is not UTF-8; expected captions")
    files[0].write_bytes("a caf\u00e9-brown bird".encode("latin-1"))
    refused(cub, f"captions {files[0]}: byte 5 is 0xe9, which is not UTF-8")
    files[0].write_bytes(good)
    files[1].unlink()
    refused(cub, "_0001_11.jpg: has no captions in ")
    for file in folder.iterdir():
        file.unlink()
    refused(
        cub, f"class {CLASSES[1]!r}: none of its 4 images has captions in {cub / 'text_c10'}; exp"
    )
    dataset = open_dataset("cub200_2011", data_dir=str(cub / "CUB"))
    _, problems = inspect_captions(dataset, str(cub))
    assert len(problems) == 1
    with pytest.raises(UserError, match=r"there is no folder of captions .*nowhere; expected"):
        with_text(dataset, TextOptions(captions_dir=str(cub / "nowhere")))
    with pytest.raises(UserError, match=r"has no captions of its own; expected data\.text"):
        with_text(dataset, TextOptions())


def collect(batches, count=None):
    with contextlib.closing(batches):
        return [batch for _, batch in zip(range(count or 10**6), batches, strict=False)]


def test_batches_hold_the_phrases_of_their_images(cub):
    dataset, asked = open_text(cub), options(cub, max_phrases=3, max_words=2)
    numbers = dataset.info.vocabulary.numbers
    colours = [numbers[word] for word in ("red", "blue", "green")]
    seen = set()
    for batch in collect(train_iterator(dataset, asked, batch_size=4, seed=1), 12):
        assert batch["phrases"].shape == (4, 3, 2)
        assert batch["phrases"].dtype == batch["phrase_lengths"].dtype == np.int32
        np.testing.assert_array_equal(
            batch["phrases"][:, 0, 0], [colours[k] for k in batch["label"]]
        )
        np.testing.assert_array_equal(batch["phrase_lengths"][:, :2], 2)
        assert not {"other_phrases"} & batch.keys()
        seen |= set(zip(batch["id"].tolist(), batch["phrases"][:, 1, 0].tolist(), strict=True))
    assert len({number for _, number in seen}) == 10  # of all ten captions
    # The draws belong to the step: what a resumed run reads is the same.
    whole = collect(train_iterator(dataset, asked, batch_size=4, seed=1), 5)
    resumed = collect(train_iterator(dataset, asked, batch_size=4, seed=1, start_step=3), 2)
    np.testing.assert_array_equal(whole[4]["phrases"], resumed[1]["phrases"])
    without = DataOptions(image_size=8, train_geometry="resize")
    plain = collect(train_iterator(dataset, without, batch_size=4, seed=1), 5)
    for with_phrases, alone in zip(whole, plain, strict=True):
        np.testing.assert_array_equal(with_phrases["image"], alone["image"])


def test_evaluation_reads_the_same_text_of_another_image_whatever_the_batch(cub):
    dataset, asked = open_text(cub), options(cub, max_phrases=2, max_words=2)
    many = collect(eval_iterator(dataset, "train", asked, batch_size=9))[0]
    few = collect(eval_iterator(dataset, "train", asked, batch_size=2))
    for key in ("phrases", "other_phrases", "phrase_lengths", "other_phrase_lengths"):
        joined = np.concatenate([batch[key] for batch in few])
        np.testing.assert_array_equal(joined[:9], many[key])
        assert not joined[9:].any()
    assert (many["phrases"][:, 0, 0] != many["other_phrases"][:, 0, 0]).all()


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        ([0, 1, 2] * 4, 0),
        ([0] * 4 + [1] * 4, 0),
        ([0] * 3 + [1], 2),
        ([0, 0], 2),
        ([0], 1),
        ([], 0),
    ],
)
def test_partners_are_of_other_classes_where_that_is_possible(labels, same):
    labels = np.array(labels, np.int64)
    paired = partners(labels, np.arange(len(labels)))
    assert sorted(paired) == list(range(len(labels)))
    assert np.sum(labels == labels[paired]) == same
    if len(labels) > 1:
        assert (paired != np.arange(len(labels))).all()


def test_partners_are_hardly_ever_close_relatives():
    """Classes that follow one another are often of one genus: 3 of 24 at a time here."""
    labels = np.arange(960) % 24
    paired = partners(labels, np.arange(960) + 200_000)
    assert (labels[paired] != labels).all()
    assert np.mean(labels[paired] // 3 == labels // 3) < 0.2
    order = np.random.default_rng(0).permutation(960)
    shuffled = partners(labels[order], order + 200_000)
    np.testing.assert_array_equal(order[shuffled], paired[order])


# ------------------------------------------------------------------------------------- the birds


def attributes_of(phrase):
    """The groups and values that a phrase of a drawn bird's caption may speak of."""
    things = {
        "body": ["body_colour"], "wings": ["wing_colour"], "belly": ["belly"],
        "bill": ["bill_shape", "bill_colour"], "tail": ["tail_shape"], "head": ["crest"],
        "breast": ["breast"], "forehead": ["forehead"], "eye ring": ["eye_ring"],
        "brow": ["brow"], "throat": ["throat"], "wing bars": ["wing_bar"],
        "tail tip": ["tail_tip"], "legs": ["leg_colour"],
    }  # fmt: skip
    words = [word for word in phrase if word != "two"]
    thing = " ".join(words[1:])
    return [(group, words[0]) for group in things[thing] if words[0] in SPOKEN[group]]


@pytest.fixture(scope="module")
def told():
    """Captions of birds all of whose attributes can be seen, with their traits."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        traits = {group: values[rng.integers(len(values))] for group, values in GROUPS.items()}
        visible = [traits[g] == v for g, values in GROUPS.items() for v in values]
        rows.append((traits, tell(np.array(visible, np.uint8), Stream(9, i))))
    return rows


def test_each_bird_has_ten_captions_of_words_that_are_known(told):
    known = set(caption_words())
    for _, captions in told:
        assert len(captions) == 10
        for caption in captions:
            phrases = rule_chunker(caption)
            assert phrases[0] == ("bird",)
            assert 2 <= len(phrases[1:]) <= 4
            assert {word for phrase in phrases for word in phrase} <= known
            assert all(attributes_of(phrase) for phrase in phrases[1:])


def test_mistakes_are_as_frequent_as_stated(told):
    right, total, small = 0, 0, 0
    for traits, captions in told:
        for phrase in (p for caption in captions for p in rule_chunker(caption)[1:]):
            pairs = attributes_of(phrase)
            right += any(traits[group] == value for group, value in pairs)
            small += pairs[0][0] in SMALL_GROUPS
            total += 1
    # A yellow bill may be of a black one by mistake, never of a hooked one: colours and shapes of
    # bills share no word.
    assert total > 8000
    assert abs(1 - right / total - ERROR_RATE) < 0.015
    assert 0.2 < small / total < 0.5


def test_only_what_can_be_seen_is_told():
    nothing = tell(np.zeros(len(ATTRIBUTES), np.uint8), Stream(1))
    assert set(nothing) == {"this is a bird."}
    one = np.zeros(len(ATTRIBUTES), np.uint8)
    one[ATTRIBUTES.index("belly::white")] = 1
    assert {rule_chunker(caption)[1:] for caption in tell(one, Stream(2))} <= {
        (("white", "belly"),),
        (("buff", "belly"),),
    }
    one[:] = 0
    one[ATTRIBUTES.index("eye_ring::none")] = 1
    assert set(tell(one, Stream(3))) == {"this is a bird."}


def test_unseen_species_are_told_by_streams_of_their_own():
    visible = np.ones(len(ATTRIBUTES), np.uint8)
    told = [unseen_captions(visible, split, 3) for split in ("train", "test_seen", "test_unseen")]
    told.append(bird_captions(visible, "train", 3))
    assert all(len(ten) == 10 for ten in told)
    assert len(set(told)) == 4
    assert unseen_captions(visible, "test_unseen", 3) == told[2]


def test_captions_of_the_first_examples_never_change():
    text = []
    for index in (0, 1, 30):
        example = draw_example("test", index)
        captions = bird_captions(example.visible_attributes, "test", index)
        text += [*captions, "\n"]
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]
    assert (CAPTIONS_VERSION, digest) == (1, "717d28c048211f35")


def test_birds_come_with_phrases(tmp_path):
    dataset = with_text(
        open_dataset("procedural_birds/tiny", data_dir=str(tmp_path)), TextOptions()
    )
    source = dataset.source("test")
    example = draw_example("test", 5)
    assert captions_of(source, 5) == bird_captions(example.visible_attributes, "test", 5)
    assert dataset.info.vocabulary.words == caption_words()
    batch = collect(eval_iterator(dataset, "test", options(), batch_size=24))[0]
    assert (batch["phrase_lengths"][:, 0] == 1).all()
    assert (batch["phrase_lengths"] > 0).sum(1).min() >= 1
    assert not np.isin(batch["phrases"], [1]).any()  # no unknown word


def test_one_caption_does_not_give_the_species_away(species_scores):
    """A reader who knows how captions are made: far above chance, far below sure."""
    one, ten = species_scores
    assert 0.1 < one < 0.6
    assert one + 0.2 < ten <= 1.0


@pytest.fixture(scope="module")
def species_scores():
    """Accuracy of the likeliest species given one caption, and given ten."""
    from fgkd_jax.data.procedural_birds import birds_world

    species = birds_world().species
    right = np.zeros(2)
    for index in range(480):
        label = index % len(species)
        captions = bird_captions(species[label].indicators.astype(np.uint8), "test", index)
        for which, texts in enumerate((captions[:1], captions)):
            phrases = [p for text in texts for p in rule_chunker(text)[1:]]
            scores = [sum(_likelihood(p, one.traits) for p in phrases) for one in species]
            right[which] += np.argmax(scores) == label
    return right / 480


def _likelihood(phrase, traits):
    """Log probability of a mention, given that its group is mentioned."""
    best = -20.0  # a group that this species has nothing to say of
    for group, value in attributes_of(phrase):
        if traits[group] in SPOKEN[group]:
            wrong = ERROR_RATE / (len(SPOKEN[group]) - 1)
            best = max(best, np.log(1 - ERROR_RATE if traits[group] == value else wrong))
    return best
