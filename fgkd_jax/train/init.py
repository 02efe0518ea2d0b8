"""Initialisation: `init -> overlay pretrained arrays -> place on the devices`, for every method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from fgkd_jax.protocols import Method, split_variables
from fgkd_jax.train.state import TrainState
from fgkd_jax.typing import Array, Batch, Key, PyTree, Variables

Overlay = Callable[[Variables], Variables]


def abstract_variables(method: Method, spec: Batch) -> Variables:
    """Describes a method's variables without computing them.

    Args:
      method: the method.
      spec: `jax.ShapeDtypeStruct` by batch key.

    Returns:
      Collections of `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(method.init, jax.random.key(0), dict(spec))


def initial_state(
    key: Key[Array, ""],
    method: Method,
    optimizer: optax.GradientTransformation,
    spec: Batch,
    *,
    sharding: NamedSharding,
    overlay: Overlay | None = None,
    ema: bool = False,
) -> TrainState:
    """Builds the state of step 0.

    Args:
      key: the run's PRNG key; parameters and training steps draw from two streams of it.
      method: initialises the variables.
      optimizer: initialises its own state.
      spec: `jax.ShapeDtypeStruct` by batch key.
      sharding: where every leaf of the state goes.
      overlay: replaces arrays by pretrained ones, on the host.
      ema: whether to keep a moving average of the parameters.

    Returns:
      The state, placed on the devices.
    """
    init_key, step_key = jax.random.split(key)

    def init(key: Key[Array, ""]) -> Variables:
        batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
        return method.init(key, batch)

    variables = jax.jit(init, out_shardings=sharding)(init_key)
    if overlay is not None:
        variables = jax.device_put(overlay(jax.device_get(variables)), sharding)
    params, model_state, constants = split_variables(variables)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), sharding),
        key=jax.device_put(step_key, sharding),
        params=params,
        model_state=model_state,
        opt_state=jax.jit(optimizer.init, out_shardings=sharding)(params),
        ema=_copy(params) if ema else None,
        constants=constants,
    )


def _copy(tree: PyTree) -> PyTree:
    """New buffers: donated leaves must not be shared between two parts of the state."""
    return jax.tree.map(jnp.copy, tree)
