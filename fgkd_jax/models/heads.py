"""What sits on a backbone: the linear classifier, the projection to embeddings."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.losses.contrastive import normalize_embeddings
from fgkd_jax.typing import Array, Float

# Uniform in +-1/sqrt(inputs), as PyTorch initialises a linear layer; biases start at 0.
linear_init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class LinearHead(nn.Module):
    """Mean over all positions, dropout, one linear layer; all of it in float32.

    logits = W mean(x) + bias.

    Attributes:
      num_classes: classes.
      dropout: probability that a pooled channel is dropped in training; above 0 it needs the
        random stream `dropout`.
    """

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], *, train: bool) -> Float[Array, "b k"]:
        """Classifies feature maps, or features that are already pooled.

        Args:
          x: feature maps, or one feature vector per example.
          train: whether to drop channels.

        Returns:
          Logits, float32 whatever the dtype of x.
        """
        pooled = jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=linear_init, name="dense")(
            pooled
        )


class ProjectionHead(nn.Module):
    """Two linear layers to an embedding of length one, in at least float32.

    z = v / |v|, v = W2 relu(W1 x + bias1) + bias2, both layers of the width of the embedding.
    `linear` leaves the first layer out, v = W2 x + bias2.

    As Yang et al., AAAI 2022, released it; there, the norm has no eps.

    Attributes:
      features: dimensions of the embedding.
      linear: whether there is one layer, `dense2`, alone.
    """

    features: int = 128
    linear: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b _"]) -> Float[Array, "b d"]:
        """Embeds pooled features.

        Args:
          x: one feature vector per example.

        Returns:
          Embeddings of length one, of at least float32.
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        dense = partial(nn.Dense, self.features, dtype=dtype, kernel_init=linear_init)
        if not self.linear:
            x = nn.relu(dense(name="dense1")(x))
        return normalize_embeddings(dense(name="dense2")(x))
