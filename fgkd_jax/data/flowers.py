"""Oxford Flowers-102 in the files its authors publish.

Read are `jpg/image_00001.jpg` and so on, `imagelabels.mat` (classes from 1) and `setid.mat` (image
numbers of `trnid`, `valid` and `tstid`: 1,020, 1,020 and 6,149). Captions call the classes
`class_00001` and so on; so do we, as the files have no names. An id is an image's number.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import FileSource

WHERE = (
    "get 102flowers.tgz, imagelabels.mat and setid.mat from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
)
"""Where the data set comes from."""

_SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}
_FOLDER = "flowers102"


def inspect(data_dir: str) -> Inspection:
    """Reads the lists of Flowers-102.

    Args:
      data_dir: the folder with `jpg`, or the one that `flowers102` lies in.

    Returns:
      The data set, with the splits `train`, `validation` and `test`, and what is wrong with it.
    """
    root = Path(data_dir).expanduser()
    if not (root / "jpg").is_dir() and (root / _FOLDER).is_dir():
        root = root / _FOLDER
    problems: list[str] = []
    if not (root / "jpg").is_dir():
        problems.append(f"jpg is missing (looked in {root}); {WHERE}")
    labels = _numbers(root / "imagelabels.mat", ("labels",), problems)
    sets = _numbers(root / "setid.mat", tuple(_SPLITS.values()), problems)
    if problems:
        return Inspection(None, tuple(problems))
    classes = labels["labels"]
    names = tuple(f"class_{k + 1:05}" for k in range(int(classes.max(initial=0))))
    sources = {}
    for split, key in _SPLITS.items():
        numbers = sets[key]
        wrong = numbers[(numbers < 1) | (numbers > len(classes))]
        if wrong.size:
            problems.append(
                f"{root / 'setid.mat'}: {key} has image {wrong[0]}; expected 1 to {len(classes)}"
            )
        numbers = np.setdiff1d(numbers, wrong)
        sources[split] = FileSource(
            root=str(root / "jpg"),
            names=tuple(f"image_{number:05}.jpg" for number in numbers),
            labels=classes[numbers - 1] - 1,
            ids=numbers,
        )
    info = DatasetInfo(
        name=_FOLDER,
        class_names=names,
        splits={split: len(source) for split, source in sources.items()},
        fingerprint=fingerprint(
            version="flowers102/1",
            class_names=names,
            labels=np.concatenate([source.labels for source in sources.values()]),
            ids=np.concatenate([source.ids for source in sources.values()]),
        ),
    )
    return Inspection(SplitSources(info, sources), tuple(problems))


def _numbers(path: Path, keys: tuple[str, ...], problems: list[str]) -> dict[str, np.ndarray]:
    """Reads rows of whole numbers from a file of Matlab's."""
    from scipy.io import loadmat

    if not path.is_file():
        problems.append(f"{path.name} is missing (looked in {path.parent}); {WHERE}")
        return {}
    try:
        found: dict[str, Any] = loadmat(path)
    except Exception as error:  # whatever scipy makes of a damaged file
        problems.append(f"{path}: is no file of Matlab's ({error})")
        return {}
    absent = [key for key in keys if key not in found]
    if absent:
        problems.append(f"{path}: has no {absent[0]!r}; expected {', '.join(keys)}")
        return {}
    return {key: np.asarray(found[key], np.int64).reshape(-1) for key in keys}
