"""Agreement between the processes of one run, and errors of the system told in one line."""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgkd_jax.errors import UserError


def on_primary(work: Callable[[], Any]) -> Any:
    """Runs something on process 0 and hands its result to every process.

    Args:
      work: reads or changes files that all processes see; its result is made of JSON values.

    Returns:
      What `work` returned, the same on every process.

    Raises:
      UserError: on every process, where `work` raised it.
    """
    if jax.process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"value": work()}
        except UserError as error:
            outcome = {"error": str(error)}
    payload = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        length = int(multihost_utils.broadcast_one_to_all(np.int32(payload.size)))
        text = np.zeros(length, np.uint8)
        text[: payload.size] = payload[:length]
        outcome = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns an error of the operating system into one line.

    Args:
      what: begins the line, such as `cannot write runs/a/metrics.jsonl`.

    Raises:
      UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left on device" if full else error.strerror or str(error)
        raise UserError(f"{what}: {reason}") from error
