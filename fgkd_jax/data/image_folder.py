"""Image files in one folder per class: `root/{train,validation,test}/<class>/<file>`."""

from pathlib import Path

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import IMAGE_SUFFIXES, FileSource

LAYOUT = "expected <data_dir>/train/<class>/<image> and <data_dir>/test/<class>/<image>"
"""What the folders should look like."""

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def inspect(data_dir: str) -> Inspection:
    """Lists the images of a folder.

    Classes are the folder names in sorted order and must be the same in every split. An id is the
    position among all files, sorted by class and name, `train` first: adding a file renumbers
    those after it. Hidden files and files that are no images by their suffix are left out.

    Args:
      data_dir: holds `train`, `test` and perhaps `validation` (or `val`).

    Returns:
      The data set and what is wrong with it.
    """
    root = Path(data_dir).expanduser()
    folders = {
        split: root / name
        for split, names in _FOLDERS.items()
        for name in names
        if (root / name).is_dir()
    }
    problems = _missing_splits(root, folders)
    if "train" not in folders:
        return Inspection(None, tuple(problems))
    classes = {split: _subfolders(folder) for split, folder in folders.items()}
    problems += _disagreements(folders, classes)
    names = tuple(classes["train"])
    sources: dict[str, FileSource] = {}
    start = 0
    for split, folder in folders.items():
        sources[split], empty = _list_images(folder, names, start)
        start += len(sources[split])
        problems += [f"{folder / name}: has no images" for name in empty if name in classes[split]]
    info = DatasetInfo(
        name="image_folder",
        class_names=names,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=fingerprint(
            version="image_folder/1",
            class_names=[*names, *(name for s in sources.values() for name in s.names)],
            labels=np.concatenate([s.labels for s in sources.values()]),
            ids=np.concatenate([s.ids for s in sources.values()]),
        ),
    )
    return Inspection(SplitSources(info, sources), tuple(problems))


def _missing_splits(root: Path, folders: dict[str, Path]) -> list[str]:
    """One line per split that is not there."""
    if not root.is_dir():
        return [f"{root}: no such folder; {LAYOUT}"]
    if not folders and any(_images(folder) for folder in root.iterdir() if folder.is_dir()):
        return [
            f"{root}: has class folders but no split; {LAYOUT}: move a share of each class's "
            "images to a test folder"
        ]
    absent = [split for split in ("train", "test") if split not in folders]
    return [f"{root}: has no folder {split!r}; {LAYOUT}" for split in absent]


def _subfolders(folder: Path) -> list[str]:
    """Names of the class folders."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _disagreements(folders: dict[str, Path], classes: dict[str, list[str]]) -> list[str]:
    """One line per split whose classes are not those of `train`."""
    problems = [] if classes["train"] else [f"{folders['train']}: has no class folders; {LAYOUT}"]
    for split, names in classes.items():
        for only, here, there in (
            (sorted(set(classes["train"]) - set(names)), folders["train"], folders[split]),
            (sorted(set(names) - set(classes["train"])), folders[split], folders["train"]),
        ):
            if only:
                more = f" (and {len(only) - 1} more)" if len(only) > 1 else ""
                problems.append(f"class {only[0]!r}{more} is in {here} but not in {there}")
    return problems


def _images(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted."""
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def _list_images(
    folder: Path, classes: tuple[str, ...], start: int
) -> tuple[FileSource, list[str]]:
    """The images of one split, and the classes that have none."""
    files = {name: _images(folder / name) if (folder / name).is_dir() else [] for name in classes}
    names = tuple(f"{name}/{file}" for name in classes for file in files[name])
    labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    source = FileSource(
        root=str(folder),
        names=names,
        labels=labels.astype(np.int64),
        ids=np.arange(start, start + len(names)),
    )
    return source, [name for name in classes if not files[name]]
