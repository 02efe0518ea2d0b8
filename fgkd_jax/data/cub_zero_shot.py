"""CUB-200-2011 with unseen species: the photographs, their class attributes, a published split.

Images are found by file name and classes by the name of their folder, never by number: the labels
of the proposed split are in an order of their own (001.Black_footed_Albatross is its class 150),
while the rows of the class attributes are in that of CUB's ids. A copy with some of the species has
those classes, in the order of their ids.

The split is read from one of these, looked for beside the photographs (`places`):

* `CUB_split.npz` with `image_files`, `labels`, and `trainval_loc`, `test_seen_loc` and
  `test_unseen_loc` from 0;
* `att_splits` and `res101` as `fgkd_jax.data.xlsa17` reads them.

`CUB_attribute_w2v.npy`, where it is there, holds a word vector per attribute.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fgkd_jax.data import cub, xlsa17
from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources, fingerprint
from fgkd_jax.data.class_descriptions import ClassDescriptions, match_names
from fgkd_jax.data.word_vectors import read_word_vectors
from fgkd_jax.errors import UserError

NAME = "cub200_2011/zero_shot"
SPLIT_FILE, WORD_FILE = "CUB_split.npz", "CUB_attribute_w2v.npy"
_VERSION = "cub200_2011/zero_shot/1"
_UNSEEN = xlsa17.SPLIT_OF["test_unseen_loc"]


def inspect(data_dir: str) -> Inspection:
    """Reads a copy of CUB-200-2011 with the split that lies beside it.

    Args:
      data_dir: as `cub.inspect` takes it.

    Returns:
      The data set, with splits `train`, `test_seen` and `test_unseen`, and what is wrong with it.
    """
    photographs = cub.inspect(data_dir)
    problems = photographs.problems
    if not isinstance(photographs.dataset, cub.Cub):
        return Inspection(None, problems)
    try:
        dataset = _read(photographs.dataset, cub.find_root(data_dir))
    except UserError as error:
        return Inspection(None, (*problems, str(error)))
    return Inspection(dataset, problems)


def places(root: Path) -> tuple[Path, ...]:
    """Returns where the split and the word vectors are looked for.

    Args:
      root: the folder of CUB's lists.

    Returns:
      Folders, the first to look into first.
    """
    beside = root.parent
    return (root, beside, beside / "zsl_meta", beside / "xlsa17" / "data" / "CUB")


def _read(photographs: cub.Cub, root: Path) -> SplitSources:
    everything, names = photographs.everything, photographs.info.class_names
    if everything is None or photographs.class_attributes is None:
        raise UserError(f"{NAME} needs attributes/class_attribute_labels_continuous.txt in {root}")
    split_of, label_of, source = read_split(root)
    _check_folders(split_of, label_of, names, source)
    placed = [split_of.get(name) for name in map(_short, everything.names)]
    strangers = [name for name, split in zip(everything.names, placed, strict=True) if not split]
    if strangers:
        raise UserError(f"image {strangers[0]} of {root} is in no split of {source}")
    sources = {
        split: everything.take(np.flatnonzero([one == split for one in placed]))
        for split in xlsa17.SPLIT_OF.values()
    }
    seen = np.ones(len(names), bool)
    seen[sources["test_unseen"].labels] = False
    described = ClassDescriptions(
        class_names=names,
        attributes=photographs.class_attributes,
        seen=seen,
        attribute_names=photographs.info.attribute_names,
        word_vectors=_word_vectors(root, photographs.class_attributes.shape[1]),
    )
    mark = fingerprint(
        version=_VERSION,
        class_names=names,
        labels=np.concatenate([s.labels for s in sources.values()]),
        ids=np.concatenate([s.ids for s in sources.values()]),
    )
    info: DatasetInfo = replace(
        photographs.info,
        name=NAME,
        splits={split: len(s) for split, s in sources.items()},
        fingerprint=f"{mark}-{described.fingerprint}",
        descriptions=described,
    )
    return SplitSources(info, sources)


def read_split(root: Path) -> tuple[dict[str, str], dict[str, int], Path]:
    """Reads which split each image file is in, and the split's own label of each class folder.

    Args:
      root: the folder of CUB's lists.

    Returns:
      Split by `folder/file`, label by folder, and the file they are from.

    Raises:
      UserError: there is no split, it is malformed, or it gives a folder several labels.
    """
    for place in places(root):
        path = place / SPLIT_FILE
        if path.is_file():
            rows, labels, files = _read_npz(path)
            return _by_name(rows, labels, files, path)
        if (place / f"{xlsa17.SPLITS}.mat").is_file():
            described, rows, labels, files = xlsa17.read_splits(place)
            path = place / f"{xlsa17.SPLITS}.mat"
            split_of, label_of, _ = _by_name(rows, labels, files, path)
            for folder, label in sorted(label_of.items(), key=lambda one: one[1]):
                if described.class_names[label] != folder:
                    raise UserError(
                        f"class {label} of {path} is {described.class_names[label]!r}; expected "
                        f"{folder!r}, as the images of that label are in"
                    )
            return split_of, label_of, path
    looked = ", ".join(map(str, places(root)))
    raise UserError(
        f"no zero-shot split of CUB: expected {SPLIT_FILE}, or {xlsa17.SPLITS}.mat with "
        f"{xlsa17.FEATURES}.mat, in one of {looked}; {xlsa17.WHERE}"
    )


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    arrays = xlsa17.load_arrays(path.parent, path.stem)
    missing = {"image_files", "labels", *xlsa17.SPLIT_OF} - set(arrays)
    if missing:
        raise UserError(f"{path}: no array {min(missing)!r}")
    labels = arrays["labels"].reshape(-1).astype(np.int64)
    files = [str(name) for name in arrays["image_files"].reshape(-1)]
    rows = {}
    for key, split in xlsa17.SPLIT_OF.items():
        rows[split] = arrays[key].reshape(-1).astype(np.int64)
        wrong = rows[split][(rows[split] < 0) | (rows[split] >= len(files))]
        if len(wrong):
            raise UserError(f"{path}: {key} has {wrong[0]}; expected 0 to {len(files) - 1}")
    return rows, labels, files


def _by_name(
    rows: dict[str, np.ndarray], labels: np.ndarray, files: list[str], path: Path
) -> tuple[dict[str, str], dict[str, int], Path]:
    """What a split says, by the names of files and folders."""
    short = [_short(name) for name in files]
    label_of: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for name, label in zip(short, labels.tolist(), strict=True):
        folder = name.partition("/")[0]
        known = label_of.setdefault(folder, label), folder_of.setdefault(label, folder)
        if known != (label, folder):
            raise UserError(
                f"{path}: image {name} has label {label}; expected {known[0]} as others of its "
                f"folder, and no label of {known[1]!r}"
            )
    split_of: dict[str, str] = {}
    for split, index in rows.items():
        for name in (short[i] for i in index):
            if split_of.setdefault(name, split) != split:
                raise UserError(f"{path}: image {name} is in {split_of[name]} and in {split}")
    return split_of, label_of, path


def _check_folders(
    split_of: dict[str, str], label_of: dict[str, int], names: tuple[str, ...], source: Path
) -> None:
    """Raises where a class of the photographs is unknown to the split, or lies in both kinds."""
    match_names(names, list(label_of), our_source="classes.txt", their_source=str(source))
    kinds: dict[str, set[bool]] = {}
    for name, split in split_of.items():
        kinds.setdefault(name.partition("/")[0], set()).add(split != _UNSEEN)
    both = [name for name in names if len(kinds.get(name, {True})) > 1]
    if both:
        raise UserError(
            f"{source}: the class {both[0]!r} has images in test_unseen and in a split of seen "
            "classes; expected one or the other"
        )


def _short(name: str) -> str:
    """The folder and the file of an image, whatever stands before them."""
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def _word_vectors(root: Path, count: int) -> np.ndarray | None:
    """The vectors that lie beside the photographs, if any."""
    for place in places(root):
        path = place / WORD_FILE
        if path.is_file():
            return read_word_vectors(str(path), attribute_names=(), num_attributes=count)
    return None
