"""From an experiment to what the training loop needs: data, method, devices, weights."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.feature_cache import CachedFeed, with_cached_features
from fgkd_jax.cli.workdir import CHECKPOINT_FOLDER
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.pipeline import (
    BatchIterator,
    eval_iterator,
    train_iterator,
    with_validation,
)
from fgkd_jax.data.registry import open_dataset
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.evaluation import EVALUATORS
from fgkd_jax.protocols import Method
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.loop import Run
from fgkd_jax.train.pretrained import load_pretrained
from fgkd_jax.train.sharding import make_mesh
from fgkd_jax.train.weight_files import file_sha256
from fgkd_jax.typing import Batch, Variables


def say(line: str) -> None:
    """Prints one line for the person who watches, beside the progress bar.

    Args:
      line: what to say.
    """
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def use_platform(platform: str | None, *, cache: str | None = None) -> None:
    """Chooses the devices and the compilation cache; to be called before anything is computed.

    Args:
      platform: `cpu`, `gpu` or `tpu`; None for the best there is.
      cache: folder where compiled programs are kept from one run to the next; None for none.
    """
    if platform:
        jax.config.update("jax_platforms", "cuda" if platform == "gpu" else platform)
    if cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@dataclasses.dataclass(frozen=True)
class PipelineFeed:
    """Batches of a data set, as the training loop asks for them.

    Attributes:
      dataset: the data set.
      options: sizes and augmentation.
      batch_size: examples of a global training batch.
      eval_batch_size: examples of a global evaluation batch.
      seed: seeds order and augmentation.
      opened: every iterator so far; each knows which images it left out.
    """

    dataset: Dataset
    options: DataOptions
    batch_size: int
    eval_batch_size: int
    seed: int
    opened: list[BatchIterator] = dataclasses.field(default_factory=list)

    def train(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's share of the training batches from a step on, without end.

        Args:
          start_step: index of the first batch.

        Returns:
          Batches.
        """
        batches = train_iterator(
            self.dataset,
            self.options,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.opened.append(batches)
        return batches

    def evaluation(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's share of the batches of a split, in order.

        Args:
          split: name of the split.

        Returns:
          Batches, padded with `mask` False.
        """
        batches = eval_iterator(
            self.dataset,
            split,
            self.options,
            batch_size=self.eval_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.opened.append(batches)
        return batches

    def left_out(self) -> dict[str, str]:
        """Says which images could not be read and were left out.

        Returns:
          The reason by file name.
        """
        return {name: why for batches in self.opened for name, why in batches.corrupt.items()}


def image_spec(options: DataOptions, *, batch_size: int) -> Batch:
    """Describes a batch of images with labels.

    Args:
      options: says how large an image is.
      batch_size: examples of a global batch.

    Returns:
      `jax.ShapeDtypeStruct` by key.
    """
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *options.size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "id": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), np.bool_),
    }


def method_for(experiment: Experiment, dataset: Dataset) -> Method:
    """Completes a method's options with what only the data set knows.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Returns:
      The method, with its number of classes.
    """
    method: Any = experiment.method
    if method.num_classes is None:
        method = dataclasses.replace(method, num_classes=dataset.info.num_classes)
    return method


def open_run(experiment: Experiment, *, dataset: Dataset, workdir: str) -> Run:
    """Prepares a run.

    Args:
      experiment: the experiment.
      dataset: its data set.
      workdir: the run's folder, where precomputed features go.

    Returns:
      What the training loop needs.
    """
    method = method_for(experiment, dataset)
    train = experiment.train
    evaluator = EVALUATORS[method.task](
        num_classes=dataset.info.num_classes, groupings=dataset.info.groupings
    )
    asked = (*experiment.report.figures, experiment.checkpoint.best_metric)
    for name in asked:
        if name not in evaluator.figures:
            hint = nearest(name, evaluator.figures)
            raise UserError(f"the evaluation of {method.task} has no figure '{name}'{hint}")

    weights = experiment.pretrained.path

    def overlay(variables: Variables) -> Variables:
        loaded, notes = load_pretrained(
            variables,
            weights,
            reinit_head=experiment.pretrained.reinit_head,
        )
        say(str(notes))
        return loaded

    images = PipelineFeed(
        dataset=dataset,
        options=experiment.data,
        batch_size=train.batch_size,
        eval_batch_size=train.eval_batch_size,
        seed=experiment.seed,
    )
    run = Run(
        method=method,
        evaluator=evaluator,
        feed=images,
        spec=image_spec(experiment.data, batch_size=train.batch_size),
        mesh=make_mesh(experiment.mesh),
        train=train,
        optimizer=experiment.optim,
        seed=experiment.seed,
        overlay=overlay if weights else None,
        validation="validation" if "validation" in dataset.info.splits else None,
        metadata={
            "data fingerprint": dataset.info.fingerprint,
            **({"weights sha256": file_sha256(weights)} if weights else {}),
        },
    )
    if not experiment.features.views:
        return run
    return with_cached_features(run, dataset, experiment, folder=Path(workdir) / "features")


def left_out(run: Run) -> dict[str, str]:
    """Says which images a run could not read.

    Args:
      run: a run of `open_run`.

    Returns:
      The reason by file name.
    """
    feed = run.feed.images if isinstance(run.feed, CachedFeed) else run.feed
    return feed.left_out() if isinstance(feed, PipelineFeed) else {}


def open_data(experiment: Experiment) -> Dataset:
    """Opens an experiment's data set.

    Args:
      experiment: the experiment.

    Returns:
      The data set; drawn first where it is one that the project draws itself.
    """
    options = experiment.data
    return with_validation(open_dataset(options.dataset, data_dir=options.data_dir), options)


def open_checkpoints(
    experiment: Experiment, *, workdir: str, read_only: bool = False
) -> Checkpointer:
    """Opens the checkpoints of a run.

    Args:
      experiment: the experiment.
      workdir: its folder.
      read_only: whether to leave everything in the folder as it is.

    Returns:
      The checkpointer.
    """
    return Checkpointer(
        Path(workdir) / CHECKPOINT_FOLDER,
        experiment.checkpoint,
        read_only=read_only,
        log=say,
    )
