"""What the compiler said, as data and as a table for a person."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from fgkd_jax.cli.abstract_run import AbstractRun
from fgkd_jax.cli.compilation.study import gib
from fgkd_jax.cli.compilation.topology import Slice
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.results import versions
from fgkd_jax.train.sharding import DATA_AXIS, FSDP_AXIS

ESTIMATE = (
    "seconds are on paper, by the chip's published figures; nothing was run: no chip reaches its "
    "peak, bytes accessed count on-chip memory as well, so that memory may take less, all links of "
    "a chip are taken to be busy at once, exchanges may overlap with arithmetic, and a loop whose "
    "rounds cannot be told counts as one round"
)


def record(
    steps: Mapping[str, Any],
    run: AbstractRun,
    where: Slice,
    experiment: Experiment,
    *,
    command: str,
) -> dict[str, Any]:
    """Puts a result together.

    Args:
      steps: as `study_steps` returns them.
      run: what was compiled.
      where: for which devices.
      experiment: of which options.
      command: what makes it again.

    Returns:
      What JSON can hold.
    """
    mesh = run.steps.placed.step.mesh
    return {
        "command": command,
        "title": experiment.report.title,
        "topology": {
            "name": where.name,
            "chips": where.chips,
            "devices": len(where.devices),
            "kind": where.devices[0].device_kind,
            "figures": where.chip.source if where.chip else "none: virtual devices",
        },
        "mesh": {name: mesh.shape[name] for name in (DATA_AXIS, FSDP_AXIS)},
        "batch_size": experiment.train.batch_size,
        "accumulate": experiment.train.accumulate,
        "data": dict(run.sizes),
        "fits": _all_fit(steps),
        "steps": dict(steps),
        "estimate": ESTIMATE if where.chip else "none: virtual devices have no published figures",
        "notes": _notes(experiment),
        "versions": {**versions(), **_compiler()},
    }


def _all_fit(steps: Mapping[str, Any]) -> bool | None:
    """False where a step does not fit, None where that is not known of some."""
    fits = [step["fits"] for step in steps.values()]
    return False if False in fits else None if None in fits else True


def _notes(experiment: Experiment) -> list[str]:
    """What a reader should know of this config."""
    if not experiment.features.views:
        return []
    return ["the config stores features: `fgkd train` takes a shorter step, on one process alone"]


def _compiler() -> dict[str, str]:
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def render(made: Mapping[str, Any]) -> str:
    """Lays a result out for a person.

    Args:
      made: as `record` returns it.

    Returns:
      Several lines.
    """
    where, mesh, data = made["topology"], made["mesh"], made["data"]
    lines = [
        f"{made['title'] or 'step'}, batch {made['batch_size']}, on {where['name']}: "
        f"{where['chips']} chips, {where['devices']} devices ({where['kind']}), "
        f"mesh data {mesh['data']} x fsdp {mesh['fsdp']}",
        f"data: {data['num_classes']} classes, {data['train']} training images ({data['from']})",
    ]
    for name, step in made["steps"].items():
        lines += ["", f"{name} step, per chip", *_render_step(step)]
    words = {True: "fits", False: "DOES NOT FIT", None: "memory of a chip is not known"}
    lines += ["", words[made["fits"]], *made["notes"]]
    return "\n".join([*lines, f"estimate: {made['estimate']}"])


def _render_step(step: Mapping[str, Any]) -> list[str]:
    memory = step["memory"]
    rows = [("memory", f"{gib(memory['total'])} of {gib(memory['capacity'])}")]
    if "said" in step:
        rows += [("the compiler", step["said"])]
        return _aligned([*rows, ("compiled in", f"{step['compile_seconds']} s")])
    rows += [(f"  {name}", gib(memory[name])) for name in memory if name not in _TOTALS]
    rows += [
        ("operations", f"{step['flops'] / 1e12:.4g} TFLOP"),
        ("bytes accessed", gib(step["bytes_accessed"])),
        ("arithmetic intensity", f"{step['arithmetic_intensity']} FLOP per byte"),
    ]
    for kind, one in step["collectives"].items():
        text = f"{one['count']}, {one['bytes'] / 2**20:.1f} MiB"
        rows.append((kind, f"{text}; sends {one['bytes_sent'] / 2**20:.1f} MiB"))
    if not step["collectives"]:
        rows.append(("exchanges", "none"))
    rows += _loops(step["loops"])
    if (estimate := step["estimate"]) is not None:
        for name in ("arithmetic", "memory", "interconnect"):
            rows.append((f"{name}, on paper", f"{1e3 * estimate[f'{name}_seconds']:.3f} ms"))
        rows.append(("share of interconnect", f"{100 * estimate['interconnect_share']:.1f}%"))
    return _aligned([*rows, ("compiled in", f"{step['compile_seconds']} s")])


def _loops(loops: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is not known of loops."""
    rows = []
    if count := loops["unknown"]:
        rows.append(("loops of unknown length", f"{count}, counted as one round each"))
    if loops["known"] and not loops["in_operations"]:
        text = f"one round, in operations and bytes accessed, of each of {loops['known']}"
        rows.append(("loops", text))
    return rows


_TOTALS = ("total", "capacity")


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]
