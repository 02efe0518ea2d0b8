"""Residual networks with torchvision's semantics, and narrow ones for small images.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the stride of a
bottleneck sits in its 3x3 convolution ("v1.5"), as in torchvision. Those of 6n + 2 layers for CIFAR
(section 4.2 there) have three stages of n basic blocks; with bottlenecks, 9n + 2 layers.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.models.convolution import square_conv
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, check_at_least, maybe_remat
from fgkd_jax.typing import Array, Float

EXPANSION = 4
"""Channels a bottleneck puts out, over those of its 3x3 convolution."""


class ResNet(Backbone):
    """A residual network in stages: stem, then one stage per entry of `stage_sizes`.

    Stage s >= 1 has width 2^(s-1) channels, four times as many with bottlenecks. With the
    defaults, on an image of side a, the sides are a/4, a/4, a/8, a/16, a/32; with the small stem
    a, a, a/2, a/4, a/8 (each rounded up). Padding is symmetric, as PyTorch's.

    Attributes:
      stage_sizes: residual blocks of each stage.
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      width: channels of the stem and of the 3x3 convolutions of stage 1.
      stem: "imagenet": 7x7 convolution of stride 2, then 3x3 max-pooling of stride 2; "small": 3x3
        convolution of stride 1.
      strides: of the first block of each stage.
      dilations: of the 3x3 convolutions of each stage. The convolution with the stage's stride
        takes the dilation of the stage before, as in torchvision: so giving up a stride of 2 and
        doubling the dilations from that stage on keeps the values at every other position.
      shortcut: of the blocks that change the shape. "projection": a 1x1 convolution with the stride
        and a batch norm (the paper's option B); "zero_pad": every stride-th row and column, and
        zeros for the new channels, half of them (rounded down) in front and half behind (option A,
        without parameters; the paper does not say where the zeros go, published weights have them
        so).
      zero_init_residual: start the scale of each block's last batch norm at 0, so that every block
        starts as the identity.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    stem: str = "imagenet"
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    shortcut: str = "projection"
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        count = len(self.stage_sizes)
        for name in ("stage_sizes", "strides", "dilations"):
            values = getattr(self, name)
            if not values or len(values) != count or min(values) < 1:
                raise UserError(
                    f"ResNet: {name}={values}; expected {max(1, count)} numbers, each at least 1"
                )
        for name, valid in (
            ("stem", ("imagenet", "small")),
            ("shortcut", ("projection", "zero_pad")),
        ):
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"ResNet: {name}={value!r}{nearest(value, valid)}")
        check_at_least("ResNet", 1, {"width": self.width})
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages, the stem included."""
        return 1 + len(self.stage_sizes)

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        norm = partial(
            BatchNorm, groups=self.norm_groups, frozen=self.frozen_norm, dtype=self.dtype
        )
        remat = index in self.remat
        if index == 0:
            stem = maybe_remat(Stem, remat)
            return stem(self.width, small=self.stem == "small", norm=norm, name="stem")
        before = self.dilations[index - 2] if index > 1 else 1
        return maybe_remat(Stage, remat)(
            features=self.width * 2 ** (index - 1),
            blocks=self.stage_sizes[index - 1],
            block=Bottleneck if self.bottleneck else BasicBlock,
            stride=self.strides[index - 1],
            entry_dilation=before,
            dilation=self.dilations[index - 1],
            zero_pad=self.shortcut == "zero_pad",
            last_scale_init=(
                nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
            ),
            norm=norm,
            name=f"stage{index}",
        )


class Stem(nn.Module):
    """Stage 0: convolution, batch norm, ReLU and, unless small, max-pooling.

    Attributes:
      features: channels.
      small: 3x3 of stride 1 without pooling.
      norm: makes a batch norm.
    """

    features: int
    small: bool
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        if self.small:
            x = square_conv(self.features, 3, name="conv", dtype=x.dtype)(x)
        else:
            x = square_conv(self.features, 7, stride=2, name="conv", dtype=x.dtype)(x)
        x = nn.relu(self.norm(name="norm")(x, train=train))
        if self.small:
            return x
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Stage(nn.Module):
    """Residual blocks at one resolution.

    Attributes:
      features: channels of the 3x3 convolutions.
      blocks: number of blocks.
      block: class of the blocks.
      stride: of the first block.
      entry_dilation: of the convolution that carries the stride.
      dilation: of all other 3x3 convolutions.
      zero_pad: of the blocks.
      last_scale_init: initialiser of the scale of each block's last batch norm.
      norm: makes a batch norm.
    """

    features: int
    blocks: int
    block: Any
    stride: int
    entry_dilation: int
    dilation: int
    zero_pad: bool
    last_scale_init: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        for index in range(self.blocks):
            x = self.block(
                features=self.features,
                stride=self.stride if index == 0 else 1,
                entry_dilation=self.entry_dilation if index == 0 else self.dilation,
                dilation=self.dilation,
                zero_pad=self.zero_pad,
                last_scale_init=self.last_scale_init,
                norm=self.norm,
                name=f"block{index}",
            )(x, train)
        return x


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv x))))), both convolutions 3x3.

    Attributes:
      features: channels.
      stride: of the first convolution.
      entry_dilation: of the first convolution.
      dilation: of the second.
      zero_pad: shortcuts without parameters where the shape changes.
      last_scale_init: initialiser of the last batch norm's scale.
      norm: makes a batch norm.
    """

    features: int
    stride: int
    entry_dilation: int
    dilation: int
    zero_pad: bool
    last_scale_init: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        conv = partial(square_conv, self.features, 3, dtype=x.dtype)
        y = conv(stride=self.stride, dilation=self.entry_dilation, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train=train))
        y = conv(dilation=self.dilation, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=self.last_scale_init)(y, train=train)
        shortcut = _padded if self.zero_pad else partial(_projected, norm=self.norm, train=train)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride))


class Bottleneck(nn.Module):
    """relu(x + norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1 x)))))))).

    Attributes:
      features: channels of the 3x3 convolution; four times as many come out.
      stride: of the 3x3 convolution.
      entry_dilation: of the 3x3 convolution.
      dilation: unused; there is one 3x3 convolution.
      zero_pad: shortcuts without parameters where the shape changes.
      last_scale_init: initialiser of the last batch norm's scale.
      norm: makes a batch norm.
    """

    features: int
    stride: int
    entry_dilation: int
    dilation: int
    zero_pad: bool
    last_scale_init: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        y = square_conv(self.features, 1, name="conv1", dtype=x.dtype)(x)
        y = nn.relu(self.norm(name="norm1")(y, train=train))
        y = square_conv(
            self.features,
            3,
            stride=self.stride,
            dilation=self.entry_dilation,
            name="conv2",
            dtype=x.dtype,
        )(y)
        y = nn.relu(self.norm(name="norm2")(y, train=train))
        y = square_conv(EXPANSION * self.features, 1, name="conv3", dtype=x.dtype)(y)
        y = self.norm(name="norm3", scale_init=self.last_scale_init)(y, train=train)
        shortcut = _padded if self.zero_pad else partial(_projected, norm=self.norm, train=train)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride))


def _projected(x: Array, features: int, stride: int, *, norm: Any, train: bool) -> Array:
    """x, through a strided 1x1 convolution and a batch norm where the shape changes."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = square_conv(features, 1, stride=stride, name="shortcut_conv", dtype=x.dtype)(x)
    return norm(name="shortcut_norm")(x, train=train)


def _padded(x: Array, features: int, stride: int) -> Array:
    """x at every stride-th position, with zeros for the channels that it lacks."""
    lacking = features - x.shape[-1]
    channels = (lacking // 2, lacking - lacking // 2)
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), channels))
