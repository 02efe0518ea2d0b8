"""Losses of zero-shot recognition, on scores over all classes, seen and unseen, in nats."""

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.losses.classification import cross_entropy
from fgkd_jax.typing import Array, Bool, Float, Int, Scalar


def calibration_bias(seen: Bool[Array, "k"], *, strength: float = 1.0) -> Float[Array, "k"]:
    """Returns what is added to the scores of each class, against the pull of the seen ones.

    `strength` for an unseen class, `-strength` for a seen one.

    Args:
      seen: `[k]`, whether training has images of the class.
      strength: at least 0; 0 leaves scores as they are.

    Returns:
      `[k]`, float32.

    Raises:
      UserError: `seen` is not of rank 1, or `strength` is below 0.

    Source:
      Chen et al., "MSDN: Mutually semantic distillation network for zero-shot learning", CVPR 2022,
      equation 8, whose indicator is 1 or -1. The released code adds it in training and at test.

    Example:
      >>> calibration_bias(jnp.array([True, False]))
      Array([-1.,  1.], dtype=float32)
    """
    if seen.ndim != 1:
        raise UserError(f"seen has the shape {seen.shape}; expected [k]")
    if not strength >= 0:
        raise UserError(f"strength is {strength}; expected a number of at least 0")
    return jnp.where(seen, jnp.float32(-strength), jnp.float32(strength))


def attribute_cross_entropy(
    scores: Float[Array, "b k"],
    labels: Int[Array, "b"],
    bias: Float[Array, "k"],
    *,
    classes: Bool[Array, "k"] | None = None,
) -> Float[Array, "b"]:
    """Returns the cross-entropy of scores from which the calibration bias is taken off.

    `-log softmax(scores - bias)[label]`, the softmax being over `classes`

    Args:
      scores: `[b k]`, with the bias in them.
      labels: `[b]`, classes in `[0, k)`; another gives NaN, as in `cross_entropy`.
      bias: `[k]`, as `calibration_bias` makes it.
      classes: `[k]`, which classes the softmax is over; None: all. A label outside gives inf.

    Returns:
      `[b]`, nats, in the dtype of `scores`, computed in at least float32.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Chen et al., CVPR 2022, equation 7, where the softmax is over the seen classes; the released
      code has all classes, so that learning pushes the scores of the unseen ones down.

    Example:
      >>> scores, bias = jnp.array([[-1.0, -1.0, 1.0]]), jnp.array([-1.0, -1.0, 1.0])
      >>> loss = attribute_cross_entropy(scores, jnp.array([0]), bias)
      >>> round(float(jnp.exp(loss[0])), 4)
      3.0
    """
    _check_scores(scores, labels=labels, bias=bias, classes=classes)
    logits = _widened(scores) - bias.astype(_wide(scores))[None]
    if classes is not None:
        logits = jnp.where(classes[None], logits, -jnp.inf)
    return cross_entropy(logits, labels).astype(scores.dtype)


def attribute_ranking(
    scores: Float[Array, "b k"],
    labels: Int[Array, "b"],
    *,
    margin: float = 1.0,
    classes: Bool[Array, "k"] | None = None,
) -> Float[Array, "b"]:
    """Returns how far the scores of classes come within a margin of that of the label.

    `mean over classes c of max(0, margin - (scores[label] - scores[c]))`

    The label itself is one of the classes, and adds `margin`, as released.

    Args:
      scores: `[b k]`; the released code leaves the calibration bias in them here.
      labels: `[b]`, classes in `[0, k)`; another gives NaN.
      margin: above 0.
      classes: `[k]`, which classes the mean is over, at least one; None: all.

    Returns:
      `[b]`, at least 0, in the dtype of `scores`, computed in at least float32.

    Raises:
      UserError: the shapes do not fit, or `margin` is not above 0.

    Source:
      `loss_type='rank'` of the released code of Chen et al., CVPR 2022; not in the paper.

    Example:
      >>> attribute_ranking(jnp.array([[3.0, 1.0, 2.5, 3.0]]), jnp.array([0]))
      Array([0.625], dtype=float32)
    """
    _check_scores(scores, labels=labels, classes=classes)
    if not margin > 0:
        raise UserError(f"margin is {margin}; expected a number above 0")
    wide, num_classes = _widened(scores), scores.shape[1]
    valid = (labels >= 0) & (labels < num_classes)
    own = jnp.take_along_axis(wide, jnp.where(valid, labels, 0)[:, None], axis=1)
    hinge = jax.nn.relu(margin - (own - wide))
    counted = None if classes is None else jnp.broadcast_to(classes[None], hinge.shape)
    loss = jnp.mean(hinge, axis=1, where=counted)
    return jnp.where(valid, loss, jnp.nan).astype(scores.dtype)


def self_calibration(
    scores: Float[Array, "b k"],
    unseen: Bool[Array, "k"],
    *,
    where: Bool[Array, "b"] | None = None,
) -> Float[Scalar, ""]:
    """Returns how little of a batch's probability is on unseen classes.

    `-log mean_b sum_{c unseen} softmax(scores[b])[c]`

    The log of a mean over the batch: it is no sum over examples, and cannot be accumulated over
    micro-batches.

    Args:
      scores: `[b k]`, with the calibration bias in them.
      unseen: `[k]`; without any unseen class the value is inf.
      where: `[b]`, which examples count; None: all. Where none does, the value is 0.

    Returns:
      A scalar, nats, at least 0, in the dtype of `scores`, computed in at least float32.

    Raises:
      UserError: the shapes do not fit.

    Source:
      The released code of Chen et al., CVPR 2022. Equation 8 of the paper has a log for every
      example and class, `self_calibration_per_example`.

    Example:
      >>> mass = self_calibration(jnp.zeros((2, 4)), jnp.array([True, False, False, False]))
      >>> round(float(jnp.exp(-mass)), 4)
      0.25
    """
    _check_scores(scores, unseen=unseen, where=where)
    log_p = jax.nn.log_softmax(_widened(scores))
    counts = jnp.ones(scores.shape[:1], bool) if where is None else where
    chosen = counts[:, None] & unseen[None]
    some = jnp.any(counts)
    # Left out before the sum: a score that is not finite in a row that does not count stays out.
    total = jax.nn.logsumexp(jnp.where(chosen, log_p, -jnp.inf))
    count = jnp.maximum(jnp.sum(counts), 1).astype(log_p.dtype)
    return jnp.where(some, jnp.log(count) - total, 0.0).astype(scores.dtype)


def self_calibration_per_example(
    scores: Float[Array, "b k"], unseen: Bool[Array, "k"]
) -> Float[Array, "b"]:
    """Returns how improbable each unseen class is, of every example.

    `-sum_{c unseen} log softmax(scores)[c]`

    It asks for probability on every unseen class, where `self_calibration` is content with the sum,
    and grows with their number; its weight is to be smaller accordingly.

    Args:
      scores: `[b k]`, with the calibration bias in them.
      unseen: `[k]`; without any unseen class the value is 0.

    Returns:
      `[b]`, nats, at least 0, in the dtype of `scores`, computed in at least float32.

    Raises:
      UserError: the shapes do not fit.

    Source:
      Chen et al., CVPR 2022, equation 8. The released code has `self_calibration` in its place.

    Example:
      >>> loss = self_calibration_per_example(jnp.zeros((1, 4)), jnp.arange(4) < 2)
      >>> round(float(jnp.exp(loss[0])), 3)
      16.0
    """
    _check_scores(scores, unseen=unseen)
    log_p = jax.nn.log_softmax(_widened(scores))
    return -jnp.sum(jnp.where(unseen[None], log_p, 0.0), axis=-1).astype(scores.dtype)


def semantic_distillation(
    scores_a: Float[Array, "b k"], scores_b: Float[Array, "b k"]
) -> Float[Array, "b"]:
    """Returns how far two sets of scores are apart, as the released code measures it.

    With `d = scores_a - scores_b`, `p` and `q` their softmax and `m = (p + q) / 2`,

    `sum_k |d[k]|^3 / |d|_2 + (KL(p || m) + KL(q || m)) / 2`

    The first term is on the scores themselves and quadratic in their scale; the second is the
    Jensen-Shannon divergence. Gradients reach both sides through every part of it.

    Args:
      scores_a: `[b k]`, of one network, finite.
      scores_b: `[b k]`, of the other.

    Returns:
      `[b]`, nats, at least 0 (to within rounding); in the dtype of `scores_a`, computed in at least
      float32. Where the rows agree it is 0, and so is its gradient, its limit from all sides.

    Raises:
      UserError: the shapes differ or are not of rank 2.

    Source:
      The released code of Chen et al., CVPR 2022, which gives NaN where two rows agree. Equation 9
      of the paper is `semantic_distillation_as_printed`.

    Example:
      >>> apart = jnp.array([[1.0, -1.0]])
      >>> semantic_distillation(apart, 0 * apart).round(4)
      Array([1.5037999], dtype=float32)
    """
    _check_pair(scores_a, scores_b)
    a, b = _widened(scores_a), _widened(scores_b)
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(log_p.dtype)
    divergence = jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
    loss = _cubes_over_norm(a - b) + 0.5 * jnp.sum(divergence, axis=-1)
    return loss.astype(scores_a.dtype)


def semantic_distillation_as_printed(
    scores_a: Float[Array, "b k"], scores_b: Float[Array, "b k"]
) -> Float[Array, "b"]:
    """Returns how far two sets of scores are apart, as the paper writes it.

    With `p` and `q` the softmax of each,

    `|p - q|_2^2 + (KL(p || q) + KL(q || p)) / 2`

    Gradients reach both sides.

    Args:
      scores_a: `[b k]`, of one network, finite.
      scores_b: `[b k]`, of the other.

    Returns:
      `[b]`, nats, at least 0 (to within rounding), 0 where the rows agree; in the dtype of
      `scores_a`, computed in at least float32.

    Raises:
      UserError: the shapes differ or are not of rank 2.

    Source:
      Chen et al., CVPR 2022, equation 9, which calls the second term a Jensen-Shannon divergence;
      that is the mean of both divergences from the mixture, as in `semantic_distillation`.

    Example:
      >>> apart = jnp.array([[1.0, -1.0]])
      >>> semantic_distillation_as_printed(apart, 0 * apart).round(4)
      Array([0.6708], dtype=float32)
    """
    _check_pair(scores_a, scores_b)
    log_p, log_q = (jax.nn.log_softmax(_widened(scores)) for scores in (scores_a, scores_b))
    difference = jnp.exp(log_p) - jnp.exp(log_q)
    terms = jnp.square(difference) + 0.5 * difference * (log_p - log_q)
    return jnp.sum(terms, axis=-1).astype(scores_a.dtype)


def _cubes_over_norm(d: Float[Array, "b k"]) -> Float[Array, "b"]:
    """sum |d|^3 / |d|_2, and 0 at d = 0.

    It is quadratic in the scale of d, so d is taken relative to its largest entry: then neither
    squares nor cubes leave the range of floats. As the value does not depend on what d is divided
    by, no gradient passes through the divisor.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(d), axis=-1, keepdims=True))
    scale = jnp.where(largest == 0, 1.0, largest)
    unit = d / scale
    squares = jnp.square(unit)
    total = jnp.sum(squares, axis=-1)
    root = lax.rsqrt(jnp.where(total == 0, 1.0, total))
    return jnp.square(scale[:, 0]) * jnp.sum(squares * jnp.abs(unit), axis=-1) * root


def _wide(x: Array) -> jnp.dtype:
    """The dtype to compute in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _widened(x: Array) -> Array:
    return x.astype(_wide(x))


def _check_pair(scores_a: Array, scores_b: Array) -> None:
    if scores_a.ndim != 2 or scores_a.shape != scores_b.shape:
        raise UserError(
            f"scores_a have the shape {scores_a.shape} and scores_b {scores_b.shape}; expected the "
            "same [b, k]"
        )


def _check_scores(scores: Array, **others: Array | None) -> None:
    """Raises where scores are not [b, k], or something else has not one entry per row or column."""
    if scores.ndim != 2:
        raise UserError(f"scores have the shape {scores.shape}; expected [b, k]")
    for name, array in others.items():
        size = len(scores) if name in _PER_EXAMPLE else scores.shape[1]
        if array is not None and array.shape != (size,):
            raise UserError(
                f"scores have the shape {scores.shape} and {name} {array.shape}; expected ({size},)"
            )


_PER_EXAMPLE = ("labels", "where")
