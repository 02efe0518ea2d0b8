"""Initialisation: `init -> overlay pretrained arrays -> place on the devices`, for every method."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fgkd_jax.protocols import Method, SplitMethod, split_variables
from fgkd_jax.train.parameter_sharding import parameter_sharding, sharding_like
from fgkd_jax.train.sharding import MeshOptions, put_everywhere, replicated, split_sharding
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


def state_sharding(
    method: Method,
    variables: Variables,
    *,
    mesh: Mesh,
    placement: MeshOptions | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Returns where the parts of a state go.

    Args:
      method: says in `split_axes`, where it has them, which collections the devices share.
      variables: collections of arrays, or of what has their shapes.
      mesh: the device mesh.
      placement: says which parameters the devices of the axis `fsdp` share, by default all large
        ones where there are several such devices, and whether they share what the method names.
      optimizer: its state goes with the parameters; whole on every device without it.

    Returns:
      A state of shardings, one for a whole part where all of its arrays are on every device.

    Raises:
      UserError: a rule of the placement does not fit the parameters.
    """
    everywhere = replicated(mesh)
    placement = placement or MeshOptions()
    axes = method.split_axes if placement.split_state and isinstance(method, SplitMethod) else {}
    params, model_state, constants = split_variables(variables)
    shared = parameter_sharding(params, placement, mesh=mesh)
    kept = everywhere
    if optimizer is not None and shared != everywhere:
        kept = sharding_like(jax.eval_shape(optimizer.init, params), params, shared, mesh=mesh)
    return TrainState(
        step=everywhere,
        key=everywhere,
        params=shared,
        model_state={
            name: split_sharding(tree, axis=axes[name], mesh=mesh) if name in axes else everywhere
            for name, tree in model_state.items()
        },
        opt_state=kept,
        ema=shared,
        constants=dict.fromkeys(constants, everywhere),
    )


def initial_state(
    key: Key[Array, ""],
    method: Method,
    optimizer: optax.GradientTransformation,
    spec: Batch,
    *,
    mesh: Mesh,
    overlay: Overlay | None = None,
    ema: bool = False,
    constants: Mapping[str, Any] | None = None,
    placement: MeshOptions | None = None,
) -> TrainState:
    """Builds the state of step 0.

    Args:
      key: the run's PRNG key; parameters and training steps draw from two streams of it.
      method: initialises the variables.
      optimizer: initialises its own state.
      spec: `jax.ShapeDtypeStruct` by batch key.
      mesh: the device mesh.
      overlay: replaces arrays by pretrained ones, on the host; it is not shown collections that
        devices share.
      ema: whether to keep a moving average of the parameters.
      constants: the collection of this name, where only the data set knows it.
      placement: as of `state_sharding`.

    Returns:
      The state, placed on the devices.
    """
    init_key, step_key = jax.random.split(key)

    def init(key: Key[Array, ""]) -> Variables:
        batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
        return method.init(key, batch)

    everywhere = replicated(mesh)
    shape = jax.eval_shape(init, init_key)
    placed = state_sharding(method, shape, mesh=mesh, placement=placement, optimizer=optimizer)
    shardings = {name: placed.model_state.get(name, everywhere) for name in shape}
    if overlay is None:
        shardings["params"] = placed.params
    variables = jax.jit(init, out_shardings=shardings)(init_key)
    if overlay is not None:
        whole = {name: v for name, v in variables.items() if shardings[name] == everywhere}
        whole = put_everywhere(overlay(jax.device_get(whole)), mesh=mesh)
        variables = {**variables, **whole}
    if constants is not None:
        variables = {**variables, "constants": put_everywhere(dict(constants), mesh=mesh)}
    params, model_state, others = split_variables(variables)
    if overlay is not None and placed.params != everywhere:
        params = jax.jit(lambda tree: tree, out_shardings=placed.params)(params)
    return TrainState(
        step=put_everywhere(jnp.zeros((), jnp.int32), mesh=mesh),
        key=put_everywhere(step_key, mesh=mesh),
        params=params,
        model_state=model_state,
        opt_state=jax.jit(optimizer.init, out_shardings=placed.opt_state)(params),
        ema=_copy(params) if ema else None,
        constants=others,
    )


def _copy(tree: PyTree) -> PyTree:
    """New buffers: donated leaves must not be shared between two parts of the state."""
    return jax.tree.map(jnp.copy, tree)
