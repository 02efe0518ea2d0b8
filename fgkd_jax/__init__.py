"""Fine-grained recognition and knowledge distillation in JAX.

The numerical parts are plain functions on arrays: see `fgkd_jax.ops` and `fgkd_jax.losses`.
"""

__version__ = "0.1.0"
