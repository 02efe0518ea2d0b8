"""What is known of classes without an image of theirs: attributes, and words for attributes."""

import hashlib
from dataclasses import dataclass, field

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
    """

    class_names: tuple[str, ...]
    attributes: np.ndarray
    seen: np.ndarray
    attribute_names: tuple[str, ...] = ()
    word_vectors: np.ndarray | None = field(default=None)

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
        count = self.attributes.shape[1]
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

    @property
    def fingerprint(self) -> str:
        """Hash of all of it."""
        digest = hashlib.sha256("\0".join((*self.class_names, "", *self.attribute_names)).encode())
        arrays = [self.attributes, self.seen]
        for array in arrays if self.word_vectors is None else [*arrays, self.word_vectors]:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]
