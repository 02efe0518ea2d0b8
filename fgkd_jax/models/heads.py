"""What sits on a backbone: the linear classifier."""

import jax.numpy as jnp
from flax import linen as nn

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
