"""The network of two matrices that says how much attention a descriptor deserves."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.models.heads import linear_init
from fgkd_jax.typing import Array, Float


class AttentionScore(nn.Module):
    """SAM(x) = W2 act(W1 x), W1 to 1/r of the width of x, W2 to one number.

    Song et al., TIP 2020: `relu` for blocks of an image, `tanh` for phrases.

    Attributes:
      reduction: r; the width in between is at least 1.
      act: the activation.
    """

    reduction: int
    act: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n"]:
        """Scores descriptors.

        Args:
          x: descriptors.

        Returns:
          One score each, before any softmax.
        """
        narrow = max(1, x.shape[-1] // self.reduction)
        hidden = nn.Dense(narrow, use_bias=False, kernel_init=linear_init, name="w1")(x)
        score = nn.Dense(1, use_bias=False, kernel_init=linear_init, name="w2")(self.act(hidden))
        return jnp.squeeze(score, -1)
