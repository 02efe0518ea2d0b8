"""Losses of detectors, element by element: focal, smooth L1, L1, and one logit per box."""

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float, Int, Num


def sigmoid_focal(
    logits: Float[Array, "*p k"],
    labels: Int[Array, "*p"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*p k"]:
    """Returns the focal loss of independent classifiers, one per class.

    With p the sigmoid, -alpha (1 - p)^gamma log p for the class of the label, and for the others
    -(1 - alpha) p^gamma log(1 - p).

    Args:
      logits: `[*p k]`.
      labels: `[*p]`, classes in [0, k); any other number, such as k, is background.
      alpha: weight of the label's class, in [0, 1].
      gamma: at least 0; at 0 and alpha 1/2 it is half the cross-entropy.

    Returns:
      `[*p k]`, nats, in the dtype of `logits`, computed in at least float32. The released detectors
      divide the sum by the number of positive anchors.

    Raises:
      UserError: the shapes do not fit or an option is out of range.

    Source:
      Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 5.

    Example:
      >>> sigmoid_focal(jnp.zeros((1, 2)), jnp.array([0])).round(4)
      Array([[0.0433, 0.13  ]], dtype=float32)
    """
    if logits.ndim < 1 or labels.shape != logits.shape[:-1]:
        raise UserError(
            f"logits have the shape {logits.shape} and labels {labels.shape}; expected [*p, k] and "
            "[*p]"
        )
    if not 0.0 <= alpha <= 1.0 or not gamma >= 0.0:
        raise UserError(f"alpha {alpha} and gamma {gamma}; expected [0, 1] and at least 0")
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # The logit of what is right: -log of its probability is softplus(-x).
    right = jnp.where(is_label, wide, -wide)
    weight = jnp.where(is_label, alpha, 1.0 - alpha)
    # exp of gamma times a logarithm: a power of 0 with gamma below 1 has an infinite gradient.
    focus = jnp.exp(gamma * jax.nn.log_sigmoid(-right))
    return (weight * focus * jax.nn.softplus(-right)).astype(logits.dtype)


def sigmoid_cross_entropy(
    logits: Float[Array, "*p"], targets: Num[Array, "*p"]
) -> Float[Array, "*p"]:
    """Returns the cross-entropy of single logits.

    softplus(x) - target x = -target log sigmoid(x) - (1 - target) log(1 - sigmoid(x))

    Args:
      logits: `[*p]`.
      targets: `[*p]`, probabilities in [0, 1].

    Returns:
      `[*p]`, nats, in the dtype of `logits`, computed in at least float32.

    Raises:
      UserError: the shapes differ.

    Source:
      Ren et al., "Faster R-CNN", NIPS 2015, equation 1: the objectness, with one logit.

    Example:
      >>> sigmoid_cross_entropy(jnp.array([0.0, 20.0]), jnp.array([1, 1])).round(4)
      Array([0.6931, 0.    ], dtype=float32)
    """
    _check_pair(logits, targets)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    probability = targets.astype(wide.dtype)
    loss = probability * jax.nn.softplus(-wide) + (1.0 - probability) * jax.nn.softplus(wide)
    return loss.astype(logits.dtype)


def smooth_l1(
    predictions: Float[Array, "*p"], targets: Float[Array, "*p"], *, beta: float = 1.0
) -> Float[Array, "*p"]:
    """Returns an absolute error that is a parabola near 0.

    d^2 / (2 beta) where |d| < beta, elsewhere |d| - beta / 2.

    Args:
      predictions: `[*p]`, any shape.
      targets: `[*p]`.
      beta: where the line begins, above 0.

    Returns:
      `[*p]`, in the dtype of `predictions`, computed in at least float32.

    Raises:
      UserError: the shapes differ or `beta` is not above 0.

    Source:
      Girshick, "Fast R-CNN", ICCV 2015, equation 3, where beta is 1.

    Example:
      >>> smooth_l1(jnp.array([0.5, 2.0]), jnp.zeros(2))
      Array([0.125, 1.5  ], dtype=float32)
    """
    _check_pair(predictions, targets)
    if not beta > 0:
        raise UserError(f"beta is {beta}; expected a number above 0")
    distance = _distance(predictions, targets)
    loss = jnp.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)
    return loss.astype(predictions.dtype)


def absolute_error(
    predictions: Float[Array, "*p"], targets: Float[Array, "*p"]
) -> Float[Array, "*p"]:
    """Returns |predictions - targets|.

    Args:
      predictions: `[*p]`, any shape.
      targets: `[*p]`.

    Returns:
      `[*p]`, in the dtype of `predictions`, computed in at least float32. At 0 the gradient is 0.

    Raises:
      UserError: the shapes differ.

    Source:
      The L1 loss on box codes of mmdet 2.0.

    Example:
      >>> absolute_error(jnp.array([0.5, -2.0]), jnp.zeros(2))
      Array([0.5, 2. ], dtype=float32)
    """
    _check_pair(predictions, targets)
    return _distance(predictions, targets).astype(predictions.dtype)


def _distance(predictions: Array, targets: Array) -> Array:
    wide = jnp.promote_types(predictions.dtype, jnp.float32)
    difference = predictions.astype(wide) - targets.astype(wide)
    return jnp.sign(difference) * difference  # the gradient of abs is 1 at 0


def _check_pair(predictions: Array, targets: Array) -> None:
    if predictions.shape != targets.shape:
        raise UserError(
            f"predictions have the shape {predictions.shape} and targets {targets.shape}; "
            "expected one shape"
        )
