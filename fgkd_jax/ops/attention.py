"""Trilinear attention: which positions the channels of a feature map agree on."""

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float, Int, Key


def trilinear_attention(
    features: Float[Array, "b h w c"], *, scale: float = 1.0
) -> Float[Array, "b h w c"]:
    """Returns one attention map per channel, gathered from the channels that fire where it does.

    With X the features of one image as a matrix of positions by channels,

        A = softmax over positions of (scale X),   R = softmax over channels of (A^T X),
        T[p, i] = sum_j R[i, j] X[p, j]

    so every map is a convex combination of the features themselves, R[i, j] saying how much
    channel j is active where channel i is.

    Args:
      features: `[b h w c]`, activations; attention is meaningful where they are not negative.
      scale: multiplies the features inside the first softmax alone; the authors' MXNet code has
        7, their PyTorch code 2, the equation 1.

    Returns:
      `[b h w c]`, in the dtype of `features`, computed in at least float32. The gradient is the
      true one; TASN cuts it (`stop_gradient`), as its authors do.

    Raises:
      UserError: `features` is not of rank 4, or has no position or channel.

    Source:
      Zheng et al., "Looking for the devil in the details", CVPR 2019, equation 2,
      N(N(X) X^T) X. The released MXNet code then drops channels by a mask that it computes in
      sorted order and applies in channel order; that mask is left out here.

    Example:
      >>> trilinear_attention(jnp.ones((1, 2, 2, 3))).shape
      (1, 2, 2, 3)
    """
    x = _positions(features, "trilinear_attention")
    spatial = jax.nn.softmax(scale * x, axis=1)
    relation = jax.nn.softmax(jnp.einsum("bpi,bpj->bij", spatial, x), axis=-1)
    attention = jnp.einsum("bij,bpj->bpi", relation, x)
    return attention.reshape(features.shape).astype(features.dtype)


def trilinear_product(features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the trilinear product without any normalisation.

    T[p, i] = sum_j (sum_q X[q, i] X[q, j]) X[p, j], X being positions by channels.

    Args:
      features: `[b h w c]`, activations.

    Returns:
      `[b h w c]`, in the dtype of `features`, computed in at least float32.

    Raises:
      UserError: `features` is not of rank 4, or has no position or channel.

    Source:
      Zheng et al., CVPR 2019, equation 1, (X X^T) X: the form that equation 2
      (`trilinear_attention`) normalises, kept for its ablation.

    Example:
      >>> trilinear_product(jnp.full((1, 1, 2, 1), 2.0)).ravel()
      Array([16., 16.], dtype=float32)
    """
    x = _positions(features, "trilinear_product")
    relation = jnp.einsum("bpi,bpj->bij", x, x)
    attention = jnp.einsum("bij,bpj->bpi", relation, x)
    return attention.reshape(features.shape).astype(features.dtype)


def structure_map(
    attention: Float[Array, "b h w c"], *, squared: bool = False
) -> Float[Array, "b h w"]:
    """Returns the mean over the attention maps: where the whole object is.

    Args:
      attention: `[b h w c]`, one map per channel.
      squared: square the mean, which narrows the map: the density that is sampled from peaks more.
        The authors' MXNet code squares (after resizing to the image), their PyTorch code and the
        paper do not.

    Returns:
      `[b h w]`, in the dtype of `attention`, computed in at least float32.

    Raises:
      UserError: `attention` is not of rank 4, or has no position or channel.

    Source:
      Zheng et al., CVPR 2019, equation 3.

    Example:
      >>> structure_map(jnp.array([[[[1.0, 3.0]]]]), squared=True)
      Array([[[4.]]], dtype=float32)
    """
    _check_features(attention, "structure_map")
    mean = jnp.mean(attention.astype(_wide(attention)), axis=-1)
    return (jnp.square(mean) if squared else mean).astype(attention.dtype)


def detail_map(
    key: Key[Array, ""], attention: Float[Array, "b h w c"], ids: Int[Array, "b"]
) -> Float[Array, "b h w"]:
    """Returns one attention map of each image, drawn uniformly: where one of its parts is.

    Args:
      key: a typed PRNG key, for example of the training step.
      attention: `[b h w c]`, one map per channel.
      ids: `[b]`, stable ids of the examples: the channel depends on key and id alone, not on the
        place in the batch or on the other examples.

    Returns:
      `[b h w]`, in the dtype of `attention`.

    Raises:
      UserError: the shapes do not fit, or `attention` has no position or channel.

    Source:
      Zheng et al., CVPR 2019, equation 4. The released PyTorch code adds 0.01 to the map, and
      the MXNet code draws among the channels whose sums differ; neither is done here.

    Example:
      >>> detail_map(jax.random.key(0), jnp.ones((2, 4, 4, 8)), jnp.arange(2)).shape
      (2, 4, 4)
    """
    _check_features(attention, "detail_map")
    if ids.shape != attention.shape[:1]:
        raise UserError(
            f"detail_map: attention has shape {attention.shape} and ids {ids.shape}; "
            "expected [b, h, w, c] and [b]"
        )

    def pick(image_id: Array, maps: Array) -> Array:
        channel = jax.random.randint(jax.random.fold_in(key, image_id), (), 0, maps.shape[-1])
        return jax.lax.dynamic_index_in_dim(maps, channel, axis=-1, keepdims=False)

    return jax.vmap(pick)(ids, attention)


def _positions(features: Array, name: str) -> Float[Array, "b p c"]:
    """The features in at least float32, one row per position."""
    _check_features(features, name)
    return features.astype(_wide(features)).reshape(features.shape[0], -1, features.shape[-1])


def _check_features(features: Array, name: str) -> None:
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise UserError(
            f"{name}: an input of shape {features.shape}; expected [b, h, w, c] with at least one "
            "position and channel"
        )


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
