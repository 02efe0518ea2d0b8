"""The heads of detectors: region proposals, regions, and RetinaNet's dense one."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fgkd_jax.typing import Array, Float

_normal = nn.initializers.normal(0.01)


class DensePredictions(NamedTuple):
    """What is predicted for every anchor, in the order of `grid_anchors`, level after level.

    Attributes:
      logits: float32 `[b p k]`, k = 1 for proposals.
      deltas: float32 `[b p 4]`, box codes.
    """

    logits: Float[Array, "b p k"]
    deltas: Float[Array, "b p 4"]


class ProposalHead(nn.Module):
    """A 3x3 convolution with ReLU, then objectness and box of every anchor, the same at all levels.

    As Ren et al., "Faster R-CNN", NIPS 2015, section 3.1, with one logit per anchor.

    Attributes:
      anchors: of a cell.
      features: channels between.
      dtype: of the convolutions; None: that of the levels. Parameters are float32.
    """

    anchors: int = 3
    features: int = 256
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> DensePredictions:
        """Predicts on all levels.

        Args:
          levels: of a pyramid, each `[b h w c]`.

        Returns:
          Logits `[b p 1]` and deltas `[b p 4]`.
        """
        conv = _conv(self.features, 3, self.dtype, "conv")
        logits = _conv(self.anchors, 1, self.dtype, "logits")
        deltas = _conv(4 * self.anchors, 1, self.dtype, "deltas")
        shared = [nn.relu(conv(x)) for x in levels]
        return DensePredictions(_flatten(logits, shared, 1), _flatten(deltas, shared, 4))


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions with ReLU, for classes and for boxes, the same at all levels.

    As Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4; the last bias of
    the classes starts where every anchor is an object with the probability `prior`.

    Attributes:
      num_classes: k.
      anchors: of a cell.
      features: channels of the towers.
      depth: convolutions of a tower.
      prior: in (0, 1).
      dtype: of the convolutions; None: that of the levels. Parameters are float32.
    """

    num_classes: int
    anchors: int = 9
    features: int = 256
    depth: int = 4
    prior: float = 0.01
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> DensePredictions:
        """Predicts on all levels.

        Args:
          levels: of a pyramid, each `[b h w c]`.

        Returns:
          Logits `[b p k]` and deltas `[b p 4]`.
        """
        found = []
        bias = -math.log((1.0 - self.prior) / self.prior)
        for name, width, start in (("logits", self.num_classes, bias), ("deltas", 4, 0.0)):
            tower = list(levels)
            for index in range(self.depth):
                conv = _conv(self.features, 3, self.dtype, f"{name}_tower{index}")
                tower = [nn.relu(conv(x)) for x in tower]
            last = _conv(self.anchors * width, 3, self.dtype, name, bias=start)
            found.append(_flatten(last, tower, width))
        return DensePredictions(*found)


class RegionHead(nn.Module):
    """Two linear layers with ReLU on the features of regions, then classes and boxes.

    As Girshick, "Fast R-CNN", ICCV 2015, section 2, on a pyramid as Lin et al., CVPR 2017, section
    4.2. The first layer reads rows, columns, channels in this order (PyTorch: channels first).

    Attributes:
      num_classes: k; the background is one more.
      features: width of both layers.
      dtype: of the two layers; None: that of the regions. Parameters are float32.
    """

    num_classes: int
    features: int = 1024
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, regions: Float[Array, "b p oh ow c"]
    ) -> tuple[Float[Array, "b p n"], Float[Array, "b p k 4"]]:
        """Predicts of every region.

        Args:
          regions: as `pyramid_roi_align` reads them.

        Returns:
          Logits `[b p k+1]`, the background last, and box codes `[b p k 4]`; float32.
        """
        x = regions.reshape(*regions.shape[:2], -1)
        for index in range(2):
            dense = nn.Dense(
                self.features,
                dtype=self.dtype or regions.dtype,
                param_dtype=jnp.float32,
                kernel_init=nn.initializers.xavier_uniform(),
                name=f"dense{index}",
            )
            x = nn.relu(dense(x))
        x = x.astype(jnp.float32)
        logits = nn.Dense(self.num_classes + 1, kernel_init=_normal, name="logits")(x)
        few = nn.initializers.normal(0.001)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=few, name="deltas")(x)
        return logits, deltas.reshape(*deltas.shape[:2], self.num_classes, 4)


def _conv(
    features: int, size: int, dtype: DTypeLike | None, name: str, *, bias: float = 0.0
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        padding=size // 2,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=_normal,
        bias_init=nn.initializers.constant(bias),
        name=name,
    )


def _flatten(conv: Callable[[Array], Array], levels: Sequence[Array], width: int) -> Array:
    """Applies a convolution to all levels and lays the anchors one after the other."""
    found = [conv(x) for x in levels]
    flat = [x.reshape(len(x), -1, width) for x in found]
    return jnp.concatenate(flat, axis=1).astype(jnp.float32)
