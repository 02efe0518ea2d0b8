"""`fgkd bench detect_step`: the training step of a detector, and what each of its parts takes.

The jitted step of `fgkd train` is timed beside the same step cut off behind each of its parts, see
`fgkd_jax.parts`; a part is the difference to the one before. Each of these programs is compiled by
itself and hands out what its parts made, so that nothing of them is left out. So

* parts up to the losses are the forward pass alone; what it keeps for the gradient counts as
  `backward`, which is the gradient to all that is trained, whichever part it is of;
* `optimiser` is clipping, update and moving average;
* the rest is what the whole step has besides: the norms and figures that are logged, less what it
  saves as it writes over its own state.

Images, boxes and weights are random, those of a teacher too. As many proposals compete as in a run;
how many are left, and so how long suppression takes, is that of a first step.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fgkd_jax.cli.batch_spec import scene_spec
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative
from fgkd_jax.cli.compilation.known_sizes import OVERRIDES
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.errors import UserError
from fgkd_jax.parts import STEP_PARTS, part_names, until
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.loop import HostBatch
from fgkd_jax.train.sharding import check_batch_size, make_mesh, put_batch
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.steps import Steps, abstract_state, training_steps
from fgkd_jax.typing import Batch

CLASSES = 80
"""Classes of a config that takes their number from its data set, which is not opened here."""

OBJECTS = 8
"""Boxes of an image, where it may have so many."""

CONFIGS = ("faster_rcnn_bccd", "defeat_faster_rcnn_bccd", "retinanet_bccd")
"""What is measured where no config is given."""


def random_scenes(spec: Batch, *, num_classes: int) -> HostBatch:
    """Makes a batch of random images that fill it, each with random boxes.

    Args:
      spec: as `scene_spec` returns it.
      num_classes: labels are below it.

    Returns:
      Arrays by key, always the same; sides of boxes are from a 20th of the image's to half of it.
    """
    rng = np.random.default_rng(0)
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    size, rows = batch["image"].shape[1:3], batch["boxes"].shape[1]
    shape = (len(batch["id"]), min(rows, OBJECTS), 2)
    side = np.exp(rng.uniform(np.log(1 / 20), np.log(1 / 2), shape))
    start = rng.uniform(0, 1 - side)
    corners = np.concatenate([start, start + side], axis=-1) * (*size[::-1], *size[::-1])
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    batch["valid_size"][:] = batch["original_size"][:] = size
    batch["boxes"][:, : shape[1]] = corners
    batch["box_labels"][:, : shape[1]] = rng.integers(0, num_classes, shape[:2])
    batch["box_mask"][:, : shape[1]] = True
    batch["id"], batch["mask"][:] = np.arange(shape[0], dtype=np.int32), True
    return batch


@dataclasses.dataclass(frozen=True)
class Measurable:
    """A training step, and what it is cut into; nothing is computed yet.

    Attributes:
      experiment: with the number of classes, and the size of a batch.
      mesh: the devices.
      spec: `jax.ShapeDtypeStruct` by key of a batch.
      steps: what is compiled.
    """

    experiment: Experiment
    mesh: Mesh
    spec: Batch
    steps: Steps

    @property
    def method(self) -> Any:
        """The detector, its classes known."""
        return self.experiment.method

    def initial_state(self) -> TrainState:
        """Builds the state of step 0, from random weights.

        Returns:
          The state, on the devices.
        """
        return initial_state(
            jax.random.key(self.experiment.seed),
            self.method,
            self.steps.optimizer,
            self.spec,
            mesh=self.mesh,
            placement=self.experiment.mesh,
            ema=self.experiment.optim.ema_decay > 0,
        )

    def scenes(self) -> Batch:
        """Makes a batch of random scenes.

        Returns:
          The batch, on the devices.
        """
        scenes = random_scenes(self.spec, num_classes=self.method.num_classes)
        return put_batch(scenes, mesh=self.mesh)

    def forward(self, state: TrainState, batch: Batch) -> Any:
        """Computes the loss terms as the training step does, with the key that it takes.

        Args:
          state: of any step.
          batch: of detection.

        Returns:
          What `Method.loss` returns.
        """
        state = self.steps.whole(state)
        key = jax.random.fold_in(state.key, state.step)
        return self.method.loss(state.variables(), batch, key, train=True)

    def prefixes(self) -> dict[str, Callable[[TrainState, Batch], Any]]:
        """Cuts the step off behind each of its parts.

        Returns:
          Functions to be jitted, by the name of their last part, from the shortest to the longest.
        """
        ema = self.experiment.optim.ema_decay > 0
        state = abstract_state(self.steps, self.method, self.spec, ema=ema)
        names = part_names(lambda: jax.eval_shape(self.forward, state, self.spec))
        step = self.steps.train_step.function
        return {
            **{name: until(self.forward, names[: i + 1]) for i, name in enumerate(names)},
            **{name: until(step, STEP_PARTS[: i + 1]) for i, name in enumerate(STEP_PARTS)},
        }


def measurable(experiment: Experiment, *, batch_size: int | None = None) -> Measurable:
    """Prepares the training step of a detector, as `fgkd train` would, on random scenes.

    Args:
      experiment: the config.
      batch_size: of a training batch; None keeps the config's.

    Returns:
      The step.

    Raises:
      UserError: the config is of no detector, accumulates gradients, or its batch does not divide
        by the devices.
    """
    method: Any = experiment.method
    train, data = experiment.train, experiment.data
    if not isinstance(data, DetectionOptions):
        raise UserError(f"the method's task is '{method.task}'; expected 'detection'")
    if train.accumulate != 1:
        raise UserError(f"train.accumulate is {train.accumulate}; expected 1, or parts are shared")
    if method.num_classes is None:
        method = dataclasses.replace(method, num_classes=CLASSES)
    train = dataclasses.replace(train, batch_size=batch_size or train.batch_size)
    experiment = dataclasses.replace(experiment, method=method, train=train)
    mesh = make_mesh(experiment.mesh)
    check_batch_size(train.batch_size, mesh=mesh, name="train.batch_size")
    spec = scene_spec(data.buckets[0], max_boxes=data.max_boxes, batch_size=train.batch_size)
    steps = training_steps(
        method,
        spec,
        optimizer=experiment.optim,
        total_steps=train.steps,
        mesh=mesh,
        placement=experiment.mesh,
    )
    return Measurable(experiment, mesh, spec, steps)


def cases(request: Request) -> Iterator[Case]:
    """Makes a case of each config.

    Args:
      request: names the config; without one, those of `CONFIGS` are taken.

    Yields:
      One case after the other.

    Raises:
      UserError: as of `measurable`.
    """
    if request.experiment is not None:
        yield _case(request.experiment, batch_size=request.batch_size)
        return
    for name in CONFIGS:
        experiment = load_config(name, OVERRIDES.get(name, ()))
        yield _case(experiment, batch_size=request.batch_size)


def _case(experiment: Experiment, *, batch_size: int | None) -> Case:
    made = measurable(experiment, batch_size=batch_size)
    prefixes, state, batch = made.prefixes(), made.initial_state(), made.scenes()
    cut = (_cut(name, function, state, batch) for name, function in prefixes.items())
    method, size = made.method, len(batch["id"])
    return Case(
        name=experiment.report.title or type(method).__name__,
        sizes={
            "batch_size": size,
            "image_size": list(batch["image"].shape[1:3]),
            "objects": int(batch["box_mask"][0].sum()),
            "classes": method.num_classes,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "backbone": dict(method.backbone),
            "optimizer": made.experiment.optim.name,
        },
        alternatives=(_whole(made.steps.train_step, state, batch), *cut),
        images=size,
        prefixes=tuple(prefixes),
        notes=("detect_step: random scenes on the device, random weights, of a teacher as well",),
    )


def _whole(step: Callable[..., Any], state: TrainState, batch: Batch) -> Alternative:
    """The step that `fgkd train` makes; the state goes from call to call.

    Every sample begins with the first state again, for as the detector learns, suppression has
    other boxes to do with than in the step cut off, which always has that state.
    """
    now = state

    def begin() -> None:
        nonlocal now
        now = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # the step gives its state away

    def call() -> Any:
        nonlocal now
        now, metrics = step(now, batch)
        return now.step, now.params, metrics

    whole = jax_alternative("fgkd_jax", call, chained=True)
    return dataclasses.replace(whole, begin=begin)


def _cut(name: str, function: Callable[..., Any], state: TrainState, batch: Batch) -> Alternative:
    compiled = jax.jit(function)
    return jax_alternative(name, lambda: compiled(state, batch))


BENCHMARK = Benchmark(
    name="detect_step", cases=cases, against=(), takes_config=True, default_configs=CONFIGS
)
"""The benchmark of a detector's training step."""
