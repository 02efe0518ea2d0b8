"""Batch normalisation over groups of the batch: one module for every backbone and head."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


class BatchNorm(nn.Module):
    """Batch normalisation whose statistics are taken over groups of the batch.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis).

    In training, mean and var (the biased one) are those of the group an example belongs to: group
    g of `groups` holds the examples g b / groups to (g + 1) b / groups, with all their positions.
    `groups=1` is the whole global batch. `groups` = devices of the data axis is what data-parallel
    PyTorch and MXNet compute: the reshape follows the sharding, so the normalisation compiles to
    no collective, and one device gives the same numbers.

    The running statistics are the mean over groups of the groups' means and of their variances
    (the variance of group means is left out, as it is when replicas average their buffers). Under
    sharding that is one all-reduce of 2 x channels numbers per layer, which nothing waits for.

    Statistics are float32 whatever the dtype, and the variance is the mean square of x - mean:
    the difference E[x^2] - mean^2 loses all digits where |mean| is 10^3 times the deviation, and
    costs as many passes once the compiler has fused the subtraction into the reduction.

    While variables are initialised the running statistics are used and left as they are, so any
    batch size will do there.

    Attributes:
      groups: parts of the batch that are normalised apart; must divide it.
      momentum: running = momentum * running + (1 - momentum) * batch. PyTorch's is 1 - this.
      epsilon: added to the variance.
      unbiased_running_variance: the running variance takes n / (n - 1) times the biased variance
        of the n values of a group, as PyTorch and MXNet do; Linen's own takes the biased one.
      frozen: regular expression; where it is found in the "/"-joined path of the module, training
        uses the running statistics and does not update them. "" freezes none.
      dtype: of the result; None: that of x. Parameters and statistics are float32.
      scale_init: initialiser of the scale.
      bias_init: initialiser of the bias.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased_running_variance: bool = True
    frozen: str = ""
    dtype: DTypeLike | None = None
    scale_init: Any = nn.initializers.ones
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"], *, train: bool) -> Array:
        """Normalises x.

        Args:
          x: features, channels last.
          train: use and collect the statistics of the batch; else the running ones. Collecting
            needs the collection `batch_stats` to be mutable.

        Returns:
          The normalised features.

        Raises:
          UserError: in training, the batch is not a multiple of `groups`, or a group holds a
            single value per channel.
        """
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", self.bias_init, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        if not train or self.is_initializing() or self._is_frozen():
            row = (1,) * (x.ndim - 1) + (channels,)
            factor = jax.lax.rsqrt(var.value + self.epsilon) * scale
            out = (x.astype(jnp.float32) - mean.value.reshape(row)) * factor.reshape(row)
            return (out + bias.reshape(row)).astype(self.dtype or x.dtype)

        grouped = self._split(x)
        axes = tuple(range(1, grouped.ndim - 1))
        group_mean = jnp.mean(grouped, axes, keepdims=True)
        centred = grouped - group_mean
        group_var = jnp.mean(jnp.square(centred), axes, keepdims=True)
        row = (1,) * (grouped.ndim - 1) + (channels,)
        factor = jax.lax.rsqrt(group_var + self.epsilon) * scale.reshape(row)
        out = (centred * factor + bias.reshape(row)).reshape(x.shape)

        count = grouped.size // (self.groups * channels)
        unbias = count / (count - 1) if self.unbiased_running_variance else 1.0
        # Stacked, so that the mean over groups is one collective and not two.
        batch_mean, batch_var = jnp.mean(
            jnp.stack([group_mean, group_var * unbias]).reshape(2, self.groups, channels), axis=1
        )
        keep = self.momentum
        mean.value = keep * mean.value + (1.0 - keep) * jax.lax.stop_gradient(batch_mean)
        var.value = keep * var.value + (1.0 - keep) * jax.lax.stop_gradient(batch_var)
        return out.astype(self.dtype or x.dtype)

    def _is_frozen(self) -> bool:
        return bool(self.frozen) and re.search(self.frozen, "/".join(self.path)) is not None

    def _split(self, x: Array) -> Float[Array, "groups per_group *spatial c"]:
        """x in float32 with an axis of groups in front."""
        name = "/".join(self.path) or "BatchNorm"
        if self.groups < 1 or x.shape[0] % self.groups:
            raise UserError(
                f"{name}: a batch of {x.shape[0]} (x has shape {x.shape}) does not divide into "
                f"groups={self.groups}"
            )
        if x.size == self.groups * x.shape[-1]:
            raise UserError(
                f"{name}: x of shape {x.shape} in groups={self.groups} has one value per channel "
                "and group, which has no variance; expected at least two"
            )
        return x.astype(jnp.float32).reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
