"""Checkpoints: written in the background, committed at once, verified before they are trusted.

Which checkpoints are kept, and the fall-back from a damaged one to the one before.

Layout: `last/<step>/` and `best/<step>/`, each with `metadata.json`, `MANIFEST.json` and the
arrays. A folder with any other name is not a checkpoint: `*.orbax-checkpoint-tmp` and `*.deleted`
are left by a process that was killed and are removed by the next run, `*.corrupt` are damaged
checkpoints, kept for a person to look at.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.train.array_store import DOCUMENT, LEFTOVER, ArrayStore
from fgkd_jax.train.manifest import damage
from fgkd_jax.train.processes import on_primary, one_line
from fgkd_jax.typing import PyTree

_DELETED = ".deleted"
_CORRUPT = ".corrupt"
_FULL = re.compile(r"No space left on device|Disk quota exceeded|os_error_code='(28|122)'")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """When checkpoints are written and which are kept.

    Attributes:
      every_steps: steps between two checkpoints, at least 1.
      keep_last: how many of the newest are kept, at least 1; with 2 or more a damaged one costs
        `every_steps` steps.
      keep_best: whether to keep the best on validation besides.
      best_metric: name of the figure that decides.
      best_mode: whether the greatest or the least is best; of equals the earlier is kept.
      asynchronous: write in the background while training goes on.
      verify_hashes: store SHA-256 of every file and compare before a restore; sizes are always
        compared. Reads the whole checkpoint once more after writing, in the background, and once
        more before restoring, on one process.
    """

    every_steps: int = 1000
    keep_last: int = 2
    keep_best: bool = True
    best_metric: str = "accuracy"
    best_mode: Literal["max", "min"] = "max"
    asynchronous: bool = True
    verify_hashes: bool = True

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")


class Checkpointer:
    """Saves and restores pytrees by step in one folder.

    Every process of a run makes the same calls in the same order. A checkpoint written by any
    number of devices and processes is restored on any other.

    Attributes:
      options: as given.
      notices: one line for each damaged checkpoint that was passed over.
    """

    def __init__(
        self,
        directory: str | Path,
        options: CheckpointOptions,
        *,
        read_only: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Opens a folder of checkpoints, and tidies what a killed process left there.

        Args:
          directory: the folder, on a file system that all processes share; made where missing.
          options: when to write and what to keep.
          read_only: for looking at the folder of a run that may be alive: nothing in it is
            removed or renamed.
          log: takes one line per notice; by default the logger `fgkd_jax`.

        Raises:
          UserError: the folder is a URL, or cannot be written.
        """
        if "://" in str(directory):
            raise UserError(f"checkpoint folder {directory} is a URL; expected a mounted path")
        self.options = options
        self.notices: list[str] = []
        self._directory = Path(directory).absolute()
        self._read_only = read_only
        self._log = log or logging.getLogger("fgkd_jax").warning
        self._store = ArrayStore(hashes=options.verify_hashes)
        self._pending: tuple[str, int] | None = None
        found = on_primary(self._scan)
        self._steps: dict[str, list[int]] = {"last": found["last"], "best": found["best"]}
        self._best: float | None = found["value"]

    def __enter__(self) -> "Checkpointer":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Closes; where an exception is under way, a failing write is only reported."""
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            self._notice(str(error))

    def steps(self, *, best: bool = False) -> tuple[int, ...]:
        """Returns the steps that are there.

        Args:
          best: whether to list the folder of the best instead of that of the last.

        Returns:
          Committed steps in rising order, unverified.
        """
        return tuple(sorted(self._steps["best" if best else "last"]))

    def save(self, step: int, tree: PyTree, *, metadata: Mapping[str, Any] | None = None) -> bool:
        """Saves a tree, unless one of that step is there already.

        The arrays are copied before the call returns, so that they may be donated; the files are
        written in the background, and renamed into place when they are complete. An error of the
        background writing is raised by the next call.

        Args:
          step: number of updates done; when to save is the caller's choice.
          tree: arrays, typed PRNG keys and numbers, in any pytree.
          metadata: JSON values to keep beside it: fingerprint, versions, frozen weights.

        Returns:
          Whether it was saved.

        Raises:
          UserError: this or the previous checkpoint cannot be written, for one because the device
            is full; earlier checkpoints stay as they are.
        """
        self.wait()
        if step in self._steps["last"]:
            return False
        self._write("last", step, tree, {"metadata": dict(metadata or {})})
        return True

    def save_best(
        self,
        step: int,
        tree: PyTree,
        metrics: Mapping[str, float],
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves a tree where its figure on validation is better than that of the best so far.

        Args:
          step: number of updates done.
          tree: as of `save`.
          metrics: figures by name; `best_metric` is one of them. One that is not finite is never
            best.
          metadata: as of `save`.

        Returns:
          Whether it was saved.

        Raises:
          UserError: `best_metric` is not in `metrics`, or as of `save`.
        """
        if not self.options.keep_best:
            return False
        name = self.options.best_metric
        if name not in metrics:
            raise UserError(f"best_metric {name!r} is not measured{nearest(name, metrics)}")
        value = float(metrics[name])
        self.wait()
        if not math.isfinite(value):
            return False
        if self._best is not None and self._merit(value) <= self._merit(self._best):
            return False
        if step in self._steps["best"]:
            self._retire("best", step)
        figures = {key: float(v) for key, v in metrics.items() if math.isfinite(v)}
        document = {"metadata": dict(metadata or {}), "metrics": figures, "value": value}
        self._write("best", step, tree, document)
        self._best = value
        return True

    def restore_last(self, abstract_tree: PyTree) -> tuple[PyTree, int] | None:
        """Restores the newest checkpoint that is undamaged.

        A damaged one is renamed to `<step>.corrupt`, with a notice that says what is wrong with
        it, and the one before is taken.

        Args:
          abstract_tree: the tree to restore, with `jax.ShapeDtypeStruct` leaves that carry
            shardings; arrays do as well.

        Returns:
          The tree and its step; None where there is no checkpoint.

        Raises:
          UserError: every checkpoint is damaged, or the checkpoint is of another structure.
        """
        return self._restore("last", abstract_tree)

    def restore_best(self, abstract_tree: PyTree) -> tuple[PyTree, int] | None:
        """Restores the checkpoint with the best figure on validation.

        Args:
          abstract_tree: as of `restore_last`.

        Returns:
          The tree and its step; None where there is none.

        Raises:
          UserError: as of `restore_last`.
        """
        return self._restore("best", abstract_tree)

    def metadata(self, step: int, *, best: bool = False) -> dict[str, Any]:
        """Returns what was given as metadata when a step was saved.

        Args:
          step: a committed step.
          best: whether to look among the best instead of the last.

        Returns:
          The JSON values.

        Raises:
          UserError: there is no such checkpoint, or its metadata is unreadable.
        """
        return self._document(self._path("best" if best else "last", step))["metadata"]

    def wait(self) -> None:
        """Waits until everything saved is committed, then drops what is no longer kept.

        Raises:
          UserError: as of `save`.
        """
        if self._pending is None:
            return
        (kind, step), self._pending = self._pending, None
        with self._failing(self._path(kind, step)):
            self._store.wait()
        self._steps[kind].append(step)
        others = sorted(other for other in self._steps[kind] if other != step)
        spare = others if kind == "best" else others[: 1 - self.options.keep_last or None]
        for old in spare:
            self._retire(kind, old)

    def close(self) -> None:
        """Waits and frees the threads.

        Raises:
          UserError: as of `save`.
        """
        try:
            self.wait()
        finally:
            self._store.close()

    def _path(self, kind: str, step: int) -> Path:
        return self._directory / kind / str(step)

    def _merit(self, value: float) -> float:
        return value if self.options.best_mode == "max" else -value

    def _notice(self, line: str) -> None:
        self.notices.append(line)
        self._log(line)

    def _document(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads((path / DOCUMENT).read_text())
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path / DOCUMENT} is missing or unreadable: {reason}") from error

    def _value(self, step: int) -> float | None:
        """The figure a best checkpoint was chosen by; None where it is unreadable."""
        try:
            return float(self._document(self._path("best", step))["value"])
        except (UserError, KeyError, TypeError, ValueError):
            return None

    def _scan(self) -> dict[str, Any]:
        """Removes leftovers and lists what is committed; on the primary process."""
        found: dict[str, list[int]] = {"last": [], "best": []}
        with one_line(f"cannot use the checkpoint folder {self._directory}"):
            for kind, steps in found.items():
                folder = self._directory / kind
                if not self._read_only:
                    folder.mkdir(parents=True, exist_ok=True)
                for path in folder.iterdir() if folder.is_dir() else ():
                    if path.name.isdecimal():
                        steps.append(int(path.name))
                    elif path.name.endswith((LEFTOVER, _DELETED)) and not self._read_only:
                        shutil.rmtree(path)
        values = [self._value(step) for step in found["best"]]
        known = [value for value in values if value is not None]
        return {**found, "value": max(known, key=self._merit, default=None)}

    def _write(self, kind: str, step: int, tree: PyTree, document: dict[str, Any]) -> None:
        path = self._path(kind, step)
        with self._failing(path):
            self._store.write(path, tree, {"step": step, **document})
        self._pending = (kind, step)
        if not self.options.asynchronous:
            self.wait()

    def _retire(self, kind: str, step: int) -> None:
        """Removes a checkpoint; renamed first, so that no half of one is ever taken for whole."""
        self._steps[kind].remove(step)
        if jax.process_index() == 0:
            path = self._path(kind, step)
            with one_line(f"cannot remove {path}"):
                shutil.rmtree(path.rename(path.with_name(path.name + _DELETED)))

    @contextlib.contextmanager
    def _failing(self, path: Path) -> Iterator[None]:
        """Turns an error of writing into one line, and frees what was written."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):  # the same failure, told by another thread
                self._store.wait()
            if jax.process_index() == 0:
                shutil.rmtree(path.with_name(path.name + LEFTOVER), ignore_errors=True)
            good = max(self._steps["last"], default=None)
            rest = f"the last good checkpoint is {'none' if good is None else f'step {good}'}"
            if _FULL.search(str(error)):
                raise UserError(f"no space left on device while writing {path}; {rest}") from error
            if isinstance(error, OSError) or "os_error_code" in str(error):
                line = str(error).splitlines()[0][:200]
                raise UserError(f"cannot write {path}: {line}; {rest}") from error
            raise

    def _restore(self, kind: str, abstract_tree: PyTree) -> tuple[PyTree, int] | None:
        self.wait()
        chosen = on_primary(lambda: self._choose(kind))
        for step, line in chosen["damaged"]:
            self._steps[kind].remove(step)
            self._notice(line)
        if (step := chosen["step"]) is None:
            return None
        if kind == "best":
            self._best = chosen["value"]
        path = self._path(kind, step)
        return self._store.read(path, abstract_tree, self._document(path)["leaves"]), step

    def _choose(self, kind: str) -> dict[str, Any]:
        """Finds the checkpoint to restore and sets damaged ones aside; on the primary process."""
        order = sorted(self._steps[kind], reverse=kind == "last")
        if kind == "best":  # one without a readable figure comes first, to be found damaged
            values = {step: self._value(step) for step in order}
            merits = {s: math.inf if v is None else self._merit(v) for s, v in values.items()}
            order.sort(key=merits.__getitem__, reverse=True)
        damaged: list[tuple[int, str]] = []
        with one_line(f"cannot read the checkpoints in {self._directory / kind}"):
            for step in order:
                reason = damage(self._path(kind, step), hashes=self.options.verify_hashes)
                if reason is None:
                    lines = [self._set_aside(kind, *one, instead=step) for one in damaged]
                    value = self._value(step) if kind == "best" else None
                    return {"step": step, "value": value, "damaged": lines}
                damaged.append((step, reason))
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged)
            raise UserError(
                f"every checkpoint in {self._directory / kind} is damaged ({reasons}); restore one"
                " from elsewhere, or move the folder away to start afresh"
            )
        return {"step": None, "value": None, "damaged": []}

    def _set_aside(self, kind: str, step: int, reason: str, *, instead: int) -> tuple[int, str]:
        path = self._path(kind, step)
        line = f"checkpoint {path} is damaged ({reason})"
        if not self._read_only:
            names = (f"{path.name}{_CORRUPT}{suffix}" for suffix in ("", *range(1, 1000)))
            target = next(path.with_name(n) for n in names if not path.with_name(n).exists())
            path.rename(target)
            line += f" and renamed to {target.name}"
        return step, f"{line}; taking step {instead} instead"
