"""Captions as what a network reads: noun phrases, as padded arrays of word numbers.

captions of an example -> one of them, or all -> noun phrases -> numbers of words
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fgkd_jax.data.noun_phrases import Chunker, rule_chunker, spacy_chunker
from fgkd_jax.data.vocabulary import Vocabulary, encode_phrases
from fgkd_jax.errors import UserError, nearest

_CHUNKERS: Mapping[str, Callable[[], Chunker]] = {
    "rules": lambda: rule_chunker,
    "spacy": spacy_chunker,
}


@dataclass(frozen=True)
class TextOptions:
    """What is read of an example's captions, and how.

    Which captions: with "one" a training example has one of its captions, drawn anew in every epoch
    (by seed and position in the stream of examples, so that a resumed run draws the same), and in
    evaluation "first" its first. That is the default, since the number of phrases, by which a stage
    divides (1/p), is then that of training, and a network sees ten texts of an image instead of the
    same one. "all" joins all captions, ten for CUB and Flowers: the paper's thirty phrases an image
    cannot come from one sentence.

    Attributes:
      captions_dir: folder of captions in their original layout, see `fgkd_jax.data.captions`; None
        where the data set has captions of its own.
      train_captions: of an image in training.
      eval_captions: of an image in evaluation.
      max_phrases: p, phrases of an image; those behind are left out.
      max_words: t, words of a phrase; the first of a longer one are left out.
      unique_phrases: leave out a phrase that an image has already.
      chunker: what finds noun phrases: "rules", or "spacy".
      min_count: how often a word must occur in training to have a number of its own.
    """

    captions_dir: str | None = None
    train_captions: Literal["one", "all"] = "one"
    eval_captions: Literal["first", "all"] = "first"
    max_phrases: int = 8
    max_words: int = 6
    unique_phrases: bool = True
    chunker: Literal["rules", "spacy"] = "rules"
    min_count: int = 1

    def __post_init__(self) -> None:
        for name in ("max_phrases", "max_words", "min_count"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name, choices in (
            ("train_captions", ("one", "all")),
            ("eval_captions", ("first", "all")),
            ("chunker", tuple(_CHUNKERS)),
        ):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise UserError(f"{name} is {value!r}{nearest(value, choices)}")


@functools.cache
def make_chunker(name: str) -> Chunker:
    """Makes a chunker that remembers the sentences it has read, once per process.

    Args:
      name: "rules" or "spacy".

    Returns:
      The chunker.

    Raises:
      UserError: there is no such chunker, or it is not installed.
    """
    if name not in _CHUNKERS:
        raise UserError(f"chunker is {name!r}{nearest(name, _CHUNKERS)}")
    return functools.lru_cache(maxsize=2**17)(_CHUNKERS[name]())


def phrases_of(
    captions: Iterable[str], *, chunker: str = "rules", unique: bool = True
) -> list[tuple[str, ...]]:
    """Finds the noun phrases of captions.

    Args:
      captions: sentences.
      chunker: "rules" or "spacy".
      unique: whether to leave out a phrase that was there before.

    Returns:
      Phrases in order.

    Example:
      >>> phrases_of(["a red bird with black wings", "a bird with black wings"])
      [('red', 'bird'), ('black', 'wings'), ('bird',)]
    """
    chunk = make_chunker(chunker)
    found = [phrase for caption in captions for phrase in chunk(caption)]
    return list(dict.fromkeys(found)) if unique else found


@dataclass(frozen=True)
class CaptionEncoder:
    """From the captions of an example to the arrays of a batch.

    Attributes:
      vocabulary: numbers of words.
      options: how captions are read.
      train: whether `train_captions` or `eval_captions` says which.
    """

    vocabulary: Vocabulary
    options: TextOptions
    train: bool

    def __call__(
        self, captions: Sequence[str], rng: np.random.Generator
    ) -> Mapping[str, np.ndarray]:
        """Encodes captions.

        Args:
          captions: of one example; none is as good as some without a phrase.
          rng: draws the caption in training.

        Returns:
          `phrases` int32[p, t] and `phrase_lengths` int32[p].
        """
        options = self.options
        which = options.train_captions if self.train else options.eval_captions
        if which == "one":
            # One draw whatever the captions, so that what is drawn behind it stays.
            place = rng.random()
            captions = captions[int(place * len(captions)) :][:1]
        elif which == "first":
            captions = captions[:1]
        phrases, lengths = encode_phrases(
            phrases_of(captions, chunker=options.chunker, unique=options.unique_phrases),
            self.vocabulary,
            max_phrases=options.max_phrases,
            max_words=options.max_words,
        )
        return {"phrases": phrases, "phrase_lengths": lengths}
