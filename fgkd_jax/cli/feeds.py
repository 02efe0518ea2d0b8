"""Batches of a data set, as the training loop asks for them: of images, or of scenes with boxes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fgkd_jax.data.base import Dataset
from fgkd_jax.data.detection_pipeline import (
    DetectionOptions,
    detection_eval_iterator,
    detection_train_iterator,
)
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.pipeline import BatchIterator, eval_iterator, train_iterator

TRAIN: Mapping[type, Callable[..., BatchIterator]] = {
    DataOptions: train_iterator,
    DetectionOptions: detection_train_iterator,
}
"""What makes training batches, by the options that say how."""

EVALUATION: Mapping[type, Callable[..., BatchIterator]] = {
    DataOptions: eval_iterator,
    DetectionOptions: detection_eval_iterator,
}
"""What makes the batches of a whole split, likewise."""


@dataclasses.dataclass(frozen=True)
class PipelineFeed:
    """Batches of a data set, as the training loop asks for them.

    Attributes:
      dataset: the data set.
      options: sizes and augmentation.
      batch_size: examples of a global training batch.
      eval_batch_size: examples of a global evaluation batch.
      seed: seeds order and augmentation.
      corrupt: reason by file name, of the images that the batches so far left out.
    """

    dataset: Dataset
    options: DataOptions | DetectionOptions
    batch_size: int
    eval_batch_size: int
    seed: int
    corrupt: dict[str, str] = dataclasses.field(default_factory=dict)

    def train(self, start_step: int, *, split: str = "train") -> BatchIterator:
        """Yields this process's share of the training batches from a step on, without end.

        Args:
          start_step: index of the first batch.
          split: `train`, or `meta` for those of second steps.

        Returns:
          Batches.
        """
        return self._counted(
            TRAIN[type(self.options)](
                self.dataset,
                self.options,
                batch_size=self.batch_size,
                seed=self.seed,
                start_step=start_step,
                split=split,
                **_share(),
            )
        )

    def evaluation(self, split: str) -> BatchIterator:
        """Yields this process's share of the batches of a split, in order.

        Args:
          split: name of the split.

        Returns:
          Batches, padded with `mask` False.
        """
        return self._counted(
            EVALUATION[type(self.options)](
                self.dataset,
                split,
                self.options,
                batch_size=self.eval_batch_size,
                **_share(),
            )
        )

    def _counted(self, batches: BatchIterator) -> BatchIterator:
        batches.corrupt = self.corrupt
        return batches


def _share() -> dict[str, Any]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
