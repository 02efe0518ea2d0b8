"""Examples as records, and the processes that draw and encode them.

The drawing processes are started as programs of their own, `python -m` this package's `worker`.
`multiprocessing` would either fork a process that may hold JAX's threads, or run the caller's main
module again; a quickstart must work from an unguarded script and from a notebook.
"""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from PIL import Image

from fgkd_jax.data.procedural_birds.detection import DrawnScene
from fgkd_jax.data.procedural_birds.examples import DrawnExample
from fgkd_jax.data.procedural_birds.tasks import draw_task

Record = dict[str, Any]
Task = tuple[str, int]
_LENGTH = struct.Struct("<q")
JPEG_QUALITY = 92


def encode(example: DrawnExample | DrawnScene) -> Record:
    """Makes an example's record: the picture as JPEG, the mask as PNG, the rest as it is.

    Colour is not subsampled: the marks that separate species are a few pixels of pure colour.

    Args:
      example: what was drawn.

    Returns:
      A value for each field of `DrawnExample`, or what `DrawnScene.padded` has.
    """
    record = example.padded() if isinstance(example, DrawnScene) else dict(vars(example))
    record["image"] = _compress(example.image, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    if "mask" in record:
        record["mask"] = _compress(record["mask"], "PNG")
    return record


def decode_mask(data: bytes) -> np.ndarray:
    """Returns the mask of a record: uint8[h, w], 0 or 1."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _compress(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def draw_records(tasks: Sequence[Task], *, workers: int) -> Iterator[Record]:
    """Draws and encodes examples, in order.

    Args:
      tasks: (split, index) of each, as `draw_task` takes them.
      workers: processes that draw; with 0, this one does.

    Yields:
      The records, in the order of the tasks.

    Raises:
      RuntimeError: a process ended before it had drawn its share.
    """
    if workers == 0:
        yield from (encode(draw_task(split, index)) for split, index in tasks)
        return
    with contextlib.ExitStack() as stack:
        processes = []
        for first in range(workers):
            processes.append(_start(tasks[first::workers]))
            stack.callback(_stop, processes[-1])
        for position in range(len(tasks)):
            yield _receive(processes[position % workers])


def _start(tasks: Sequence[Task]) -> subprocess.Popen:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        # Ctrl-C is for this process alone, which then stops the others.
        start_new_session=True,
    )
    with _open(process.stdin) as pipe:
        send(pipe, list(tasks))
    return process


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    """The pipe, which `Popen` types as optional and always makes when it is asked to."""
    if pipe is None:
        raise RuntimeError("a drawing process was started without pipes")
    return pipe


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    _open(process.stdout).close()
    process.wait()


def _receive(process: subprocess.Popen) -> Any:
    try:
        return receive(_open(process.stdout))
    except EOFError:
        status = process.wait()
        raise RuntimeError(f"a drawing process ended early, with exit status {status}") from None


def send(pipe: IO[bytes], value: Any) -> None:
    """Writes a value to a pipe: its length, then its pickle."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Reads a value that `send` wrote; EOFError when the other side has gone."""
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(header)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)
