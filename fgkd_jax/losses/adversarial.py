"""Adversarial distillation of feature maps between networks that are trained together.

Every network k has a discriminator D_k of its own. It tells the feature map of a peer (1, real)
from that of its network (0, fake), and the network learns to be taken for its peer. What both need
is here, as functions of the discriminator's outputs; `models.FeatureDiscriminator` makes these.

Two networks are each other's peer. More of them learn in a circle, network k + 1 from network k and
the first from the last, which needs one discriminator for each network and not one for each pair.
Besides, the logits are distilled: `knowledge_distillation` of every network from its peer.
"""

import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


def feature_discrimination(
    peer_scores: Float[Array, "b"], own_scores: Float[Array, "b"]
) -> Float[Array, "b"]:
    """Returns what a discriminator minimises.

    `(1 - D_k(peer's feature map))^2 + D_k(own feature map)^2`

    No `stop_gradient` is inside, since only the caller sees the feature maps: take the gradient to
    the discriminator alone, or put the maps behind one.

    Args:
      peer_scores: `[b]`, outputs for the feature maps of the peer, in [0, 1].
      own_scores: `[b]`, outputs for those of the network that the discriminator belongs to.

    Returns:
      `[b]`, no nats, at least 0; in the dtype of `own_scores`, computed in at least float32.

    Raises:
      UserError: the shapes differ or are not of rank 1.

    Source:
      Chung et al., "Feature-map-level online adversarial knowledge distillation", ICML 2020; the
      least squares of Mao et al., ICCV 2017, without their factors of 1/2.

    Example:
      >>> feature_discrimination(jnp.array([1.0, 0.5]), jnp.array([0.0, 0.5]))
      Array([0. , 0.5], dtype=float32)
    """
    if own_scores.ndim != 1 or peer_scores.shape != own_scores.shape:
        raise UserError(
            f"peer_scores have the shape {peer_scores.shape} and own_scores {own_scores.shape}; "
            "expected the same [b]"
        )
    peer, own = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (peer_scores, own_scores)
    )
    return (jnp.square(1.0 - peer) + jnp.square(own)).astype(own_scores.dtype)


def feature_imitation(own_scores: Float[Array, "b"]) -> Float[Array, "b"]:
    """Returns what a network minimises to be taken for its peer.

    `(1 - D_k(own feature map))^2`

    No `stop_gradient` is inside: take the gradient to the network alone, not to its discriminator.

    Args:
      own_scores: `[b]`, outputs of its discriminator for its feature maps, in [0, 1].

    Returns:
      `[b]`, no nats, at least 0; in the dtype of `own_scores`, computed in at least float32.

    Raises:
      UserError: `own_scores` is not of rank 1.

    Source:
      Chung et al., ICML 2020. The paper takes this step apart from that on cross-entropy and
      logits, with a smaller learning rate.

    Example:
      >>> feature_imitation(jnp.array([1.0, 0.5]))
      Array([0.  , 0.25], dtype=float32)
    """
    if own_scores.ndim != 1:
        raise UserError(f"own_scores have the shape {own_scores.shape}; expected [b]")
    return jnp.square(1.0 - _wide(own_scores)).astype(own_scores.dtype)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
