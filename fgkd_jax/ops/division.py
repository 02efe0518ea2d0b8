"""Divisions whose whole part is exact.

XLA turns a division by a constant into a product with its reciprocal, so that 21 / 7 may be a
little more than 3, and its ceiling 4. What depends on whole numbers of cells is corrected by
products.
"""

import jax.numpy as jnp
import numpy as np

from fgkd_jax.typing import Array, Num


def ceil_divide(x: Num[Array, "*n"], *, divisor: float) -> Num[Array, "*n"]:
    """Returns the least whole number that is at least x / divisor.

    Args:
      x: floating or whole numbers; those as large as their dtype's whole numbers are not exact.
      divisor: above 0.

    Returns:
      Whole numbers, in the dtype of x, floating at least.

    Source:
      IEEE 754, whose correctly rounded quotient has this whole part.

    Example:
      >>> ceil_divide(jnp.array([20.0, 21.0, 22.0]), divisor=7)
      Array([3., 3., 4.], dtype=float32)
    """
    return -floor_divide(-x, divisor=divisor)


def floor_divide(x: Num[Array, "*n"], *, divisor: float) -> Num[Array, "*n"]:
    """Returns the greatest whole number that is at most x / divisor.

    Args:
      x: as in `ceil_divide`.
      divisor: above 0.

    Returns:
      Whole numbers, in the dtype of x, floating at least.

    Source:
      IEEE 754, whose correctly rounded quotient has this whole part.

    Example:
      >>> floor_divide(jnp.array([-1.0, 20.0, 21.0]), divisor=7)
      Array([-1.,  2.,  3.], dtype=float32)
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    whole = jnp.floor(wide / divisor)
    whole = jnp.where(whole * divisor > wide, whole - 1, whole)
    return jnp.where((whole + 1) * divisor <= wide, whole + 1, whole)


def truncate_divide(x: Num[Array, "*n"], *, divisor: float) -> Num[Array, "*n"]:
    """Returns x / divisor without what is behind the point: rounded towards 0.

    Args:
      x: as in `ceil_divide`.
      divisor: above 0.

    Returns:
      Whole numbers, in the dtype of x, floating at least.

    Source:
      IEEE 754, whose correctly rounded quotient has this whole part.

    Example:
      >>> truncate_divide(jnp.array([-8.0, 6.5, 41.0]), divisor=7)
      Array([-1.,  0.,  5.], dtype=float32)
    """
    return jnp.sign(x) * floor_divide(jnp.abs(x), divisor=divisor)


def nearest_rows(*, old: int, new: int) -> np.ndarray:
    """Returns the row that each row of an enlarged or reduced map is read from.

    Args:
      old: rows that there are.
      new: rows that there shall be.

    Returns:
      int `[new]`: floor(i h), with h = old / new and its product with i in float32.

    Source:
      `interpolate(mode="nearest")` of PyTorch, whose rounding it has.

    Example:
      >>> nearest_rows(old=3, new=5).tolist()
      [0, 0, 1, 1, 2]
    """
    scale = np.float32(old) / np.float32(new)
    rows = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int32)
    return np.minimum(rows, old - 1)
