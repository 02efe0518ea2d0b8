"""What is known of classes without an image of theirs: attributes, and words for attributes."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np

from fgkd_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class ClassDescriptions:
    """Attributes of classes, by which one can be recognised that was never seen in training.

    Attributes:
      class_names: one name per class, by index.
      attributes: float32 [k, a], how strongly each class has each attribute.
      seen: bool [k], whether training has images of the class.
      attribute_names: one name per attribute; empty where they have none.
      word_vectors: float32 [a, v], an embedding of each attribute's name; None where there is none.
      held_out: bool [k], seen classes that the authors of the splits keep for validation; None
        where they name none.
      attribute_parts: int32 [a], row of `parts` of an example at which each attribute shows, -1 for
        none in particular; None where that is not known.
    """

    class_names: tuple[str, ...]
    attributes: np.ndarray
    seen: np.ndarray
    attribute_names: tuple[str, ...] = ()
    word_vectors: np.ndarray | None = field(default=None)
    held_out: np.ndarray | None = field(default=None)
    attribute_parts: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.attributes.ndim != 2 or len(self.attributes) != classes:
            raise UserError(
                f"the attribute matrix has shape {self.attributes.shape}; expected one row for "
                f"each of {classes} classes"
            )
        if not np.isfinite(self.attributes).all():
            row, column = np.argwhere(~np.isfinite(self.attributes))[0]
            raise UserError(
                f"attribute {column} of class {self.class_names[row]!r} is "
                f"{self.attributes[row, column]}; expected a finite number"
            )
        if self.seen.shape != (classes,) or self.seen.dtype != np.bool_:
            raise UserError(
                f"seen has shape {self.seen.shape} and type {self.seen.dtype}; expected one bool "
                f"for each of {classes} classes"
            )
        if self.held_out is not None and self.held_out.shape != (classes,):
            raise UserError(
                f"held_out has shape {self.held_out.shape}; expected one bool for each of "
                f"{classes} classes"
            )
        count = self.attributes.shape[1]
        if self.attribute_parts is not None and self.attribute_parts.shape != (count,):
            raise UserError(
                f"attribute_parts has shape {self.attribute_parts.shape}; expected one part for "
                f"each of {count} attributes"
            )
        if self.attribute_names and len(self.attribute_names) != count:
            raise UserError(f"{len(self.attribute_names)} attribute names for {count} attributes")
        vectors = self.word_vectors
        if vectors is None:
            return
        if vectors.ndim != 2 or len(vectors) != count:
            raise UserError(
                f"the word vectors have shape {vectors.shape}; expected one row for each of "
                f"{count} attributes"
            )
        if not np.isfinite(vectors).all():
            raise UserError("the word vectors hold a value that is not finite")

    def take(self, classes: np.ndarray) -> "ClassDescriptions":
        """Describes some of the classes.

        Args:
          classes: int64 [m], which ones, in order.

        Returns:
          Their descriptions.
        """
        return replace(
            self,
            class_names=tuple(self.class_names[c] for c in classes),
            attributes=self.attributes[classes],
            seen=self.seen[classes],
            held_out=None if self.held_out is None else self.held_out[classes],
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all of it."""
        digest = hashlib.sha256("\0".join((*self.class_names, "", *self.attribute_names)).encode())
        arrays = [self.attributes, self.seen]
        for array in arrays if self.word_vectors is None else [*arrays, self.word_vectors]:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def match_names(
    ours: Sequence[str], theirs: Sequence[str], *, our_source: str, their_source: str
) -> np.ndarray:
    """Finds classes in another order of them, by name.

    Args:
      ours: names in our order.
      theirs: names in their order; there may be more of them.
      our_source: where ours are from, for the message.
      their_source: where theirs are from.

    Returns:
      int64 [len(ours)], the position of each of our names among theirs.

    Raises:
      UserError: a name is given twice, or is not among theirs; the first names that differ are
        shown.

    Example:
      >>> match_names(["a", "b"], ["b", "c", "a"], our_source="x", their_source="y").tolist()
      [2, 0]
    """
    for names, source in ((ours, our_source), (theirs, their_source)):
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise UserError(f"{source} names the class {twice!r} twice")
    position = {name: i for i, name in enumerate(theirs)}
    missing = [name for name in ours if name not in position]
    if missing:
        strangers = [name for name in theirs if name not in set(ours)]
        instead = f", which has {strangers[0]!r} instead" if strangers else ""
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"the class {missing[0]!r}{more} of {our_source} is not in {their_source}{instead}; "
            "expected the same names"
        )
    return np.array([position[name] for name in ours], np.int64)


def save_descriptions(path: str | PathLike[str], described: ClassDescriptions) -> None:
    """Writes descriptions to a file.

    Args:
      path: an `.npz` file.
      described: the descriptions.
    """
    arrays = {
        "class_names": np.array(described.class_names),
        "attribute_names": np.array(described.attribute_names, np.str_),
        "attributes": described.attributes,
        "seen": described.seen,
    }
    for name in ("word_vectors", "held_out", "attribute_parts"):
        if getattr(described, name) is not None:
            arrays[name] = getattr(described, name)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_descriptions(path: str | PathLike[str]) -> ClassDescriptions:
    """Reads descriptions from a file that `save_descriptions` wrote.

    Args:
      path: the file.

    Returns:
      The descriptions.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return ClassDescriptions(
            class_names=tuple(arrays.pop("class_names").tolist()),
            attribute_names=tuple(arrays.pop("attribute_names").tolist()),
            **arrays,
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: no readable descriptions of classes ({error})") from error
