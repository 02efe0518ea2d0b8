"""The benchmarks, one file each. `BENCHMARKS` is the only place that lists them."""

from fgkd_jax.cli.benchmarks import data, depthwise, detect, mcl, msdn, sampler, step
from fgkd_jax.cli.benchmarks.base import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (module.BENCHMARK for module in (sampler, mcl, msdn, step, depthwise, detect, data))
}
"""Benchmarks by the name that follows `fgkd bench`."""
