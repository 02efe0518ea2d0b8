"""From an experiment to what the training loop needs: data, method, devices, weights."""

import dataclasses
import importlib.metadata
import os
import platform as host
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fgkd_jax import __version__
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.feature_cache import CachedFeed, with_cached_features
from fgkd_jax.cli.workdir import CHECKPOINT_FOLDER, read_experiment
from fgkd_jax.data.base import Dataset, DatasetInfo, Example, SplitSources
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
from fgkd_jax.train.loop import Run, Trainer
from fgkd_jax.train.pretrained import load_pretrained
from fgkd_jax.train.sharding import make_mesh, put_batch
from fgkd_jax.train.state import TrainState, abstract_like
from fgkd_jax.train.writers import summary_table
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

    def overlay(variables: Variables) -> Variables:
        loaded, notes = load_pretrained(
            variables,
            experiment.pretrained.path,
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
        overlay=overlay if experiment.pretrained.path else None,
        validation="validation" if "validation" in dataset.info.splits else None,
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


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run read back from its folder.

    Attributes:
      experiment: its options.
      dataset: its data set.
      trainer: its compiled steps.
      state: the state of the checkpoint.
      step: the checkpoint's step.
    """

    experiment: Experiment
    dataset: Dataset
    trainer: Trainer
    state: TrainState
    step: int


def restore(workdir: str, *, checkpoint: str, data_dir: str | None = None) -> Restored:
    """Reads a run back from its folder.

    Args:
      workdir: the folder.
      checkpoint: `"last"` or `"best"`.
      data_dir: folder of the data set, where it is no longer where the config says.

    Returns:
      The run, with the state of that checkpoint.

    Raises:
      UserError: the folder holds no run or no such checkpoint.
    """
    experiment = read_experiment(workdir)
    if data_dir:
        experiment = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, data_dir=data_dir)
        )
    # The checkpoint replaces every array, so neither weights nor cached features are read again.
    experiment = dataclasses.replace(
        experiment,
        pretrained=dataclasses.replace(experiment.pretrained, path=""),
        features=dataclasses.replace(experiment.features, views=0),
    )
    dataset = open_data(experiment)
    trainer = Trainer(open_run(experiment, dataset=dataset, workdir=workdir))
    state = trainer.initial_state()
    checkpointer = open_checkpoints(experiment, workdir=workdir, read_only=True)
    read = checkpointer.restore_last if checkpoint == "last" else checkpointer.restore_best
    found = read(abstract_like(state.to_save()))
    checkpointer.close()
    if found is None:
        raise UserError(f"workdir {workdir} holds no '{checkpoint}' checkpoint")
    saved, step = found
    return Restored(experiment, dataset, trainer, state.with_saved(saved), step)


def evaluate_checkpoints(
    trainer: Trainer, state: TrainState, checkpointer: Checkpointer, experiment: Experiment
) -> list[dict[str, Any]]:
    """Evaluates the last state, and the one that was best on validation.

    Args:
      trainer: the compiled steps.
      state: the state after the last step.
      checkpointer: knows the best one.
      experiment: says which split is reported.

    Returns:
      One entry per split and checkpoint: `split`, `checkpoint`, `step`, `figures`.
    """
    splits = dict.fromkeys(
        split for split in (trainer.run.validation, experiment.report.split) if split
    )
    states = [("last", experiment.train.steps, state)]
    best = checkpointer.restore_best(abstract_like(state.to_save()))
    if best is not None and best[1] != experiment.train.steps:
        states.append(("best", best[1], state.with_saved(best[0])))
    return [
        {
            "split": split,
            "checkpoint": name,
            "step": step,
            "figures": trainer.evaluate(candidate, split),
        }
        for name, step, candidate in states
        for split in splits
    ]


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lays out evaluations as a table.

    Args:
      results: entries with `split`, `checkpoint`, `step` and `figures`.

    Returns:
      Several lines.
    """
    rows = [
        {
            "split": entry["split"],
            "checkpoint": f"{entry['checkpoint']} (step {entry['step']})",
            **{name: _figure(name, value) for name, value in entry["figures"].items()},
        }
        for entry in results
    ]
    return summary_table(rows)


def _figure(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


@dataclasses.dataclass(frozen=True)
class _Files:
    """Image files as a source of examples without labels."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {"image": Path(path).read_bytes(), "label": 0, "id": index, "name": path}


def predict_files(restored: Restored, paths: Sequence[str]) -> np.ndarray:
    """Predicts the class probabilities of image files.

    Args:
      restored: a run.
      paths: n image files.

    Returns:
      float32 [n, k].

    Raises:
      UserError: a file is not an image.
    """
    run, info = restored.trainer.run, restored.dataset.info
    files = SplitSources(
        DatasetInfo(name="files", class_names=info.class_names, splits={"files": len(paths)}),
        {"files": _Files(tuple(paths))},
    )
    predict = jax.jit(lambda state, batch: run.method.predict(state.variables(ema=True), batch))
    rows = []
    for batch in eval_iterator(
        files, "files", restored.experiment.data, batch_size=run.train.eval_batch_size
    ):
        predictions = predict(restored.state, put_batch(batch, mesh=run.mesh))
        rows.append(jax.device_get(predictions["probabilities"])[batch["mask"]])
    return np.concatenate(rows)


def versions() -> dict[str, str]:
    """Names what a result was made with.

    Returns:
      Versions of the project, Python and the libraries that compute, and the device.
    """
    libraries = ("jax", "jaxlib", "flax", "optax", "numpy", "opencv-python-headless")
    return {
        "fgkd_jax": __version__,
        "python": host.python_version(),
        **{name: importlib.metadata.version(name) for name in libraries},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
