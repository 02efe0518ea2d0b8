"""How the processes of a run find each other through their coordinator."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src.distributed import global_state  # JAX has no public name for what it detected

from fgkd_jax.errors import EXIT_STATUS, FAILED, PeersMissing, Preempted, UserError
from fgkd_jax.train.places import Place, split_address
from fgkd_jax.train.termination import Termination, end_process

_POLL_SECONDS = 0.1


def connect(place: Place, *, timeout: float, heartbeat: int) -> None:
    """Connects this process to the others, by `jax.distributed`.

    The process ends with a line of its own where not all of them come in time, and with the status
    of `Preempted` where SIGTERM comes before they do.

    Args:
      place: where the process stands.
      timeout: seconds until all must have come.
      heartbeat: seconds without a sign of a process after which JAX ends the others.

    Raises:
      UserError: JAX finds no place for this process, or computed already.
      PeersMissing: the coordinator cannot be reached in time, or its port is taken.
    """
    with _stopping_at_once():
        _connect(place, timeout=timeout, heartbeat=heartbeat)


def _connect(place: Place, *, timeout: float, heartbeat: int) -> None:
    started = time.monotonic()
    if place.coordinator and place.process_id:
        _reach(place.coordinator, timeout=timeout)
    # JAX aborts the whole process when its own timeout passes: ours comes before.
    alarm = threading.Timer(timeout - (time.monotonic() - started), _give_up, (place, timeout))
    alarm.daemon = True
    alarm.start()
    known = None not in (place.coordinator, place.num_processes, place.process_id)
    # Else JAX takes SIGTERM from here on, and notes it until a step asks for it.
    enabled = jax.config.values["jax_enable_preemption_service"]
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        where = place.coordinator or _detected()
        reason = str(error).splitlines()[0]
        # RuntimeError is also what JAX raises where it was used before.
        missing = isinstance(error, RuntimeError) and "called" not in reason
        kind = PeersMissing if missing else UserError
        raise kind(f"cannot start the processes with coordinator {where}: {reason}") from error
    finally:
        alarm.cancel()
        jax.config.update("jax_enable_preemption_service", enabled)


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Lets SIGTERM end the process, also where compiled code waits for the others."""
    termination, met = Termination(lambda number, frame: None, watched=True), threading.Event()

    def watch() -> None:
        while True:
            over = met.wait(_POLL_SECONDS)
            if termination.came():
                line = "stopped: SIGTERM came before all processes did"
                end_process(line, EXIT_STATUS[Preempted])
            if over:
                return

    watching = threading.Thread(target=watch, daemon=True, name="fgkd-meeting")
    watching.start()
    try:
        yield
    finally:
        met.set()
        watching.join()
        termination.give_back()


def _reach(address: str, *, timeout: float) -> None:
    """Waits until the coordinator listens."""
    host, port = split_address(address)
    deadline, reason = time.monotonic() + timeout, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(0.2, left))
        else:
            return
    raise PeersMissing(f"coordinator {address} was not reached within {timeout:g} s: {reason}")


def _detected() -> str:
    return str(getattr(global_state, "coordinator_address", None) or "that JAX looked for")


def _give_up(place: Place, timeout: float) -> NoReturn:
    """Ends the process where its peers do not come: JAX cannot be called off."""
    where, count = place.coordinator or _detected(), place.num_processes or "its"
    reason = f"not all of {count} processes came within {timeout:g} s"
    end_process(f"error: coordinator {where}: {reason}", FAILED)
