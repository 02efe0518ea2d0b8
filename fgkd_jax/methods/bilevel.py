"""Gradients through training steps: what a parameter of the loss does to the network it trains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.ops.loops import scan_steps
from fgkd_jax.typing import Array, Int, PyTree

Objective = Callable[[PyTree, PyTree, Int[Array, ""]], Array]
"""`(params, meta_params, phase) -> scalar`: the loss of a phase, one of the three below."""

INNER, OUTER, JUDGE = 0, 1, 2
"""The steps on the inner loss, the step on the outer loss, and what is made of them all."""


def unrolled_gradient(
    objective: Objective,
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

    for `inner_steps` steps on the inner loss, then one on the outer loss; the result is d judge(
    theta_T) / d phi at the last theta. The judge is the outer loss, perhaps on other examples;
    neither may depend on phi. What the losses stop the gradient of is a constant here too, in every
    order.

    The losses are one function, so that a network which they share is compiled once. The way back
    takes the second derivatives along one direction a step, forward over reverse: a program of
    about three gradients, whatever `inner_steps`. Memory grows with the parameters of all steps,
    and holds the activations of one.

    Args:
      objective: `(params, meta_params, phase) -> scalar`. The phase is a traced integer, `INNER`,
        `OUTER` or `JUDGE`: choose by `jnp.where`, the losses or what they are computed from.
      params: theta, before the first step; not changed.
      meta_params: phi.
      inner_steps: steps on the inner loss, at least 1.
      learning_rate: of every step.
      momentum: of the heavy-ball momentum, which begins at zero.
      weight_decay: coupled, for every parameter.

    Returns:
      The judge's loss, and its gradient by `meta_params`.

    Raises:
      UserError: `inner_steps` is below 1.

    Source:
      Yang et al., TPAMI 2023, section on layer matching, as released, but for the released reverse
      sweep, which multiplies one of its terms by 1 instead of the weight decay: there the gradient
      is off by about a percent wherever there is momentum and more than one inner step.
    """
    if inner_steps < 1:
        raise UserError(f"inner_steps is {inner_steps}; expected at least 1")
    tree_map = jax.tree.map

    def forth(
        carry: tuple[PyTree, ...], phase: Array
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, Array]]:
        theta, velocity, *_ = carry
        loss, grads = jax.value_and_grad(objective)(theta, meta_params, phase)
        velocity = tree_map(
            lambda v, g, t: momentum * v + g + weight_decay * t, velocity, grads, theta
        )
        moved = tree_map(lambda t, v: t - learning_rate * v, theta, velocity)
        return (moved, velocity, loss, grads), (theta, phase)

    def back(
        carry: tuple[PyTree, ...], step: tuple[PyTree, Array]
    ) -> tuple[tuple[PyTree, ...], None]:
        by_theta, by_velocity, by_phi = carry
        theta, phase = step
        by_velocity = tree_map(lambda v, t: v - learning_rate * t, by_velocity, by_theta)
        _, (curvature, mixed) = jax.jvp(
            lambda theta: jax.grad(objective, argnums=(0, 1))(theta, meta_params, phase),
            (theta,),
            (by_velocity,),
        )
        by_theta = tree_map(
            lambda t, v, c: t + weight_decay * v + c, by_theta, by_velocity, curvature
        )
        by_velocity = tree_map(lambda v: momentum * v, by_velocity)
        return (by_theta, by_velocity, tree_map(jnp.add, by_phi, mixed)), None

    zeros = tree_map(jnp.zeros_like, params)
    dtype = jax.eval_shape(objective, params, meta_params, jnp.array(JUDGE)).dtype
    # The last of these steps is not taken: it is there for its loss and its gradient.
    phases = jnp.array([INNER] * inner_steps + [OUTER, JUDGE])
    start = params, zeros, jnp.zeros((), dtype), zeros
    (_, _, loss, grads), steps = scan_steps(forth, start, phases)
    taken = tree_map(lambda x: x[:-1], steps)
    end = grads, zeros, tree_map(jnp.zeros_like, meta_params)
    (_, _, by_phi), _ = scan_steps(back, end, taken, reverse=True)
    return loss, by_phi
