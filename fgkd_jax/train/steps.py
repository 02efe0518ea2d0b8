"""The jitted steps of a run: what is compiled, for which devices, with what on each of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fgkd_jax.protocols import MetaMethod, Method, split_variables
from fgkd_jax.train import optim
from fgkd_jax.train.init import abstract_variables, state_sharding
from fgkd_jax.train.parameter_sharding import make_gather
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, replicated
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.step import make_meta_step, make_train_step
from fgkd_jax.typing import Batch


class Counted:
    """A jitted function that counts how often it was traced: every trace is a compilation.

    Attributes:
      function: what is jitted.
      traces: how often it was traced.
    """

    def __init__(self, function: Callable[..., Any], **jit_options: Any) -> None:
        self.function = function
        self.traces = 0

        def traced(*args: Any) -> Any:
            self.traces += 1
            return function(*args)

        self._jitted = jax.jit(traced, **jit_options)

    def __call__(self, *args: Any) -> Any:
        """Calls the compiled function."""
        return self._jitted(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Traces and lowers the function.

        Args:
          *args: arrays, or what has their shapes.

        Returns:
          The program, which can be compiled.
        """
        return self._jitted.lower(*args)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a run, ready to be called or only to be compiled.

    Attributes:
      optimizer: with the rules of the options and of the method.
      learning_rate: by step.
      placed: a state of shardings.
      train_step: `(state, batch) -> (state, metrics)`; donates the state.
      meta_step: `(state, batch, meta_batch) -> (state, metrics)`, the second step of a method that
        has one; else None.
      meta_every: steps from one of these to the next.
      whole: gathers the parameters of a state that devices share; for use under jit.
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    placed: TrainState
    train_step: Counted
    meta_step: Counted | None
    meta_every: int
    whole: Callable[[TrainState], TrainState]


def training_steps(
    method: Method,
    spec: Batch,
    *,
    optimizer: optim.OptimOptions,
    total_steps: int,
    mesh: Mesh,
    accumulate: int = 1,
    placement: MeshOptions | None = None,
) -> Steps:
    """Prepares the steps of a run; nothing is computed or compiled yet.

    Args:
      method: the method, its sizes known.
      spec: `jax.ShapeDtypeStruct` by key of the global batch that initialises the method.
      optimizer: the optimiser's options.
      total_steps: updates of the whole run.
      mesh: the devices; those of a topology that is not there will do.
      accumulate: micro-batches of one step.
      placement: what the devices share, see `state_sharding`.

    Returns:
      The steps.

    Raises:
      UserError: a rule of the optimiser or of the placement does not fit the parameters.
    """
    variables = abstract_variables(method, spec)
    params = variables["params"]
    rules = (*map(_frozen, method.frozen_parameters()), *optimizer.rules)
    options = dataclasses.replace(optimizer, rules=rules)
    update = optim.make_optimizer(options, params, total_steps=total_steps)
    learning_rate = optim.learning_rate_schedule(options, total_steps)
    placed = state_sharding(method, variables, mesh=mesh, placement=placement, optimizer=update)
    if not options.ema_decay:  # there is nothing there to be placed
        placed = dataclasses.replace(placed, ema=replicated(mesh))
    gather = make_gather(placed.params, mesh=mesh)

    def whole(state: TrainState) -> TrainState:
        ema = None if state.ema is None else gather(state.ema)
        return dataclasses.replace(state, params=gather(state.params), ema=ema)

    step = make_train_step(
        method,
        update,
        accumulate=accumulate,
        ema_decay=options.ema_decay,
        ema_warmup=options.ema_warmup,
        trainable=optim.trainable_mask(options, params),
        gather=gather,
    )
    split = batch_sharding(mesh)
    results: dict[str, Any] = {"donate_argnums": 0, "out_shardings": (placed, replicated(mesh))}
    meta_step, meta_every = None, getattr(method, "meta_every", 0)
    if meta_every and isinstance(method, MetaMethod):
        meta = make_meta_step(method, learning_rate)
        meta_step = Counted(
            lambda state, batch, held: meta(whole(state), batch, held),
            in_shardings=(placed, split, split),
            **results,
        )
    return Steps(
        optimizer=update,
        learning_rate=learning_rate,
        placed=placed,
        train_step=Counted(step, in_shardings=(placed, split), **results),
        meta_step=meta_step,
        meta_every=meta_every,
        whole=whole,
    )


def abstract_state(steps: Steps, method: Method, spec: Batch, *, ema: bool = False) -> TrainState:
    """Describes the state of step 0 without computing it.

    Args:
      steps: of `training_steps`.
      method: as it was given there.
      spec: likewise.
      ema: whether there is a moving average of the parameters.

    Returns:
      A state of `jax.ShapeDtypeStruct`, without shardings: `train_step` knows those.
    """
    variables = abstract_variables(method, spec)
    params, model_state, constants = split_variables(variables)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        params=params,
        model_state=model_state,
        opt_state=jax.eval_shape(steps.optimizer.init, params),
        ema=params if ema else None,
        constants=constants,
    )


def _frozen(pattern: str) -> optim.ParamRule:
    return optim.ParamRule(pattern, frozen=True)
