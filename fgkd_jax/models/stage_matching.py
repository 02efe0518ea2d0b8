"""What L-MCL puts between the stages of networks: aggregated logits, and weights of their pairs."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fgkd_jax.errors import UserError
from fgkd_jax.losses.contrastive import normalize_embeddings
from fgkd_jax.models.heads import linear_init
from fgkd_jax.typing import Array, Float


class Aggregator(nn.Module):
    """Mixes the logits of the stages of a network, by weights that depend on the example.

    a = sum_s alpha_s g_s, alpha = softmax(W2 relu(W1 [h_1 ... h_S] + bias1) + bias2)

    Yang et al., TPAMI 2023, as released, where all stages have the same width.

    Attributes:
      hidden: outputs of the first layer; None: the width of the last stage.
    """

    hidden: int | None = None

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _"]], logits: Float[Array, "s b k"]
    ) -> Float[Array, "b k"]:
        """Mixes logits.

        Args:
          features: h, the pooled features of every stage, of any widths.
          logits: g, the logits of every stage.

        Returns:
          Logits, of at least float32.

        Raises:
          UserError: there are not as many features as logits.
        """
        stages = logits.shape[0]
        if len(features) != stages:
            raise UserError(
                f"features of {len(features)} stages and logits of the shape {logits.shape}; "
                "expected as many as [s, b, k]"
            )
        x = jnp.concatenate(tuple(features), axis=-1)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        dense = partial(nn.Dense, dtype=dtype, kernel_init=linear_init)
        hidden = features[-1].shape[-1] if self.hidden is None else self.hidden
        x = nn.relu(dense(hidden, name="dense1")(x))
        x = dense(stages, name="dense2")(x)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jnp.sum(jax.nn.softmax(x).T[:, :, None] * wide, axis=0)


class MatchNetwork(nn.Module):
    """Weights of pairs of stages, for `layerwise_mutual_contrastive`.

    w[i, k, j, z, b] = sigmoid(cos(P_ik h_ik[b], P_jz h_jz[b])), every P a linear layer of its own.

    A weight is in (0.268, 0.732), so that no pair is ever switched off, and the same for (i, k),
    (j, z) as for (j, z), (i, k). Yang et al., TPAMI 2023, as released; there, entries of a network
    with itself are left out, which the loss ignores.

    Attributes:
      features: outputs of every linear layer.
    """

    features: int = 128

    @nn.compact
    def __call__(
        self, features: Sequence[Sequence[Float[Array, "b _"]]]
    ) -> Float[Array, "n s n s b"]:
        """Compares the stages of all networks.

        Args:
          features: h, by network and stage, pooled, of any widths.

        Returns:
          Weights, of at least float32.

        Raises:
          UserError: the networks differ in the number of stages.
        """
        stages = [len(one) for one in features]
        if not stages or min(stages) < 1 or min(stages) != max(stages):
            raise UserError(
                f"features of networks with {stages} stages; expected equally many, at least 1"
            )
        projected = []
        for i, network in enumerate(features):
            for k, x in enumerate(network):
                layer = nn.Dense(
                    self.features,
                    dtype=jnp.promote_types(x.dtype, jnp.float32),
                    kernel_init=linear_init,
                    name=f"dense{i}_{k}",
                )
                projected.append(normalize_embeddings(layer(x)))
        x = jnp.stack(projected).reshape(len(stages), stages[0], *projected[0].shape)
        cosines = jnp.einsum("ikbd,jzbd->ikjzb", x, x, precision=lax.Precision.HIGHEST)
        return jax.nn.sigmoid(cosines)
