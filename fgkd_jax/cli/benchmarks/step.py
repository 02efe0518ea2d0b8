"""`fgkd bench step`: the training step of a config, on random images that are on the device."""

import dataclasses
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from fgkd_jax.cli.batch_spec import image_spec
from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.cli.benchmarks.torch_step import check_comparable, make_torch_step
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS
from fgkd_jax.protocols import IndexedMethod
from fgkd_jax.train.loop import HostBatch, Run, Trainer
from fgkd_jax.train.sharding import make_mesh, put_batch
from fgkd_jax.train.state import TrainState
from fgkd_jax.typing import Batch

CLASSES = 100
"""Classes of a config that takes their number from its data set, which is not opened here."""

EXAMPLES = 100_000
"""Training examples of a method that keeps something for each of them, where a config has none."""

TASKS = (
    *("classification", "sampled_classification", "mutual_classification"),
    *("block_classification", "bimodal"),
)
AGAINST: dict[str, dict[str, Any]] = {
    **{name: {"layout": layout} for name, layout in torch_models.LAYOUTS.items()},
    "torch_compile": {"layout": "contiguous_format", "compiled": True},
}


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """The same random batch over and over, in the place of a data set.

    Attributes:
      batch: arrays of the global batch.
    """

    batch: HostBatch

    def train(self, start_step: int) -> Generator[HostBatch, None, None]:
        """Yields the batch without end, whatever the step."""
        while True:
            yield self.batch

    def evaluation(self, split: str) -> Generator[HostBatch, None, None]:
        """Yields the batch once, whatever the split."""
        yield self.batch


def random_batch(spec: Batch, *, num_classes: int) -> HostBatch:
    """Makes a batch of random images and labels.

    Args:
      spec: `jax.ShapeDtypeStruct` of `image`, `label`, `id`, `mask` and, perhaps, `other_views`.
      num_classes: labels are below it.

    Returns:
      Arrays by key, always the same.
    """
    rng = np.random.default_rng(0)
    size = len(spec["label"])
    views = [name for name in ("image", "other_views") if name in spec]
    return {
        **{name: rng.integers(0, 256, spec[name].shape, np.uint8) for name in views},
        **_random_text(spec),
        "label": rng.integers(0, num_classes, size, np.int32),
        "id": np.arange(size, dtype=np.int32),
        "mask": np.ones(size, np.bool_),
    }


def _random_text(spec: Batch) -> HostBatch:
    """Phrases of the longest kind, of the two words that every vocabulary has."""
    if "phrases" not in spec:
        return {}
    shape = spec["phrases"].shape
    numbers = np.random.default_rng(1).integers(0, 2, shape, np.int32)
    return {"phrases": numbers, "phrase_lengths": np.full(shape[:2], shape[2], np.int32)}


def prepared(experiment: Experiment, *, batch_size: int | None = None) -> Experiment:
    """Completes an experiment with what a step on random images needs.

    Args:
      experiment: the config.
      batch_size: of a training batch; None keeps the config's.

    Returns:
      The experiment with numbers of classes and of examples, and that batch size.

    Raises:
      UserError: the task is not classification, or the batch size is out of range.
    """
    method: Any = experiment.method
    if method.task not in TASKS:
        raise UserError(f"the method's task is '{method.task}'; expected one of {', '.join(TASKS)}")
    if method.num_classes is None:
        method = dataclasses.replace(method, num_classes=CLASSES)
    indexed = isinstance(method, IndexedMethod)
    if indexed and method.num_examples is None:
        method = dataclasses.replace(method, num_examples=EXAMPLES)
    train = experiment.train
    train = dataclasses.replace(train, batch_size=batch_size or train.batch_size)
    return dataclasses.replace(experiment, method=method, train=train)


def make_trainer(experiment: Experiment) -> Trainer:
    """Makes the trainer of a prepared experiment, as `fgkd train` would, on random images.

    Args:
      experiment: as `prepared` returns it.

    Returns:
      The trainer.

    Raises:
      UserError: the batch does not divide by the devices.
    """
    method: Any = experiment.method
    data = experiment.images("fgkd bench step")
    spec = image_spec(data, batch_size=experiment.train.batch_size)
    batch = random_batch(spec, num_classes=method.num_classes)
    run = Run(
        method=method,
        evaluator=EVALUATORS[method.task](
            _classes(method.num_classes), (), getattr(method, "num_networks", 1)
        ),
        feed=RandomImages(batch),
        spec=spec,
        mesh=make_mesh(experiment.mesh),
        placement=experiment.mesh,
        # Evaluation is not measured, so its batch need not divide by the devices.
        train=dataclasses.replace(experiment.train, eval_batch_size=experiment.train.batch_size),
        optimizer=experiment.optim,
        seed=experiment.seed,
        constants=_examples(method, batch) if isinstance(method, IndexedMethod) else None,
    )
    return Trainer(run)


def _examples(method: Any, batch: HostBatch) -> dict[str, Any]:
    """What a method keeps of training examples of which the first are those of the batch."""
    labels = np.arange(method.num_examples) % method.num_classes
    labels[: len(batch["label"])] = batch["label"]
    return method.constants(labels, np.arange(len(labels)))


def _classes(count: int) -> DatasetInfo:
    """The data set that an evaluator is made for, where none is opened."""
    return DatasetInfo(name="random", class_names=tuple(map(str, range(count))), splits={})


def cases(request: Request) -> Iterator[Case]:
    """Makes the one case: a training step.

    Args:
      request: names the config.

    Yields:
      The case.

    Raises:
      UserError: the config cannot be compared with torch.
    """
    experiment = prepared(request.config, batch_size=request.batch_size)
    mesh = make_mesh(experiment.mesh)
    if request.against:
        check_comparable(experiment, devices=mesh.devices.size)
        torch_models.torch_device()
    trainer = make_trainer(experiment)
    state = trainer.initial_state()
    # On the host, for the first step gives the state's own arrays away.
    variables = jax.device_get(state.variables())
    batch = next(trainer.run.feed.train(0))
    rivals = []
    for name in request.against:
        rival = make_torch_step(experiment, variables, batch, **AGAINST[name])
        rivals.append(torch_alternative(name, rival.call, device=rival.device))
    ours = _ours(trainer, state, put_batch(batch, mesh=mesh))
    yield Case(
        name=f"step of {experiment.train.batch_size}",
        sizes=_sizes(experiment, variables, devices=mesh.devices.size),
        alternatives=(ours, *rivals),
        images=experiment.train.batch_size,
        notes=_notes(experiment),
    )


def _ours(trainer: Trainer, state: TrainState, batch: dict[str, jax.Array]) -> Alternative:
    """The step that `fgkd train` makes; the state goes from call to call."""

    def call() -> Any:
        nonlocal state
        state, metrics = trainer.train_step(state, batch)
        return state.step, state.params, metrics

    return jax_alternative("fgkd_jax", call, chained=True)


def _sizes(experiment: Experiment, variables: Any, *, devices: int) -> dict[str, Any]:
    method: Any = experiment.method
    return {
        "batch_size": experiment.train.batch_size,
        "image_size": list(experiment.images("fgkd bench step").size),
        "classes": method.num_classes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "backbone": dict(getattr(method, "backbone", {})),
        "optimizer": experiment.optim.name,
        "devices": devices,
    }


def _notes(experiment: Experiment) -> tuple[str, ...]:
    notes = ["step: random images that are on the device before the clock starts"]
    if experiment.features.views:
        notes.append("step: from images, though the config caches the features of frozen stages")
    return tuple(notes)


BENCHMARK = Benchmark(name="step", cases=cases, against=tuple(AGAINST), takes_config=True)
