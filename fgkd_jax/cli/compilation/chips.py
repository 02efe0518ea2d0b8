"""The chips that a step can be compiled for, with the figures that their maker publishes."""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures.

    Attributes:
      hbm_bytes: memory.
      peak_flops: floating-point operations a second in bfloat16.
      hbm_bandwidth: bytes a second to and from memory.
      ici_bandwidth: bytes a second that the chip sends over all of its links to other chips
        together. Published is the sum of both directions, but for v4; this is half of it.
      source: where the figures are from.
      topologies: shapes of a slice, the smallest first, as examples.
    """

    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    source: str
    topologies: tuple[str, ...]


_DOCS = "https://docs.cloud.google.com/tpu/docs"

CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        32 * GIB,
        275e12,
        1200e9,
        300e9,  # six links of 50 GB/s
        f"{_DOCS}/v4; links: Jouppi et al., TPU v4, ISCA 2023 (arXiv 2304.01433)",
        ("2x2x1", "4x4x4"),
    ),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, f"{_DOCS}/v5e", ("2x2", "16x16")),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, f"{_DOCS}/v5p", ("2x2x1", "4x4x4")),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, f"{_DOCS}/v6e", ("2x2", "16x16")),
    "tpu7x": Chip(192 * GIB, 2307e12, 7380e9, 600e9, f"{_DOCS}/tpu7x", ("2x2x1", "4x4x4")),
}
"""By the name that a topology begins with. The pages give gigabytes for some and GiB for others;
all are taken for GiB, as the compiler does, which keeps a little of them for itself."""

VIRTUAL = "cpu"
"""The name that stands for devices which JAX makes of the processor; it has no figures."""


def known_topologies() -> str:
    """Returns examples of all topologies.

    Returns:
      For a message, such as `v5e:2x2, v5e:16x16`.
    """
    names = [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in chip.topologies]
    return ", ".join([*names, f"{VIRTUAL}:8"])
