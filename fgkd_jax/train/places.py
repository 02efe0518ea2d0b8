"""Where a process stands in a run of several: what was given, then the environment, then JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from fgkd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Where a process stands in a run of several; what is None is looked up.

    Attributes:
      coordinator: `HOST:PORT` of process 0; then `JAX_COORDINATOR_ADDRESS`.
      num_processes: how many there are; then `JAX_NUM_PROCESSES`.
      process_id: which of them this is; then `JAX_PROCESS_ID`.
      detect: whether JAX looks for what is still missing (SLURM, Open MPI, Kubernetes, Cloud TPU).
        "auto" lets it where the environment shows a job of several processes.
      timeout: seconds until all processes must have met.
      step_timeout: seconds that a step after the first, or a batch of an evaluation between
        steps, may take in a run of several processes; 0 for no limit.
      start_timeout: seconds from then until the first step is begun, likewise.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    detect: Literal["auto", "on", "off"] = "auto"
    timeout: float = 300.0
    step_timeout: float = 1800.0
    start_timeout: float = 7200.0

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UserError(f"coordinator_timeout is {self.timeout}; expected more than 0")
        if not self.step_timeout >= 0:
            raise UserError(f"step_timeout is {self.step_timeout}; expected 0 or more")
        if not self.start_timeout >= 0:
            raise UserError(f"start_timeout is {self.start_timeout}; expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands; what is None is left to JAX's detection."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def find_place(options: ProcessOptions, environment: Mapping[str, str]) -> Place | None:
    """Finds out where this process stands, without starting anything.

    Args:
      options: what was given explicitly; it comes first.
      environment: the variables of the process; they come second.

    Returns:
      The place; None for a run of one process.

    Raises:
      UserError: a value is missing or impossible.
    """
    address = options.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    count = _number(options.num_processes, environment, "JAX_NUM_PROCESSES")
    rank = _number(options.process_id, environment, "JAX_PROCESS_ID")
    detects = options.detect == "on" or (
        options.detect == "auto" and shows_a_job_of_several(environment)
    )
    given = {"coordinator": address, "num_processes": count, "process_id": rank}
    if all(value is None for value in given.values()) and not detects:
        return None
    if count is not None and count < 1:
        raise UserError(f"num_processes is {count}; expected at least 1")
    if rank is not None and not 0 <= rank < (count if count is not None else rank + 1):
        raise UserError(f"process_id is {rank}; expected 0 to {(count or 1) - 1}")
    if count == 1:
        return None
    if missing := [name for name, value in given.items() if value is None and not detects]:
        raise UserError(
            f"a run of several processes needs {missing[0]}; expected --{missing[0]} or "
            f"{_VARIABLES[missing[0]]}"
        )
    if address is not None:
        split_address(address)
    return Place(address, count, rank)


_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def shows_a_job_of_several(environment: Mapping[str, str]) -> bool:
    """Says whether a scheduler started this process as one of several.

    Args:
      environment: the variables of the process.

    Returns:
      True under `srun` and `mpirun` with several tasks, and on the hosts of a TPU slice that
      Kubernetes describes. TPU VMs show nothing in the environment and need `detect="on"`.
    """
    tasks = environment.get("SLURM_NTASKS", "1") if "SLURM_STEP_NODELIST" in environment else "1"
    ranks = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    several = any(number.isdecimal() and int(number) > 1 for number in (tasks, ranks))
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _number(given: int | None, environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}'; expected a whole number")
    return int(text)


def split_address(address: str) -> tuple[str, int]:
    """Takes an address apart.

    Args:
      address: `HOST:PORT`; an IPv6 host stands in brackets.

    Returns:
      Host and port.

    Raises:
      UserError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator is '{address}'; expected HOST:PORT")
    return host.strip("[]"), int(port)
