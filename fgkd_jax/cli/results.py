"""A run read back from its folder: its state, its figures, its predictions."""

import contextlib
import dataclasses
import importlib.metadata
import platform as host
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from fgkd_jax import __version__
from fgkd_jax.cli.command import get
from fgkd_jax.cli.experiment import Experiment, PretrainedOptions
from fgkd_jax.cli.figures import is_share
from fgkd_jax.cli.session import open_checkpoints, open_data, open_run, say, use_platform
from fgkd_jax.cli.weights import check_words
from fgkd_jax.cli.workdir import read_experiment
from fgkd_jax.data.base import Dataset, DatasetInfo, Example, SplitSources
from fgkd_jax.data.pipeline import eval_iterator
from fgkd_jax.errors import UserError
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.loop import Trainer, check_same_inputs
from fgkd_jax.train.sharding import MeshOptions, put_batch
from fgkd_jax.train.state import TrainState, abstract_like
from fgkd_jax.train.writers import summary_table
from fgkd_jax.typing import Batch, PyTree


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


def restore_run(values: flags.FlagValues, workdir: str) -> Restored:
    """Reads the run back that a command works on.

    Args:
      values: parsed flags, those of `define_run` among them.
      workdir: the folder of the run.

    Returns:
      The run.

    Raises:
      UserError: as `restore`, or there is no such device.
    """
    use_platform(get(values, "device"))
    return restore(workdir, checkpoint=get(values, "checkpoint"), data_dir=get(values, "data_dir"))


def restore(workdir: str, *, checkpoint: str, data_dir: str | None = None) -> Restored:
    """Reads a run back from its folder.

    Args:
      workdir: the folder.
      checkpoint: `"last"` or `"best"`.
      data_dir: folder of the data set, where it is no longer where the config says.

    Returns:
      The run, with the state of that checkpoint.

    Raises:
      UserError: the folder holds no run or no such checkpoint, or the data set is not the one
        that the run was trained on.
    """
    experiment = read_experiment(workdir)
    if data_dir:
        experiment = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, data_dir=data_dir)
        )
    # The checkpoint replaces every array, so that no weights are read; and whatever devices there
    # are will do, since nothing is trained.
    size = -(-experiment.train.eval_batch_size // jax.device_count()) * jax.device_count()
    experiment = dataclasses.replace(
        experiment,
        pretrained=PretrainedOptions(),
        mesh=MeshOptions(),
        train=dataclasses.replace(
            experiment.train, batch_size=size, eval_batch_size=size, accumulate=1
        ),
    )
    dataset = open_data(experiment)
    trainer = Trainer(open_run(experiment, dataset=dataset))
    state = trainer.initial_state()
    best = checkpoint == "best"
    with open_checkpoints(experiment, workdir=workdir, read_only=True) as checkpointer:
        check_words(checkpointer, dataset, experiment)
        read = checkpointer.restore_best if best else checkpointer.restore_last
        found = read(abstract_like(state.to_save()))
        if found is None:
            raise UserError(f"workdir {workdir} holds no '{checkpoint}' checkpoint")
        saved, step = found
        stored = checkpointer.metadata(step, best=best)
    check_same_inputs(trainer.run.metadata, stored, step=step)
    return Restored(experiment, dataset, trainer, state.with_saved(saved), step)


def evaluate_checkpoints(
    trainer: Trainer,
    state: TrainState,
    checkpointer: Checkpointer,
    experiment: Experiment,
    *,
    keep: Callable[[str, str, PyTree], None] = lambda split, checkpoint, counts: None,
) -> list[dict[str, Any]]:
    """Evaluates the last state, and the one that was best on validation.

    Args:
      trainer: the compiled steps.
      state: the state after the last step.
      checkpointer: knows the best one.
      experiment: says which split is reported.
      keep: is called with split, name of the checkpoint and counts of each evaluation.

    Returns:
      One entry per split and checkpoint: `split`, `checkpoint`, `step`, `figures`.
    """
    splits = dict.fromkeys(
        split for split in (trainer.run.validation, experiment.report.split) if split
    )
    states = [("last", experiment.train.steps, state)]
    try:
        best = checkpointer.restore_best(abstract_like(state.to_save()))
    except UserError as error:
        say(f"the best checkpoint is left out: {error}")
        best = None
    if best is not None and best[1] != experiment.train.steps:
        states.append(("best", best[1], state.with_saved(best[0])))
    results = []
    for name, step, candidate in states:
        for split in splits:
            counts = trainer.count(candidate, split)
            keep(split, name, counts)
            figures = trainer.run.evaluator.finalise(counts)
            results.append({"split": split, "checkpoint": name, "step": step, "figures": figures})
    return results


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lays out evaluations as a table.

    Args:
      results: entries with `split`, `checkpoint`, `step` and `figures`.

    Returns:
      Several lines.
    """
    return figures_table(
        [
            {
                "split": entry["split"],
                "checkpoint": f"{entry['checkpoint']} (step {entry['step']})",
                **entry["figures"],
            }
            for entry in results
        ]
    )


def figures_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lays out figures as a table, shares in per cent.

    Args:
      rows: figures, and words, by name of the column.

    Returns:
      Several lines.
    """
    return summary_table(
        [
            {name: x if isinstance(x, str) else _figure(name, x) for name, x in row.items()}
            for row in rows
        ]
    )


def _figure(name: str, value: float) -> str:
    if is_share(name):
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


@dataclasses.dataclass(frozen=True)
class _Files:
    """Image files as a source of examples without labels."""

    paths: tuple[str, ...]
    caption: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {"image": Path(path).read_bytes(), "label": 0, "id": index, "name": path}

    @property
    def labels(self) -> np.ndarray:
        """No image has another's class, as far as is known: int64 [n]."""
        return np.zeros(len(self), np.int64)

    @property
    def ids(self) -> np.ndarray:
        """Their places: int64 [n]."""
        return np.arange(len(self))

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns what is said of an image.

        Args:
          index: which image.

        Returns:
          The caption, if there is one.
        """
        del index
        return () if self.caption is None else (self.caption,)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run makes of one image file.

    Attributes:
      probabilities: float32 [k].
      image: uint8 [h, w, 3], the image as the network is given it.
      explained: arrays of the method's `explain`; empty where it has none or was not asked.
      phrases: for each stage, the weight of each phrase of the caption; empty without one.
    """

    probabilities: np.ndarray
    image: np.ndarray
    explained: Mapping[str, np.ndarray]
    phrases: tuple[Mapping[str, float], ...] = ()


def predict_files(
    restored: Restored, paths: Sequence[str], *, explain: bool = False, caption: str | None = None
) -> Iterator[Prediction]:
    """Predicts image files, one after the other.

    A run that looks at true boxes is shown the whole of a file, which has no box.

    Args:
      restored: a run.
      paths: n image files.
      explain: whether to ask the method what it looks at, where it can say.
      caption: what is said of every image; None for nothing.

    Yields:
      One prediction per file, in order.

    Raises:
      UserError: a file is not an image, or the method needs more than the image, or reads none of
        the caption.
    """
    run, info = restored.trainer.run, restored.dataset.info
    described = DatasetInfo(
        name="files",
        class_names=info.class_names,
        splits={"files": len(paths)},
        vocabulary=info.vocabulary,
    )
    files = SplitSources(described, {"files": _Files(tuple(paths), caption)})
    # An image that cannot be read must not shift the rows of those behind it.
    images = restored.experiment.images("fgkd predict of classes")
    options = dataclasses.replace(images, on_corrupt="raise", extra_keys=())
    if options.eval_geometry == "box":  # a file has none: all of it is shown
        options = dataclasses.replace(options, eval_geometry="resize")
    if caption is None:
        options = dataclasses.replace(options, text=None)
    elif options.text is None:
        raise UserError(f"--caption is {caption!r}, but the run reads no text; expected none")
    method: Any = run.method
    key = jax.random.key(0)

    def predict(state: TrainState, batch: Batch) -> dict[str, Any]:
        variables = state.variables(ema=True)
        if explain and hasattr(method, "explain"):
            return method.explain(variables, batch, key)
        return {"probabilities": method.predict(variables, batch)["probabilities"]}

    compiled = jax.jit(predict)
    size = run.train.eval_batch_size
    with contextlib.closing(eval_iterator(files, "files", options, batch_size=size)) as batches:
        for batch in batches:
            rows = jax.device_get(compiled(restored.state, put_batch(batch, mesh=run.mesh)))
            probabilities = rows.pop("probabilities")
            for i in np.flatnonzero(batch["mask"]).tolist():
                explained = {name: value[i] for name, value in rows.items()}
                told = _attended(explained, batch, i, info) if caption is not None else ()
                yield Prediction(probabilities[i], batch["image"][i], explained, told)


def _attended(
    explained: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], i: int, info: DatasetInfo
) -> tuple[Mapping[str, float], ...]:
    """The weight of each phrase of an image in each stage; phrases as they were understood."""
    if info.vocabulary is None or explained.get("phrase_weights", np.zeros(0)).ndim != 2:
        return ()
    lengths = batch["phrase_lengths"][i].tolist()
    names = [
        " ".join(map(info.vocabulary.word, numbers[:length]))
        for numbers, length in zip(batch["phrases"][i].tolist(), lengths, strict=True)
    ]
    return tuple(
        {name: round(float(w), 4) for name, w in zip(names, weights, strict=True) if name}
        for weights in explained["phrase_weights"]
    )


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
