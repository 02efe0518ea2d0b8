"""Settings of the whole test run: eight virtual devices, strict promotion, a compilation cache.

Most of the time goes into compiling programs that run once, on small arrays, so that the compiler is
told not to try hard; FGKD_TEST_OPTIMISE=1 compiles as users do, at twice the time.
"""

import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FGKD_SHARED", ROOT.parent / "shared"))

# Another platform: FGKD_TEST_PLATFORM=cuda,cpu, with JAX_DEFAULT_MATMUL_PRECISION=highest.
PLATFORM = os.environ.get("FGKD_TEST_PLATFORM", "cpu")
OPTIMISE = PLATFORM != "cpu" or os.environ.get("FGKD_TEST_OPTIMISE") == "1"
jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_disable_most_optimizations", not OPTIMISE)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("FGKD_TEST_CACHE", str(ROOT / ".cache" / "jax"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden vectors and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data at {SHARED} (set FGKD_SHARED)")
    return SHARED
