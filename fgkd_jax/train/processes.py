"""Agreement between the processes of one run, and errors of the system told in one line."""

import contextlib
import errno
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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


def gather(value: Any) -> list[Any]:
    """Hands what each process has to every process.

    Args:
      value: made of JSON values.

    Returns:
      One value per process, in the order of their ranks.
    """
    if jax.process_count() == 1:
        return [value]
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        sizes = np.asarray(multihost_utils.process_allgather(np.int32(payload.size)))
        text = np.zeros(int(sizes.max()), np.uint8)
        text[: payload.size] = payload
        texts = np.asarray(multihost_utils.process_allgather(text))
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def check_same(values: Mapping[str, Any], *, what: str) -> None:
    """Checks that every process was given the same.

    Only hashes are exchanged, until they differ.

    Args:
      values: JSON values by name.
      what: what they are, such as `config`.

    Raises:
      UserError: on every process, where a value differs from that of process 0.
    """
    text = json.dumps(values, sort_keys=True)
    hashes = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    everyone = gather(json.loads(text))
    rank = next(i for i, digest in enumerate(hashes) if digest != hashes[0])
    first, other = everyone[0], everyone[rank]
    name = next(n for n in sorted({*first, *other}) if first.get(n) != other.get(n))
    raise UserError(
        f"the processes were given another {what}: {name} is {first.get(name)!r} on rank 0 and "
        f"{other.get(name)!r} on rank {rank}; expected the same {what} on all"
    )


def check_shared(folder: str | Path, *, wait: float = 5.0) -> None:
    """Checks that every process sees what process 0 writes into a folder.

    Args:
      folder: the folder; made where it is missing.
      wait: seconds that a network file system may take to show a new file.

    Raises:
      UserError: on every process, where one of them does not see it, or it cannot be written.
    """
    if jax.process_count() == 1:
        return
    token = Path(folder) / f".seen-by-all-{on_primary(lambda: secrets.token_hex(8))}"

    def write() -> None:
        with one_line(f"cannot write to {folder}"):
            token.parent.mkdir(parents=True, exist_ok=True)
            token.touch()

    on_primary(write)
    deadline = time.monotonic() + wait
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [str(rank) for rank, one in enumerate(gather(seen)) if not one]
    on_primary(lambda: token.unlink(missing_ok=True))
    if blind:
        raise UserError(
            f"{folder} is not the same folder on all processes: rank {', '.join(blind)} does not "
            "see what rank 0 writes there; expected a file system that all of them share"
        )
