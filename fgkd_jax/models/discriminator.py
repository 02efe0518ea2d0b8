"""Tells the feature maps of one network from those of another."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.typing import Array, Float

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class FeatureDiscriminator(nn.Module):
    """A score in (0, 1) for a feature map: 1 for a peer's, 0 for the own network's.

    A convolution of stride 2, a norm, a leaky rectifier and a convolution to one channel, of which
    the mean over positions goes through a sigmoid. Chung et al., ICML 2020, say what it is for; its
    layers are our choice. The norm is over the channels of each position, so that a score depends
    on its own example alone and nothing but parameters is to be kept.

    Maps of different channels are brought to the same ones before, by a 1 x 1 convolution of each
    network, say.

    Attributes:
      features: channels of the first convolution.
    """

    features: int = 128

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        """Scores feature maps.

        Args:
          x: feature maps.

        Returns:
          Scores, of at least float32.
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = nn.Conv(
            self.features, (3, 3), strides=2, dtype=dtype, kernel_init=_kernel_init, name="conv1"
        )(x)
        x = nn.leaky_relu(nn.LayerNorm(dtype=dtype, name="norm")(x), 0.2)
        x = nn.Conv(1, (3, 3), dtype=dtype, kernel_init=_kernel_init, name="conv2")(x)
        return jax.nn.sigmoid(jnp.mean(x, axis=(1, 2, 3)))
