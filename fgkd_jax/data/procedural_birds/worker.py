"""The drawing process: reads its tasks from standard input, writes records to standard output."""

import os
import sys

from fgkd_jax.data.procedural_birds.records import encode, receive, send
from fgkd_jax.data.procedural_birds.tasks import draw_task


def main() -> None:
    """Draws until the tasks are done or nobody listens any more."""
    tasks = receive(sys.stdin.buffer)
    # Whatever a library prints must not get between the records.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            for split, index in tasks:
                send(out, encode(draw_task(split, index)))
        except BrokenPipeError:
            # The builder has gone; closing the pipe must not fail once more.
            os._exit(1)


if __name__ == "__main__":
    main()
