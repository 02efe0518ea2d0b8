"""Embeddings of attribute names: from NumPy files, from text files of words, or made of the words.

A text file has a word and its numbers on every line, with spaces between them (GloVe, fastText,
word2vec's text form, whose first line of two numbers is passed over).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgkd_jax.data.base import Dataset, DatasetInfo, Source
from fgkd_jax.errors import UserError

_FILLERS = ("has",)  # CUB's names begin with it: has_bill_shape::dagger


def words_of(name: str) -> tuple[str, ...]:
    """Splits the name of an attribute into words.

    Args:
      name: such as `has_bill_shape::curved_(up_or_down)`.

    Returns:
      Its words in lower case, without a leading "has".

    Example:
      >>> words_of("has_bill_shape::hooked_seabird")
      ('bill', 'shape', 'hooked', 'seabird')
    """
    words = tuple(re.findall(r"[^\W_]+", name.lower()))
    return words[1:] if len(words) > 1 and words[0] in _FILLERS else words


def read_word_vectors(
    path: str, *, attribute_names: Sequence[str], num_attributes: int
) -> np.ndarray:
    """Reads an embedding of each attribute.

    Args:
      path: an `.npy` file, float [a, v], with a row per attribute in their order; or a text file of
        words, of which the vectors of an attribute's words are averaged. Words that the file does
        not have are passed over.
      attribute_names: the names; a text file needs them.
      num_attributes: how many attributes there are.

    Returns:
      float32 [a, v].

    Raises:
      UserError: the file cannot be read, has another number of rows or a value that is not finite,
        a line is malformed, or no word of an attribute is in it.
    """
    if not Path(path).is_file():
        raise UserError(f"word vectors {path}: no such file")
    if Path(path).suffix == ".npy":
        return _from_array(path, num_attributes)
    if not attribute_names:
        raise UserError(
            f"word vectors {path} are by word, but the attributes have no names; expected an .npy "
            f"file with {num_attributes} rows"
        )
    words = [words_of(name) for name in attribute_names]
    known = _from_text(path, {word for row in words for word in row})
    rows = []
    for name, row in zip(attribute_names, words, strict=True):
        found = [known[word] for word in row if word in known]
        if not found:
            raise UserError(f"word vectors {path} have none of the words of attribute {name!r}")
        rows.append(np.mean(found, axis=0))
    return np.stack(rows).astype(np.float32)


def _from_array(path: str, num_attributes: int) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"word vectors {path}: not a readable .npy file: {error}") from error
    if array.ndim != 2 or len(array) != num_attributes:
        raise UserError(
            f"word vectors {path} have shape {array.shape}; expected one row for each of "
            f"{num_attributes} attributes"
        )
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise UserError(f"word vectors {path} hold a value that is not a finite number")
    return array.astype(np.float32)


def _from_text(path: str, wanted: set[str]) -> dict[str, np.ndarray]:
    """The vectors of some words; the first where a word is there in several spellings."""
    found: dict[str, np.ndarray] = {}
    size = None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.split() or [""]
            if not word or (number == 1 and len(values) == 1):
                continue
            size = len(values) if size is None else size
            if word.lower() not in wanted or word.lower() in found:
                continue
            try:
                vector = np.array(values, np.float64)
            except ValueError:
                vector = np.full(size, np.nan)
            if len(vector) != size or not size or not np.isfinite(vector).all():
                raise UserError(
                    f"word vectors {path}, line {number}: expected a word and {size} numbers"
                )
            found[word.lower()] = vector
    return found


def composed_word_vectors(attribute_names: Sequence[str]) -> np.ndarray:
    """Makes vectors of attribute names from their words, where there is no embedding of them.

    A word is a direction of its own, and a name the sum of its words, at unit length. So two
    attributes are alike as far as their names are: the white of the throat and that of the wing
    bar, or two shapes of the bill. Nothing is drawn at random and nothing learned elsewhere.

    Args:
      attribute_names: such as `bill_shape::hooked`. What stands before the `::` counts as one word,
        and so does what stands behind it.

    Returns:
      float32 [a, words].

    Raises:
      UserError: two attributes have the same name.

    Example:
      >>> vectors = composed_word_vectors(["throat::white", "brow::white", "brow::black"])
      >>> (vectors @ vectors.T).round(2).tolist()
      [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
    """
    if len(set(attribute_names)) < len(attribute_names):
        raise UserError("two attributes have the same name; expected different ones")
    names = [name.split("::") for name in attribute_names]
    words = {word: i for i, word in enumerate(sorted({word for name in names for word in name}))}
    vectors = np.zeros((len(names), len(words)), np.float32)
    for row, name in zip(vectors, names, strict=True):
        row[[words[word] for word in name]] = 1.0
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class _Described:
    """A data set with another description."""

    def __init__(self, base: Dataset, info: DatasetInfo):
        self.base, self.info = base, info

    def source(self, split: str) -> Source:
        """Returns the examples of a split."""
        return self.base.source(split)


def with_word_vectors(dataset: Dataset, path: str) -> Dataset:
    """Gives the attributes of a data set other word vectors.

    Args:
      dataset: with class descriptions.
      path: as `read_word_vectors` takes it.

    Returns:
      The data set with these vectors, and a fingerprint of its own.

    Raises:
      UserError: nothing describes its classes, or as of `read_word_vectors`.
    """
    info = dataset.info
    if info.descriptions is None:
        raise UserError(f"{info.name} has no class attributes; expected no word_vectors")
    vectors = read_word_vectors(
        path,
        attribute_names=info.descriptions.attribute_names,
        num_attributes=info.descriptions.attributes.shape[1],
    )
    described = replace(info.descriptions, word_vectors=vectors)
    mark = f"{info.fingerprint}-{described.fingerprint}"
    return _Described(dataset, replace(info, descriptions=described, fingerprint=mark))
