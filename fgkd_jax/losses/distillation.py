"""Distillation from one classifier's outputs to another's, per example, in nats."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.typing import Array, Float, Int


class AggregatedTask(NamedTuple):
    """The three parts of `aggregated_task`, of every example, in nats.

    Attributes:
      stages: `[b]`, cross-entropy of every stage's logits, summed.
      aggregated: `[b]`, cross-entropy of the aggregated logits, summed over networks.
      distillation: `[b]`, divergence of the last stages from the aggregated logits, summed.
    """

    stages: Float[Array, "b"]
    aggregated: Float[Array, "b"]
    distillation: Float[Array, "b"]


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
    _check_pair(student_logits, teacher_logits)
    _check_temperature(temperature)
    student, teacher = (
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
        for logits in (student_logits, teacher_logits)
    )
    targets = jax.nn.softmax(teacher)
    # Not optax's safe form: its gradient to the targets is NaN where a class is excluded from both.
    log_p = jnp.where(targets > 0, jax.nn.log_softmax(student), 0.0)
    return -jnp.sum(targets * log_p, axis=-1).astype(student_logits.dtype)


def knowledge_distillation(
    student_logits: Float[Array, "b k"],
    teacher_logits: Float[Array, "b k"],
    *,
    temperature: float,
) -> Float[Array, "b"]:
    """Returns the divergence of the student from the teacher, both softened.

    `T^2 sum_k q[k] (log q[k] - log p[k])`, p = softmax(student / T), q = softmax(teacher / T)

    The factor T^2 keeps the size of the gradient the same for all large T. The teacher is behind
    `stop_gradient`. Towards the student it is T^2 times `soft_target_cross_entropy`, less the
    entropy of q: at equal logits it is zero.

    Args:
      student_logits: `[b k]`, unnormalised log probabilities.
      teacher_logits: `[b k]`, likewise; -inf excludes a class.
      temperature: T, above 0.

    Returns:
      `[b]`, nats, at least 0 (to within rounding); in the dtype of `student_logits`, computed in at
      least float32.

    Raises:
      UserError: the shapes differ or are not of rank 2, or `temperature` is not above 0.

    Source:
      Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Example:
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 4.0]])
      >>> knowledge_distillation(student, teacher, temperature=4.0).round(4)
      Array([1.7751], dtype=float32)
    """
    _check_pair(student_logits, teacher_logits)
    _check_temperature(temperature)
    loss = _divergence(student_logits, teacher_logits, temperature=temperature)
    return loss.astype(student_logits.dtype)


def mutual_learning(
    logits: Float[Array, "n b k"], *, temperature: float = 1.0
) -> Float[Array, "b"]:
    """Returns the divergences of every network from every other one.

    `sum_i 1 / (n - 1) sum_{j != i} T^2 KL(p_j || p_i)`, p_i = softmax(logits[i] / T)

    Each p_j that teaches is behind `stop_gradient`: network i gets the gradient of its own inner
    sum alone, as if the others were fixed.

    Args:
      logits: `[n b k]`, of at least two networks; -inf excludes a class.
      temperature: T, above 0. The paper has none, which is 1.

    Returns:
      `[b]`, nats, in the dtype of `logits`, computed in at least float32.

    Raises:
      UserError: the shape does not fit, or `temperature` is not above 0.

    Source:
      Zhang et al., "Deep mutual learning", CVPR 2018, its mimicry loss: for two networks KL(p_2 ||
      p_1) and KL(p_1 || p_2), for n the mean over the n - 1 others; here summed over the networks.
      The paper updates one network after another, each with the newest predictions of the others;
      here all are of the same step.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[0.0, 4.0]]])
      >>> mutual_learning(logits, temperature=4.0).round(4)
      Array([3.6969], dtype=float32)
    """
    _check_networks(logits, least=2)
    _check_temperature(temperature)
    n = logits.shape[0]
    pairs = _divergence(logits[:, None], logits[None], temperature=temperature)  # i learns from j
    return (jnp.sum(pairs, axis=(0, 1)) / (n - 1)).astype(logits.dtype)


def ensemble_distillation(
    logits: Float[Array, "n b k"], *, temperature: float = 3.0, last_only: bool = False
) -> Float[Array, "b"]:
    """Returns the divergence of networks from the mean of the logits of all.

    `sum_i T^2 KL(q || p_i)`, p_i = softmax(logits[i] / T), q = softmax(mean_j logits[j] / T)

    The mean is behind `stop_gradient`, and holds the student's own logits too.

    Args:
      logits: `[n b k]`, of at least one network; -inf in one of them excludes a class.
      temperature: T, above 0.
      last_only: whether the last network is the only student; otherwise all are.

    Returns:
      `[b]`, nats, a sum over the students; in the dtype of `logits`, computed in at least float32.

    Raises:
      UserError: the shape does not fit, or `temperature` is not above 0.

    Source:
      The logit distillation in the released code of Yang et al., "Mutual contrastive learning for
      visual representation learning", AAAI 2022. There both of two networks are students, of more
      the last alone, and on ImageNet the mean is not behind `stop_gradient`.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[0.0, 4.0]]])
      >>> ensemble_distillation(logits, temperature=4.0).round(4)
      Array([0.9321], dtype=float32)
    """
    _check_networks(logits, least=1)
    _check_temperature(temperature)
    teacher = jnp.mean(logits.astype(_wide(logits)), axis=0, keepdims=True)
    students = logits[-1:] if last_only else logits
    pairs = _divergence(students, teacher, temperature=temperature)
    return jnp.sum(pairs, axis=0).astype(logits.dtype)


def aggregated_task(
    stage_logits: Float[Array, "n s b k"],
    aggregated_logits: Float[Array, "n b k"],
    labels: Int[Array, "b"],
    *,
    temperature: float = 3.0,
) -> AggregatedTask:
    """Returns the task objective of networks with a classifier at each of their stages.

    With CE the cross-entropy against the label, g the logits of the stages and a the aggregated,

        stages = sum_i sum_s CE(g[i, s])
        aggregated = sum_i CE(a[i])
        distillation = sum_i sum_j T^2 KL(softmax(a[j] / T) || softmax(g[i, last] / T))

    The last sum has j = i too. Its teachers a[j] are behind `stop_gradient`; in `aggregated` they
    are not, and there the gradient goes on to all that they are made of.

    Args:
      stage_logits: `[n s b k]`, the last stage being the network's own output.
      aggregated_logits: `[n b k]`, as `models.Aggregator` makes them.
      labels: `[b]`, classes in `[0, k)`; another gives NaN, as in `cross_entropy`.
      temperature: T, above 0.

    Returns:
      Each part `[b]`, nats, in the dtype of `stage_logits`, computed in at least float32. The
      released objective is the plain sum of their means.

    Raises:
      UserError: the shapes do not fit, or `temperature` is not above 0.

    Source:
      Yang et al., "Online knowledge distillation via mutual contrastive learning for visual
      recognition", TPAMI 2023, as its authors released it.

    Example:
      >>> zeros, labels = jnp.zeros((2, 3, 1, 4)), jnp.array([0])
      >>> task = aggregated_task(zeros, zeros[:, 0], labels)
      >>> [round(float(part[0] / jnp.log(4)), 4) for part in task]
      [6.0, 2.0, 0.0]
    """
    n, s, b, k = stage_logits.shape if stage_logits.ndim == 4 else (-1,) * 4
    if min(n, s) < 1 or aggregated_logits.shape != (n, b, k) or labels.shape != (b,):
        raise UserError(
            f"stage_logits have the shape {stage_logits.shape}, aggregated_logits "
            f"{aggregated_logits.shape} and labels {labels.shape}; "
            "expected [n, s, b, k], [n, b, k], [b]"
        )
    _check_temperature(temperature)

    def entropies(logits: Array) -> Array:
        losses = jax.vmap(cross_entropy, in_axes=(0, None))(logits.astype(_wide(logits)), labels)
        return jnp.sum(losses, axis=0)

    pairs = _divergence(stage_logits[:, -1, None], aggregated_logits[None], temperature=temperature)
    parts = (
        entropies(stage_logits.reshape(n * s, b, k)),
        entropies(aggregated_logits),
        jnp.sum(pairs, axis=(0, 1)),
    )
    return AggregatedTask(*(part.astype(stage_logits.dtype) for part in parts))


def _divergence(student: Array, teacher: Array, *, temperature: float) -> Array:
    """T^2 KL(teacher || student) over the last axis of logits; the teacher gets no gradient."""
    teacher = lax.stop_gradient(teacher)
    log_p, log_q = (
        jax.nn.log_softmax(logits.astype(_wide(logits)) / temperature)
        for logits in (student, teacher)
    )
    q = jnp.exp(log_q)
    # A class that the teacher excludes counts for nothing, whatever the student makes of it.
    difference = jnp.where(q > 0, log_q - log_p, 0.0)
    return temperature**2 * jnp.sum(q * difference, axis=-1)


def _wide(x: Array) -> jnp.dtype:
    """The dtype to compute in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _check_pair(student_logits: Array, teacher_logits: Array) -> None:
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student_logits have the shape {student_logits.shape} and teacher_logits "
            f"{teacher_logits.shape}; expected the same [b, k]"
        )


def _check_networks(logits: Array, *, least: int) -> None:
    if logits.ndim != 3 or logits.shape[0] < least:
        raise UserError(
            f"logits have the shape {logits.shape}; expected [n, b, k] with n at least {least}"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; expected a number above 0")
