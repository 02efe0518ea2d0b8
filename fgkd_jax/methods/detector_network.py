"""The networks of detectors: backbone, pyramid and heads."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import linen as nn

from fgkd_jax.models.detection_heads import (
    DensePredictions,
    ProposalHead,
    RegionHead,
    RetinaHead,
)
from fgkd_jax.models.feature_pyramid import FeaturePyramid
from fgkd_jax.models.stages import Backbone
from fgkd_jax.typing import Array, Float

Levels = tuple[Float[Array, "b _ _ c"], ...]
"""The maps of a pyramid, from fine to coarse."""

Maps = tuple[Float[Array, "b _ _ _"], ...]
"""Maps of any channels, from fine to coarse."""


class FeatureMaps(NamedTuple):
    """What a backbone and the pyramid on it make of images.

    Attributes:
      stages: of the backbone, from the stem on; the first ones that are frozen get no gradient.
      levels: of the pyramid, from fine to coarse.
    """

    stages: Maps
    levels: Levels


class PyramidNetwork(nn.Module):
    """A backbone with a pyramid on some of its stages; heads are for subclasses.

    Attributes:
      backbone: maps images to one map per stage.
      stages: of the backbone, from fine to coarse, that the pyramid reads.
      frozen_stages: leading stages that run in evaluation mode and get no gradient.
      features: channels of the pyramid.
      extra_levels: levels behind the coarsest stage.
      extra_convs: whether these are convolutions.
    """

    backbone: Backbone
    stages: tuple[int, ...]
    frozen_stages: int
    features: int
    extra_levels: int
    extra_convs: bool

    def setup(self) -> None:
        """Makes the pyramid."""
        self.neck = FeaturePyramid(self.features, self.extra_levels, self.extra_convs)

    def maps(self, x: Float[Array, "b h w 3"], *, train: bool) -> FeatureMaps:
        """Computes the stages of the backbone that are needed, and the pyramid.

        Args:
          x: normalised images [b, h, w, 3].
          train: whether the stages that are not frozen are in training mode.

        Returns:
          All stages up to the last that the pyramid reads, and its levels.
        """
        outputs = self.frozen(x)
        start = outputs[-1] if outputs else x
        stop = max(self.stages) + 1
        outputs += self.backbone(start, train=train, start=self.frozen_stages, stop=stop)
        return FeatureMaps(outputs, self.neck([outputs[index] for index in self.stages]))

    def pyramid(self, x: Float[Array, "b h w 3"], *, train: bool) -> Levels:
        """Computes the pyramid.

        Args:
          x: normalised images [b, h, w, 3].
          train: whether the stages that are not frozen are in training mode.

        Returns:
          The levels, from fine to coarse.
        """
        return self.maps(x, train=train).levels

    def frozen(self, x: Float[Array, "b h w 3"]) -> Maps:
        """Runs the frozen stages.

        Args:
          x: normalised images [b, h, w, 3].

        Returns:
          Their outputs, cut from the gradient.
        """
        if not self.frozen_stages:
            return ()
        outputs = self.backbone(x, train=False, stop=self.frozen_stages)
        return tuple(map(jax.lax.stop_gradient, outputs))


class RetinaNetwork(PyramidNetwork):
    """A pyramid with RetinaNet's head.

    Attributes, besides those of `PyramidNetwork`:
      num_classes: k.
      anchors: of a cell.
      head_features: channels of the towers.
      head_depth: convolutions of a tower.
    """

    num_classes: int = 1
    anchors: int = 9
    head_features: int = 256
    head_depth: int = 4

    def setup(self) -> None:
        """Makes pyramid and head."""
        super().setup()
        self.dense_head = RetinaHead(
            self.num_classes, self.anchors, self.head_features, self.head_depth
        )

    def __call__(self, x: Float[Array, "b h w 3"]) -> DensePredictions:
        """Runs everything, as initialisation needs it.

        Args:
          x: normalised images [b, h, w, 3].

        Returns:
          As of `dense`.
        """
        return self.dense(self.pyramid(x, train=False))

    def dense(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> DensePredictions:
        """Predicts for every anchor.

        Args:
          levels: the pyramid.

        Returns:
          Logits `[b p k]` and box codes `[b p 4]`.
        """
        return self.dense_head(levels)


class RegionNetwork(PyramidNetwork):
    """A pyramid with the two heads of Faster R-CNN.

    Attributes, besides those of `PyramidNetwork`:
      num_classes: k.
      anchors: of a cell.
      proposal_features: channels of the head that proposes.
      region_features: width of the head on regions.
      region_size: rows and columns that a region is read as.
    """

    num_classes: int = 1
    anchors: int = 3
    proposal_features: int = 256
    region_features: int = 1024
    region_size: int = 7

    def setup(self) -> None:
        """Makes pyramid and heads."""
        super().setup()
        self.proposal_head = ProposalHead(self.anchors, self.proposal_features)
        self.region_head = RegionHead(self.num_classes, self.region_features)

    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[DensePredictions, Array, Array]:
        """Runs everything, as initialisation needs it: one region per image.

        Args:
          x: normalised images [b, h, w, 3].

        Returns:
          As of `dense` and of `regions`.
        """
        levels = self.pyramid(x, train=False)
        cells = jax.numpy.zeros(
            (len(x), 1, self.region_size, self.region_size, self.features), levels[0].dtype
        )
        return self.dense(levels), *self.regions(cells)

    def dense(self, levels: Sequence[Float[Array, "b _ _ c"]]) -> DensePredictions:
        """Predicts for every anchor whether it is an object.

        Args:
          levels: the pyramid.

        Returns:
          Logits `[b p 1]` and box codes `[b p 4]`.
        """
        return self.proposal_head(levels)

    def regions(
        self, cells: Float[Array, "b p s s c"]
    ) -> tuple[Float[Array, "b p n"], Float[Array, "b p k 4"]]:
        """Predicts of every region.

        Args:
          cells: as `pyramid_roi_align` reads them.

        Returns:
          Logits `[b p k+1]`, the background last, and box codes `[b p k 4]`.
        """
        return self.region_head(cells)
