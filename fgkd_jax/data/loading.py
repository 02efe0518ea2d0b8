"""From a position in a stream to a row of a batch: read, checked, decoded and transformed."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgkd_jax.data import transforms
from fgkd_jax.data.base import CorruptImageError, DatasetInfo, Example, Source, captions_of
from fgkd_jax.data.class_groups import ClassGroups
from fgkd_jax.data.images import configure_opencv, decode
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.text import CaptionEncoder
from fgkd_jax.errors import UserError, nearest

ERROR, CORRUPT = "_error", "_corrupt"
"""Keys that travel from a worker to the iterator and no further."""

_RENAMED = {"mask": "object_mask"}


@dataclass(frozen=True, eq=False)
class ExampleLoader:
    """Turns a position into a row of a batch; errors are returned, so that they arrive whole."""

    source: Source
    info: DatasetInfo
    options: DataOptions
    transform: transforms.Transform
    groups: ClassGroups | None = None
    views: int = 1
    text: CaptionEncoder | None = None
    partners: np.ndarray | None = None

    def train(self, element: int, rng: np.random.Generator) -> Example:
        """The example of an element of the stream, or the first to replace it that can be read."""
        corrupt: list[tuple[str, str]] = []
        try:
            for index in self._candidates(element):
                try:
                    row = self._load(index, rng)
                except CorruptImageError as error:
                    self._note(error, corrupt)
                else:
                    return {**row, "mask": True, CORRUPT: corrupt}
            raise UserError(f"{self.info.name}: no image of {self._whole(element)} can be read")
        except UserError as error:
            return {ERROR: error}

    def _candidates(self, element: int) -> Iterator[int]:
        """Positions in the source, in the order in which they are tried."""
        if self.groups:
            return self.groups.candidates(element)
        return ((element + step) % len(self.source) for step in range(len(self.source)))

    def _whole(self, element: int) -> str:
        """Names what `_candidates` are all of."""
        if not self.groups:
            return "the split 'train'"
        label = self.groups.labels[next(self._candidates(element))]
        return f"class {self.info.class_names[label]!r} in the split 'train'"

    def evaluate(self, position: int) -> Example:
        """The example at a position, or an empty row."""
        corrupt: list[tuple[str, str]] = []
        try:
            if position < len(self.source):
                try:
                    row = self._load(position, np.random.default_rng(0))
                except CorruptImageError as error:
                    self._note(error, corrupt)
                else:
                    return {**row, "mask": True, CORRUPT: corrupt}
            return {**self._empty, "mask": False, CORRUPT: corrupt}
        except UserError as error:
            return {ERROR: error}

    def _note(self, error: CorruptImageError, corrupt: list[tuple[str, str]]) -> None:
        """Remembers a corrupt image, or raises when that is what was asked for."""
        if self.options.on_corrupt == "raise":
            raise error
        corrupt.append((error.name, error.reason))

    def _load(self, index: int, rng: np.random.Generator) -> Example:
        """Reads, checks, decodes and transforms one example, and keeps what a batch has."""
        configure_opencv()
        example = self.source[index]
        name, label = example["name"], int(example["label"])
        if not 0 <= label < self.info.num_classes:
            raise UserError(
                f"image {name}: label is {label}; expected 0 to {self.info.num_classes - 1}"
            )
        if "features" in example:
            return self._features(example, label)
        image = decode(example["image"], name)
        if "mask" in example and example["mask"].shape != image.shape[:2]:
            raise UserError(
                f"image {name}: is {list(image.shape[:2])} and its mask "
                f"{list(example['mask'].shape)}; expected the same height and width"
            )
        decoded = {**example, "image": image}
        example = self.transform(decoded, rng)
        row = {"image": example["image"], "label": label, "id": int(example["id"])}
        for key in self.options.extra_keys:
            if key not in example:
                raise UserError(f"image {name}: has no {key!r}{nearest(key, example)}")
            row[_RENAMED.get(key, key)] = example[key]
        if self.views > 1:
            others = [self.transform(decoded, rng)["image"] for _ in range(self.views - 1)]
            row["other_views"] = np.stack(others)
        if self.text:
            row |= self.text(captions_of(self.source, index), rng)
        if self.text and self.partners is not None:
            other = self.text(captions_of(self.source, int(self.partners[index])), rng)
            row |= {f"other_{key}": value for key, value in other.items()}
        return row

    def _features(self, example: Example, label: int) -> Example:
        """A row of features that were computed before; no geometry applies to them."""
        features, info = example["features"], self.info
        if features.shape != info.feature_shape or features.dtype != info.feature_dtype:
            raise UserError(
                f"example {example['name']}: features are {features.dtype}{list(features.shape)}; "
                f"expected {info.feature_dtype}{list(info.feature_shape or ())}"
            )
        row = {"features": features, "label": label, "id": int(example["id"])}
        for key in self.options.extra_keys:
            if key not in example:
                raise UserError(f"example {example['name']}: has no {key!r}{nearest(key, example)}")
            row[key] = example[key]
        return row

    @functools.cached_property
    def _empty(self) -> Example:
        """A row that is masked out; extra keys take their shapes from the first good example."""
        shape = self.info.feature_shape
        if shape is not None:
            empty = {"features": np.zeros(shape, self.info.feature_dtype), "label": 0, "id": -1}
            extra = self._load(0, np.random.default_rng(0)) if self.options.extra_keys else {}
            return {key: np.zeros_like(value) for key, value in extra.items()} | empty
        empty = {"image": np.zeros((*self.options.size, 3), np.uint8), "label": 0, "id": -1}
        if not self.options.extra_keys and not self.text:
            return empty
        for index in range(len(self.source)):
            try:
                row = self._load(index, np.random.default_rng(0))
            except CorruptImageError as error:
                self._note(error, [])
            else:
                return {key: np.zeros_like(value) for key, value in row.items()} | empty
        raise UserError(f"{self.info.name}: no image can be read")


def collate(rows: list[Example]) -> dict[str, Any]:
    """Stacks rows to a batch; an error in one of them takes the place of the batch.

    Args:
      rows: of the same keys; `CORRUPT` holds what was left out on the way.

    Returns:
      Arrays by key, labels and ids as int32, and `CORRUPT` of all rows; or `ERROR` alone.
    """
    errors = [row[ERROR] for row in rows if ERROR in row]
    if errors:
        return {ERROR: errors[0]}
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != CORRUPT}
    batch |= {key: batch[key].astype(np.int32) for key in ("label", "id") if key in batch}
    return {**batch, CORRUPT: tuple(pair for row in rows for pair in row[CORRUPT])}
