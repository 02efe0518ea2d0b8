"""Asks the TPU compiler what the sampler's lowering costs; needs no TPU.

    pip install -e '.[tpu]'
    python benchmarks/sampler_tpu.py --out benchmarks/results/sampler_tpu.json

For each chip, 8 images of 512 x 512 x 3 per device are resampled to 224 x 224, and the bytes that
the compiled program accesses, by the compiler's own count, are divided by those of the images and
the result. Nothing is run: times are the compiler's estimates.
"""

import argparse
import importlib.metadata
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgkd_jax.ops import separable_resample

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
BATCH, SIDE, OUT, CHANNELS = 8, 512, 224, 3
VARIANTS = (
    ("float32", False),
    ("uint8", False),
    ("bfloat16", False),
    ("float32", True),
    ("uint8", True),
)


def study(topology: str, dtype: str, *, exact: bool) -> dict[str, Any]:
    """Compiles the resample for a slice of a pod.

    Args:
      topology: chip and shape, such as `v5e:2x2`.
      dtype: of the images.
      exact: multiply in float32 at the highest precision.

    Returns:
      The compiler's figures per device.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    batch = BATCH * len(devices)

    def spec(shape: tuple[int, ...], kind: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), jnp.dtype(kind), sharding=sharding)

    arguments = (
        spec((SIDE, SIDE, CHANNELS), dtype),
        spec((OUT,), "float32"),
        spec((OUT,), "float32"),
    )
    function = jax.jit(partial(separable_resample, exact=exact), out_shardings=sharding)
    compiled = function.lower(*arguments).compile()
    cost = compiled.cost_analysis()
    out_size = 2 if dtype == "bfloat16" else 4
    least = BATCH * CHANNELS * (SIDE**2 * jnp.dtype(dtype).itemsize + OUT**2 * out_size)
    return {
        "topology": topology,
        "image": dtype,
        "products": "float32, highest precision" if exact else "bfloat16",
        "bytes_accessed": int(cost["bytes accessed"]),
        "input_and_output": least,
        "ratio": round(cost["bytes accessed"] / least, 4),
        "estimated_microseconds": round(1e6 * cost["optimal_seconds"], 1),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def main() -> None:
    """Studies all chips and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows = [study(t, dtype, exact=exact) for t in TOPOLOGIES for dtype, exact in VARIANTS]
    for row in rows:
        print(json.dumps(row))
    if options.out:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
