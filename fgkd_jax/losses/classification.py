"""Cross-entropy of classifiers, per example, in nats."""

import jax
import jax.numpy as jnp
import optax

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float, Int


def smooth_labels(
    labels: Int[Array, "b"], *, num_classes: int, smoothing: float
) -> Float[Array, "b k"]:
    """Returns the target distributions of label smoothing.

    `q[k] = (1 - smoothing) [k = label] + smoothing / num_classes`: the label itself takes part in
    the uniform share, so that its probability is `1 - smoothing + smoothing / num_classes`.

    Args:
      labels: `[b]`, classes in `[0, num_classes)`; a label outside contributes no one, and its
        row sums to `smoothing`.
      num_classes: how many classes there are, at least 1.
      smoothing: the uniform share, in `[0, 1)`.

    Returns:
      `[b k]`, float32, each row summing to 1.

    Raises:
      UserError: where `labels` is not of rank 1, or `num_classes` or `smoothing` is out of range.

    Source:
      Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7, with the
      uniform distribution as its prior.
    """
    if labels.ndim != 1:
        raise UserError(f"labels have the shape {labels.shape}; expected [b]")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; expected at least 1")
    if not 0.0 <= smoothing < 1.0:
        raise UserError(f"label smoothing is {smoothing}; expected a number in [0, 1)")
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, smoothing)


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, "b"], *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
    """Returns the cross-entropy of every example against its, possibly smoothed, label.

    `-sum_k q[k] log softmax(logits)[k]` with `q` of `smooth_labels`; computed in float32.

    Labels are validated on the host, by the data pipeline, which refuses one outside `[0, k)` by
    name. Nothing is raised here, under jit; such a label gives NaN, whichever its sign, rather
    than the loss of some other class.

    Args:
      logits: `[b k]`, unnormalised log probabilities; -inf excludes a class.
      labels: `[b]`, classes in `[0, k)`.
      label_smoothing: the uniform share of the target distribution, in `[0, 1)`.

    Returns:
      `[b]`, nats, in the dtype of `logits`.

    Raises:
      UserError: where the shapes do not fit, or `label_smoothing` is out of range.

    Source:
      Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(
            f"logits have the shape {logits.shape} and labels {labels.shape}; expected [b, k], [b]"
        )
    num_classes = logits.shape[1]
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = smooth_labels(labels, num_classes=num_classes, smoothing=label_smoothing)
    # Not optax's form for integer labels, which is off by 1e-3 where logits are near 1e4.
    losses = optax.safe_softmax_cross_entropy(wide, targets)
    valid = (labels >= 0) & (labels < num_classes)
    return jnp.where(valid, losses, jnp.nan).astype(logits.dtype)
