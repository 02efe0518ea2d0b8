"""The benchmarks, one file each. `BENCHMARKS` is the only place that lists them."""

from fgkd_jax.cli.benchmarks import data, depthwise, detect, detect_step, mcl, msdn, sampler, step
from fgkd_jax.cli.benchmarks.base import Benchmark

_MODULES = (sampler, mcl, msdn, step, depthwise, detect, detect_step, data)

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (module.BENCHMARK for module in _MODULES)
}
"""Benchmarks by the name that follows `fgkd bench`."""
