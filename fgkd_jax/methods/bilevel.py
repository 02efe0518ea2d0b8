"""Gradients through training steps: what a parameter of the loss does to the network it trains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, PyTree

Objective = Callable[[PyTree], Array]


def unrolled_gradient(
    inner: Callable[[PyTree, PyTree], Array],
    outer: Objective,
    params: PyTree,
    meta_params: PyTree,
    *,
    inner_steps: int,
    learning_rate: float | Array,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> tuple[Array, PyTree]:
    """Differentiates the outer loss after a few training steps by parameters of the inner loss.

    With d_t the gradient of the step's loss at theta_t, and v_0 = 0,

        v_{t+1} = momentum v_t + d_t + weight_decay theta_t
        theta_{t+1} = theta_t - learning_rate v_{t+1}

    for `inner_steps` steps on `inner(theta, phi)`, then one on `outer(theta)`; the result is
    d outer(theta_T) / d phi at the last theta. What the losses stop the gradient of is a constant
    here too, in every order.

    Memory grows with the parameters and not with the activations of all steps: each step is
    computed again on the way back (`jax.checkpoint`).

    Args:
      inner: `(params, meta_params) -> scalar`, the loss that phi shapes.
      outer: `params -> scalar`, the loss that matters.
      params: theta, before the first step; not changed.
      meta_params: phi.
      inner_steps: steps on `inner`, at least 1.
      learning_rate: of every step.
      momentum: of the heavy-ball momentum, which begins at zero.
      weight_decay: coupled, for every parameter.

    Returns:
      The outer loss at the end, and its gradient by `meta_params`.

    Raises:
      UserError: `inner_steps` is below 1.

    Source:
      Yang et al., TPAMI 2023, section on layer matching, as released, but for the released reverse
      sweep, which multiplies one of its terms by 1 instead of the weight decay: there the gradient
      is off by about a percent wherever there is momentum and more than one inner step.
    """
    if inner_steps < 1:
        raise UserError(f"inner_steps is {inner_steps}; expected at least 1")

    def update(carry: tuple[PyTree, PyTree], grads: PyTree) -> tuple[PyTree, PyTree]:
        theta, velocity = carry
        velocity = jax.tree.map(
            lambda v, g, t: momentum * v + g + weight_decay * t, velocity, grads, theta
        )
        return jax.tree.map(lambda t, v: t - learning_rate * v, theta, velocity), velocity

    def final_loss(phi: PyTree) -> Array:
        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            return update(carry, jax.grad(inner)(carry[0], phi)), None

        start = params, jax.tree.map(jnp.zeros_like, params)
        carry, _ = jax.lax.scan(jax.checkpoint(step), start, None, length=inner_steps)
        theta, _ = update(carry, jax.checkpoint(jax.grad(outer))(carry[0]))
        return outer(theta)

    return jax.value_and_grad(final_loss)(meta_params)
