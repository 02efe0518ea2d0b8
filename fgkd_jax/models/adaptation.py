"""Convolutions that bring the feature maps of a student to the channels of its teacher."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.typing import Array, Float


class Adapters(nn.Module):
    """One convolution with bias for each map, as Guo et al., CVPR 2021, have it before the loss.

    Attributes:
      features: channels of each result.
      size: rows and columns of the kernels, odd.
      std: standard deviation of the first kernels, cut off at two of it; 0: one over the root of
        what a kernel sums over.
      relu: whether the results go through a ReLU, as the maps that they are compared with did.
    """

    features: tuple[int, ...]
    size: int = 1
    std: float = 0.0
    relu: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.size < 1 or self.size % 2 == 0 or not self.std >= 0:
            raise UserError(
                f"Adapters: size={self.size} and std={self.std}; expected an odd number and at "
                "least 0"
            )
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
        init = nn.initializers.lecun_normal()
        if self.std:
            # Its argument is the deviation before the tails are cut off.
            init = nn.initializers.truncated_normal(self.std)
        found = [
            nn.Conv(
                features,
                (self.size, self.size),
                padding=self.size // 2,
                dtype=x.dtype,
                param_dtype=jnp.float32,
                kernel_init=init,
                name=f"conv{index}",
            )(x)
            for index, (features, x) in enumerate(zip(self.features, maps, strict=True))
        ]
        return tuple(nn.relu(x) if self.relu else x for x in found)
