"""What a run tells while it goes on: a file of metrics, a line of progress, a table at its end."""

import collections
import importlib.util
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from fgkd_jax.errors import UserError
from fgkd_jax.train.processes import one_line

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics to `metrics.jsonl`, and to TensorBoard files where that is installed.

    A line is `{"step": 10, "split": "train", "loss": 0.25, ...}` and is on disk when `write`
    returns. Numbers read back exactly; those that are not finite, for which JSON has no number, are
    the strings "nan", "inf" and "-inf", which Python's `float` and NumPy understand.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int,
        again: str | None = None,
        enabled: bool = True,
        tensorboard: bool | str = "auto",
    ) -> None:
        """Opens the file, without the lines that a resumed run writes again.

        Args:
          workdir: folder of the run; made where missing.
          resume_step: the step that is continued from; lines of later steps, and a last line that
            was cut short, are dropped in one replacement of the file.
          again: split whose line of that very step is written again as well.
          enabled: False writes nothing, for all processes but the first.
          tensorboard: whether to write TensorBoard files too; "auto" does where tensorboardX is
            installed.

        Raises:
          UserError: the folder cannot be written, or tensorboardX is asked for and missing.
        """
        self._file: Any = None
        self._board: Any = None
        if not enabled:
            return
        self._path = Path(workdir) / FILE_NAME
        with one_line(f"cannot write {self._path}"):
            self._board = _open_board(tensorboard, workdir, resume_step)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(self._path, resume_step, again)
            self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> "MetricsWriter":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any], *, split: str) -> None:
        """Writes one line.

        Args:
          step: number of updates done.
          metrics: numbers, strings, and lists or arrays of them, by name.
          split: what they were measured on, such as `train`.

        Raises:
          UserError: the file cannot be written, for one because the device is full; it then ends
            with the line before.
        """
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n"
        with one_line(f"cannot write {self._path}"):
            _append(self._file, line.encode())
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._board.add_scalar(f"{split}/{name}", value, step)
                self._board.flush()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()
        self._file = self._board = None


class Progress:
    """One line about the loss, images per second and the time left, kept up to date.

    On a terminal it is a bar; elsewhere (a log file, a batch system) a plain line every
    `interval` seconds. The speed is measured between updates that come with a loss, for only then
    the device is known to have made the steps, and averaged over the last `window` of them. The
    time up to the first update, in which the step is compiled, is not counted, and neither is the
    time between two updates of the same step, in which the loop evaluates and saves.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int,
        batch_size: int,
        enabled: bool = True,
        interval: float = 30.0,
        window: int = 20,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts at a step.

        Args:
          total_steps: updates of the whole run.
          start_step: updates done before.
          batch_size: images of one step.
          enabled: False shows nothing, for all processes but the first.
          interval: seconds between two plain lines.
          window: losses over which the speed is averaged.
          stream: where to write; by default standard error.
          clock: seconds from any origin.
        """
        self._total, self._step, self._batch_size = total_steps, start_step, batch_size
        self._clock, self._interval = clock, interval
        self._measured: collections.deque[tuple[int, float]] = collections.deque(maxlen=window)
        self._steps, self._seconds = 0, 0.0
        self._last: float | None = None
        self._line_at: float | None = None
        self._shown: int | None = None
        self._loss: float | None = None
        self._stream: Any = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def __enter__(self) -> "Progress":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the bar."""
        self.close()

    @property
    def images_per_second(self) -> float | None:
        """The speed over the window; None until it is known."""
        seconds = sum(seconds for _, seconds in self._measured)
        steps = sum(steps for steps, _ in self._measured)
        return steps * self._batch_size / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """The time that the remaining steps take at this speed; None until it is known."""
        speed = self.images_per_second
        return (self._total - self._step) * self._batch_size / speed if speed else None

    def update(self, step: int, *, loss: float | None = None) -> None:
        """Tells that a step was made.

        Args:
          step: number of updates done; the same one twice for time that is not to be counted.
          loss: its loss, which has to have come from the device; None keeps the last one shown.
        """
        now = self._clock()
        made = step - self._step
        if self._last is not None and made > 0:
            self._steps, self._seconds = self._steps + made, self._seconds + now - self._last
        self._last, self._step = now, step
        if loss is not None:
            self._loss = loss
            if self._steps:
                self._measured.append((self._steps, self._seconds))
                self._steps, self._seconds = 0, 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.update(made)
        elif self._line_at is None or now - self._line_at >= self._interval:
            self._line()

    def log(self, message: str) -> None:
        """Writes a line of its own, above the bar where there is one.

        Args:
          message: the line.
        """
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        elif self._enabled:
            self._stream.write(message + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Ends the bar, or writes the last line if it is not there yet."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._shown != self._step and self._last is not None:
            self._line()
        self._enabled = False

    def _text(self) -> str:
        speed, left = self.images_per_second, self.seconds_left
        parts = [
            "" if self._loss is None else f"loss {self._loss:.4g}",
            "" if speed is None else f"{speed:,.4g} images/s",
            "" if left is None else f"{_duration(left)} left",
        ]
        return ", ".join(part for part in parts if part)

    def _line(self) -> None:
        self._line_at, self._shown = self._last, self._step
        text = self._text()
        self.log(f"step {self._step}/{self._total}" + (f": {text}" if text else ""))


def summary_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lays rows out as a table of plain text.

    Args:
      rows: cells by column name; columns stand in the order in which they first occur, and a
        missing or None cell is empty.

    Returns:
      The headers, a rule and a line per row, without a line break at the end; columns of numbers
      are aligned to the right.

    Example:
      >>> print(summary_table([{"split": "validation", "accuracy": 0.5}, {"split": "test"}]))
      split       accuracy
      ----------  --------
      validation    0.5000
      test
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        cells = [_cell(value) for value in values]
        width = max(len(cell) for cell in (name, *cells))
        right = all(value is None or _is_number(value) for value in values)
        align = str.rjust if right else str.ljust
        columns.append([align(name, width), "-" * width, *(align(cell, width) for cell in cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if _is_number(value) and not isinstance(value, (int, np.integer)):
        number = float(value)
        small = 0 < abs(number) < 1e-3
        return f"{number:.3e}" if small or abs(number) >= 1e6 else f"{number:.4f}"
    return str(value)


def _duration(seconds: float) -> str:
    minutes, hours = divmod(round(seconds), 60)[0], round(seconds) // 3600
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{round(seconds) % 60:02d}s"


def _plain(value: Any) -> Any:
    """A JSON value: arrays become lists, numbers that are not finite strings."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _drop_after(path: Path, step: int, again: str | None) -> None:
    """Replaces the file by its whole lines up to a step; a crash leaves the old or the new one."""
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = file.readlines()
    kept = [
        line
        for line, (its_step, split) in zip(lines, map(_place_of, lines), strict=True)
        if its_step < step or (its_step == step and split != again)
    ]
    if kept == lines:
        return
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _place_of(line: bytes) -> tuple[float, str]:
    """The step and the split of a line; infinity where a killed process cut it short."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else {}
        return values["step"], values.get("split", "")
    except (ValueError, KeyError, TypeError):
        return math.inf, ""


def _append(file: Any, line: bytes) -> None:
    """Writes a line whole or not at all."""
    start = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        os.ftruncate(file.fileno(), start)
        raise


def _open_board(tensorboard: bool | str, workdir: str | Path, resume_step: int) -> Any:
    if not tensorboard:
        return None
    if importlib.util.find_spec("tensorboardX") is None:
        if tensorboard == "auto":
            return None
        raise UserError(
            "tensorboard is True, but tensorboardX is not installed; expected"
            " `pip install fgkd-jax[tensorboard]`, or tensorboard 'auto' or False"
        )
    import tensorboardX

    return tensorboardX.SummaryWriter(str(workdir), purge_step=resume_step + 1, flush_secs=30)
