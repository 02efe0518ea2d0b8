"""A benchmark's result as data: what was measured, with what, on what, and how busy it was."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgkd_jax.cli.benchmarks.timing import RATIO, Measured, to_dict
from fgkd_jax.cli.results import versions
from fgkd_jax.cli.workdir import write_json
from fgkd_jax.errors import UserError

BUSY = 0.25
"""Load per processor, before a run, above which the machine counts as shared."""


def check_output(path: str) -> None:
    """Checks that a result can be written, before anything is measured.

    Args:
      path: the file.

    Raises:
      UserError: it exists, or its folder does not.
    """
    file = Path(path)
    if file.exists():
        raise UserError(f"output {path} exists; expected a new file, nothing is written over")
    if not file.parent.is_dir():
        raise UserError(f"output {path}: there is no folder {file.parent}")


def load_average() -> float | None:
    """Returns how many processes wanted a processor over the last minute; None where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def record(
    results: Sequence[Measured],
    *,
    name: str,
    command: str,
    settings: dict[str, Any],
    load_before: float | None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Puts a result together.

    Args:
      results: one entry per case.
      name: the benchmark.
      command: what makes it again.
      settings: repetitions, length of a sample, alternatives.
      load_before: `load_average()` before the run.
      notes: what a reader should know besides.

    Returns:
      What JSON can hold.
    """
    cpus = os.cpu_count() or 1
    busy = load_before is not None and load_before > BUSY * cpus
    shared = f"the machine was shared: load average {load_before} on {cpus} CPUs before the run"
    return {
        "benchmark": name,
        "command": command,
        "ratio": RATIO,
        "versions": {**versions(), **_installed("torch", "pillow", "grain")},
        "machine": {
            "processor": processor(),
            "cpus": cpus,
            "load_before": load_before,
            "load_after": load_average(),
        },
        "settings": settings,
        "cases": [to_dict(measured) for measured in results],
        "notes": [*notes, *([shared] if busy else [])],
    }


def write(path: str, values: dict[str, Any]) -> None:
    """Writes a result to a new file.

    Args:
      path: the file.
      values: what `record` returned.

    Raises:
      UserError: it exists by now, or cannot be written.
    """
    check_output(path)
    write_json(Path(path), values)


def processor() -> str:
    """Names the processor, as far as the system tells.

    Returns:
      For example `AMD EPYC 7B13`.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _installed(*names: str) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
