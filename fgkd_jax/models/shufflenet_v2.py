"""ShuffleNetV2 with torchvision's semantics, and its form for small images.

Source: Ma et al., "ShuffleNet V2: practical guidelines for efficient CNN architecture design",
ECCV 2018 (table 5). The form for CIFAR, a stem without strides, is the one that papers on
distillation compare on, MCL among them.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.models.convolution import DepthwiseConv, square_conv
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, check_at_least, maybe_remat
from fgkd_jax.typing import Array, Float

STEMS = ("imagenet", "small")


class ShuffleNetV2(Backbone):
    """ShuffleNetV2 in stages: stem, then one per entry of `channels`, each of stride 2.

    On an image of side a, the sides are a/4, a/8, a/16, a/32; with the small stem a, a/2, a/4, a/8
    (each rounded up). The last stage ends with a 1x1 convolution, batch norm and ReLU of its own,
    so its output has `last_channels`.

    Attributes:
      channels: of each stage, even; half of them are left as they are by every block but the first.
      stage_sizes: blocks of each stage.
      stem: "imagenet": 3x3 convolution of stride 2, then 3x3 max-pooling of stride 2; "small": 3x3
        convolution of stride 1.
      stem_channels: of the stem.
      last_channels: of the last convolution.
    """

    channels: tuple[int, ...] = (116, 232, 464)
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    stem: str = "imagenet"
    stem_channels: int = 24
    last_channels: int = 1024

    def __post_init__(self) -> None:
        """Checks the options."""
        count = len(self.channels)
        if not count or min(self.channels) < 2 or any(number % 2 for number in self.channels):
            raise UserError(
                f"ShuffleNetV2: channels={self.channels}; expected even numbers, at least one"
            )
        if len(self.stage_sizes) != count or min(self.stage_sizes) < 1:
            raise UserError(
                f"ShuffleNetV2: stage_sizes={self.stage_sizes}; expected {count} numbers, each at "
                "least 1"
            )
        if self.stem not in STEMS:
            raise UserError(f"ShuffleNetV2: stem={self.stem!r}{nearest(self.stem, STEMS)}")
        numbers = {"stem_channels": self.stem_channels, "last_channels": self.last_channels}
        check_at_least("ShuffleNetV2", 1, numbers)
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages, the stem included."""
        return 1 + len(self.channels)

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        remat = index in self.remat
        norm = partial(
            BatchNorm, groups=self.norm_groups, frozen=self.frozen_norm, dtype=self.dtype
        )
        if index == 0:
            small = self.stem == "small"
            return maybe_remat(Stem, remat)(self.stem_channels, small, norm, name="stem")
        return maybe_remat(Stage, remat)(
            features=self.channels[index - 1],
            blocks=self.stage_sizes[index - 1],
            last=self.last_channels if index == len(self.channels) else None,
            norm=norm,
            name=f"stage{index}",
        )


class Stem(nn.Module):
    """Stage 0: 3x3 convolution, batch norm, ReLU and, unless small, max-pooling.

    Attributes:
      features: channels.
      small: stride 1 and no pooling.
      norm: makes a batch norm.
    """

    features: int
    small: bool
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        x = square_conv(
            self.features, 3, stride=1 if self.small else 2, name="conv", dtype=x.dtype
        )(x)
        x = nn.relu(self.norm(name="norm")(x, train=train))
        if self.small:
            return x
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Stage(nn.Module):
    """Blocks at one resolution, and what comes behind the last of them.

    Attributes:
      features: channels, even.
      blocks: number of blocks.
      last: channels of a 1x1 convolution behind them; None: there is none.
      norm: makes a batch norm.
    """

    features: int
    blocks: int
    last: int | None
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        x = DownBlock(self.features, self.norm, name="block0")(x, train)
        for index in range(1, self.blocks):
            x = ShuffleBlock(self.norm, name=f"block{index}")(x, train)
        if self.last is not None:
            x = Pointwise(self.last, self.norm, name="last")(x, train)
        return x


class DownBlock(nn.Module):
    """Half the size: two branches that both see all channels, shuffled together.

    Attributes:
      features: channels, even.
      norm: makes a batch norm.
    """

    features: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        half = self.features // 2
        side = Depthwise(2, self.norm, name="side_depthwise")(x, train)
        side = Pointwise(half, self.norm, name="side_project")(side, train)
        x = Pointwise(half, self.norm, name="expand")(x, train)
        x = Depthwise(2, self.norm, name="depthwise")(x, train)
        return shuffled(side, Pointwise(half, self.norm, name="project")(x, train))


class ShuffleBlock(nn.Module):
    """The first half of the channels as it is, shuffled together with a function of the second.

    Attributes:
      norm: makes a batch norm.
    """

    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """The features of x."""
        half = x.shape[-1] // 2
        kept, x = x[..., :half], x[..., half:]
        x = Pointwise(half, self.norm, name="expand")(x, train)
        x = Depthwise(1, self.norm, name="depthwise")(x, train)
        return shuffled(kept, Pointwise(half, self.norm, name="project")(x, train))


class Pointwise(nn.Module):
    """1x1 convolution, batch norm, ReLU.

    Attributes:
      features: channels.
      norm: makes a batch norm.
    """

    features: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w co"]:
        """The features of x."""
        x = square_conv(self.features, 1, name="conv", dtype=x.dtype)(x)
        return nn.relu(self.norm(name="norm")(x, train=train))


class Depthwise(nn.Module):
    """3x3 convolution of every channel by itself, batch norm.

    Attributes:
      stride: of the convolution.
      norm: makes a batch norm.
    """

    stride: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow c"]:
        """The features of x."""
        strides, padding = (self.stride, self.stride), ((1, 1), (1, 1))
        x = DepthwiseConv(
            size=3, strides=strides, padding=padding, use_bias=False, dtype=x.dtype, name="conv"
        )(x)
        return self.norm(name="norm")(x, train=train)


def shuffled(one: Array, other: Array) -> Array:
    """The channels of both in turn: one[0], other[0], one[1], ..."""
    return jnp.stack([one, other], axis=-1).reshape(*one.shape[:-1], 2 * one.shape[-1])
