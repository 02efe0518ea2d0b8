"""VGG networks with torchvision's semantics, with and without batch norm, up to their last map.

Source: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015 (configurations D and E); the variants with batch norm are torchvision's.

| stage | convolutions (VGG-16, VGG-19) | channels (width 64) | stride from the image |
|---|---|---|---|
| 0 | 2, 2 | 64 | 2 |
| 1 | 2, 2 | 128 | 4 |
| 2 | 3, 4 | 256 | 8 |
| 3 | 3, 4 | 512 | 16 |
| 4 | 3, 4 | 512 | 32; 16 with `final_pool=False` |

The three fully connected layers of the original are not here: as on every other backbone, the
classifier is a global average and one linear layer (`LinearHead`).
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.models.convolution import he_normal_fan_out
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, check_at_least, maybe_remat
from fgkd_jax.typing import Array, Float

MAX_GROWTH = 8
"""The most channels of a stage, over those of stage 0."""


class VGG(Backbone):
    """A VGG network in stages: runs of 3x3 convolutions, each run ended by a max-pooling.

    Stage s has min(2^s, 8) `width` channels; the table of the module has the strides. A stage is
    its part of torchvision's `features` in that order: convolution, batch norm if any, ReLU, as
    often as `stage_sizes` says, then 2x2 max-pooling of stride 2. So the output of a stage is
    pooled, odd rows and columns at the end are dropped, and an image needs at least 2 rows and
    columns before each pooling.

    Convolutions and norms are called `conv<n>` and `norm<n>`, n being their number in `features`.
    Convolutions have a bias, also in front of a batch norm. Where there is none, `norm_groups` and
    `frozen_norm` have nothing to act on.

    Attributes:
      stage_sizes: convolutions of each stage.
      width: channels of stage 0.
      batch_norm: whether a batch norm follows each convolution.
      final_pool: whether the last stage ends with a pooling; without it the last map keeps the
        stride of the stage before (16 with five stages), as fine-grained recognition often has it.
        No weights depend on it.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    batch_norm: bool = False
    final_pool: bool = True

    def __post_init__(self) -> None:
        """Checks the options."""
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise UserError(
                f"VGG: stage_sizes={self.stage_sizes}; expected one number or more, each at least 1"
            )
        check_at_least("VGG", 1, {"width": self.width})
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.stage_sizes)

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        layers = 3 if self.batch_norm else 2  # of one convolution in torchvision's `features`
        return maybe_remat(Stage, index in self.remat)(
            features=self.width * min(2**index, MAX_GROWTH),
            convolutions=self.stage_sizes[index],
            # One pooling stands in front for every stage before.
            first_layer=layers * sum(self.stage_sizes[:index]) + index,
            batch_norm=self.batch_norm,
            pool=self.final_pool or index + 1 < self.num_stages,
            groups=self.norm_groups,
            frozen=self.frozen_norm,
            dtype=self.dtype,
            name=f"stage{index}",
        )


class Stage(nn.Module):
    """Convolutions of one width, each with its batch norm if any and ReLU; then max-pooling.

    Attributes:
      features: channels.
      convolutions: number of convolutions.
      first_layer: number of the first convolution in torchvision's `features`.
      batch_norm: whether a batch norm follows each convolution.
      pool: whether 2x2 max-pooling of stride 2 ends the stage.
      groups: of the batch norms.
      frozen: of the batch norms.
      dtype: of the computation.
    """

    features: int
    convolutions: int
    first_layer: int
    batch_norm: bool
    pool: bool
    groups: int
    frozen: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        number = self.first_layer
        for _ in range(self.convolutions):
            x = nn.Conv(
                self.features,
                (3, 3),
                padding=((1, 1), (1, 1)),
                dtype=self.dtype,
                param_dtype=jnp.float32,
                kernel_init=he_normal_fan_out,
                name=f"conv{number}",
            )(x)
            if self.batch_norm:
                x = BatchNorm(
                    groups=self.groups,
                    frozen=self.frozen,
                    dtype=self.dtype,
                    name=f"norm{number + 1}",
                )(x, train=train)
            x = nn.relu(x)
            number += 3 if self.batch_norm else 2
        if not self.pool:
            return x
        if min(x.shape[1:3]) < 2:
            raise UserError(
                f"{'/'.join(self.path)}: nothing is left of features of shape {x.shape} behind "
                "the max-pooling; expected at least 2 rows and columns (a larger image, or "
                "final_pool=False where it is the last)"
            )
        return nn.max_pool(x, (2, 2), (2, 2))
