"""The head of TASN's attention net: dilated convolutions that share one kernel."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from fgkd_jax.typing import Array, Float

# As the other convolutions of the library: He's over outgoing connections.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class SharedDilatedConv(nn.Module):
    """y = sum over dilations d of relu(x * kernel dilated by d + bias), one kernel for all.

    Attributes:
      dilations: steps between the taps of the 3x3 kernel.
      use_bias: whether there is a bias, also shared.
      dtype: of the computation; None: that of x. Parameters are float32.
    """

    dilations: tuple[int, ...]
    use_bias: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Convolves without changing shape.

        Args:
          x: features.

        Returns:
          Features of the same shape.
        """
        channels = x.shape[-1]
        kernel = self.param("kernel", _kernel_init, (3, 3, channels, channels), jnp.float32)
        bias: Any = 0.0
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
            bias = bias.reshape(1, 1, 1, channels)
        dtype = self.dtype or x.dtype
        x, kernel, bias = x.astype(dtype), kernel.astype(dtype), jnp.asarray(bias, dtype)

        def branch(dilation: int) -> Array:
            return jax.nn.relu(
                lax.conv_general_dilated(
                    x,
                    kernel,
                    window_strides=(1, 1),
                    padding=((dilation, dilation),) * 2,
                    rhs_dilation=(dilation, dilation),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                + bias
            )

        return sum((branch(d) for d in self.dilations[1:]), branch(self.dilations[0]))


class AttentionHead(nn.Module):
    """Two `SharedDilatedConv`, with dilations (1, 2) and (1, 2, 3): large fields, few parameters.

    The released TASN puts it on its attention net (with biases in the MXNet code, without in the
    PyTorch code), so that the channels attend to parts rather than to textures.

    Attributes:
      use_bias: whether both have biases.
      dtype: of the computation; None: that of x. Parameters are float32.
    """

    use_bias: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies both.

        Args:
          x: the last feature map of a backbone.

        Returns:
          Features of the same shape, not negative.
        """
        for index, dilations in enumerate(((1, 2), (1, 2, 3))):
            conv = SharedDilatedConv(
                dilations, use_bias=self.use_bias, dtype=self.dtype, name=f"conv{index + 1}"
            )
            x = conv(x)
        return x
