"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

They must have been prepared as `array_record`, for which TFDS needs more than this library
installs (`importlib_resources`, for some TensorFlow). Our splits are TFDS's, except that the images
tested on are those whose labels are public:

| TFDS name | `train` | `validation` | `test` |
|---|---|---|---|
| imagenet2012, i_naturalist2017, i_naturalist2018 | train | (held out) | validation |
| i_naturalist2021 | train | (held out) | val |
| any other with a test split | train | validation, where there is one | test |
| any other without (food101, ...) | train | (held out) | validation |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fgkd_jax.data.base import DatasetInfo, Example, Inspection, SplitSources, fingerprint
from fgkd_jax.data.files import Lazy
from fgkd_jax.data.images import image_size
from fgkd_jax.errors import UserError, nearest

_VALIDATION_IS_TEST = {"train": "train", "test": "validation"}

SPLITS: Mapping[str, Mapping[str, str]] = {
    "imagenet2012": _VALIDATION_IS_TEST,
    "i_naturalist2017": _VALIDATION_IS_TEST,
    "i_naturalist2018": _VALIDATION_IS_TEST,
    "i_naturalist2021": {"train": "train", "test": "val"},
}
"""TFDS split by our split, for the data sets whose `test` has no labels."""

_NAME_FEATURES = ("file_name", "image/filename", "filename", "id")


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """One split of a prepared data set; images come encoded as they were stored.

    An id is the position in the split plus the sizes of the splits before it, which is stable for
    one preparation: TFDS writes in an order that depends on its keys alone.

    Attributes:
      name: as `tfds.builder` takes it.
      data_dir: where TFDS keeps its data; None is TFDS's default.
      split: the TFDS split.
      size: number of examples.
      first_id: id of the first example.
    """

    name: str
    data_dir: str | None
    split: str
    size: int
    first_id: int
    _records: Lazy[Any] = field(init=False, repr=False)
    _labels: Lazy[np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        records = Lazy(partial(_open, self.name, self.data_dir, self.split))
        object.__setattr__(self, "_records", records)
        object.__setattr__(self, "_labels", Lazy(partial(_read_labels, records)))

    @property
    def labels(self) -> np.ndarray:
        """Labels int64[n]. The first use reads the whole split, though it decodes no image."""
        return self._labels()

    @property
    def ids(self) -> np.ndarray:
        """Ids int64[n]."""
        return np.arange(self.first_id, self.first_id + self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not -self.size <= index < self.size:
            raise IndexError(f"{index} of {self.size} examples")
        index %= self.size
        record = self._records()[index]
        known = (record[key] for key in _NAME_FEATURES if key in record)
        own = next((v.decode() if isinstance(v, bytes) else str(v) for v in known), str(index))
        example = {
            "image": _image(record["image"]),
            "label": int(record["label"]),
            "id": self.first_id + index,
            "name": f"tfds/{self.name}/{self.split}/{own}",
        }
        return example | _box(record, example)


def inspect(name: str, data_dir: str | None) -> Inspection:
    """Opens a prepared data set.

    Args:
      name: as `tfds.builder` takes it: "cars196", "imagenet2012:5.1.0", "domainnet/real".
      data_dir: where TFDS keeps its data; None is TFDS's default (`TFDS_DATA_DIR` or
        `~/tensorflow_datasets`).

    Returns:
      The data set and what is wrong with it.
    """
    try:
        builder = _builder(name, data_dir)
        return Inspection(_dataset(name, data_dir, builder))
    except UserError as error:
        return Inspection(None, (str(error),))


def how_to_prepare(name: str, data_dir: str | None) -> str:
    """Says how to get a data set that is not prepared yet.

    Args:
      name: as `tfds.builder` takes it.
      data_dir: where TFDS keeps its data; None is TFDS's default.

    Returns:
      A shell command, and what it needs.
    """
    where = f" --data_dir={data_dir}" if data_dir else ""
    return (
        f"prepare it with: tfds build {name} --file_format=array_record{where} "
        "(after: pip install tensorflow importlib_resources)"
    )


def split_roles(name: str, available: Mapping[str, Any]) -> dict[str, str]:
    """Maps our splits to those of a TFDS data set.

    Args:
      name: as `tfds.builder` takes it.
      available: its splits.

    Returns:
      TFDS split by our split, as the table above has it.

    Example:
      >>> split_roles("imagenet2012:5.1.0", {"train": 0, "validation": 0, "test": 0})
      {'train': 'train', 'test': 'validation'}
      >>> split_roles("food101", {"train": 0, "validation": 0})
      {'train': 'train', 'test': 'validation'}
    """
    wanted = SPLITS.get(name.split("/")[0].split(":")[0])
    if wanted is None:
        wanted = {split: split for split in ("train", "validation", "test") if split in available}
        if "test" not in available:
            wanted = _VALIDATION_IS_TEST
    missing = sorted(set(wanted.values()) - set(available))
    if missing or "train" not in wanted:
        raise UserError(
            f"tfds/{name} has no split {(missing or ['train'])[0]!r} to train or test on; it has "
            f"{', '.join(available)}"
        )
    return dict(wanted)


def _builder(name: str, data_dir: str | None) -> Any:
    """Returns a builder whose data are prepared as array_record."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = nearest(name, known).partition("; expected one of")[0]
        raise UserError(f"TFDS knows no data set {name!r}{hint}") from None
    except Exception as error:  # TFDS raises AssertionError and more for a wrong name
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"TFDS cannot open {name!r}: {reason[0]}") from error
    if not builder.info.splits:
        raise UserError(
            f"tfds/{name} is not prepared as array_record (looked in {builder.data_dir}); "
            f"{how_to_prepare(name, data_dir)}"
        )
    return builder


def _dataset(name: str, data_dir: str | None, builder: Any) -> SplitSources:
    """Describes a prepared builder."""
    features = builder.info.features
    wanted = [key for key in ("image", "label") if key not in features]
    if wanted or not hasattr(features["label"], "names"):
        raise UserError(
            f"tfds/{name} has the features {', '.join(features)}; expected an image and a class "
            "'label'"
        )
    sources, start = {}, 0
    for ours, theirs in split_roles(name, builder.info.splits).items():
        size = builder.info.splits[theirs].num_examples
        sources[ours] = TfdsSource(name, data_dir, theirs, size, start)
        start += size
    class_names = tuple(features["label"].names)
    info = DatasetInfo(
        name=f"tfds/{name}",
        class_names=class_names,
        splits={split: len(source) for split, source in sources.items()},
        # Labels are not read for this: that would mean reading every image.
        fingerprint=fingerprint(
            version=f"tfds/{builder.info.full_name}",
            class_names=class_names,
            labels=np.array([len(source) for source in sources.values()]),
            ids=np.array([source.first_id for source in sources.values()]),
        ),
    )
    return SplitSources(info, sources)


def _open(name: str, data_dir: str | None, split: str) -> Any:
    """Opens the records of a split, leaving images encoded."""
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    is_image = tfds.features.Image
    features = builder.info.features
    skip = {k: tfds.decode.SkipDecoding() for k, f in features.items() if isinstance(f, is_image)}
    return builder.as_data_source(split, decoders=skip)


def _read_labels(records: Lazy[Any]) -> np.ndarray:
    """Reads every label of a split."""
    from tqdm import tqdm

    source = records()
    steps = tqdm(range(len(source)), desc="reading labels", unit="example", disable=None)
    return np.array([int(source[i]["label"]) for i in steps], np.int64)


def _image(data: Any) -> bytes | np.ndarray:
    """An encoded image as bytes, in whichever scalar it was wrapped."""
    if isinstance(data, np.ndarray) and data.ndim == 0:
        data = data.item()
    return data if isinstance(data, bytes | np.ndarray) else bytes(data)


def _box(record: Mapping[str, Any], example: Example) -> Example:
    """The box in pixels, from TFDS's (y_min, x_min, y_max, x_max) as shares of the image."""
    if np.shape(record.get("bbox", ())) != (4,):
        return {}
    try:
        height, width = image_size(example["image"])
    except OSError:
        return {}  # decoding the image reports what is wrong with it
    y0, x0, y1, x1 = (float(v) for v in record["bbox"])
    return {"bbox": np.array([x0 * width, y0 * height, x1 * width, y1 * height], np.float32)}
