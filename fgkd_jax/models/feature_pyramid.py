"""The feature pyramid between a backbone and the heads of a detector."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.errors import UserError
from fgkd_jax.ops.division import nearest_rows
from fgkd_jax.typing import Array, Float

_xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class FeaturePyramid(nn.Module):
    """Merges stages of a backbone from the coarsest to the finest into maps of equal width.

    A stage is brought to `features` channels by a 1x1 convolution and gets the next coarser one
    added, enlarged by nearest neighbour; a 3x3 convolution follows. Behind the coarsest come
    `extra_levels`, each half as large: every second cell of the one before it, as for Faster R-CNN,
    or, with `extra_convs`, 3x3 convolutions of stride 2 that begin at the coarsest stage of the
    backbone, with a ReLU in between, as for RetinaNet (mmdet 2.0 has no ReLU there).

    As Lin et al., "Feature pyramid networks", CVPR 2017, section 3; no activations and no
    normalisation, with biases.

    Attributes:
      features: channels of every level.
      extra_levels: levels behind the coarsest stage.
      extra_convs: whether these are convolutions.
      dtype: of the computation; None: that of the stages. Parameters are float32.
    """

    features: int = 256
    extra_levels: int = 1
    extra_convs: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, stages: Sequence[Float[Array, "b _ _ _"]]
    ) -> tuple[Float[Array, "b _ _ c"], ...]:
        """Makes the pyramid.

        Args:
          stages: from fine to coarse, each `[b h w c]`.

        Returns:
          As many levels and the extra ones, `[b h w features]`, from fine to coarse.

        Raises:
          UserError: there is no stage.
        """
        if not stages:
            raise UserError("a feature pyramid of no stages; expected at least one")
        merged = [self._conv(x, 1, f"lateral{i}") for i, x in enumerate(stages)]
        for index in range(len(stages) - 2, -1, -1):
            coarse = enlarge(merged[index + 1], size=merged[index].shape[1:3])
            merged[index] = merged[index] + coarse
        levels = [self._conv(x, 3, f"output{i}") for i, x in enumerate(merged)]
        source = stages[-1]
        for index in range(self.extra_levels):
            if self.extra_convs:
                source = self._conv(nn.relu(source) if index else source, 3, f"extra{index}", 2)
                levels.append(source)
            else:
                levels.append(levels[-1][:, ::2, ::2])
        return tuple(levels)

    def _conv(self, x: Array, size: int, name: str, stride: int = 1) -> Array:
        return nn.Conv(
            self.features,
            (size, size),
            strides=stride,
            padding=size // 2,
            dtype=self.dtype or x.dtype,
            param_dtype=jnp.float32,
            kernel_init=_xavier,
            name=name,
        )(x)


def enlarge(x: Float[Array, "b h w c"], *, size: tuple[int, ...]) -> Float[Array, "b oh ow c"]:
    """Enlarges maps by nearest neighbour; row i reads row floor(i h / oh), h / oh in float32.

    Args:
      x: `[b h w c]`.
      size: rows and columns of the result.

    Returns:
      `[b oh ow c]`.
    """
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if new == 2 * old:
            x = jnp.repeat(x, 2, axis=axis)
        else:
            x = jnp.take(x, nearest_rows(old=old, new=new), axis=axis)
    return x
