"""Runs a method's frozen stages once over the data, so that every epoch can skip them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
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
from fgkd_jax.train.loop import Feed, Run, Trainer
from fgkd_jax.train.sharding import put_batch
from fgkd_jax.train.weight_files import file_sha256


@dataclasses.dataclass(frozen=True)
class CachedFeed:
    """Batches of precomputed features for training and validation, of images for the rest.

    The split that a run reports thus goes through the whole network.

    Attributes:
      images: the feed of images.
      splits: features by split.
      batch_size: rows of a global training batch.
      eval_batch_size: rows of a global evaluation batch.
      seed: seeds the order.
    """

    images: Feed
    splits: dict[str, FeatureSplit]
    batch_size: int
    eval_batch_size: int
    seed: int

    def train(self, start_step: int) -> Iterator[HostBatch]:
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
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def evaluation(self, split: str) -> Iterator[HostBatch]:
        """Yields the batches of a split, in order.

        Args:
          split: name of the split.

        Returns:
          Batches of features where they are stored, else of images.
        """
        if split not in self.splits:
            return self.images.evaluation(split)
        return eval_batches(
            self.splits[split],
            batch_size=self.eval_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def with_cached_features(
    run: Run, dataset: Dataset, experiment: Experiment, *, folder: Path
) -> Run:
    """Replaces a run's images by the output of its frozen stages.

    Args:
      run: a run whose method has `features`.
      dataset: its data set.
      experiment: its options.
      folder: where the features are kept.

    Returns:
      The run with a feed of features, computed now unless they are stored already.

    Raises:
      UserError: there are several processes, or the disk is full.
    """
    if jax.process_count() > 1:
        raise UserError("config.features.views needs a single process; set it to 0 here")
    mark = _fingerprint(experiment, dataset)
    views = experiment.features.views
    wanted = {"train": views * dataset.info.splits["train"]}
    if run.validation:
        wanted[run.validation] = dataset.info.splits[run.validation]
    found = {split: read_features(folder / split, fingerprint=mark) for split in wanted}
    missing = [split for split, features in found.items() if features is None]
    if missing:
        compute = _frozen_stages(run)
        for split in missing:
            batches = run.feed.train(0) if split == "train" else run.feed.evaluation(split)
            write_features(
                folder / split,
                compute(batches, f"features of {split}", wanted[split]),
                count=wanted[split],
                fingerprint=mark,
            )
            found[split] = read_features(folder / split, fingerprint=mark)
    feed = CachedFeed(
        images=run.feed,
        splits={split: features for split, features in found.items() if features is not None},
        batch_size=run.train.batch_size,
        eval_batch_size=run.train.eval_batch_size,
        seed=run.seed,
    )
    return dataclasses.replace(run, feed=feed)


def _frozen_stages(run: Run) -> Any:
    """A function that maps batches of images to batches of features."""
    state = Trainer(run).initial_state()
    method: Any = run.method
    features = jax.jit(method.features)

    def compute(batches: Iterator[HostBatch], title: str, count: int) -> Iterator[HostBatch]:
        with tqdm(total=count, desc=title, unit=" images") as bar:
            for batch in batches:
                placed = put_batch({"image": batch["image"]}, mesh=run.mesh)
                output = jax.device_get(features(state.variables(), placed)).astype(np.float16)
                if not np.isfinite(output).all():
                    raise UserError(f"{title}: beyond the range of float16; set features.views=0")
                bar.update(int(batch["mask"].sum()))
                yield {**batch, "features": output}

    return compute


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
