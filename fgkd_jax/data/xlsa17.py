"""The files in which zero-shot results are usually reported: one feature per image, and splits.

`res101.mat` has `features` [2048, n], `labels` (from 1) and `image_files`; `att_splits.mat` has
`att` [a, k], `allclasses_names` and the image numbers (from 1) of `trainval_loc`, `test_seen_loc`,
`test_unseen_loc` and, for validation, `train_loc` and `val_loc`. Both may also be `.npz` files with
the same names of arrays. They are the proposed splits of SUN, CUB and AWA2 (and aPY, FLO in the
same layout).

Classes are in the order of `allclasses_names`, and the class vectors are `att`, as they are. A
class is unseen where `test_unseen_loc` has images of it. `val_loc` names the classes that the
authors keep for validation; its images are not used as they are, since those of `train_loc` and
`val_loc` together contain `test_seen_loc`.

Source: Xian, Lampert, Schiele and Akata, "Zero-shot learning: a comprehensive evaluation of the
good, the bad and the ugly", TPAMI 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Example, Inspection, SplitSources, fingerprint
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.errors import UserError

WHERE = (
    "get xlsa17.zip from the page of 'Zero-shot learning: a comprehensive evaluation' at "
    "https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/research"
)
"""Where the files come from."""

FEATURES, SPLITS = "res101", "att_splits"
SPLIT_OF = {"trainval_loc": "train", "test_seen_loc": "test_seen", "test_unseen_loc": "test_unseen"}
_VERSION = "xlsa17/1"


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features in memory with a label each.

    Attributes:
      features: float32 [n, h, w, f].
      labels: int64 [n].
      ids: int64 [n].
      names: what each is called.
    """

    features: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return {
            "features": self.features[index],
            "label": int(self.labels[index]),
            "id": int(self.ids[index]),
            "name": self.names[index],
        }


def inspect(name: str, data_dir: str) -> Inspection:
    """Reads the two files of a data set.

    Args:
      name: "xlsa17/CUB" and the like; what follows the slash is the folder of the files.
      data_dir: that folder, or one that it lies in, or `xlsa17/data/` before it.

    Returns:
      The data set and what is wrong with it. Examples have `features` float32 [1, 1, f].
    """
    try:
        return Inspection(_read(name, data_dir))
    except UserError as error:
        return Inspection(None, (str(error),))


def _read(name: str, data_dir: str) -> SplitSources:
    folder = find_folder(name.partition("/")[2], data_dir)
    described, rows, labels, files = read_splits(folder)
    stored = load_arrays(folder, FEATURES)
    features = np.ascontiguousarray(_array(stored, "features", folder).T, np.float32)
    if features.ndim != 2 or len(features) != len(labels):
        raise UserError(
            f"{folder}: features have shape {features.T.shape}; expected a column for each of "
            f"{len(labels)} images"
        )
    if not np.isfinite(features).all():
        row = int(np.argwhere(~np.isfinite(features))[0, 0])
        raise UserError(f"{folder}: the features of image {row + 1} are not finite")
    features = features[:, None, None, :]
    sources = {
        split: FeatureRows(features[r], labels[r], r, tuple(files[i] for i in r))
        for split, r in rows.items()
    }
    mark = fingerprint(
        version=_VERSION,
        class_names=described.class_names,
        labels=labels,
        ids=np.arange(len(labels)),
    )
    info = DatasetInfo(
        name=name,
        class_names=described.class_names,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=f"{mark}-{described.fingerprint}",
        descriptions=described,
        feature_shape=(1, 1, features.shape[-1]),
        feature_dtype="float32",
    )
    return SplitSources(info, sources)


def find_folder(name: str, data_dir: str) -> Path:
    """Finds the folder of a data set's files.

    Args:
      name: of the folder, such as "CUB".
      data_dir: see `inspect`.

    Returns:
      The folder.

    Raises:
      UserError: `att_splits` is in none of the places.
    """
    root = Path(data_dir).expanduser()
    places = [root / "xlsa17" / "data" / name, root / "data" / name, root / name, root]
    for place in places:
        if any((place / f"{SPLITS}{suffix}").is_file() for suffix in _READERS):
            return place
    raise UserError(f"{SPLITS}.mat of {name} is missing (looked in {root}); {WHERE}")


def read_splits(
    folder: Path,
) -> tuple[ClassDescriptions, dict[str, np.ndarray], np.ndarray, list[str]]:
    """Reads classes, splits and labels, without the features.

    Args:
      folder: with `att_splits` and `res101`.

    Returns:
      The descriptions of the classes; int64 rows by split, from 0; labels int64 [n], from 0; and
      the n image files.

    Raises:
      UserError: a file or an array is missing, a number is out of range, an image is in two splits,
        or the class attributes are of another number of classes or not finite.
    """
    splits, images = load_arrays(folder, SPLITS), load_arrays(folder, FEATURES)
    names = tuple(_texts(_array(splits, "allclasses_names", folder)))
    labels = _numbers(images, "labels", folder, limit=len(names))
    files = _texts(_array(images, "image_files", folder))
    if len(files) != len(labels):
        raise UserError(f"{folder}: {len(files)} image files and {len(labels)} labels")
    rows = {
        split: _numbers(splits, key, folder, limit=len(labels)) for key, split in SPLIT_OF.items()
    }
    counts = np.bincount(np.concatenate(list(rows.values())), minlength=len(labels))
    if (counts > 1).any():
        raise UserError(f"{folder}: image {int(counts.argmax()) + 1} is in two splits")
    seen = np.ones(len(names), bool)
    seen[labels[rows["test_unseen"]]] = False
    held = None
    if "val_loc" in splits:
        held = np.zeros(len(names), bool)
        held[labels[_numbers(splits, "val_loc", folder, limit=len(labels))]] = True
        held &= seen
    try:
        described = ClassDescriptions(
            class_names=names,
            attributes=np.ascontiguousarray(_array(splits, "att", folder).T, np.float32),
            seen=seen,
            held_out=held,
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return described, rows, labels, files


def load_arrays(folder: Path, stem: str) -> Mapping[str, Any]:
    """Reads a file of arrays by name.

    Args:
      folder: where it is.
      stem: its name without the suffix, which is `.mat` or `.npz`.

    Returns:
      Arrays by name.

    Raises:
      UserError: there is no such file, or it is none.
    """
    for suffix, read in _READERS.items():
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            try:
                return read(path)
            except Exception as error:  # what a parser raises on damaged bytes is anyone's guess
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{path}: cannot be read ({reason})") from error
    raise UserError(f"{stem}.mat is missing (looked in {folder}); {WHERE}")


def _read_mat(path: Path) -> Mapping[str, Any]:
    import scipy.io

    return scipy.io.loadmat(path)


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


_READERS = {".mat": _read_mat, ".npz": _read_npz}


def _array(arrays: Mapping[str, Any], name: str, folder: Path) -> np.ndarray:
    if name not in arrays:
        raise UserError(f"{folder}: no array {name!r}; expected the layout of xlsa17")
    return np.asarray(arrays[name])


def _numbers(arrays: Mapping[str, Any], name: str, folder: Path, *, limit: int) -> np.ndarray:
    """Whole numbers from 1 to a limit, made to begin at 0: int64[m]."""
    values = _array(arrays, name, folder).astype(np.int64).reshape(-1)
    wrong = values[(values < 1) | (values > limit)]
    if len(wrong):
        raise UserError(f"{folder}: {name} has {wrong[0]}; expected 1 to {limit}")
    return values - 1


def _texts(array: np.ndarray) -> list[str]:
    """Strings, of a cell array or a plain one."""
    cells = array.reshape(-1)
    return [str(cell.reshape(-1)[0] if isinstance(cell, np.ndarray) else cell) for cell in cells]
