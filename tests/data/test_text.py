"""Noun phrases of a hundred sentences, vocabularies, phrases as arrays, spaCy's absence."""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data import TextOptions, Vocabulary, phrases_of
from fgkd_jax.data.noun_phrases import rule_chunker, spacy_chunker, tokenize
from fgkd_jax.data.text import CaptionEncoder
from fgkd_jax.data.vocabulary import build_vocabulary, check_vocabulary, encode_phrases
from fgkd_jax.errors import UserError

SENTENCES = [
    line.split(" => ")
    for line in (Path(__file__).parent / "noun_phrases.txt").read_text("utf-8").splitlines()
]


def test_there_are_a_hundred_sentences():
    assert len({sentence for sentence, _ in SENTENCES}) == 100


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES, ids=range(len(SENTENCES)))
def test_noun_phrases(sentence, expected):
    assert [" ".join(phrase) for phrase in rule_chunker(sentence)] == expected.split(" | ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A blue-grey bird.", ["a", "blue-grey", "bird", "."]),
        ("the bird\u2019s  eye", ["the", "bird's", "eye"]),
        ("caf\u00e9-au-lait \ufb02ower", ["caf\u00e9-au-lait", "flower"]),
        ("5 petals;3 leaves", ["5", "petals", ";", "3", "leaves"]),
        ("_ - ' \n", []),
        ("", []),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ["a", "the", "bird", "is", "are", "red", "and", ",", ".", "wings", "with", "very",
             "bell", "shaped", "not", "has", "'s", "like", "each", "other"]
        ),
        max_size=14,
    ).map(" ".join)
)  # fmt: skip
def test_any_text_has_phrases_of_its_own_words(text):
    words = {part for word in tokenize(text) for part in (word, *word.split("-"))}
    for phrase in rule_chunker(text):
        assert phrase
        assert phrase[-1] not in ("and", ",", "the")
        assert {part for word in phrase for part in word.split("-")} <= words | {""}


@pytest.mark.parametrize("text", ["", "  ", "...", "is it that which", "and and and", "very"])
def test_texts_without_a_phrase(text):
    assert rule_chunker(text) == ()


PHRASES = [("red", "bird"), ("red", "wing"), ("long", "red", "bill"), ("bird",)]


def test_vocabularies_are_ordered_by_frequency_and_name():
    vocabulary = build_vocabulary(PHRASES)
    assert vocabulary.words == ("red", "bird", "bill", "long", "wing")
    assert len(vocabulary) == 7
    assert [vocabulary.word(i) for i in range(4)] == ["", "?", "red", "bird"]
    assert build_vocabulary(PHRASES, min_count=2).words == ("red", "bird")
    assert build_vocabulary(PHRASES, max_size=1).words == ("red",)
    assert vocabulary.fingerprint == build_vocabulary(PHRASES[::-1]).fingerprint
    others = (Vocabulary(vocabulary.words[::-1]), Vocabulary(vocabulary.words[:-1]))
    assert all(vocabulary.fingerprint != other.fingerprint for other in others)


def test_a_vocabulary_of_another_run_is_refused():
    ours, theirs = build_vocabulary(PHRASES), build_vocabulary(PHRASES[:2])
    check_vocabulary(ours, ours.fingerprint, owner="the teacher")
    check_vocabulary(ours, None, owner="the teacher")
    message = f"the teacher was trained with the vocabulary {theirs.fingerprint}; expected {ours.fingerprint}, the 7 words"  # noqa: E501
    with pytest.raises(UserError, match=message):
        check_vocabulary(ours, theirs.fingerprint, owner="the teacher")
    message = (
        f"{theirs.fingerprint} of {len(theirs)} words; expected {ours.fingerprint}, the "
        f"{len(ours)} words of this data set; the first that differs is 'wing' there and 'bill' "
        "here"
    )
    with pytest.raises(UserError, match=message):
        check_vocabulary(ours, theirs, owner="the teacher")
    fewer = Vocabulary(ours.words[:-1])
    with pytest.raises(UserError, match="the first that differs is 'wing' there and missing here"):
        check_vocabulary(fewer, ours, owner="the teacher")
    with pytest.raises(UserError, match="the first that differs is missing there and 'wing' here"):
        check_vocabulary(ours, fewer, owner="the teacher")
    check_vocabulary(ours, Vocabulary(ours.words), owner="the teacher")
    with pytest.raises(UserError, match="the vocabulary has 'a' 2 times; expected words once"):
        Vocabulary(("a", "b", "a"))


def test_phrases_as_arrays():
    vocabulary = build_vocabulary(PHRASES)
    numbers, lengths = encode_phrases(
        [("bird",), (), ("a", "b", "long", "red", "comb"), ("red",)],
        vocabulary,
        max_phrases=4,
        max_words=3,
    )
    assert numbers.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(numbers, [[3, 0, 0], [5, 2, 1], [2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(lengths, [1, 3, 1, 0])
    numbers, lengths = encode_phrases(PHRASES, vocabulary, max_phrases=2, max_words=1)
    np.testing.assert_array_equal(numbers, [[3], [6]])
    np.testing.assert_array_equal(lengths, [1, 1])


CAPTIONS = ("a red bird", "a bird with a long bill", "the wing is red")


def words(encoded, vocabulary):
    pairs = zip(encoded["phrases"], encoded["phrase_lengths"], strict=True)
    return [
        " ".join(vocabulary.word(n) for n in row[:length].tolist())
        for row, length in pairs
        if length
    ]


def test_which_captions_are_read():
    vocabulary = build_vocabulary(PHRASES)
    rng = np.random.default_rng(0)
    encode = CaptionEncoder(vocabulary, TextOptions(), train=True)
    drawn = {tuple(words(encode(CAPTIONS, rng), vocabulary)) for _ in range(60)}
    assert drawn == {("red bird",), ("bird", "long bill"), ("red wing",)}
    encode = CaptionEncoder(vocabulary, TextOptions(), train=False)
    assert words(encode(CAPTIONS, rng), vocabulary) == ["red bird"]
    everything = TextOptions(train_captions="all", eval_captions="all", max_phrases=3)
    for train in (True, False):
        encode = CaptionEncoder(vocabulary, everything, train=train)
        assert words(encode(CAPTIONS, rng), vocabulary) == ["red bird", "bird", "long bill"]
        assert words(encode((), rng), vocabulary) == []
    again = pickle.loads(pickle.dumps(encode))
    np.testing.assert_array_equal(again(CAPTIONS, rng)["phrases"], encode(CAPTIONS, rng)["phrases"])


def test_a_phrase_may_be_told_once_or_as_often_as_it_is_said():
    captions = ["a red bird", "a red bird"]
    assert phrases_of(captions) == [("red", "bird")]
    assert phrases_of(captions, unique=False) == [("red", "bird")] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_phrases": 0}, "max_phrases is 0; expected at least 1"),
        ({"max_words": -1}, "max_words is -1; expected at least 1"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        TextOptions(**options)


def test_a_missing_spacy_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"spaCy is not installed; pip install 'fgkd-jax\[text\]'"):
        spacy_chunker()


class FakePipeline:
    """What of spaCy's pipelines is used: noun chunks of tokens with text and part of speech."""

    def __call__(self, sentence):
        token = types.SimpleNamespace
        chunks = [
            [token(text="This", pos_="PRON"), token(text="bird", pos_="NOUN")],
            [token(text="it", pos_="PRON")],
            [token(text="A", pos_="DET"), token(text="blue-grey", pos_="ADJ"),
             token(text="Wing", pos_="NOUN")],
        ]  # fmt: skip
        return types.SimpleNamespace(noun_chunks=chunks)


def test_spacy_noun_chunks_lose_articles_and_pronouns(monkeypatch):
    def load(name):
        if name != "en_core_web_sm":
            raise OSError
        return FakePipeline()

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    assert spacy_chunker()("anything") == (("bird",), ("blue-grey", "wing"))
    with pytest.raises(UserError, match="no model 'de' here; python -m spacy download de"):
        spacy_chunker(model="de")
