"""Runs a method's frozen stages once over the data, so that every epoch can skip them."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fgkd_jax.cli.experiment import Experiment, experiment_to_dict
from fgkd_jax.cli.workdir import MAY_CHANGE
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.feature_cache import (
    FeatureSplit,
    HostBatch,
    eval_batches,
    read_features,
    train_batches,
    write_features,
)
from fgkd_jax.errors import UserError
from fgkd_jax.train.loop import Run
from fgkd_jax.train.sharding import put_batch
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.weight_files import file_sha256


@dataclasses.dataclass(frozen=True)
class CachedFeed:
    """Batches of precomputed features, for training and for validation meanwhile.

    Attributes:
      splits: features by split.
      batch_size: rows of a global training batch.
      eval_batch_size: rows of a global evaluation batch.
      seed: seeds the order.
    """

    splits: dict[str, FeatureSplit]
    batch_size: int
    eval_batch_size: int
    seed: int

    def train(self, start_step: int) -> Generator[HostBatch, None, None]:
        """Yields training batches from a step on, without end.

        Args:
          start_step: index of the first batch.

        Returns:
          Batches of features.
        """
        return train_batches(
            self.splits["train"],
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start_step,
        )

    def evaluation(self, split: str) -> Generator[HostBatch, None, None]:
        """Yields the batches of a split, in order.

        Args:
          split: name of the split.

        Returns:
          Batches of features, padded with `mask` False.
        """
        return eval_batches(self.splits[split], batch_size=self.eval_batch_size)


def cached_feed(
    run: Run, state: TrainState, dataset: Dataset, experiment: Experiment, *, folder: Path
) -> CachedFeed:
    """Replaces a run's images by the output of its frozen stages.

    Args:
      run: a run whose method has `features`, with a feed of images.
      state: the state of step 0.
      dataset: its data set.
      experiment: its options.
      folder: where the features are kept.

    Returns:
      A feed of features, computed now unless they are stored already.

    Raises:
      UserError: the disk is full.
    """
    mark = _fingerprint(experiment, dataset)
    views = experiment.features.views
    sizes = {"train": views * dataset.info.splits["train"]}
    if run.validation:
        sizes[run.validation] = dataset.info.splits[run.validation]
    splits = {}
    for split, size in sizes.items():
        found = read_features(folder / split, fingerprint=mark)
        if found is None:
            batches = run.feed.train(0) if split == "train" else run.feed.evaluation(split)
            with contextlib.closing(batches):
                title = f"features of {split}"
                computed = _frozen_stages(run, state, batches, title=title, of=size)
                found = write_features(folder / split, computed, limit=size, fingerprint=mark)
        splits[split] = found
    return CachedFeed(
        splits=splits,
        batch_size=run.train.batch_size,
        eval_batch_size=run.train.eval_batch_size,
        seed=run.seed,
    )


def _frozen_stages(
    run: Run, state: TrainState, batches: Iterator[HostBatch], *, title: str, of: int
) -> Iterator[HostBatch]:
    """Maps batches of images to batches of features."""
    method: Any = run.method
    features = jax.jit(method.features)
    with tqdm(total=of, desc=title, unit=" images") as bar:
        for batch in batches:
            placed = put_batch({"image": batch["image"]}, mesh=run.mesh)
            output = jax.device_get(features(state.variables(), placed)).astype(np.float16)
            if not np.isfinite(output).all():
                raise UserError(f"{title}: beyond the range of float16; set features.views=0")
            bar.update(int(batch["mask"].sum()))
            yield {**batch, "features": output}


def _fingerprint(experiment: Experiment, dataset: Dataset) -> str:
    values = experiment_to_dict(experiment)
    weights = experiment.pretrained.path
    parts = {
        "method": values["method"],
        "data": {name: v for name, v in values["data"].items() if f"data.{name}" not in MAY_CHANGE},
        "dataset": dataset.info.fingerprint,
        "weights": file_sha256(weights) if weights else None,
        "views": experiment.features.views,
        "seed": experiment.seed,
        "batch_size": experiment.train.batch_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
