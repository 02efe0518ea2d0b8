"""The devices of a slice that is not there, for the compiler; or virtual ones of the processor."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from fgkd_jax.cli.compilation.chips import CHIPS, VIRTUAL, Chip, known_topologies
from fgkd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for.

    Attributes:
      name: as it was asked for.
      devices: the devices, which need not be there.
      chips: how many chips these are; some have two devices each.
      chip: published figures; None for virtual devices.
    """

    name: str
    devices: Sequence[jax.Device]
    chips: int
    chip: Chip | None

    @property
    def devices_per_chip(self) -> int:
        """How many devices share a chip's memory, arithmetic and links."""
        return len(self.devices) // self.chips


def open_slice(name: str) -> Slice:
    """Finds the devices of a topology; to be called before anything is computed.

    Args:
      name: a chip and the shape of a slice, such as `v5e:16x16`; or `cpu:8` for as many virtual
        devices of the processor.

    Returns:
      The devices.

    Raises:
      UserError: there is no such topology, or no compiler for it.
    """
    kind, _, shape = name.partition(":")
    unknown = UserError(f"topology is '{name}'; expected one such as {known_topologies()}")
    if kind not in (*CHIPS, VIRTUAL):
        raise unknown
    jax.config.update("jax_platforms", "cpu")
    if kind == VIRTUAL:
        return _virtual(name, shape)
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise unknown
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name} needs the TPU compiler, and libtpu is not installed; the extra 'tpu' "
            "of the package installs it (no TPU is needed)"
        )
    return _described(name, CHIPS[kind])


def _described(name: str, chip: Chip) -> Slice:
    from jax.experimental import topologies

    # Nothing is run on a chip: neither where this host stands nor who else compiles is of interest.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"topology is '{name}', which the compiler refuses ({reason}); expected one such as "
            f"{known_topologies()}"
        ) from error
    described: Sequence[Any] = devices  # only those of TPUs have coordinates
    coordinates = {tuple(device.coords) for device in described}
    return Slice(name, devices, len(coordinates), chip)


def _virtual(name: str, shape: str) -> Slice:
    if not shape.isdecimal() or not 0 < int(shape) <= 4096:
        raise UserError(f"topology is '{name}'; expected a number of devices, such as cpu:8")
    count = int(shape)
    config: Any = jax.config  # knows its options when it runs
    if count > config.jax_num_cpu_devices:
        with contextlib.suppress(RuntimeError):  # the devices are there already: see how many
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"topology is '{name}', but this process has {len(devices)} cpu devices")
    return Slice(name, devices[:count], count, None)
