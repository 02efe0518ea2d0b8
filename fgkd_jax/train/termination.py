"""SIGTERM, noticed also where a process waits in compiled code, as for its peers."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from fgkd_jax.errors import EXIT_STATUS, Preempted

Handler = Callable[[int, FrameType | None], None]


def end_process(line: str, status: int) -> NoReturn:
    """Ends the process as it stands, whatever its threads are doing.

    Args:
      line: for standard error, behind the program's name.
      status: of the process.
    """
    with contextlib.suppress(OSError):  # nobody reads what it says
        os.write(2, f"fgkd: {line}\n".encode())
    os._exit(status)


@contextlib.contextmanager
def ending_at_once(line: str) -> Iterator[None]:
    """Lets SIGTERM end the process where there is nothing to save, with the status of `Preempted`.

    Args:
      line: for standard error.

    Yields:
      Nothing. Outside of the main thread nothing is changed.
    """
    status = EXIT_STATUS[Preempted]
    termination = Termination(lambda number, frame: end_process(line, status), watched=False)
    try:
        yield
    finally:
        termination.give_back()


class Termination:
    """Takes SIGTERM, which is the main thread's; in another thread nothing is taken.

    Python calls a handler when the main thread is back from compiled code. A thread that watches
    learns of the signal by the bytes that Python's own handler writes at once.

    Attributes:
      taken: whether SIGTERM comes here.
    """

    def __init__(self, handler: Handler, *, watched: bool) -> None:
        """Takes SIGTERM.

        Args:
          handler: is called with the signal.
          watched: whether some thread asks `came`.
        """
        self.taken = threading.current_thread() is threading.main_thread()
        self._handler = handler
        self._read: socket.socket | None = None
        self._write: socket.socket | None = None
        if not self.taken:
            return
        self._before = signal.getsignal(signal.SIGTERM)
        if watched:
            self._read, self._write = socket.socketpair()
            self._read.setblocking(False)
            self._write.setblocking(False)
            number = self._write.fileno()
            self._number_before = signal.set_wakeup_fd(number, warn_on_full_buffer=False)
        self.take()

    def take(self) -> None:
        """Takes SIGTERM again, where compiled code has taken it meanwhile."""
        if self.taken:
            signal.signal(signal.SIGTERM, self._handler)

    def came(self) -> bool:
        """Whether SIGTERM came since this was asked; for the thread that watches."""
        found = False
        with contextlib.suppress(OSError):  # nothing to read, or no longer open
            while self._read is not None and (numbers := self._read.recv(64)):
                found |= signal.SIGTERM in numbers
        return found

    def give_back(self) -> None:
        """Lets SIGTERM do what it did before, and closes what was opened.

        Where another has taken or ignores it since, it is left to that one.
        """
        if not self.taken:
            return
        if signal.getsignal(signal.SIGTERM) is self._handler:
            before = signal.SIG_DFL if self._before is None else self._before
            signal.signal(signal.SIGTERM, before)
        self._close()

    def ignore(self) -> None:
        """Ignores SIGTERM from here on: the process is about to end with a status of its own."""
        if not self.taken:
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._close()

    def _close(self) -> None:
        if self._read is None or self._write is None:
            return
        signal.set_wakeup_fd(self._number_before)
        self._write.close()
        self._read.close()
        self._read = self._write = None
