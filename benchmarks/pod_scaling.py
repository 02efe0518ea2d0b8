"""What a step exchanges on 4, 64 and 256 chips, by compiler and on paper; needs no TPU.

    pip install -e '.[tpu]'
    python benchmarks/pod_scaling.py --folder scaling

Images of a chip stay the same in number, so that its arithmetic does. `fgkd compile` makes each
program in a process of its own: for v5e:2x2, which says what a chip computes and sends there, and
for as many virtual devices as there are chips (`cpu:64`), which says how what is sent grows: who
sends what is decided before a program is made for one chip or another, but for reduce-scatters.
(The processor exchanges float32 where a TPU exchanges bfloat16, so only ratios are taken.) Where
chips share parameters, TPU's compiler makes reduce-scatters of sums, and that for the processor
none: what is sent then is that of the program for v5e:2x2, among more chips on paper.

L-MCL with ResNet-50 takes most of an hour to compile, and its memory banks exchange more than its
networks do. What they exchange does not depend on the networks: it is read off programs of narrow
networks, which the compiler for TPU makes for each size of a slice, and what the gradients of
ResNet-50 come to is added. What is in the folder is not compiled again. Results:
`benchmarks/results/scaling_v5e.json` and `.md`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fgkd_jax.cli.compilation.chips import CHIPS
from fgkd_jax.cli.compilation.collectives import Collective, bytes_sent

RESULTS = Path(__file__).parent / "results"
CHIP, SMALLEST, COUNTS = "v5e", "v5e:2x2", (4, 64, 256)
CONFIGS = {
    "tasn": ("tasn_cub", 24, ("backbone", "attention_backbone")),
    "lmcl": ("lmcl_imagenet:resnet50", 64, ()),
}
"""By short name: the config, images of a chip, options that hold the groups of batch norm."""

_NETWORK = "{'name':'resnet_narrow','width':4,'norm_groups':8,'dtype':'bfloat16'}"
NARROW = {
    "lmcl": (
        "lmcl_imagenet:resnet18",
        (f"--config.method.networks=({_NETWORK},{_NETWORK})", "--config.data.image_size=32"),
    )
}
"""The same with narrow networks on small images, where exchanges are those of memory banks."""
SLICES = {4: SMALLEST, 64: "v5e:8x8", 256: "v5e:16x16"}

READING = (
    "For TASN what is sent hardly depends on the number of chips, for it is the gradients: up to",
    "256 chips they are below 2% of a step. Groups of batch norm within a chip save next to no",
    "bytes and nearly all messages (281 all-reduces become 4); they change what is learned where a",
    "group becomes small.",
    "",
    "L-MCL's chips share the dimensions of its memory banks, as long as their number divides 128.",
    "Then each chip sends the candidates that the others contrast with, the same bytes at any",
    "size, and the gradients of all products of the whole batch, which grow with the number of",
    "chips: at 64 they are most of what is sent. 256 chips do not divide the dimensions; each",
    "holds the banks whole, 1.3 GB, and hardly anything but gradients is sent, less in all than by",
    "4 chips. Kept whole on 64 chips, banks would save most of the exchange; there, sharing them",
    "is not worth the memory that it saves.",
)
"""What the table says, for the results that lie beside this script."""

VARIANTS = {
    "norm": "statistics of batch norm of each chip by itself",
    "fsdp": "parameters shared by all chips",
}
SHARED = "fsdp"
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""What is made for virtual devices is looked at and not run."""


def compile_one(output: Path, config: str, topology: str, overrides: list[str]) -> None:
    """Runs `fgkd compile` for the train step, unless its result is there.

    Args:
      output: JSON file; not made where the config cannot be compiled.
      config: name.
      topology: chip and shape.
      overrides: of the config.
    """
    if output.exists():
        return
    command = [sys.executable, "-m", "fgkd_jax.cli.main", "compile", "--config", config]
    command += ["--step", "train", "--topology", topology, "--output", str(output), *overrides]
    flags = {"XLA_FLAGS": QUICKLY} if topology.startswith("cpu:") else {}
    status = subprocess.run(command, env={**os.environ, **flags}).returncode
    if status not in (0, 1):  # 1: does not fit, which is a result
        print(f"{output.stem}: exit status {status}", file=sys.stderr)


def compile_all(folder: Path) -> None:
    """Compiles whatever is missing.

    Args:
      folder: where results are kept.
    """
    for name, (config, images, norms) in CONFIGS.items():
        compile_one(folder / f"{name}_tpu.json", config, SMALLEST, [])
        for count in COUNTS:
            batch = f"--config.train.batch_size={images * count}"
            compile_one(folder / f"{name}_{count}.json", config, f"cpu:{count}", [batch])
        if norms:
            batch = f"--config.train.batch_size={images * 64}"
            groups = [f"--config.method.{one}.norm_groups=64" for one in norms]
            compile_one(folder / f"{name}_64_norm.json", config, "cpu:64", [batch, *groups])
            shared = [f"--config.mesh.fsdp={COUNTS[0]}"]
            compile_one(folder / f"{name}_{SHARED}.json", config, SMALLEST, shared)
        narrow, overrides = NARROW.get(name, (None, ()))
        for count, where in SLICES.items() if narrow else ():
            batch = f"--config.train.batch_size={images * count}"
            output = folder / f"{name}_narrow_{count}.json"
            compile_one(output, narrow, where, [batch, *overrides])


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Reads what `fgkd compile` wrote of a train step.

    Args:
      folder: where results are kept.
      name: of the result.

    Returns:
      Its JSON values; None where there is none.
    """
    path = folder / f"{name}.json"
    return json.loads(path.read_text())["steps"]["train"] if path.exists() else None


def sent(step: dict[str, Any]) -> int:
    """Adds up what a device sends in a step.

    Args:
      step: as `read` returns it.

    Returns:
      Bytes.
    """
    return sum(one["bytes_sent"] for one in step["collectives"].values())


def on_paper(tpu: dict[str, Any], moved: float) -> dict[str, float]:
    """Estimates a step in which a chip sends so many bytes.

    Args:
      tpu: the step, compiled for the smallest slice.
      moved: the bytes.

    Returns:
      Bytes that a chip sends, the seconds for them at the published bandwidth, those of arithmetic
      or memory, whichever takes longer, and the share of the interconnect where it is used only
      when the chip does not compute.
    """
    chip = CHIPS[CHIP]
    busy = max(tpu["flops"] / chip.peak_flops, tpu["bytes_accessed"] / chip.hbm_bandwidth)
    seconds = moved / chip.ici_bandwidth
    return {
        "bytes_sent": moved,
        "interconnect_seconds": seconds,
        "compute_seconds": busy,
        "interconnect_share": seconds / (seconds + busy),
    }


def summed(step: dict[str, Any], count: int) -> float:
    """Counts what a device sends where the sums of a step are among more devices.

    Args:
      step: as `read` returns it, for the smallest slice.
      count: devices.

    Returns:
      Bytes, those of statistics of batch norm over several devices left out.
    """
    size = step["collectives"]["all-reduce"]["bytes"]
    return bytes_sent(Collective("all-reduce", size, count))


def sent_sharing(step: dict[str, Any], count: int) -> float:
    """Counts what a device sends where more devices share the parameters.

    Args:
      step: as `read` returns it, for the smallest slice, whose devices all share them.
      count: devices.

    Returns:
      Bytes: of a reduce-scatter each keeps less, all else is as large as it was.
    """
    total = 0.0
    for kind, one in step["collectives"].items():
        size = one["bytes"] * (COUNTS[0] / count if kind == "reduce-scatter" else 1)
        total += bytes_sent(Collective(kind, round(size), count))
    return total


def sent_by_a_chip(folder: Path, name: str, label: str, tpu: dict[str, Any]) -> float | None:
    """Counts what a chip sends.

    Args:
      folder: where results are kept.
      name: of the config.
      label: number of chips, and the variant.
      tpu: the step, compiled for the smallest slice.

    Returns:
      Bytes; None where it was not compiled.
    """
    count, _, variant = label.partition("_")
    if variant == SHARED:
        step = read(folder, f"{name}_{SHARED}")
        return sent_sharing(step, int(count)) if step else None
    if name in NARROW:
        narrow = read(folder, f"{name}_narrow_{label}")
        return sent(narrow) + summed(tpu, int(label)) if narrow else None
    step, smallest = read(folder, f"{name}_{label}"), read(folder, f"{name}_{COUNTS[0]}")
    return sent(tpu) * sent(step) / sent(smallest) if step and smallest else None


def collect(folder: Path) -> dict[str, Any]:
    """Puts results together.

    Args:
      folder: where they are kept.

    Returns:
      By config: what was compiled, and the estimates.
    """
    found: dict[str, Any] = {}
    for name, (config, images, _) in CONFIGS.items():
        tpu = read(folder, f"{name}_tpu")
        if tpu is None:
            continue
        rows = {}
        labels = [*map(str, COUNTS), "64_norm", *(f"{count}_{SHARED}" for count in COUNTS)]
        for label in labels:
            shares = label.endswith(SHARED)
            step = read(folder, f"{name}_{SHARED if shares else label}")
            narrow = read(folder, f"{name}_narrow_{label}")
            moved = sent_by_a_chip(folder, name, label, tpu)
            if step is None and narrow is None:
                continue
            rows[label] = {
                "collectives": step["collectives"] if step else None,
                "memory_of_virtual_device": None if shares or not step else step["memory"]["total"],
                "memory_of_a_chip_of_four": step["memory"]["total"] if shares and step else None,
                "narrow": narrow["collectives"] if narrow else None,
                "on_paper": on_paper(tpu, moved) if moved is not None else None,
            }
        kept = ("flops", "bytes_accessed", "memory", "collectives", "compile_seconds")
        smallest = {one: tpu[one] for one in kept}
        if name in NARROW:  # the others are read off narrow networks
            smallest["collectives"] = {"all-reduce": tpu["collectives"]["all-reduce"]}
        found[name] = {
            "config": config,
            "images_of_a_chip": images,
            SMALLEST: smallest,
            "chips": rows,
        }
    return found


def disagreement(found: dict[str, Any]) -> float | None:
    """Compares programs of narrow networks for TPU with those of the networks for virtual devices.

    Args:
      found: as `collect` returns it.

    Returns:
      The largest relative difference of bytes gathered or exchanged by all with all, over the
      numbers of chips that have both; None where none has.
    """
    kinds = ("all-gather", "all-to-all")
    differences = []
    for row in (row for one in found.values() for row in one["chips"].values()):
        if row["narrow"] and row["collectives"]:
            narrow, whole = (
                sum(programs[kind]["bytes"] for kind in kinds if kind in programs)
                for programs in (row["narrow"], row["collectives"])
            )
            differences.append(abs(narrow - whole) / whole)
    return max(differences, default=None)


def table(found: dict[str, Any]) -> str:
    """Lays results out as Markdown.

    Args:
      found: as `collect` returns it.

    Returns:
      The file's text.
    """
    lines = [
        "# What a train step exchanges as a pod grows",
        "",
        "Made by `python benchmarks/pod_scaling.py --folder FOLDER`; nothing was run. The images",
        "of a chip stay the same in number. Bytes are those that a chip sends by the compiler for",
        f"{SMALLEST}, times the growth between programs for 4 and for more virtual devices. The",
        "share is that of the interconnect at its published bandwidth, all links busy, in a step",
        "that exchanges only when it does not compute; the time of a chip by itself is the longer",
        "of arithmetic and memory at their published rates. What a message costs besides its",
        "bytes is not published and not counted: the number of exchanges is given instead, that",
        "of the programs for virtual devices. L-MCL's bytes are those of narrow networks by the",
        "compiler for TPU, at each size, and those of the gradients of ResNet-50 by the one for",
        f"{SMALLEST}; statistics of batch norm over several chips are left out.",
        "",
        "| config | chips | variant | exchanges | MB sent by a chip | interconnect | by itself "
        "| share |",
        "|" + " --- |" * 8,
    ]
    for one in found.values():
        for label, row in one["chips"].items():
            count, _, variant = label.partition("_")
            exchanges = row["collectives"] or row["narrow"]
            kinds = ", ".join(f"{c['count']} {kind}" for kind, c in exchanges.items())
            kinds += "" if row["collectives"] else " (of narrow networks)"
            paper = row["on_paper"]
            cells = ["unknown"] * 4
            if paper:
                cells = [
                    f"{paper['bytes_sent'] / 1e6:.1f}",
                    f"{1e3 * paper['interconnect_seconds']:.2f} ms",
                    f"{1e3 * paper['compute_seconds']:.1f} ms",
                    f"{100 * paper['interconnect_share']:.1f}%",
                ]
            what = VARIANTS.get(variant, "as configured")
            head = f"| {one['config']}, {one['images_of_a_chip']} a chip | {count} | {what} "
            lines.append(f"{head}| {kinds} | {' | '.join(cells)} |")
    apart = disagreement(found)
    if apart is not None:
        lines += [
            "",
            "Bytes of all-gather and all-to-all in L-MCL's programs of narrow networks for TPU",
            "and in those of ResNet-50 for as many virtual devices",
            f"differ by at most {100 * apart:.1f}%.",
        ]
    return "\n".join([*lines, "", *READING]) + "\n"


def main() -> None:
    """Compiles what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where each result is kept")
    parser.add_argument("--keep", action="store_true", help="compile nothing, read what is there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.keep:
        compile_all(options.folder)
    found = collect(options.folder)
    RESULTS.joinpath("scaling_v5e.json").write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.joinpath("scaling_v5e.md").write_text(table(found))


if __name__ == "__main__":
    main()
