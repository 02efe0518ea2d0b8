"""Settings of the whole test run: eight virtual devices, strict promotion, a compilation cache.

Most of the time goes into compiling programs that run once, on small arrays, so that the compiler
is told not to try hard, but for operators, losses, training steps that are compared with PyTorch's,
and what is said of compiled programs. With FGKD_TEST_OPTIMISE=1 all is compiled as users compile
it.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FGKD_SHARED", ROOT.parent / "shared"))

# Another platform: FGKD_TEST_PLATFORM=cuda,cpu, with JAX_DEFAULT_MATMUL_PRECISION=highest.
PLATFORM = os.environ.get("FGKD_TEST_PLATFORM", "cpu")
OPTIMISE = PLATFORM != "cpu" or os.environ.get("FGKD_TEST_OPTIMISE") == "1"
OPTIMISED = tuple(
    ROOT / "tests" / name
    for name in (
        "losses",
        "ops",
        "models/test_resnet.py",
        "cli/test_compile.py",
        "cli/test_compiled_program.py",
    )
)
"""Tests whose programs are compiled as users compile them."""
jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("FGKD_TEST_CACHE", str(ROOT / ".cache" / "jax"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tells the compiler how hard to try, before fixtures compile anything."""
    optimise = OPTIMISE or any(one in (item.path, *item.path.parents) for one in OPTIMISED)
    jax.config.update("jax_disable_most_optimizations", not optimise)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden vectors and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data at {SHARED} (set FGKD_SHARED)")
    return SHARED


def _processes_with(variable: str) -> list[int]:
    """Ids of all processes whose environment holds `NAME=VALUE`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="session")
def processes_with() -> Callable[[str], list[int]]:
    """Finds processes, and those that they start, by a variable that they were given."""
    return _processes_with
