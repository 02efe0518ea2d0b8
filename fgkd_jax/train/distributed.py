"""Runs of several processes: how they begin, and how they end together.

A process that fails says so first in the log, tells the others through the coordinator, and leaves
by `os._exit`: an ordinary exit waits for peers that wait for it. What JAX does by itself stays in
force beneath (heartbeats end a job whose host vanished without a word).

SIGTERM asks for a stop. Between steps, and between the batches of an evaluation, JAX brings all
processes to the same place, where the step is saved.
Once the processes have met, until the first step, and after the last, which is saved, there is
nothing to lose: all end at once.
"""

import contextlib
import faulthandler
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the key-value store has no public name
from jax.experimental import multihost_utils

from fgkd_jax.errors import EXIT_STATUS, FAILED, Preempted, told
from fgkd_jax.train.meeting import connect
from fgkd_jax.train.places import Place, ProcessOptions, find_place
from fgkd_jax.train.termination import Termination

HEARTBEAT_SECONDS = 30
"""After so long without a sign of a process, JAX ends the others."""

_POLL_SECONDS = 0.5
_FAILURES = "fgkd/failed/"
_BROKEN = re.compile(
    "Gloo|NCCL|onnection (?:reset|closed|refused)|coordination service|UNAVAILABLE|task died"
)
"""In what XLA says where a process that takes part in an exchange is gone."""
_STOPS = "stopped: asked to stop, with no step under way"


class Job:
    """This process's part in a run: one of several, or the only one.

    Attributes:
      rank: which process this is.
      count: how many there are.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        *,
        step_timeout: float = 0.0,
        start_timeout: float = 0.0,
    ) -> None:
        self.rank, self.count = rank, count
        self._limit, self._start_limit = step_timeout, start_timeout
        self._beat: float | None = None
        self._begun = time.monotonic()
        self._started = self._over = False
        self._calls = 0
        self._asked_to_stop = False
        self._termination: Termination | None = None
        self._end = threading.RLock()  # of the thread that ends the process; never given back
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="fgkd-watch", daemon=True)
        if count > 1:
            self._watch.start()

    def after_step(self, step: int) -> bool:
        """Takes note that a step was begun, for the watchdog.

        Args:
          step: its number; every process calls with every one.

        Returns:
          Whether to save this step and stop, because SIGTERM came: the same on every process.
        """
        if not self._started:
            self._started = True
            if self.count > 1:
                _leave_signals_to_jax()
        self._beat = time.monotonic()
        return self._stops()

    def beat(self) -> bool:
        """Takes note, for the watchdog, that what goes on between two steps gets on.

        Every process calls as often as the others.

        Returns:
          Whether to leave it and stop, because SIGTERM came: the same on every process.
        """
        if self._beat is None:
            return False
        self._beat = time.monotonic()
        return self._stops()

    def _stops(self) -> bool:
        """Agrees with the other processes on whether to stop here, all at the same call."""
        self._calls += 1
        if self.count > 1 and not self._asked_to_stop:
            self._asked_to_stop = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._asked_to_stop

    def steps_are_over(self) -> None:
        """Ends the watch over steps: what follows takes as long as it takes.

        Raises:
          Preempted: SIGTERM came with the last step, or after it; the same on every process.
        """
        if self._started:
            self._stops()
        self._beat, self._over = None, True
        if self._termination is not None:
            self._termination.take()
        if self._asked_to_stop:
            raise Preempted("asked to stop; all steps are saved, and not all is evaluated")

    def take_signals(self) -> None:
        """Lets SIGTERM end the run at once, until steps begin."""
        self._termination = Termination(self.ask_to_stop, watched=self.count > 1)

    def give_signals_back(self) -> None:
        """Ends what `take_signals` began.

        A process of several is about to end, and its scheduler may know that from another of them.
        """
        if self._termination is not None and self.count > 1:
            self._termination.ignore()
        elif self._termination is not None:
            self._termination.give_back()

    def ask_to_stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Asks for a stop, after the step under way where there is one; a signal handler.

        Args:
          number: the signal.
          frame: where it came.

        Raises:
          Preempted: the only process of a run has no step under way.
        """
        if self.count > 1:
            return  # the watch has seen it
        self._asked_to_stop = True
        if self._over or not self._started:
            raise Preempted(_STOPS.partition(": ")[2])

    def fail(self, error: BaseException) -> NoReturn:
        """Takes the run down: says what happened here, tells the other processes, and leaves.

        Where another process failed before, it is that one's error that is named.

        Args:
          error: what was raised.
        """
        self._end.acquire()  # where the watch has it, what is raised here comes of what it does
        line, status = told(error) or (_last_line(error), FAILED)
        if first := self._failures():
            rank, reason, its_status = first
            if reason == line:  # a check that all processes make together; it has been said
                self._leave(None, status)
            self._leave(_because(rank, reason, its_status), its_status)
        if told(error) is None:
            sys.stderr.write("".join(traceback.format_exception(error)))
        self._say(line)
        self._announce(line, status)
        self._leave(None, status)

    def close(self) -> None:
        """Ends this process's part after success: waits for the others, then disconnects.

        The watch goes on meanwhile: another may fail yet.
        """
        if self.count == 1:
            return
        try:
            jax.distributed.shutdown()
        finally:
            self._ended.set()
            self._watch.join()

    def late(self) -> str | None:
        """Returns what to say where the watchdog has waited long enough; None where it has not."""
        now, beat = time.monotonic(), self._beat
        if self._limit and beat is not None and now - beat > self._limit:
            return f"error: no step was finished for {self._limit:g} s; a peer may hang"
        waits = self._start_limit and not self._started and not self._over
        if waits and now - self._begun > self._start_limit:
            return (
                f"error: the first step was not begun within {self._start_limit:g} s; a peer may "
                "hang, or --start_timeout is too short for what comes before it"
            )
        return None

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stderr.write(f"fgkd: rank {self.rank}: {line}\n")
            sys.stderr.flush()

    def _announce(self, line: str, status: int) -> None:
        if (client := global_state.client) is None:
            return
        with contextlib.suppress(RuntimeError):  # no coordinator any more: nobody to tell
            client.key_value_set(f"{_FAILURES}{self.rank}", json.dumps([line, status]))
            if self.rank == 0:  # the store is in this process: the others shall read it first
                time.sleep(4 * _POLL_SECONDS)

    def _failures(self) -> tuple[int, str, int] | None:
        """The rank, the error and the exit status of another process that failed."""
        if (client := global_state.client) is None:
            return None
        with contextlib.suppress(RuntimeError):  # the coordinator is gone; JAX will end this too
            for name, value in client.key_value_dir_get(_FAILURES):
                if (rank := int(name.rpartition("/")[2])) != self.rank:
                    line, status = json.loads(value)
                    return rank, line, status
        return None

    def _leave(self, line: str | None, status: int) -> NoReturn:
        self._end.acquire()
        if line:
            self._say(line)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)

    def _watching(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            if first := self._failures():
                rank, reason, status = first
                # Its status too: a run that was given something wrong is not to be started again.
                self._leave(_because(rank, reason, status), status)
            if self._termination is not None and self._termination.came():
                self._end_all(_STOPS, EXIT_STATUS[Preempted])
            if late := self.late():
                self._end_all(late, FAILED, shows_threads=True)

    def _end_all(self, line: str, status: int, *, shows_threads: bool = False) -> NoReturn:
        self._end.acquire()
        self._say(line)
        with contextlib.suppress(OSError, ValueError):
            if shows_threads:
                faulthandler.dump_traceback(sys.__stderr__ or 2)
        self._announce(line, status)
        self._leave(None, status)


def _because(rank: int, reason: str, status: int) -> str:
    """What a process says that ends because another does."""
    does = "was stopped" if status == EXIT_STATUS[Preempted] else "failed"
    return f"ends because rank {rank} {does}: {reason.removeprefix('stopped: ')}"


def _last_line(error: BaseException) -> str:
    said = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, jax.errors.JaxRuntimeError) and _BROKEN.search(str(error)):
        return f"error: a connection to another process broke; its log may say why: {said}"
    return f"error: {said}"


@contextlib.contextmanager
def job(options: ProcessOptions) -> Iterator[Job]:
    """Joins this process to its run, and takes the run down where the body fails.

    To be entered before JAX computes anything or is asked for its devices.

    Args:
      options: where the process stands.

    Yields:
      Its part in the run.

    Raises:
      UserError: a value is missing or impossible.
      PeersMissing: the coordinator cannot be reached in time, or its port is taken.
      Preempted: the body raised it, on all processes, or the only one was asked to stop while no
        step was under way.
    """
    place = find_place(options, os.environ)
    if place is None:
        alone = Job()
        with _taking_signals(alone):
            yield alone
        return
    one = initialize(options, place)
    with _taking_signals(one):
        try:
            try:
                yield one
            except Preempted:
                one.close()
                raise
            one.close()
        except Preempted:
            raise
        except BaseException as error:
            one.fail(error)


@contextlib.contextmanager
def _taking_signals(one: Job) -> Iterator[None]:
    """Lets SIGTERM ask for a stop, and gives it back."""
    one.take_signals()
    try:
        yield
    finally:
        one.give_signals_back()


def initialize(options: ProcessOptions, place: Place) -> Job:
    """Connects this process to the others; `job` does, and ends it as well.

    From here on an exception that nobody catches, in any thread, takes the run down.

    Args:
      options: the timeouts.
      place: where the process stands.

    Returns:
      Its part in the run.

    Raises:
      UserError: JAX finds no place for this process, or computed already.
      PeersMissing: the coordinator cannot be reached in time, or its port is taken.
    """
    connect(place, timeout=options.timeout, heartbeat=HEARTBEAT_SECONDS)
    one = Job(
        global_state.process_id,
        global_state.num_processes,
        step_timeout=options.step_timeout,
        start_timeout=options.start_timeout,
    )
    _take_uncaught(one)
    return one


def _leave_signals_to_jax() -> None:
    """Lets JAX take SIGTERM, and bring all processes to the same step; all call it, each once."""
    global_state.initialize_preemption_sync_manager()


def _take_uncaught(one: Job) -> None:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        one.fail(error)

    def thread_hook(arguments: Any) -> None:
        one.fail(arguments.exc_value or arguments.exc_type())

    sys.excepthook = hook
    threading.excepthook = thread_hook
