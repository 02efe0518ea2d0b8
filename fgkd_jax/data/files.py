"""Examples that lie in files, read when they are asked for."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from fgkd_jax.data.base import CorruptImageError, Example

MISSING = "no such file"
"""The reason a `CorruptImageError` gives for an image that is not there."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What an image file's name ends with, in lower case."""

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value made on first use, once per process and for all threads; pickled without it."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._value: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        """Returns the value."""
        if not self._value:
            with self._lock:
                if not self._value:
                    self._value.append(self._make())
        return self._value[0]

    def __reduce__(self) -> tuple[type, tuple[Callable[[], T]]]:
        return type(self), (self._make,)


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files with a label each.

    Attributes:
      root: the folder that `names` are relative to.
      names: one file per example.
      labels: int64[n].
      ids: int64[n].
      per_example: further arrays [n, ...] by example key.
      per_class: further arrays [k, ...] by example key, looked up by label.
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray
    ids: np.ndarray
    per_example: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_class: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        path = Path(self.root, self.names[index])
        label = int(self.labels[index])
        example = {
            "image": read_image_file(path),
            "label": label,
            "id": int(self.ids[index]),
            "name": str(path),
        }
        example |= {key: array[index] for key, array in self.per_example.items()}
        if label >= 0:
            example |= {key: array[label] for key, array in self.per_class.items()}
        return example

    def take(self, rows: np.ndarray) -> "FileSource":
        """Some of the examples, with their share of the arrays.

        Args:
          rows: int64[m], which ones, in order.

        Returns:
          A source of them.
        """
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            labels=self.labels[rows],
            ids=self.ids[rows],
            per_example={key: array[rows] for key, array in self.per_example.items()},
        )


def read_image_file(path: Path) -> bytes:
    """Reads a file.

    Args:
      path: the file.

    Returns:
      Its bytes.

    Raises:
      CorruptImageError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptImageError(str(path), MISSING) from None
    except OSError as error:
        raise CorruptImageError(str(path), f"cannot be read ({error.strerror})") from None
