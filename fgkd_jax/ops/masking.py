"""Softmax over what a mask leaves, and a maximum whose gradient is always finite."""

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Bool, Float


def masked_softmax(
    scores: Float[Array, "... n"], left: Bool[Array, "... n"]
) -> Float[Array, "... n"]:
    """Returns the softmax over the entries that are left, and zeros where none is.

    w_i = exp(s_i) / sum_j exp(s_j), j over the entries that are left; 0 for the others. That is
    softmax(s + m) with m of 0 or minus infinity, made finite: where everything is masked, the sum
    is empty, so the weights are all 0 rather than 0 / 0, and so is their gradient. What a masked
    score is, infinite or NaN, makes no difference.

    Args:
      scores: `[... n]`.
      left: `[... n]`, False where minus infinity is added.

    Returns:
      `[... n]`, of the dtype of `scores`; computed in at least float32. Each row sums to 1, or to 0
      where nothing is left.

    Raises:
      UserError: the two have not the same shape.

    Source:
      Song et al., Bi-modal progressive mask attention for fine-grained recognition, TIP 2020, the
      mask templates that grow by minus infinity.

    Example:
      >>> masked_softmax(jnp.array([1.0, 5.0, 1.0]), jnp.array([True, False, True])).tolist()
      [0.5, 0.0, 0.5]
    """
    if scores.shape != left.shape:
        raise UserError(f"scores {scores.shape} and left {left.shape}; expected one shape")
    x = jnp.where(left, scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), -jnp.inf)
    top = jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf)
    # Differences are taken of finite numbers alone: a gradient through inf - inf would be NaN.
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    shifted = jnp.where(left, x - top, 0.0)
    weights = jnp.where(left, jnp.exp(shifted), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights / jnp.where(total > 0, total, 1.0)).astype(scores.dtype)


def first_max(x: Float[Array, "..."], *, axis: int) -> Float[Array, "..."]:
    """Returns the maximum along an axis; its gradient goes to the first entry that has it.

    The gradient of `jnp.max` compares `x` with the maximum and divides by how many entries equal
    it. Where XLA computes `x` twice, fused into both, with other roundings, none does, and the
    gradient is 0 / 0. Here nothing is divided.

    Args:
      x: of any shape, not empty along the axis; no entry NaN.
      axis: which one, kept with length 1.

    Returns:
      `x` with one entry along the axis.

    Source:
      Not of a paper.

    Example:
      >>> jax.grad(lambda x: first_max(x, axis=0)[0])(jnp.array([1.0, 3.0, 3.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    best = jnp.argmax(x, axis=axis, keepdims=True)
    place = jax.lax.broadcasted_iota(best.dtype, x.shape, axis % x.ndim)
    return jnp.sum(jnp.where(place == best, x, 0), axis=axis, keepdims=True)
