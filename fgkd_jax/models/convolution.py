"""Convolutions as the reference networks have them: PyTorch's padding, He's initialiser."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.ops.depthwise import depthwise_conv
from fgkd_jax.typing import Array, Float

# He's initialiser over outgoing connections, untruncated as in the references.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def square_conv(
    features: int,
    size: int,
    *,
    name: str,
    dtype: DTypeLike,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv:
    """A square convolution without bias whose padding is PyTorch's: as much on every side.

    Args:
      features: channels that come out.
      size: side of the kernel, odd.
      name: of the module.
      dtype: of the computation; the kernel is float32.
      stride: rows and columns from one position to the next.
      dilation: rows and columns from one weight of the kernel to the next.
      groups: parts into which the channels are split; each part of the outputs sees one.

    Returns:
      The module.
    """
    pad = dilation * (size // 2)
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        kernel_dilation=(dilation, dilation),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=he_normal_fan_out,
        name=name,
    )


class DepthwiseConv(nn.Module):
    """A convolution with one kernel per channel.

    Attributes:
      size: side of the kernel.
      strides: steps (down, right).
      padding: as `ops.depthwise_conv` takes it.
      use_bias: add a bias per channel.
      dtype: of the computation.
      dilation: rows and columns from one weight of the kernel to the next.
    """

    size: int
    strides: tuple[int, int]
    padding: Any
    use_bias: bool
    dtype: DTypeLike
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        """The features of x."""
        shape = (self.size, self.size, x.shape[-1])
        # He's variance for size^2 connections; the references divide by the channels too, which
        # the batch norm behind it undoes.
        init = nn.initializers.normal((2.0 / self.size**2) ** 0.5)
        kernel = self.param("kernel", init, shape, jnp.float32)
        x = depthwise_conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=(self.dilation, self.dilation),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[2:], jnp.float32)
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x
