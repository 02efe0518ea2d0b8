"""Mutual contrastive learning against queues of earlier keys."""

import jax
import jax.numpy as jnp
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.losses.contrastive import MutualContrastive, _check_temperatures, _contrast, _logits
from fgkd_jax.losses.contrastive_bank import _first_columns, _others, _terms
from fgkd_jax.typing import Array, Float, Int


def moco_mutual_contrastive(
    queries: Float[Array, "n b d"],
    keys: Float[Array, "n b d"],
    queues: Float[Array, "n d k"],
    *,
    temperature: float = 0.07,
    soft_temperature: float = 3.0,
) -> MutualContrastive:
    """Returns the terms of mutual contrastive learning against keys and queues of earlier keys.

    With `G_ac[i] = [q_a[i] . k_c[i], q_a[i] . queue_c] / temperature`, of 1 + k columns,

        C(L)[i] = log sum_j exp L[i, j] - L[i, 0]
        vcl = sum_a C(G_aa)              soft_vcl = sum_{a != c} KL(G_aa <- G_cc)
        icl = sum_{a != c} C(G_ac)       soft_icl = sum_{a != c} KL(G_ac <- G_ca)

    and KL of `mutual_contrastive`.

    Args:
      queries: `[n b d]`, of length one, of n networks.
      keys: `[n b d]`, of length one, of the other views by the networks' moving averages.
      queues: `[n d k]`, keys of earlier batches as columns (`enqueue`).
      temperature: divides the products, above 0.
      soft_temperature: divides once more what the divergences compare, above 0.

    Returns:
      Each term `[b]`, in nats, in the dtype of `queries`, computed in at least float32; sums over
      networks and pairs. No gradient reaches `keys`, `queues` or a teacher (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, or a temperature is not above 0.

    Source:
      Yang et al., "Mutual contrastive learning for visual representation learning", AAAI 2022,
      as its authors released it on top of MoCo, where a soft temperature of 3 is fixed.

    Example:
      >>> x, queues = jnp.ones((2, 1, 1)), jnp.ones((2, 1, 3))
      >>> f"{moco_mutual_contrastive(x, x, queues).vcl[0]:.3f}"  # 2 log 4
      '2.773'
    """
    n, b, d = queries.shape if queries.ndim == 3 else (-1,) * 3
    slots = queues.shape[2] if queues.ndim == 3 else 0
    if keys.shape != (n, b, d) or queues.shape != (n, d, slots):
        raise UserError(
            f"queries have the shape {queries.shape}, keys {keys.shape} and queues "
            f"{queues.shape}; expected [n, b, d], [n, b, d], [n, d, k]"
        )
    _check_temperatures(temperature, soft_temperature)
    keys, queues = lax.stop_gradient((keys, queues))
    targets = _logits("aid,cid->aci", queries, keys, temperature=temperature)
    negatives = _logits("aid,cdk->acik", queries, queues, temperature=temperature)
    logits = jnp.concatenate([targets[..., None], negatives], axis=-1)
    contrast = _contrast(logits, _first_columns(1, 1 + slots))
    log_p = jax.nn.log_softmax(logits / soft_temperature)
    nets = jnp.arange(n)
    terms = _terms(
        contrast,
        contrast[nets, nets],
        log_p,
        log_p[nets, nets],
        _others(n, dtype=logits.dtype),
        jnp.ones((n, 1), logits.dtype),
        soft_temperature=soft_temperature,
    )
    return MutualContrastive(*(term.astype(queries.dtype) for term in terms))


def enqueue(
    queues: Float[Array, "n d k"], pointer: Int[Array, ""], keys: Float[Array, "n b d"]
) -> tuple[Float[Array, "n d k"], Int[Array, ""]]:
    """Returns the queues with the oldest columns replaced by the keys of a batch.

    `queue_a[:, (pointer + i) mod k] <- k_a[i]`, and `pointer <- (pointer + b) mod k`

    Args:
      queues: `[n d k]`, one column per slot, for n networks.
      pointer: the oldest slot, in `[0, k)`; one for all networks.
      keys: `[n b d]`, of length one, at most k examples.

    Returns:
      The queues, in their dtype, and the pointer. No gradient passes (`stop_gradient`).

    Raises:
      UserError: the shapes do not fit, or there are more keys than slots.

    Source:
      He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020, as
      Yang et al., AAAI 2022, use it. The released code has a pointer for each network, all of them
      always equal, and demands that k is a multiple of b; here the queue is a ring.

    Example:
      >>> enqueue(jnp.zeros((1, 1, 4)), jnp.int32(3), jnp.ones((1, 2, 1)))
      (Array([[[1., 0., 0., 1.]]], dtype=float32), Array(1, dtype=int32))
    """
    n, d, slots = queues.shape if queues.ndim == 3 else (-1, -1, 0)
    b = keys.shape[1] if keys.ndim == 3 else 0
    if pointer.ndim or keys.shape != (n, b, d) or b > slots:
        raise UserError(
            f"queues have the shape {queues.shape}, pointer {pointer.shape} and keys {keys.shape}; "
            "expected [n, d, k], [], [n, b, d] with b at most k"
        )
    queues, keys = lax.stop_gradient((queues, keys))
    places = (pointer + jnp.arange(b, dtype=pointer.dtype)) % slots
    columns = jnp.swapaxes(keys, 1, 2).astype(queues.dtype)
    filled = queues.at[:, :, places].set(columns, unique_indices=True)
    return filled, (pointer + b) % slots
