"""Wide residual networks: few layers of many channels, normalised in front of each convolution.

Source: Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016; the order of norm, ReLU and
convolution is that of He et al., "Identity mappings in deep residual networks", ECCV 2016.
"""

from functools import partial
from typing import Any

from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.models.convolution import square_conv
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, check_at_least, maybe_remat
from fgkd_jax.typing import Array, Float


class WideResNet(Backbone):
    """WRN-d-k for small images, with d = 6 n + 4 layers where every stage has n blocks.

    Stage 0 is one 3x3 convolution of `width` channels, and stage s >= 1 has 2^(s-1) k `width`
    channels, k being `widening`. On an image of side a, the sides are a, a, a/2, a/4 (rounded up).
    The outputs of the stages are sums that nothing was applied to yet: the next block begins with
    their batch norm. The last stage ends with a batch norm and a ReLU of its own.

    Attributes:
      stage_sizes: residual blocks of each stage.
      widening: k.
      width: channels of the stem.
      strides: of the first block of each stage.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 2)
    widening: int = 2
    width: int = 16
    strides: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        """Checks the options."""
        count = len(self.stage_sizes)
        for name in ("stage_sizes", "strides"):
            values = getattr(self, name)
            if not values or len(values) != count or min(values) < 1:
                raise UserError(
                    f"WideResNet: {name}={values}; expected {max(1, count)} numbers, "
                    "each at least 1"
                )
        check_at_least("WideResNet", 1, {"widening": self.widening, "width": self.width})
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages, the stem included."""
        return 1 + len(self.stage_sizes)

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        remat = index in self.remat
        if index == 0:
            return maybe_remat(Stem, remat)(self.width, name="stem")
        return maybe_remat(Stage, remat)(
            features=self.width * self.widening * 2 ** (index - 1),
            blocks=self.stage_sizes[index - 1],
            stride=self.strides[index - 1],
            last=index + 1 == self.num_stages,
            norm=partial(
                BatchNorm, groups=self.norm_groups, frozen=self.frozen_norm, dtype=self.dtype
            ),
            name=f"stage{index}",
        )


class Stem(nn.Module):
    """Stage 0: one 3x3 convolution.

    Attributes:
      features: channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w co"]:
        """The features of x."""
        return square_conv(self.features, 3, name="conv", dtype=x.dtype)(x)


class Stage(nn.Module):
    """Residual blocks at one resolution.

    Attributes:
      features: channels.
      blocks: number of blocks.
      stride: of the first block.
      last: whether a batch norm and a ReLU follow.
      norm: makes a batch norm.
    """

    features: int
    blocks: int
    stride: int
    last: bool
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        for index in range(self.blocks):
            x = PreActivationBlock(
                features=self.features,
                stride=self.stride if index == 0 else 1,
                norm=self.norm,
                name=f"block{index}",
            )(x, train)
        return nn.relu(self.norm(name="norm")(x, train=train)) if self.last else x


class PreActivationBlock(nn.Module):
    """shortcut + conv(relu(norm(conv y))), with y = relu(norm x) and both convolutions 3x3.

    The shortcut is x, or where the shape changes a strided 1x1 convolution of y.

    Attributes:
      features: channels.
      stride: of the first convolution.
      norm: makes a batch norm.
    """

    features: int
    stride: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        conv = partial(square_conv, self.features, dtype=x.dtype)
        y = nn.relu(self.norm(name="norm1")(x, train=train))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = conv(1, stride=self.stride, name="shortcut")(y)
        y = conv(3, stride=self.stride, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y, train=train))
        return x + conv(3, name="conv2")(y)
