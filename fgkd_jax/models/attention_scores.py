"""The network of two matrices that says how much attention a descriptor deserves."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.models.heads import linear_init
from fgkd_jax.typing import Array, Float, Key


def positive_init(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Array:
    """Draws the sizes of `linear_init`, without its signs.

    Args:
      key: a typed PRNG key.
      shape: of a kernel, the outputs on its last axis.
      dtype: of the values.

    Returns:
      Values that are not negative.
    """
    return jnp.abs(linear_init(key, shape, dtype))


class AttentionScore(nn.Module):
    """SAM(x) = W2 act(W1 x), W1 to 1/r of the width of x, W2 to one number.

    Song et al., TIP 2020: `relu` for blocks of an image, `tanh` for phrases.

    Attributes:
      reduction: r; the width in between is at least 1.
      act: the activation.
      positive: whether W2 starts without signs. With `relu` a descriptor's first score then grows
        with its activations, which are strong on objects (Wei et al., "Selective convolutional
        descriptor aggregation", TIP 2017); with signs, chance decides for each network whether its
        search starts there or on the background.
    """

    reduction: int
    act: Callable[[Array], Array]
    positive: bool = False

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
        init = positive_init if self.positive else linear_init
        score = nn.Dense(1, use_bias=False, kernel_init=init, name="w2")(self.act(hidden))
        return jnp.squeeze(score, -1)
