"""MobileNetV2, with batch norms or with the norms folded into biases.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018.

| stage | blocks | channels (width 1) | stride from the image |
|---|---|---|---|
| 0 | stem (3x3), 1 | 16 | 2 |
| 1 | 2, 3 | 24 | 4 |
| 2 | 4 to 6 | 32 | 8 |
| 3 | 7 to 13 | 64, from block 11 on 96 | 16 |
| 4 | 14 to 17 | 160, block 17: 320 | 32 |
| 5 | last (1x1 convolution) | 1280 | 32 |
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.models.convolution import DepthwiseConv, he_normal_fan_out
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.stages import Backbone, check_at_least, maybe_remat
from fgkd_jax.typing import Array, Float

# Per stage: (expansion, channels, blocks, stride of the first block).
STAGES: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
STEM_CHANNELS = 32
LAST_CHANNELS = 1280


class MobileNetV2(Backbone):
    """MobileNetV2 in six stages; the table of the module has channels and strides.

    torchvision's network is norm="batch", padding="symmetric" (the defaults); TensorFlow's as
    quantised for inference is norm="folded", padding="same" with activation_clamps=True.

    Attributes:
      width: multiplies the channels, which are rounded to multiples of 8; the last stage only
        grows.
      norm: "batch": every convolution is followed by a batch norm; "folded": by a bias alone. Then,
        where the collection `statistics` is mutable, the mean and variance of each convolution's
        output are put there (`unfold_batch_norm` turns them into batch norms).
      padding: of 3x3 convolutions, "symmetric" (PyTorch) or "same" (TensorFlow: at stride 2 an
        even image is padded below and to the right only).
      activation_clamps: clip the output of every convolution and residual sum to a range held in
        the collection `constants` (`out_range`, `add_range`), as a quantised network does; there
        are no limits until ranges are loaded. Leaving them out moves the ImageNet network's logits
        by up to 5e-3; with them they agree to 1e-4.
    """

    width: float = 1.0
    norm: str = "batch"
    padding: str = "symmetric"
    activation_clamps: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        for name, valid in (("norm", ("batch", "folded")), ("padding", ("symmetric", "same"))):
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"MobileNetV2: {name}={value!r}{nearest(value, valid)}")
        check_at_least("MobileNetV2", 0.05, {"width": self.width})
        super().__post_init__()

    @property
    def num_stages(self) -> int:
        """Number of stages, the stem included."""
        return len(STAGES) + 1

    def _stage(self, index: int) -> nn.Module:
        """A new module of stage `index`, called as `module(x, train)`."""
        layer = partial(
            ConvNorm,
            norm=self.norm,
            padding=self.padding,
            clamp=self.activation_clamps,
            groups=self.norm_groups,
            frozen=self.frozen_norm,
            dtype=self.dtype,
        )
        remat = index in self.remat
        if index == len(STAGES):
            features = round_channels(LAST_CHANNELS * max(1.0, self.width))
            return maybe_remat(ConvNorm, remat)(features=features, name="last", **layer.keywords)
        return maybe_remat(Stage, remat)(
            rows=tuple((t, round_channels(c * self.width), n, s) for t, c, n, s in STAGES[index]),
            first_block=1 + sum(row[2] for stage in STAGES[:index] for row in stage),
            stem=round_channels(STEM_CHANNELS * self.width) if index == 0 else None,
            clamp=self.activation_clamps,
            layer=layer,
            name=f"stage{index}",
        )


def round_channels(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, but not below 90% of it.

    Args:
      channels: number of channels, as the width multiplier makes it.

    Returns:
      A multiple of 8, at least 8.

    Example:
      >>> round_channels(32 * 0.35), round_channels(24 * 0.75)
      (16, 24)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class Stage(nn.Module):
    """Inverted residual blocks at one resolution.

    Attributes:
      rows: (expansion, channels, blocks, stride) of each run of blocks.
      first_block: number of the first block; the stem is block 0, as torchvision counts.
      stem: channels of the 3x3 convolution in front; None: there is none.
      clamp: clip the residual sums.
      layer: makes a `ConvNorm`.
    """

    rows: tuple[tuple[int, int, int, int], ...]
    first_block: int
    stem: int | None
    clamp: bool
    layer: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        if self.stem is not None:
            x = self.layer(features=self.stem, size=3, stride=2, name="stem")(x, train)
        number = self.first_block
        for expansion, features, blocks, stride in self.rows:
            for index in range(blocks):
                x = InvertedResidual(
                    features=features,
                    expansion=expansion,
                    stride=stride if index == 0 else 1,
                    clamp=self.clamp,
                    layer=self.layer,
                    name=f"block{number}",
                )(x, train)
                number += 1
        return x


class InvertedResidual(nn.Module):
    """x + project(depthwise(expand x)); the sum only where the shape stays.

    Attributes:
      features: channels that come out.
      expansion: channels inside, over those that come in; 1: there is no expanding convolution.
      stride: of the depthwise convolution.
      clamp: clip the sum.
      layer: makes a `ConvNorm`.
    """

    features: int
    expansion: int
    stride: int
    clamp: bool
    layer: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        inner = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = self.layer(features=inner, name="expand")(y, train)
        y = self.layer(
            features=inner, size=3, stride=self.stride, depthwise=True, name="depthwise"
        )(y, train)
        y = self.layer(features=self.features, activation=False, name="project")(y, train)
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return _clamped(self, "add_range", x + y) if self.clamp else x + y


class ConvNorm(nn.Module):
    """Convolution, then batch norm or bias, then ReLU6.

    Attributes:
      features: channels that come out.
      norm: "batch" or "folded" (a bias).
      padding: "symmetric" or "same".
      clamp: clip the output to `constants`' `out_range`.
      groups: of the batch norm.
      frozen: of the batch norm.
      dtype: of the computation.
      size: side of the kernel.
      stride: of the convolution.
      depthwise: one kernel per channel.
      activation: whether ReLU6 follows.
    """

    features: int
    norm: str
    padding: str
    clamp: bool
    groups: int
    frozen: str
    dtype: DTypeLike
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b oh ow co"]:
        """The features of x."""
        folded = self.norm == "folded"
        pad = self.size // 2
        options: dict[str, Any] = {
            "strides": (self.stride, self.stride),
            "padding": "SAME" if self.padding == "same" else ((pad, pad), (pad, pad)),
            "use_bias": folded,
            "dtype": self.dtype,
            "name": "conv",
        }
        if self.depthwise:
            x = DepthwiseConv(size=self.size, **options)(x)
        else:
            size = (self.size, self.size)
            x = nn.Conv(self.features, size, kernel_init=he_normal_fan_out, **options)(x)
        if not folded:
            norm = BatchNorm(groups=self.groups, frozen=self.frozen, dtype=self.dtype, name="norm")
            x = norm(x, train=train)
        elif self.is_mutable_collection("statistics") and not self.is_initializing():
            values = x.astype(jnp.float32)
            self.put_variable("statistics", "mean", jnp.mean(values, axis=(0, 1, 2)))
            self.put_variable("statistics", "var", jnp.var(values, axis=(0, 1, 2)))
        if self.activation:
            x = nn.relu6(x)
        return _clamped(self, "out_range", x) if self.clamp else x


def _clamped(module: nn.Module, name: str, x: Array) -> Array:
    """x clipped to the range that `module` holds under `name` in the collection `constants`."""
    limits = module.variable("constants", name, lambda: jnp.asarray([-jnp.inf, jnp.inf]))
    low, high = limits.value.astype(x.dtype)
    return jnp.clip(x, low, high)
