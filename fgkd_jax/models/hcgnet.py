"""HCGNet: densely connected modules that gate what they reuse and what they add.

Source: Yang et al., "Gated convolutional networks with hybrid connectivity for image
classification", AAAI 2020, with the channels and the order of layers of the released networks
A1 and A2 (github.com/winycg/HCGNet, models/HCGNet_CIFAR.py). Their DropBlock, which is off by
default there (probability 0) and absent in the networks of MCL and L-MCL, is left out.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.models.convolution import DepthwiseConv, square_conv
from fgkd_jax.models.heads import linear_init
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, maybe_remat
from fgkd_jax.typing import Array, Float

SQUEEZE = 4
"""Channels between the two squeezing convolutions of a module, over its growth."""

GROUPS = 4
"""Groups of a module's 3x3 squeezing convolution."""

MODULE_REDUCTION, TRANSITION_REDUCTION = 2, 4
"""Channels that a gate is given, over those inside it."""


class HCGNet(Backbone):
    """HCGNet for small images, in stages of densely connected modules.

    Stage 0 is one 3x3 convolution of 2 `growth[0]` channels. In stage s >= 1 every one of
    `stage_sizes[s - 1]` modules appends `growth[s - 1]` channels to all that came before it. Then
    a transition of the same gates halves channels, rows and columns; in the last stage a batch
    norm and a ReLU stand in its place. On an image of side a, the sides are a, a/2, a/4, a/4 with
    three stages (rounded up).

    Attributes:
      growth: channels that a module of each stage appends, multiples of 4.
      stage_sizes: modules of each stage.
    """

    growth: tuple[int, ...] = (12, 24, 36)
    stage_sizes: tuple[int, ...] = (8, 8, 8)

    def __post_init__(self) -> None:
        """Checks the options."""
        count = len(self.growth)
        if not count or min(self.growth) < 1 or any(number % GROUPS for number in self.growth):
            raise UserError(
                f"HCGNet: growth={self.growth}; expected multiples of {GROUPS}, at least one"
            )
        if len(self.stage_sizes) != count or min(self.stage_sizes) < 1:
            raise UserError(
                f"HCGNet: stage_sizes={self.stage_sizes}; expected {count} numbers, each at least 1"
            )
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages, the stem included."""
        return 1 + len(self.growth)

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        remat = index in self.remat
        if index == 0:
            return maybe_remat(Stem, remat)(2 * self.growth[0], name="stem")
        return maybe_remat(Stage, remat)(
            growth=self.growth[index - 1],
            modules=self.stage_sizes[index - 1],
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
    """Modules at one resolution, each of which sees all channels before it; then a transition.

    Attributes:
      growth: channels that a module appends.
      modules: number of modules.
      last: whether a batch norm and a ReLU stand in place of the transition.
      norm: makes a batch norm.
    """

    growth: int
    modules: int
    last: bool
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        for index in range(self.modules):
            new = GatedModule(
                inner=SQUEEZE * self.growth,
                features=self.growth,
                groups=GROUPS,
                stride=1,
                reduction=MODULE_REDUCTION,
                norm=self.norm,
                name=f"module{index}",
            )(x, train)
            x = jnp.concatenate([x, new], axis=-1)
        if self.last:
            return nn.relu(self.norm(name="norm")(x, train=train))
        channels = x.shape[-1]
        features = channels // 2
        return GatedModule(
            inner=channels - (channels - features) // 2,
            features=features,
            groups=1,
            stride=2,
            reduction=TRANSITION_REDUCTION,
            norm=self.norm,
            name="transition",
        )(x, train)


class GatedModule(nn.Module):
    """forget(z) z + update(z), with z = squeeze x: what is kept of z, and its global context.

    squeeze is a 1x1 and a 3x3 convolution. forget(z) in (0, 1), per example and channel, is a
    function of the `Context` of z. update(z) = s c + (1 - s) c', per example and channel and the
    same at all positions, where c and c' are the contexts of two depthwise convolutions of z, 3x3
    with dilation 1 and 2, and s in (0, 1) is a function of both. All convolutions of maps have a
    batch norm and a ReLU in front; contexts and gates are computed in float32.

    Attributes:
      inner: channels between the squeezing convolutions.
      features: channels of z and of the result.
      groups: of the 3x3 squeezing convolution.
      stride: of the 3x3 squeezing convolution.
      reduction: channels that a gate is given, over those inside it.
      norm: makes a batch norm.
    """

    inner: int
    features: int
    groups: int
    stride: int
    reduction: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        conv = partial(PreActivationConv, norm=self.norm)
        z = conv(self.inner, size=1, name="squeeze1")(x, train)
        z = conv(self.features, size=3, stride=self.stride, groups=self.groups, name="squeeze2")(
            z, train
        )
        keep = self._forget_gate(Context(name="forget_context")(z), train)
        depthwise = partial(PreActivationDepthwise, norm=self.norm)
        contexts = (
            Context(name="small_context")(depthwise(dilation=1, name="small")(z, train)),
            Context(name="large_context")(depthwise(dilation=2, name="large")(z, train)),
        )
        update = self._update(contexts, train)
        return keep.astype(z.dtype) * z + update.astype(z.dtype)

    def _forget_gate(self, context: Array, train: bool) -> Float[Array, "b 1 1 co"]:
        """What part of each channel is kept."""
        y = _linear(self.features // self.reduction, name="forget_reduce")(context)
        y = jnp.tanh(self.norm(name="forget_norm", dtype=jnp.float32)(y, train=train))
        return nn.sigmoid(_linear(self.features, name="forget_expand")(y))

    def _update(self, contexts: tuple[Array, Array], train: bool) -> Float[Array, "b 1 1 co"]:
        """The two contexts, mixed per channel."""
        small, large = contexts
        y = jnp.concatenate(contexts, axis=-1)
        y = _linear(2 * self.features // self.reduction, name="update_reduce")(y)
        y = jnp.tanh(self.norm(name="update_norm", dtype=jnp.float32)(y, train=train))
        # The softmax over two scores is the sigmoid of their difference.
        scores = (_linear(self.features, name=f"update_{one}")(y) for one in ("small", "large"))
        share = nn.sigmoid(next(scores) - next(scores))
        return share * small + (1.0 - share) * large


class Context(nn.Module):
    """Mean over positions, weighted by a softmax over them: sum_p softmax_p(w . x_p + b) x_p."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        """The weighted mean of x, in float32."""
        x = x.astype(jnp.float32)
        weights = jax.nn.softmax(_linear(1, name="score")(x), axis=(1, 2))
        return jnp.sum(weights * x, axis=(1, 2), keepdims=True)


class PreActivationConv(nn.Module):
    """Batch norm, ReLU, square convolution.

    Attributes:
      features: channels.
      size: side of the kernel.
      norm: makes a batch norm.
      stride: of the convolution.
      groups: of the convolution.
    """

    features: int
    size: int
    norm: Any
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        x = nn.relu(self.norm(name="norm")(x, train=train))
        return square_conv(
            self.features,
            self.size,
            stride=self.stride,
            groups=self.groups,
            name="conv",
            dtype=x.dtype,
        )(x)


class PreActivationDepthwise(nn.Module):
    """Batch norm, ReLU, 3x3 convolution of every channel by itself.

    Attributes:
      dilation: rows and columns from one weight of the kernel to the next.
      norm: makes a batch norm.
    """

    dilation: int
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """The features of x."""
        x = nn.relu(self.norm(name="norm")(x, train=train))
        pad = (self.dilation, self.dilation)
        return DepthwiseConv(
            size=3,
            strides=(1, 1),
            padding=(pad, pad),
            dilation=self.dilation,
            use_bias=False,
            dtype=x.dtype,
            name="conv",
        )(x)


def _linear(features: int, *, name: str) -> nn.Conv:
    """A linear layer on every position, with bias, in float32."""
    return nn.Conv(features, (1, 1), dtype=jnp.float32, kernel_init=linear_init, name=name)
