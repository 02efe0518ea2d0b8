"""Meshes and shardings: the batch is split over the devices, the state is on every one of them.

But for what a method declares too large for that (`protocols.SplitMethod`), and for parameters that
the devices of the axis `fsdp` share (`train.parameter_sharding`).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Leaf, PyTree

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
"""A batch is divided by both: devices that share parameters have examples of their own."""


@dataclasses.dataclass(frozen=True)
class ShardRule:
    """How the devices of the axis `fsdp` share some of the parameters.

    Attributes:
      pattern: regular expression, searched for in the parameter's path, for example
        `head/kernel$`.
      axis: the axis of the array that is divided; None leaves the array whole on every device.
    """

    pattern: str
    axis: int | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"rules: pattern {self.pattern!r} is no regular expression: {error}"
            ) from error


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """How many devices a run uses, and what they share.

    Attributes:
      data: groups of devices along the batch axis, each of which holds the parameters once; -1
        takes as many as there are.
      fsdp: devices of a group, which share parameters, their averages (`optim.ema_decay`) and the
        optimiser's state (fully sharded data parallel). 1 keeps them whole on every device, as is
        whatever else a method keeps: statistics, MoCo's key encoders and queues, a frozen teacher.
      whole_below: parameters with fewer numbers stay whole on every device: what they would save
        is not worth a message of their own.
      rules: exceptions for parameters by their path; of several that match, the first holds.
      split_state: whether all devices share the collections that a method names (`split_axes`),
        such as memory banks. By default each holds them whole: a device that has a share computes
        with it for the whole batch, so that what it reads grows with the number of devices.
    """

    data: int = -1
    fsdp: int = 1
    whole_below: int = 2**16
    rules: tuple[ShardRule, ...] = ()
    split_state: bool = False

    def __post_init__(self) -> None:
        if self.data != -1 and self.data < 1:
            raise UserError(f"data is {self.data}; expected -1 (all devices) or at least 1")
        if self.fsdp < 1:
            raise UserError(f"fsdp is {self.fsdp}; expected at least 1")
        if self.whole_below < 0:
            raise UserError(f"whole_below is {self.whole_below}; expected at least 0")


def make_mesh(options: MeshOptions, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh.

    The axes are of type `Auto`: under the default `Explicit`, products of a sharded batch with
    itself, as contrastive losses need them, are refused.

    Args:
      options: number of devices.
      devices: the devices to choose from; all of them by default.

    Returns:
      A mesh with the axes `data` and `fsdp`; devices that share parameters are neighbours in the
      order of the devices.

    Raises:
      UserError: more devices are asked for than there are, or they cannot be divided as asked.
    """
    available = list(jax.devices() if devices is None else devices)
    there = f"{len(available)} {available[0].platform} devices"
    if options.data == -1 and len(available) % options.fsdp:
        raise UserError(f"mesh.fsdp is {options.fsdp}; expected a divisor of the {there}")
    groups = len(available) // options.fsdp if options.data == -1 else options.data
    count = groups * options.fsdp
    asked = f"mesh.data is {groups}"
    if options.fsdp > 1:
        asked = f"mesh.data x mesh.fsdp is {groups} x {options.fsdp}"
    if count > len(available):
        raise UserError(f"{asked}, but there are only {there}")
    if jax.process_count() > 1 and count != len(available):
        raise UserError(f"{asked}; a run of several processes uses all {len(available)} devices")
    grid = np.asarray(available[:count]).reshape(groups, options.fsdp)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole.

    Args:
      mesh: the device mesh.

    Returns:
      A sharding with an empty partition spec.
    """
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: first axis over the devices, in order.

    Args:
      mesh: the device mesh.

    Returns:
      A sharding that splits the leading axis over `data` and `fsdp`.
    """
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def split_sharding(tree: PyTree, *, axis: int, mesh: Mesh) -> PyTree:
    """Returns the shardings of arrays that the devices share.

    Args:
      tree: arrays, or what has their shapes.
      axis: the axis that is divided.
      mesh: the device mesh.

    Returns:
      A sharding per array, which splits the axis over all devices; an array whose axis they do not
      divide is on each of them whole.
    """

    def one(leaf: Leaf) -> NamedSharding:
        if leaf.shape[axis] % mesh.devices.size:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))

    return jax.tree.map(one, tree)


def check_batch_size(batch_size: int, *, mesh: Mesh, accumulate: int = 1, name: str) -> None:
    """Checks that a global batch can be split evenly.

    Args:
      batch_size: examples of one global batch.
      mesh: the device mesh.
      accumulate: micro-batches of one step.
      name: the option to name in the message.

    Raises:
      UserError: the batch does not divide by devices times micro-batches.
    """
    devices = mesh.devices.size
    if batch_size < 1 or batch_size % (devices * accumulate):
        shares = f"{devices} devices"
        if accumulate > 1:
            shares += f" x {accumulate} micro-batches"
        raise UserError(f"{name} is {batch_size}; expected a multiple of {shares}")


def put_batch(batch: Mapping[str, np.ndarray], *, mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process's share of a global batch on its devices.

    Args:
      batch: arrays of this process, first axis `global batch / processes`.
      mesh: the device mesh.

    Returns:
      Global arrays, split over the devices along their first axis.
    """
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # asked for here, whatever JAX calls it
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }


def put_everywhere(tree: PyTree, *, mesh: Mesh) -> PyTree:
    """Places whole arrays on every device of every process.

    Args:
      tree: arrays and typed PRNG keys, the same on every process.
      mesh: the device mesh.

    Returns:
      Global arrays.
    """
    sharding = replicated(mesh)

    def one(leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, sharding)
        # JAX places no key on the devices of other processes, but the numbers that it is made of.
        numbers = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))

    with jax.transfer_guard("allow"):  # between processes JAX compares them first, on the host
        return jax.tree.map(one, tree)
