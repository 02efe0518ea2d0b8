"""Distillation from one classifier's outputs to another's, per example, in nats."""

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


def soft_target_cross_entropy(
    student_logits: Float[Array, "b k"],
    teacher_logits: Float[Array, "b k"],
    *,
    temperature: float,
) -> Float[Array, "b"]:
    """Returns the cross-entropy of the student against the teacher's softened distribution.

    `-sum_k softmax(teacher / T)[k] log softmax(student / T)[k]`

    There is no factor T^2 and no `stop_gradient`: the gradient reaches both, and its size falls
    with T^2. The caller multiplies and cuts as the method at hand wants it.

    Args:
      student_logits: `[b k]`, unnormalised log probabilities.
      teacher_logits: `[b k]`, likewise; -inf excludes a class.
      temperature: T, above 0.

    Returns:
      `[b]`, nats, at least the entropy of the teacher's distribution; in the dtype of
      `student_logits`, computed in at least float32.

    Raises:
      UserError: the shapes differ or are not of rank 2, or `temperature` is not above 0.

    Source:
      Hinton et al., "Distilling the knowledge in a neural network", 2015; as Zheng et al., CVPR
      2019, equation 9, use it. The loss of the released TASN lets the gradient reach the teacher.

    Example:
      >>> soft_target_cross_entropy(jnp.zeros((1, 4)), jnp.ones((1, 4)), temperature=10.0)
      Array([1.3862944], dtype=float32)
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student_logits have the shape {student_logits.shape} and teacher_logits "
            f"{teacher_logits.shape}; expected the same [b, k]"
        )
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; expected a number above 0")
    student, teacher = (
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
        for logits in (student_logits, teacher_logits)
    )
    targets = jax.nn.softmax(teacher)
    # Not optax's safe form: its gradient to the targets is NaN where a class is excluded from both.
    log_p = jnp.where(targets > 0, jax.nn.log_softmax(student), 0.0)
    return -jnp.sum(targets * log_p, axis=-1).astype(student_logits.dtype)
