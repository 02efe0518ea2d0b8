"""Convolutions that bring the feature maps of a student to the channels of its teacher."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


class Adapters(nn.Module):
    """One convolution with bias for each map, as Guo et al., CVPR 2021, have it before the loss.

    Attributes:
      features: channels of each result.
      size: rows and columns of the kernels, odd.
      std: where above 0, everything starts as in the authors' code: kernels as the remainder by 2
        of normal numbers, times `std`; biases, far larger, uniformly within one over the root of
        what a kernel sums over. At 0, kernels are normal with one over that root as deviation, and
        biases 0.
      relu: whether the results go through a ReLU, as the maps that they are compared with did.
    """

    features: tuple[int, ...]
    size: int = 1
    std: float = 0.0
    relu: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.size < 1 or self.size % 2 == 0:
            raise UserError(f"Adapters: size={self.size}; expected an odd number above 0")
        if not self.std >= 0:
            raise UserError(f"Adapters: std={self.std}; expected at least 0")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]]
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Adapts the maps.

        Args:
          maps: as many as `features`, each `[b h w c]`.

        Returns:
          Maps of the same rows and columns.

        Raises:
          UserError: there are more or fewer maps.
        """
        if len(maps) != len(self.features):
            raise UserError(f"{len(maps)} maps; expected {len(self.features)}")
        found = [
            nn.Conv(
                features,
                (self.size, self.size),
                padding=self.size // 2,
                dtype=x.dtype,
                param_dtype=jnp.float32,
                **self._start(x.shape[-1]),
                name=f"conv{index}",
            )(x)
            for index, (features, x) in enumerate(zip(self.features, maps, strict=True))
        ]
        return tuple(nn.relu(x) if self.relu else x for x in found)

    def _start(self, channels: int) -> dict[str, Any]:
        """How kernels and biases start."""
        if not self.std:
            return {"kernel_init": nn.initializers.lecun_normal()}
        bound = (self.size**2 * channels) ** -0.5

        def kernels(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            return self.std * jnp.fmod(jax.random.normal(key, shape, dtype), 2.0)

        def biases(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return {"kernel_init": kernels, "bias_init": biases}
