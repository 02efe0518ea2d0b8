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
`benchmarks/results/scaling_v5e.json` and `.md`; with `--keep` nothing is compiled, and rows of
which the folder has nothing stay as they are.
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

HEAD = (
    "Made by `python benchmarks/pod_scaling.py --folder FOLDER`; nothing was run. The images of a",
    "chip stay the same in number. Bytes are those that a chip sends by the compiler for v5e:2x2,",
    "times the growth between programs for 4 and for more virtual devices. The share is that of",
    "the interconnect at its published bandwidth, all links busy, in a step that exchanges only",
    "when it does not compute; the time of a chip by itself is the longer of arithmetic and",
    "memory at their published rates. What a message costs besides its bytes is not published and",
    "not counted: the number of exchanges is given instead, that of the programs for virtual",
    "devices.",
    "",
    "L-MCL is put together: exchanges of memory banks are those of narrow networks by the",
    "compiler for TPU, at each size; gradients and the time of a chip by itself are those of",
    "ResNet-50 by the one for v5e:2x2, with what narrow networks compute and read more or less",
    "than on that slice with banks placed as there. Statistics of batch norm over several chips",
    "are left out.",
    "",
    "What a chip holds before a step (parameters, optimiser's state, banks, its batch) and what",
    "it needs in all are of the program for TPU, where there is one; for L-MCL of narrow",
    "networks, so that it is next to nothing but the memory of banks and of what is contrasted.",
)

READING = (
    "For TASN what is sent hardly depends on the number of chips, for it is the gradients: up to",
    "256 chips they are below 2% of a step. Sharing parameters sends an eighth more and saves",
    "0.24 GB a chip: with networks of this size it is worth it at no number of chips up to 256,",
    "only where parameters and the optimiser's state would not fit.",
    "",
    "Groups of batch norm within a chip save next to no bytes at any size, and nearly all",
    "messages: 281 all-reduces become 4. The 277 come to 1% of the step if one costs 2",
    "microseconds, which is not published. They change what is learned where a group becomes",
    "small: below 16 images, by Wu and He, Group Normalization, 2018. With 24 or 64 images a",
    "chip, groups of a chip can be used from 4 chips on; with fewer, groups of several chips.",
    "",
    "L-MCL's banks are best held whole by every chip, 1.3 GB, at every size: then gradients are",
    "what is sent. Chips that share their dimensions read a few numbers of each candidate of the",
    "whole batch, rows shorter than TPU's 128 lanes: by the compiler's count a chip reads four",
    "times as much in a step at 4 chips and 46 times at 64, sends 1.9 and 4.6 times the bytes,",
    "and needs 2.3 and 2.8 times the memory in all. Sharing is for banks that do not fit, on few",
    "chips.",
)
"""What the table says, for the results that lie beside this script."""

VARIANTS = {
    "norm": "statistics of batch norm of each chip by itself",
    "fsdp": "parameters shared by all chips",
    "split": "memory banks shared by all chips",
}
SHARED, SPLIT = "fsdp", "split"
LABELS = (
    *map(str, COUNTS),
    "64_norm",
    *(f"{count}_{SHARED}" for count in COUNTS),
    *(f"{count}_{SPLIT}" for count in COUNTS[:2]),  # banks have fewer dimensions than 256
)
"""Rows: the number of chips, and the variant."""
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
            if f"{count}_{SPLIT}" in LABELS:
                split = ["--config.mesh.split_state=True"]
                output = folder / f"{name}_narrow_{count}_{SPLIT}.json"
                compile_one(output, narrow, where, [batch, *overrides, *split])


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


def on_paper(work: dict[str, float], moved: float) -> dict[str, float]:
    """Estimates a step in which a chip sends so many bytes.

    Args:
      work: `flops` and `bytes_accessed` of a chip.
      moved: the bytes.

    Returns:
      Bytes that a chip sends, the seconds for them at the published bandwidth, those of arithmetic
      or memory, whichever takes longer, and the share of the interconnect where it is used only
      when the chip does not compute.
    """
    chip = CHIPS[CHIP]
    busy = max(work["flops"] / chip.peak_flops, work["bytes_accessed"] / chip.hbm_bandwidth)
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
        return sent(narrow) + summed(tpu, int(count)) if narrow else None
    step, smallest = read(folder, f"{name}_{label}"), read(folder, f"{name}_{COUNTS[0]}")
    return sent(tpu) * sent(step) / sent(smallest) if step and smallest else None


def work_of_a_chip(tpu: dict[str, Any], base: Any, narrow: Any) -> dict[str, float]:
    """Counts what a chip computes and reads.

    Args:
      tpu: the step, compiled for the smallest slice.
      base: that of narrow networks on the same slice, banks placed alike; None for no other work
        than that of `tpu`.
      narrow: that of narrow networks in question, or None.

    Returns:
      `flops` and `bytes_accessed`: of `tpu`, and what narrow networks have more or less.
    """
    kinds = ("flops", "bytes_accessed")
    if not (base and narrow):
        return {kind: tpu[kind] for kind in kinds}
    return {kind: tpu[kind] + narrow[kind] - base[kind] for kind in kinds}


def collect(folder: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Puts results together.

    Args:
      folder: where they are kept.
      before: what this function returned of another folder: rows of which this one has nothing.

    Returns:
      By config: what was compiled, and the estimates.
    """
    found: dict[str, Any] = {}
    for name, (config, images, _) in CONFIGS.items():
        stored = (before or {}).get(name, {})
        tpu = read(folder, f"{name}_tpu") or stored.get(SMALLEST)
        if tpu is None:
            continue
        rows = {}
        for label in LABELS:
            made = compiled_row(folder, name, label, tpu)
            merged = {**stored.get("chips", {}).get(label, {}), **made}
            if merged.get("collectives") or merged.get("narrow"):
                rows[label] = merged
        kept = ("flops", "bytes_accessed", "memory", "collectives", "compile_seconds")
        smallest = {one: tpu[one] for one in kept}
        if name in NARROW:  # the others are read off narrow networks
            smallest["collectives"] = {"all-reduce": tpu["collectives"]["all-reduce"]}
            smallest["banks"] = tpu.get("banks", "whole")
        found[name] = {
            "config": config,
            "images_of_a_chip": images,
            SMALLEST: smallest,
            "chips": rows,
        }
    return found


def compiled_row(folder: Path, name: str, label: str, tpu: dict[str, Any]) -> dict[str, Any]:
    """Puts one row together.

    Args:
      folder: where results are kept.
      name: of the config.
      label: one of `LABELS`.
      tpu: the step, compiled for the smallest slice.

    Returns:
      What is known of it: exchanges of the program, the memory of a virtual device, that of a chip
      where there is a program for TPU (`arguments` is what it holds before the step), exchanges of
      narrow networks, the estimate.
    """
    step = read(folder, f"{name}_{SHARED if label.endswith(SHARED) else label}")
    narrow = read(folder, f"{name}_narrow_{label}")
    on_tpu = narrow
    if name not in NARROW and label.partition("_")[0] == str(COUNTS[0]):
        on_tpu = step if label.endswith(SHARED) else tpu
    known: dict[str, Any] = {}
    if step:
        known["collectives"] = step["collectives"]
        if not label.endswith(SHARED):
            known["memory_of_virtual_device"] = step["memory"]["total"]
    if on_tpu:
        known["memory_of_a_chip"] = {one: on_tpu["memory"][one] for one in ("arguments", "total")}
    if narrow:
        known["narrow"] = narrow["collectives"]
    moved = sent_by_a_chip(folder, name, label, tpu)
    if moved is not None:
        split = f"_{SPLIT}" if tpu.get("banks") == SPLIT else ""
        base = read(folder, f"{name}_narrow_{COUNTS[0]}{split}")
        known["on_paper"] = on_paper(work_of_a_chip(tpu, base, narrow), moved)
    return known


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
        if row.get("narrow") and row.get("collectives"):
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
        *HEAD,
        "",
        "| config | chips | variant | exchanges | MB sent by a chip | interconnect | by itself "
        "| share | MB held | MB in all |",
        "|" + " --- |" * 10,
    ]
    for one in found.values():
        for label, row in one["chips"].items():
            count, _, variant = label.partition("_")
            exchanges = row.get("collectives") or row["narrow"]
            kinds = ", ".join(f"{c['count']} {kind}" for kind, c in exchanges.items())
            kinds += "" if row.get("collectives") else " (of narrow networks)"
            paper = row.get("on_paper")
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
            memory = row.get("memory_of_a_chip")
            cells += [
                f"{memory[one] / 1e6:.0f}" if memory else "" for one in ("arguments", "total")
            ]
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
    path = RESULTS / "scaling_v5e.json"
    before = json.loads(path.read_text()) if options.keep and path.is_file() else None
    found = collect(options.folder, before)
    path.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.joinpath("scaling_v5e.md").write_text(table(found))


if __name__ == "__main__":
    main()
