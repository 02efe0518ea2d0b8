"""The training step and the evaluation step: pure functions without a mesh in them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fgkd_jax.errors import UserError
from fgkd_jax.ops.loops import scan_steps
from fgkd_jax.parts import BACKWARD, UPDATE, part
from fgkd_jax.protocols import Evaluator, LossTerm, MetaMethod, Method, Metric
from fgkd_jax.train.optim import ema_update
from fgkd_jax.train.state import TrainState
from fgkd_jax.typing import Array, Batch, Leaf, PyTree

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
MetaStep = Callable[[TrainState, Batch, Batch], tuple[TrainState, Metrics]]
_META = 1
"""Folded into the key of a second step, so that it draws otherwise than the main one."""
EvalStep = Callable[[TrainState, PyTree, Batch], PyTree]


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
    trainable: PyTree | None = None,
    gather: Callable[[PyTree], PyTree] = lambda params: params,
) -> TrainStep:
    """Builds the training step that all methods share.

    `loss = sum over terms of weight * sum(term.sum) / max(1, sum(term.count))`, over the whole
    batch in however many micro-batches it is taken.

    Args:
      method: supplies the loss terms.
      optimizer: turns gradients into updates.
      accumulate: micro-batches of one step; micro-batch j takes the examples j, j + accumulate,
        ..., so that each stays evenly spread over the devices. Each draws from a key of its own,
        so that augmentation on the device differs from that of an undivided batch.
      ema_decay: decay of the moving average of the parameters; 0 keeps none.
      ema_warmup: whether the average follows faster during the first updates.
      trainable: pytree of bools like `params`; no gradient is computed where False.
      gather: is given the parameters before the loss is, where devices share them.

    Returns:
      `(state, batch) -> (state, metrics)`. Metrics are scalars, but for `example_finite` (bool
      per example: its own loss terms are finite).
    """

    def loss(
        params: PyTree, state: TrainState, batch: Batch, key: Array, counts: Any
    ) -> tuple[Array, Any]:
        variables = {**state.variables(), "params": gather(_stop_frozen(params, trainable))}
        terms, model_state, figures = method.loss(variables, batch, key, train=True)
        report = _Report.of(terms, figures, batch)
        return report.total(report.counts if counts is None else counts), (report, model_state)

    gradient = jax.grad(loss, has_aux=True)

    def accumulated(state: TrainState, batch: Batch, key: Array) -> tuple[PyTree, Any]:
        micro = {name: _micro_batches(value, accumulate) for name, value in batch.items()}
        counts = _count_all(method, state, micro, key)

        def body(carry: Any, item: Any) -> Any:
            grads, model_state = carry
            index, part = item
            now = dataclasses.replace(state, model_state=model_state)
            new, (report, model_state) = gradient(
                state.params, now, part, jax.random.fold_in(key, index), counts
            )
            return (jax.tree.map(jnp.add, grads, new), model_state), report

        start = (jax.tree.map(jnp.zeros_like, state.params), state.model_state)
        (grads, model_state), reports = scan_steps(body, start, (jnp.arange(accumulate), micro))
        return grads, (reports.merged(), model_state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            grads, (report, model_state) = gradient(state.params, state, batch, key, None)
        else:
            grads, (report, model_state) = accumulated(state, batch, key)
        part(BACKWARD, (grads, report, model_state))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = ema_update(ema, params, decay=ema_decay, step=state.step, warmup=ema_warmup)
        new = part(UPDATE, {"params": params, "opt_state": opt_state, "ema": ema})
        state = dataclasses.replace(state, step=state.step + 1, model_state=model_state, **new)
        return state, report.metrics(grads, params, model_state)

    return step


def make_meta_step(method: MetaMethod, schedule: optax.Schedule) -> MetaStep:
    """Builds the second step of a method that has one.

    Args:
      method: supplies it.
      schedule: learning rate by step.

    Returns:
      `(state, batch, meta_batch) -> (state, metrics)`, to be called with the state after a main
      step, that step's batch, and the batch to judge by; it counts as no step.
    """

    def step(state: TrainState, batch: Batch, meta_batch: Batch) -> tuple[TrainState, Metrics]:
        done = state.step - 1
        key = jax.random.fold_in(jax.random.fold_in(state.key, done), _META)
        changed, metrics = method.meta_step(
            state.variables(), batch, key, meta_batch=meta_batch, learning_rate=schedule(done)
        )
        model_state = {**state.model_state, **changed}
        return dataclasses.replace(state, model_state=model_state), metrics

    return step


def make_eval_step(method: Method, evaluator: Evaluator, *, ema: bool = False) -> EvalStep:
    """Builds the evaluation step.

    Args:
      method: supplies the predictions.
      evaluator: counts what is right.
      ema: whether to evaluate the averaged parameters, where there are any.

    Returns:
      `(state, counts, batch) -> counts`.
    """

    def step(state: TrainState, counts: PyTree, batch: Batch) -> PyTree:
        predictions = method.predict(state.variables(ema=ema), batch)
        return evaluator.update(counts, predictions, batch)

    return step


@struct.dataclass
class _Report:
    """What one pass of the loss leaves to log; micro-batches stack it along a leading axis."""

    sums: dict[str, Leaf]
    counts: dict[str, Leaf]
    weights: dict[str, Leaf]
    figures: dict[str, tuple[Leaf, Leaf]]
    example_finite: Leaf

    @classmethod
    def of(
        cls, terms: Mapping[str, LossTerm], figures: Mapping[str, Metric], batch: Batch
    ) -> "_Report":
        size = len(jax.tree.leaves(batch)[0])
        finite = jnp.ones((size,), bool)
        for term in terms.values():
            if term.sum.shape[:1] == (size,):
                finite &= jnp.all(jnp.isfinite(term.sum), axis=tuple(range(1, term.sum.ndim)))
        return cls(
            sums={name: jnp.sum(term.sum) for name, term in terms.items()},
            counts={name: jnp.sum(term.count) for name, term in terms.items()},
            weights={name: jnp.asarray(term.weight, jnp.float32) for name, term in terms.items()},
            figures={name: (jnp.sum(total), jnp.sum(n)) for name, (total, n) in figures.items()},
            example_finite=finite,
        )

    def total(self, counts: Mapping[str, Array]) -> Array:
        """The loss, given the counts of the whole batch."""
        means = [
            self.weights[name] * self.sums[name] / jnp.maximum(1, counts[name])
            for name in self.sums
        ]
        return jnp.sum(jnp.stack(means))

    def merged(self) -> "_Report":
        """Adds up the micro-batches and puts the examples back in their order."""
        sums, counts, figures = jax.tree.map(
            lambda leaf: jnp.sum(leaf, axis=0), (self.sums, self.counts, self.figures)
        )
        return _Report(
            sums=sums,
            counts=counts,
            weights={name: weight[0] for name, weight in self.weights.items()},
            figures=figures,
            example_finite=jnp.swapaxes(self.example_finite, 0, 1).reshape(-1),
        )

    def metrics(self, grads: PyTree, params: PyTree, model_state: PyTree) -> Metrics:
        """Figures to log; `finite` covers what a checkpoint of the new state would hold."""
        loss, norm = self.total(self.counts), optax.tree.norm(grads)
        after = _float_norm((params, model_state))
        means = {name: total / jnp.maximum(1, n) for name, (total, n) in self.figures.items()}
        parts = {
            f"loss/{name}": self.sums[name] / jnp.maximum(1, self.counts[name])
            for name in self.sums
        }
        return {
            **means,
            **parts,
            "loss": loss,
            "grad_norm": norm,
            "finite": jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(after),
            "example_finite": self.example_finite,
        }


def _float_norm(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return optax.tree.norm(leaves)


def _stop_frozen(params: PyTree, trainable: PyTree | None) -> PyTree:
    """Cuts the gradient of frozen parameters, so that their backward pass is never computed."""
    if trainable is None:
        return params
    return jax.tree.map(
        lambda value, train: value if train else jax.lax.stop_gradient(value), params, trainable
    )


def _micro_batches(value: Array, accumulate: int) -> Array:
    """[b, ...] to [accumulate, b / accumulate, ...] without moving examples between devices."""
    if value.shape[0] % accumulate:
        raise UserError(
            f"a batch of {value.shape[0]} examples cannot be split into {accumulate} micro-batches"
        )
    split = value.reshape(value.shape[0] // accumulate, accumulate, *value.shape[1:])
    return jnp.swapaxes(split, 0, 1)


def _count_all(
    method: Method, state: TrainState, micro: Mapping[str, Array], key: Array
) -> dict[str, Array]:
    """Adds up the counts of every term before any gradient is taken.

    The compiler removes the network from this pass where the counts depend on the batch alone.
    """

    def body(_: None, item: Any) -> tuple[None, dict[str, Array]]:
        index, part = item
        terms, *_others = method.loss(
            state.variables(), part, jax.random.fold_in(key, index), train=True
        )
        coupled = [name for name, term in terms.items() if not term.accumulable]
        if coupled:
            raise UserError(
                f"loss term '{coupled[0]}' couples the examples of a batch and cannot be "
                "accumulated over micro-batches; expected train.accumulate=1"
            )
        return None, {name: jnp.sum(term.count) for name, term in terms.items()}

    size = len(jax.tree.leaves(micro)[0])
    _, counts = jax.lax.scan(body, None, (jnp.arange(size), dict(micro)))
    return {name: jnp.sum(count, axis=0) for name, count in counts.items()}
