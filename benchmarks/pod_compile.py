"""Compiles the steps of configs for a slice of a TPU pod, and makes a table; needs no TPU.

    pip install -e '.[tpu]'
    python benchmarks/pod_compile.py --topology v5e:2x2 --folder compiled tasn_birds pma_cub
    python benchmarks/pod_compile.py --topology v5e:2x2 --folder compiled retinanet_coco@8

Each config is compiled by `fgkd compile` in a process of its own, and its JSON is kept in the
folder: what is there is not compiled again. `--every` takes all configs, `CONFIG@8` one with eight
images in a batch of all chips. What is in the folder goes into one JSON file and one table,
`benchmarks/results/compile_<topology>.*`, beside what these held of other configs by the same
compiler; the table names the configs that have no row. `--every` may be stopped and started again:
it leaves out what has a row, at whatever batch. After a change of configs or of `fgkd compile`
itself all is to be made `--again`. The exit status is 1 where a config could not be compiled.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fgkd_jax.cli.compilation.known_sizes import OVERRIDES, SIZES_OF
from fgkd_jax.cli.config import config_folder
from fgkd_jax.errors import UserError

COMPILER = ("jax", "jaxlib", "libtpu")
RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "config | step | batch | memory a chip | of it temporaries | TFLOP | GB accessed | FLOP/byte | "
    "exchanges | MB sent | interconnect, on paper | its share | fits | compiled in"
)


def compile_config(name: str, topology: str, output: Path) -> int:
    """Runs `fgkd compile` for one config.

    Args:
      name: of the config, with `@` and the size of a batch where that is not the config's.
      topology: chip and shape.
      output: JSON file to write; not made where the config cannot be compiled.

    Returns:
      The command's exit status: 0, 1 where the program does not fit, which is a result, or another
      where there is none.
    """
    config, _, batch_size = name.partition("@")
    command = [sys.executable, "-m", "fgkd_jax.cli.main", "compile", "--config", config]
    command += ["--topology", topology, "--output", str(output)]
    if config in SIZES_OF:
        command += ["--sizes_of", SIZES_OF[config]]
    command += OVERRIDES.get(config, ())
    if batch_size:
        command.append(f"--config.train.batch_size={batch_size}")
    return subprocess.run(command).returncode


def rows(name: str, made: dict[str, Any]) -> list[str]:
    """Makes the rows of the table for one config.

    Args:
      name: as of `compile_config`.
      made: what `fgkd compile` wrote.

    Returns:
      One row per step.
    """
    config, _, given = name.partition("@")
    lines, batch = [], f"{made['batch_size']}{'*' if given else ''}"
    for step, found in made["steps"].items():
        fits = {True: "yes", False: "**no**", None: "?"}[found["fits"]]
        total = found["memory"]["total"]
        head = f"| {config} | {step} | {batch} | {_gib(total)} |"
        tail = f" {fits} | {found['compile_seconds']:.0f} s |"
        if "said" in found:
            lines.append(head + " - |" * 8 + tail)
            continue
        collectives, guess = found["collectives"], found["estimate"] or {}
        kinds = ", ".join(f"{one['count']} {kind}" for kind, one in collectives.items()) or "none"
        cells = [
            _gib(found["memory"]["temporaries"]),
            f"{found['flops'] / 1e12:.4g}",
            f"{found['bytes_accessed'] / 1e9:.3g}",
            f"{found['arithmetic_intensity']:.1f}",
            kinds,
            f"{guess.get('interconnect_bytes', 0) / 1e6:.1f}",
            f"{1e3 * guess.get('interconnect_seconds', 0):.3f} ms",
            f"{100 * guess.get('interconnect_share', 0):.1f}%",
        ]
        lines.append(f"{head} {' | '.join(cells)} |{tail}")
    return lines


def table(topology: str, results: dict[str, Any]) -> str:
    """Lays results out as Markdown.

    Args:
      topology: chip and shape.
      results: by config.

    Returns:
      The file's text.
    """
    first = next(iter(results.values()))
    versions = ", ".join(
        f"{name} {first['versions'][name]}" for name in COMPILER if name in first["versions"]
    )
    made_by = f"`python benchmarks/pod_compile.py --topology {topology}`, with {versions}"
    head = [
        f"# Training steps, compiled for {topology}",
        "",
        *textwrap.wrap(
            f"Made by {made_by}. The figures are the compiler's, of one chip and one step. What a "
            "chip sends, the time for it and its share of a step are an estimate on paper: "
            f"{first['estimate']}. Compile times are those of a busy machine of two cores. A batch "
            "with a star is not the config's own.",
            width=100,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        "",
        f"| {COLUMNS} |",
        "|" + " --- |" * len(COLUMNS.split("|")),
    ]
    body = [line for name, made in sorted(results.items()) for line in rows(name, made)]
    lacking = without_row(results)
    tail = ["", *textwrap.wrap(f"Without a row: {', '.join(lacking)}.", width=100)]
    return "\n".join([*head, *body, *(tail if lacking else ())]) + "\n"


def without_row(results: Collection[str]) -> list[str]:
    """Names the configs that were not compiled.

    Args:
      results: names as of `compile_config`.

    Returns:
      Those of the project's configs that are not among them, at whatever batch.
    """
    made = {name.partition("@")[0] for name in results}
    return sorted({path.stem for path in config_folder().glob("*.py")} - made)


def stored(path: Path) -> dict[str, Any]:
    """Reads the results of before.

    Args:
      path: of the JSON file.

    Returns:
      Results by config, of the compiler that is installed; none where there is no file.
    """
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())["configs"]
    return {name: made for name, made in results.items() if is_current(made)}


def is_current(made: dict[str, Any]) -> bool:
    """Says whether a result is one of the compiler that is installed.

    Args:
      made: what `fgkd compile` wrote.

    Returns:
      Whether jax, jaxlib and libtpu are the same.
    """
    here = installed()
    return all(made["versions"].get(name) == here.get(name) for name in COMPILER)


def installed() -> dict[str, str]:
    """Returns the versions of the compiler's packages, those that are there."""
    found = importlib.metadata.distributions()
    return {one.name: one.version for one in found if one.name in COMPILER}


def _gib(number: float | None) -> str:
    return "unknown" if number is None else f"{number / 2**30:.2f} GiB"


def main(arguments: list[str] | None = None) -> int:
    """Compiles what is missing and writes the results.

    Args:
      arguments: of the command line; those of the process by default.

    Returns:
      The exit status: 1 where a config could not be compiled, else 0.

    Raises:
      UserError: the folder holds results for another topology or of another compiler, or nothing
        was asked for.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="*", help="names of configs, as NAME or NAME@BATCH")
    parser.add_argument("--every", action="store_true", help="all configs of the project")
    parser.add_argument("--again", action="store_true", help="with --every: those stored, too")
    parser.add_argument("--topology", default="v5e:2x2", help="chip and shape")
    parser.add_argument("--folder", type=Path, required=True, help="where each result is kept")
    options = parser.parse_args(arguments)
    stem = f"compile_{options.topology.replace(':', '_')}"
    before = stored(RESULTS / f"{stem}.json")
    names = without_row(() if options.again else before) if options.every else options.configs
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        output = options.folder / f"{name}.json"
        if not output.exists() and compile_config(name, options.topology, output) not in (0, 1):
            failed.append(name)
    results = {
        **before,
        **{path.stem: json.loads(path.read_text()) for path in options.folder.glob("*.json")},
    }
    other = sorted(name for name, made in results.items() if not is_current(made))
    if other:
        raise UserError(f"{options.folder} holds results of another compiler: {', '.join(other)}")
    others = {made["topology"]["name"] for made in results.values()} - {options.topology}
    if others:
        raise UserError(f"{options.folder} holds results for {', '.join(sorted(others))} as well")
    if not results:
        raise UserError(f"{options.folder} holds no result; expected names of configs, or --every")
    values = {"topology": options.topology, "configs": dict(sorted(results.items()))}
    (RESULTS / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(table(options.topology, results))
    if failed:
        print(f"error: not compiled: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
