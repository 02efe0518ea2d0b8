"""The training loop: feed, step, log, evaluate, save; it knows no method and no data set."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from fgkd_jax.errors import Preempted, UserError
from fgkd_jax.protocols import CollectingEvaluator, Evaluator, Method
from fgkd_jax.train import optim
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.init import Overlay, initial_state
from fgkd_jax.train.sharding import (
    MeshOptions,
    batch_sharding,
    check_batch_size,
    put_batch,
    put_everywhere,
    replicated,
)
from fgkd_jax.train.state import TrainState, abstract_like
from fgkd_jax.train.step import make_eval_step
from fgkd_jax.train.steps import Counted, training_steps
from fgkd_jax.train.window import Window, finite_scalars
from fgkd_jax.train.writers import MetricsWriter, Progress
from fgkd_jax.typing import Batch, PyTree

HostBatch = dict[str, np.ndarray]
AfterBatch = Callable[[], bool | None]

_LEFT = "evaluation_left"
"""Stored with a checkpoint whose state is still to be evaluated on validation."""

TENSORBOARD: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long a run is and what happens at which step.

    Attributes:
      steps: optimiser updates of the whole run.
      batch_size: examples of one step, over all devices and micro-batches.
      accumulate: micro-batches of one step.
      eval_batch_size: examples of one evaluation batch, over all devices.
      log_every: steps between two lines of metrics.
      eval_every: steps between two evaluations on the validation split; 0 evaluates at the end.
      tensorboard: whether to write TensorBoard files; "auto" does where it is installed.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    eval_batch_size: int = 64
    log_every: int = 50
    eval_every: int = 0
    tensorboard: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.eval_every < 0:
            raise UserError(f"eval_every is {self.eval_every}; expected 0 or more")


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches that can be told to stop reading ahead."""

    def __next__(self) -> HostBatch: ...

    def __iter__(self) -> Iterator[HostBatch]: ...

    def close(self) -> None:
        """Ends the threads and processes behind it."""
        ...


@runtime_checkable
class Feed(Protocol):
    """Where batches come from: this process's share of each global batch."""

    def train(self, start_step: int) -> Batches:
        """Yields training batches without end, beginning with that of `start_step`."""
        ...

    def evaluation(self, split: str) -> Batches:
        """Yields the batches of one split, in order, padded with `mask` False."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs to know of one run.

    Attributes:
      method: supplies loss and predictions.
      evaluator: turns predictions into figures.
      feed: supplies batches.
      spec: `jax.ShapeDtypeStruct` by key of the global batch that initialises the method.
      mesh: the devices.
      train: length and intervals.
      optimizer: optimiser options.
      seed: seeds parameters, augmentation and dropout.
      overlay: puts pretrained arrays in place of initial ones.
      meta_feed: supplies the batches that the second steps of a method are judged by, from the one
        of an index on; None: those of the main steps.
      constants: what the method keeps of the data set; None where it needs nothing.
      validation: name of the split to choose checkpoints on; None where there is none.
      metadata: JSON values stored with every checkpoint; a resumed run must have the same
        (hashes of labels and ids of the data, and of the weights it started from).
      placement: what the devices of the mesh share; its numbers of devices are those of `mesh`.
    """

    method: Method
    evaluator: Evaluator
    feed: Feed
    spec: Batch
    mesh: Mesh
    train: TrainOptions
    optimizer: optim.OptimOptions
    seed: int = 0
    overlay: Overlay | None = None
    meta_feed: Callable[[int], Batches] | None = None
    constants: Mapping[str, Any] | None = None
    validation: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    placement: MeshOptions | None = None


class Trainer:
    """The compiled steps of one run, its state and its evaluation.

    Attributes:
      run: the run.
      steps: what is compiled of it, and where its state goes.
      train_step, meta_step, meta_every, learning_rate: of `steps`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        for name, accumulate in (("batch_size", run.train.accumulate), ("eval_batch_size", 1)):
            check_batch_size(
                getattr(run.train, name),
                mesh=run.mesh,
                accumulate=accumulate,
                name=f"train.{name}",
            )
        self.steps = training_steps(
            run.method,
            run.spec,
            optimizer=run.optimizer,
            total_steps=run.train.steps,
            accumulate=run.train.accumulate,
            mesh=run.mesh,
            placement=run.placement,
        )
        self.train_step, self.meta_step = self.steps.train_step, self.steps.meta_step
        self.meta_every, self.learning_rate = self.steps.meta_every, self.steps.learning_rate
        evaluate = make_eval_step(run.method, run.evaluator, ema=run.optimizer.ema_decay > 0)
        everywhere = replicated(run.mesh)
        self.eval_step = Counted(
            lambda state, counts, batch: evaluate(self.steps.whole(state), counts, batch),
            in_shardings=(self.steps.placed, everywhere, batch_sharding(run.mesh)),
            out_shardings=everywhere,
        )

    def initial_state(self) -> TrainState:
        """Builds the state of step 0.

        Returns:
          The state, on the devices.
        """
        return initial_state(
            jax.random.key(self.run.seed),
            self.run.method,
            self.steps.optimizer,
            self.run.spec,
            mesh=self.run.mesh,
            placement=self.run.placement,
            overlay=self.run.overlay,
            ema=self.run.optimizer.ema_decay > 0,
            constants=self.run.constants,
        )

    def evaluate(
        self, state: TrainState, split: str, *, after_batch: AfterBatch = lambda: None
    ) -> dict[str, float]:
        """Returns the evaluator's figures of a state on every example of a split, by name."""
        return self.run.evaluator.finalise(self.count(state, split, after_batch=after_batch))

    def count(
        self, state: TrainState, split: str, *, after_batch: AfterBatch = lambda: None
    ) -> PyTree:
        """Runs a state over every example of a split; `evaluate` makes figures of these counts.

        Args:
          state: on the devices.
          split: name of the split.
          after_batch: is called after every batch that was begun; True asks to leave the rest.

        Returns:
          What `finalise` of the evaluator takes.

        Raises:
          Preempted: `after_batch` asked to stop.
        """
        evaluator = self.run.evaluator
        counts = put_everywhere(evaluator.empty(), mesh=self.run.mesh)
        collects = isinstance(evaluator, CollectingEvaluator)
        collected: list[PyTree] = []
        with contextlib.closing(self.run.feed.evaluation(split)) as batches:
            for batch in batches:
                new = self.eval_step(state, counts, put_batch(batch, mesh=self.run.mesh))
                if collects:
                    # One batch late, so that the device has the next one to work on.
                    collected[-1:] = jax.device_get(collected[-1:])
                    collected.append(new)
                else:
                    counts = new
                if after_batch():
                    raise Preempted("asked to stop amid an evaluation")
        if isinstance(evaluator, CollectingEvaluator):
            return evaluator.collect(jax.device_get(collected))
        return counts


def fit(
    trainer: Trainer,
    state: TrainState,
    checkpointer: Checkpointer,
    *,
    workdir: str,
    log: Callable[[str], None],
    after_step: Callable[[int], bool] = lambda step: False,
    after_batch: AfterBatch = lambda: None,
) -> tuple[TrainState, int]:
    """Trains to the last step, from the newest checkpoint where there is one.

    Args:
      trainer: the compiled steps of a run.
      state: the state of step 0.
      checkpointer: saves and restores; decides which checkpoints are kept.
      workdir: folder of the metrics.
      log: takes one line at a time for the person who watches.
      after_step: is called with the number of every step that was begun; True asks to save that
        step and stop, and is given to all processes at the same step.
      after_batch: is called after every batch of an evaluation that was begun; True asks to leave
        it, save and stop, likewise. It is made when the run goes on.

    Returns:
      The state after the last step, and the step that training started from.

    Raises:
      NonFiniteError: a loss, a gradient or a new parameter is not finite; every checkpoint is
        older and good.
      Preempted: `after_step` or `after_batch` asked to stop; the state of that step is saved.
      UserError: the checkpoint was made from other data or weights.
    """
    run = trainer.run
    restored = checkpointer.restore_last(abstract_like(state.to_save()))
    start, left = 0, False
    if restored is not None:
        saved, start = restored
        metadata = checkpointer.metadata(start)
        check_same_inputs(run.metadata, metadata, step=start)
        left = bool(metadata.get(_LEFT))
        state = state.with_saved(saved)
        log(f"resumed from step {start}")
    writer = MetricsWriter(
        workdir,
        resume_step=start,
        again=run.validation if left else None,
        enabled=jax.process_index() == 0,
        tensorboard=TENSORBOARD[run.train.tensorboard],
    )
    batches, meta_batches = run.feed.train(start), None
    if trainer.meta_step and run.meta_feed:
        meta_batches = run.meta_feed(-(-start // trainer.meta_every))
    with contextlib.ExitStack() as stack:
        stack.enter_context(writer)
        for iterator in filter(None, (batches, meta_batches)):
            stack.enter_context(contextlib.closing(iterator))
        stack.enter_context(jax.transfer_guard("disallow"))
        feeds = (batches, meta_batches)
        evaluate = partial(_evaluated, trainer, checkpointer, writer, after_batch)
        if left and not evaluate(state, start):
            raise Preempted(f"asked to stop; step {start} of {run.train.steps} is saved")
        state = _steps(trainer, state, start, feeds, checkpointer, writer, after_step, evaluate)
    checkpointer.wait()
    return state, start


def _evaluated(
    trainer: Trainer,
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    after_batch: AfterBatch,
    state: TrainState,
    step: int,
) -> bool:
    """Measures a state on validation and keeps it where it is the best; False if asked to stop."""
    run = trainer.run
    if run.validation is None:
        return True
    try:
        figures = trainer.evaluate(state, run.validation, after_batch=after_batch)
    except Preempted:
        return False
    writer.write(step, figures, split=run.validation)
    # What had nothing to measure yet, or at all, is never the best.
    measured = {**dict.fromkeys(run.evaluator.figures, math.nan), **figures}
    checkpointer.save_best(step, state.to_save(), measured, metadata=run.metadata)
    return True


def check_same_inputs(now: Mapping[str, Any], before: Mapping[str, Any], *, step: int) -> None:
    """Checks that a checkpoint was made from the data and weights of this run.

    Args:
      now: JSON values of this run.
      before: those stored with the checkpoint.
      step: the checkpoint's step, for the message.

    Raises:
      UserError: a value differs.
    """
    for name, value in now.items():
        if name in before and before[name] != value:
            raise UserError(
                f"the checkpoint of step {step} was made with another {name}: {before[name]} "
                f"there and {value} here; expected what the run was started with"
            )


def _steps(
    trainer: Trainer,
    state: TrainState,
    start: int,
    feeds: tuple[Iterator[HostBatch], Iterator[HostBatch] | None],
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    after_step: Callable[[int], bool],
    evaluate: Callable[[TrainState, int], bool],
) -> TrainState:
    run, total = trainer.run, trainer.run.train.steps
    batches, meta_batches = feeds
    every = run.train.eval_every or total
    evaluations = {total, *range(every, total, every)} if run.validation else set()
    window = Window()
    with Progress(
        total,
        start_step=start,
        batch_size=run.train.batch_size,
        enabled=jax.process_index() == 0,
    ) as progress:
        for step in range(start + 1, total + 1):
            batch = next(batches)
            placed = put_batch(batch, mesh=run.mesh)
            state, metrics = trainer.train_step(state, placed)
            window.add(step, metrics, batch["id"])
            if trainer.meta_step and (step - 1) % trainer.meta_every == 0:
                held = put_batch(next(meta_batches), mesh=run.mesh) if meta_batches else placed
                state, metrics = trainer.meta_step(state, placed, held)
                writer.write(step, finite_scalars(step, metrics), split="meta")
            stops, left = after_step(step), False
            saves = stops or step == total or step % checkpointer.options.every_steps == 0
            evaluates = step in evaluations
            if saves or evaluates or step % run.train.log_every == 0:
                # Saving and evaluating end a window, so that a resumed run averages over the
                # same steps as one that was never stopped.
                line = window.flush()
                with jax.transfer_guard("allow"):
                    line["learning_rate"] = float(trainer.learning_rate(step - 1))
                line["compilations"] = trainer.train_step.traces
                writer.write(step, line, split="train")
                progress.update(step, loss=line["loss"])
            if evaluates:  # a scheduler that asks to stop does not wait for it
                left = stops or not evaluate(state, step)
                stops = left
            if saves or stops:
                metadata = {**run.metadata, _LEFT: True} if left else run.metadata
                checkpointer.save(step, state.to_save(), metadata=metadata)
            progress.update(step)
            if stops and (left or step < total):
                checkpointer.wait()
                raise Preempted(f"asked to stop; step {step} of {total} is saved")
    return state
