"""CIFAR-10 and CIFAR-100: the authors' Python pickles, or JPEG files packed into two npz files.

Ids count the training images in file order, then the test images.
"""

import codecs
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Example, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import Lazy
from fgkd_jax.errors import UserError

WHERE = "get the Python version from https://www.cs.toronto.edu/~kriz/cifar.html"
"""Where the data sets come from."""

_SPLITS = ("train", "test")
_T = TypeVar("_T")


class _Images(Protocol):
    """Images of one split, each with the name that an error should give it."""

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, str]: ...


@dataclass(frozen=True, eq=False)
class PackedSource:
    """Images that lie together in few files, loaded as a whole once per process.

    Attributes:
      images: gives image and name by index.
      labels: int64[n].
      ids: int64[n].
    """

    images: Lazy[_Images]
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        image, name = self.images()[index]
        return {
            "image": image,
            "label": int(self.labels[index]),
            "id": int(self.ids[index]),
            "name": name,
        }


@dataclass(frozen=True)
class _Split:
    """The labels of one split and the way to its images."""

    labels: np.ndarray
    images: Lazy[_Images]
    coarse: Mapping[int, int]


def inspect(name: str, data_dir: str) -> Inspection:
    """Reads CIFAR-10 or CIFAR-100.

    Args:
      name: "cifar10" or "cifar100".
      data_dir: the folder with the data files, or the one that the unpacked archive lies in. With
        a `train.npz` or `test.npz` in it, the packed JPEG layout is read: in either file the arrays
        `jpeg` uint8 (all files one after another), `offsets` [n + 1], `labels` [n] and `names` [n],
        and beside them `classes.txt`.

    Returns:
      The data set and what is wrong with it.
    """
    root = Path(data_dir).expanduser()
    layout = _LAYOUTS[name]
    if any((root / f"{split}.npz").is_file() for split in _SPLITS):
        kind, read_names, read_split = "npz", _npz_names, _npz_split
    else:
        root = root / layout.folder if (root / layout.folder).is_dir() else root
        kind = "pickle"
        read_names = partial(_pickle_names, layout=layout)
        read_split = partial(_pickle_split, layout=layout)
    problems: list[str] = []
    class_names = _attempt(partial(read_names, root), problems) or ()
    found = {s: _attempt(partial(read_split, root, s), problems) for s in _SPLITS}
    splits = {split: data for split, data in found.items() if data is not None}
    if not splits:
        return Inspection(None, tuple(problems))
    sources, start = {}, 0
    for split, data in splits.items():
        ids = np.arange(start, start + len(data.labels))
        sources[split] = PackedSource(data.images, data.labels, ids)
        start += len(ids)
    coarse = {fine: c for data in splits.values() for fine, c in data.coarse.items()}
    whole = coarse and all(i in coarse for i in range(len(class_names)))
    info = DatasetInfo(
        name=name,
        class_names=class_names,
        splits={split: len(source) for split, source in sources.items()},
        groupings={"superclass": tuple(coarse[i] for i in range(len(class_names)))}
        if whole
        else {},
        fingerprint=fingerprint(
            version=f"{name}/{kind}/1",
            class_names=class_names,
            labels=np.concatenate([source.labels for source in sources.values()]),
            ids=np.arange(start),
        ),
    )
    return Inspection(SplitSources(info, sources), tuple(problems))


def _attempt(read: Callable[[], _T], problems: list[str]) -> _T | None:
    """Calls a reader; a `UserError` becomes a problem."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _existing(root: Path, *names: str) -> tuple[Path, ...]:
    """Returns the paths of files that must be there."""
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} missing (looked in {root}); {WHERE}")
    return tuple(root / name for name in names)


# The packed JPEG layout.


class _Jpegs:
    """Encoded images, one after another in one array."""

    def __init__(self, path: Path):
        data = _load_npz(path, "jpeg", "offsets", "names")
        self._bytes, self._offsets, self._names = data["jpeg"], data["offsets"], data["names"]
        self._folder = path.parent

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        start, stop = self._offsets[index : index + 2]
        return self._bytes[start:stop].tobytes(), str(self._folder / self._names[index])


def _npz_names(root: Path) -> tuple[str, ...]:
    """Class names, one per line."""
    (path,) = _existing(root, "classes.txt")
    return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())


def _npz_split(root: Path, split: str) -> _Split:
    """Reads what is needed before the images."""
    (path,) = _existing(root, f"{split}.npz")
    data = _load_npz(path, "offsets", "labels", "names")
    labels, n = data["labels"].astype(np.int64), len(data["labels"])
    if len(data["offsets"]) != n + 1 or len(data["names"]) != n:
        raise UserError(
            f"{path}: has {n} labels, {len(data['offsets'])} offsets and {len(data['names'])} "
            "names; expected n, n + 1 and n"
        )
    if np.any(np.diff(data["offsets"]) < 0):
        raise UserError(f"{path}: offsets decrease; expected where each image begins")
    return _Split(labels, Lazy(partial(_Jpegs, path)), {})


def _load_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Reads some arrays of an npz file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return {key: data[key] for key in keys}
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; expected the arrays {', '.join(keys)}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no npz file of plain arrays ({error})") from None


# The authors' pickles.


@dataclass(frozen=True)
class _Layout:
    """Where the authors' archive keeps what."""

    folder: str
    files: Mapping[str, tuple[str, ...]]
    meta: str
    label_key: str
    names_key: str


_LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        files={
            "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test": ("test_batch",),
        },
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
}

# NumPy's own unpickling function, whatever private module it lives in by now.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SAFE = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _SafeUnpickler(pickle.Unpickler):
    """Builds arrays, numbers, text and containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which CIFAR does not need")
        return _SAFE[module, name]


class _Pixels:
    """Images as rows of 3072 numbers, in several files."""

    def __init__(self, paths: tuple[Path, ...]):
        rows = [_load_pickle(path)["data"] for path in paths]
        self._images = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self._places = [
            (path, i) for path, part in zip(paths, rows, strict=True) for i in range(len(part))
        ]

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        path, row = self._places[index]
        return np.ascontiguousarray(self._images[index]), f"{path}[{row}]"


def _pickle_names(root: Path, *, layout: _Layout) -> tuple[str, ...]:
    """Class names from the meta file."""
    (path,) = _existing(root, layout.meta)
    names = _load_pickle(path).get(layout.names_key)
    if not isinstance(names, list):
        raise UserError(f"{path}: has no list {layout.names_key!r}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _pickle_split(root: Path, split: str, *, layout: _Layout) -> _Split:
    """Reads what is needed before the images."""
    paths = _existing(root, *layout.files[split])
    labels: list[int] = []
    coarse: dict[int, int] = {}
    for path in paths:
        data = _load_pickle(path)
        fine, pixels = data.get(layout.label_key), data.get("data")
        if not isinstance(fine, list) or getattr(pixels, "shape", None) != (len(fine), 3072):
            raise UserError(
                f"{path}: expected a list {layout.label_key!r} and an array 'data' [n, 3072]; "
                f"found {', '.join(map(repr, data))}"
            )
        labels += fine
        coarse |= zip(fine, data.get("coarse_labels", ()), strict=False)
    return _Split(np.array(labels, np.int64), Lazy(partial(_Pixels, paths)), coarse)


def _load_pickle(path: Path) -> dict[str, Any]:
    """Reads a dictionary; keys written by Python 2 become text."""
    try:
        with path.open("rb") as file:
            data = _SafeUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: cannot be unpickled ({error or 'unexpected end'})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}; expected a dictionary")
    return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in data.items()}
