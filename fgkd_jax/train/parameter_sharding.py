"""Fully sharded data parallel: devices share parameters and what the optimiser keeps of them.

Each device of the mesh's axis `fsdp` holds a part of every large array. A step gathers the
parameters before the network computes, and its gradients are summed straight into the parts; the
optimiser then updates the parts where they are. Results differ from those of whole parameters by
rounding alone.

Source: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models"
(SC 2020), stage 3 for what is stored. Ours gathers all parameters at once, for every micro-batch,
so that within a step the whole ones are there as well: what is saved is the optimiser's state, the
gradients, the average.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgkd_jax.errors import UserError
from fgkd_jax.train.sharding import FSDP_AXIS, MeshOptions, ShardRule, replicated
from fgkd_jax.typing import PyTree


def parameter_sharding(params: PyTree, options: MeshOptions, *, mesh: Mesh) -> PyTree:
    """Returns where parameters go.

    The first rule whose pattern is found in a parameter's path decides; without one, an array of at
    least `whole_below` numbers is divided along its longest axis that `fsdp` divides, of equally
    long ones the last.

    Args:
      params: the parameters, or what has their shapes.
      options: the rules.
      mesh: the device mesh; its axis `fsdp` says how many devices share.

    Returns:
      A sharding per parameter; one for all where they are whole.

    Raises:
      UserError: a rule matches no parameter, or divides an axis that is not there or not divisible.
    """
    parts = mesh.shape[FSDP_AXIS]
    paths = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for rule in options.rules:
        if not any(re.search(rule.pattern, name) for name in paths):
            raise UserError(f"mesh.rules: pattern {rule.pattern!r} matches no parameter")
    if parts == 1:
        return replicated(mesh)

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = _name(path)
        rule = next((rule for rule in options.rules if re.search(rule.pattern, name)), None)
        if rule is not None:
            axis = _ruled_axis(rule, name, leaf.shape, parts=parts)
        else:
            axis = _longest_axis(leaf.shape, parts=parts, whole_below=options.whole_below)
        if axis is None:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP_AXIS))

    return jax.tree_util.tree_map_with_path(one, params)


def sharding_like(tree: PyTree, params: PyTree, shardings: PyTree, *, mesh: Mesh) -> PyTree:
    """Places what is kept of each parameter beside the parameter.

    Args:
      tree: the state of an optimiser, or what has its shapes: wherever a path in it ends in that of
        a parameter and the shape is the parameter's, the array belongs to it.
      params: the parameters, or what has their shapes.
      shardings: as `parameter_sharding` returned them.
      mesh: the device mesh.

    Returns:
      A sharding per array, whole on every device where it belongs to no parameter; one for all
      where the parameters are whole.
    """
    if isinstance(shardings, NamedSharding):
        return shardings
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    by_name: Mapping[str, tuple[tuple[int, ...], NamedSharding]] = {
        _name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    }

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = by_name.get(_name(path[start:]), (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def make_gather(shardings: PyTree, *, mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """Makes the function by which a step gathers parameters that devices share.

    Its gradient goes the other way: each device gets the sum of its part alone.

    Args:
      shardings: as `parameter_sharding` returned them.
      mesh: the device mesh.

    Returns:
      A function from parameters to the same parameters, whole on every device; for use under jit.
    """
    if isinstance(shardings, NamedSharding):
        return lambda params: params
    whole = replicated(mesh)

    @jax.custom_vjp
    def gather(params: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(params, jax.tree.map(lambda _: whole, params))

    def forward(params: PyTree) -> tuple[PyTree, None]:
        return gather(params), None

    def backward(_: None, gradients: PyTree) -> tuple[PyTree]:
        return (jax.lax.with_sharding_constraint(gradients, shardings),)

    gather.defvjp(forward, backward)
    return gather


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _longest_axis(shape: tuple[int, ...], *, parts: int, whole_below: int) -> int | None:
    fitting = [axis for axis, size in enumerate(shape) if size >= parts and size % parts == 0]
    if not fitting or np.prod(shape) < whole_below:
        return None
    return max(fitting, key=lambda axis: (shape[axis], axis))


def _ruled_axis(rule: ShardRule, name: str, shape: tuple[int, ...], *, parts: int) -> int | None:
    if rule.axis is None:
        return None
    if not 0 <= rule.axis < len(shape) or shape[rule.axis] % parts:
        raise UserError(
            f"mesh.rules: {rule.pattern!r} divides axis {rule.axis} of {name}, whose shape is "
            f"{shape}; expected an axis that is a multiple of mesh.fsdp, {parts}"
        )
    return rule.axis
