"""Words by number, and phrases as padded arrays of numbers."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np

from fgkd_jax.errors import UserError

PADDING = 0
"""The number behind the end of a phrase."""

UNKNOWN = 1
"""The number of every word that the vocabulary has not."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by number; 0 is padding and 1 stands for any other word.

    Attributes:
      words: word number i + 2.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.words)) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise UserError(f"the vocabulary has {word!r} {count} times; expected words once")

    def __len__(self) -> int:
        return len(self.words) + 2

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each word."""
        return {word: i + 2 for i, word in enumerate(self.words)}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the words in order."""
        return hashlib.sha256("\0".join(self.words).encode()).hexdigest()[:16]

    def word(self, number: int) -> str:
        """Names a number.

        Args:
          number: 0 to `len(self)` - 1.

        Returns:
          The word; "" for padding, "?" for an unknown word.
        """
        return self.words[number - 2] if number > UNKNOWN else ("", "?")[number]


def build_vocabulary(
    phrases: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None
) -> Vocabulary:
    """Collects the words of phrases, the most frequent first and equally frequent ones by name.

    Args:
      phrases: of the training split alone.
      min_count: how often a word must occur.
      max_size: at most so many words; None for all.

    Returns:
      The vocabulary.
    """
    counts = Counter(word for phrase in phrases for word in phrase)
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return Vocabulary(tuple(word for _, word in ranked[:max_size]))


def check_vocabulary(ours: Vocabulary, theirs: Vocabulary | str | None, *, owner: str) -> None:
    """Refuses numbers that were given by another vocabulary.

    Args:
      ours: the data set's.
      theirs: what something was trained with, or its fingerprint alone; None where that is unknown.
      owner: what was trained, for the message.

    Raises:
      UserError: it is another one.
    """
    fingerprint = theirs.fingerprint if isinstance(theirs, Vocabulary) else theirs
    if fingerprint is None or fingerprint == ours.fingerprint:
        return
    told, differs = fingerprint, ""
    if isinstance(theirs, Vocabulary):
        told = f"{fingerprint} of {len(theirs)} words"
        there, here = next(
            pair for pair in zip_longest(theirs.words, ours.words) if pair[0] != pair[1]
        )
        differs = f"; the first that differs is {_quoted(there)} there and {_quoted(here)} here"
    raise UserError(
        f"{owner} was trained with the vocabulary {told}; expected {ours.fingerprint}, "
        f"the {len(ours)} words of this data set{differs}"
    )


def _quoted(word: str | None) -> str:
    return "missing" if word is None else repr(word)


def encode_phrases(
    phrases: Sequence[Sequence[str]], vocabulary: Vocabulary, *, max_phrases: int, max_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turns phrases into numbers.

    Of too many phrases the first are kept; of a phrase too long the last words, among them the
    noun that it is about.

    Args:
      phrases: phrases of words.
      vocabulary: numbers of words.
      max_phrases: p.
      max_words: t.

    Returns:
      Numbers int32[p, t], padded with 0, and lengths int32[p], 0 where there is no phrase.
    """
    numbers = np.full((max_phrases, max_words), PADDING, np.int32)
    lengths = np.zeros(max_phrases, np.int32)
    for i, phrase in enumerate([one for one in phrases if one][:max_phrases]):
        row = [vocabulary.numbers.get(word, UNKNOWN) for word in phrase[-max_words:]]
        numbers[i, : len(row)] = row
        lengths[i] = len(row)
    return numbers, lengths
