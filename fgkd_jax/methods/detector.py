"""What detectors have in common: options, images, anchors, objects, and the pyramid by itself.

A detector is two functions on top of `init` and `predict`: `pyramid` makes feature maps of images,
`losses` judges them; `loss` is the one after the other. A method that distils a detector calls the
two with something of its own in between.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError
from fgkd_jax.methods.detector_network import FeatureMaps, Levels, PyramidNetwork
from fgkd_jax.methods.frozen import frozen_patterns
from fgkd_jax.methods.image_options import ImageOptions
from fgkd_jax.methods.scenes import dropped_boxes, image_sizes
from fgkd_jax.models.backbones import backbone_from, feature_shapes
from fgkd_jax.models.detection_heads import DensePredictions
from fgkd_jax.models.stages import Backbone
from fgkd_jax.ops.anchors import base_anchors, grid_anchors, valid_anchors
from fgkd_jax.ops.suppression import Detections
from fgkd_jax.parts import part
from fgkd_jax.protocols import Exported, LossOutput, LossTerm, Metric, split_variables
from fgkd_jax.typing import Array, Batch, Bool, Float, Key, Variables

PYRAMID, LOSSES = "backbone and pyramid", "losses"
"""Parts of a step, see `fgkd_jax.parts`."""

_SIDE = 256  # of the image by which strides are measured: a multiple of every stride


class Anchors(NamedTuple):
    """The anchors of a pyramid.

    Attributes:
      boxes: float32 [p, 4], level after level.
      level_sizes: anchors of each level.
      valid: bool [b, p], False over the padding of an image.
    """

    boxes: Float[Array, "p 4"]
    level_sizes: tuple[int, ...]
    valid: Bool[Array, "b p"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector(ImageOptions, abc.ABC):
    """Options that all detectors have, and what they do alike.

    Attributes, besides those of `ImageOptions`:
      num_classes: number of classes; taken from the data set where None.
      backbone: `name` of a backbone and its options, see `fgkd_jax.models.backbones`. By default
        batch norms keep the statistics that they were pretrained with.
      frozen_stages: leading backbone stages, the stem among them, that are not trained.
      pyramid_stages: of the backbone, from fine to coarse, that the pyramid reads; None: of each
        stride of `pyramid_strides` that the backbone has, the deepest stage.
      pyramid_features: channels of the pyramid.
      anchor_scale: side of the smallest anchor of a level, in strides of that level.
      anchor_octaves: sizes of anchors per level, evenly spread over one octave.
      anchor_ratios: height over width.
      box_weight: of the losses of box codes.
      score_threshold: detections that score less are dropped.
      iou_threshold: of two detections of a class that overlap more, the surer one is kept.
      max_detections: of an image.
    """

    task: ClassVar[str] = "detection"
    pyramid_strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)

    num_classes: int | None = None
    backbone: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "resnet50", "frozen_norm": "."}
    )
    frozen_stages: int = 2
    pyramid_stages: tuple[int, ...] | None = None
    pyramid_features: int = 256
    anchor_scale: float = 8.0
    anchor_octaves: int = 1
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_weight: float = 1.0
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        count, stages = backbone_from(self.backbone).num_stages, self.stages
        rising = bool(stages) and stages == tuple(sorted(set(stages)))
        if not rising or stages[0] < 0 or stages[-1] >= count:
            self._refuse("pyramid_stages", f"rising numbers from 0 to {count - 1}")
        if not 0 <= self.frozen_stages <= stages[-1]:
            self._refuse("frozen_stages", f"0 to {stages[-1]}, the last of pyramid_stages")
        self._check_least(1, "pyramid_features", "anchor_octaves", "max_detections")
        self._check_least(0, "box_weight")
        if not self.anchor_scale > 0:
            self._refuse("anchor_scale", "a number above 0")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            self._refuse("anchor_ratios", "numbers above 0")
        self._check_shares("score_threshold", "iou_threshold")

    def _check_least(self, least: float, *names: str) -> None:
        for name in names:
            if not getattr(self, name) >= least:
                self._refuse(name, f"at least {least}")

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "it in [0, 1]")

    def _refuse(self, name: str, expected: str) -> None:
        raise UserError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    @abc.abstractmethod
    def network(self) -> PyramidNetwork:
        """The Linen module behind the method."""

    @property
    def stages(self) -> tuple[int, ...]:
        """Stages of the backbone that the pyramid reads: those given, or those chosen."""
        if self.pyramid_stages is not None:
            return self.pyramid_stages
        strides = stage_strides(backbone_from(self.backbone))
        deepest = {stride: index for index, stride in enumerate(strides)}
        found = tuple(deepest[stride] for stride in self.pyramid_strides if stride in deepest)
        if not found:
            raise UserError(
                f"pyramid_stages is None, but the strides of the backbone's stages are {strides}; "
                f"expected one of {', '.join(map(str, self.pyramid_strides))} among them, or "
                "numbers of stages"
            )
        return found

    @property
    def ends_early(self) -> bool:
        """Whether the backbone is not run to its last stage, which then has no variables."""
        return self.stages[-1] < backbone_from(self.backbone).num_stages - 1

    def chosen(self) -> "Detector":
        """Gives the options that are chosen where they are None.

        Returns:
          The same detector, with `pyramid_stages`.
        """
        return dataclasses.replace(self, pyramid_stages=self.stages)

    @property
    def anchors_per_cell(self) -> int:
        """Anchors of a cell."""
        return self.anchor_octaves * len(self.anchor_ratios)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one cell to the next, of every level."""
        network = self.network
        strides = [stage_strides(network.backbone)[index] for index in self.stages]
        for _ in range(network.extra_levels):
            strides.append(2 * strides[-1])
        return tuple(strides)

    def frozen_parameters(self) -> tuple[str, ...]:
        """Names the parameters of the frozen stages.

        Returns:
          One regular expression per parameter.
        """
        if not self.frozen_stages:
            return ()
        return frozen_patterns(self.network, "frozen", side=_SIDE)

    def init(self, key: Key[Array, ""], batch: Batch) -> Variables:
        """Initialises the network.

        Args:
          key: a typed PRNG key.
          batch: with `image` [b, h, w, 3], of any size.

        Returns:
          `params` and, where there are batch norms, `batch_stats`.
        """
        return self.network.init(key, self.normalize(batch["image"]))

    def maps(
        self,
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        *,
        recolour: bool,
        train: bool,
    ) -> tuple[FeatureMaps, Variables]:
        """Makes feature maps of images, those of the backbone among them.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3], `valid_size` int [b, 2] and `id` int [b].
          key: a typed PRNG key for the change of colours.
          recolour: whether to change colours.
          train: whether batch statistics are in training mode.

        Returns:
          The maps, and the new model state.
        """
        _, state, _ = split_variables(variables)
        maps, new = self.network.apply(
            variables,
            self.images(batch, key, train=recolour),
            train=train,
            mutable=list(state) if train else [],
            method="maps",
        )
        return maps, {**state, **new}

    def pyramid(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Levels, Variables]:
        """Makes feature maps of images.

        Args:
          variables: as `init` returns them.
          batch: as of `maps`.
          key: likewise.
          train: whether colour jitter and batch statistics are in training mode.

        Returns:
          The levels, from fine to coarse, and the new model state.
        """
        maps, state = self.maps(variables, batch, key, recolour=train, train=train)
        return maps.levels, state

    def dense(self, variables: Variables, levels: Levels) -> DensePredictions:
        """Predicts for every anchor; where there are proposals, whether it is an object.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.

        Returns:
          Logits `[b p k]`, k = 1 for proposals, and box codes `[b p 4]`, in the order of `anchors`.
        """
        network: Any = self.network
        return network.apply(variables, levels, method="dense")

    @abc.abstractmethod
    def losses(
        self, variables: Variables, levels: Levels, batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], dict[str, Metric]]:
        """Computes the losses of the heads on a pyramid.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          batch: `valid_size`, `boxes`, `box_labels`, `box_mask`, `box_ignored`, `id` and `mask`.
          key: a typed PRNG key for what is sampled.

        Returns:
          Terms per image, and figures to log.
        """

    @abc.abstractmethod
    def detect(self, variables: Variables, levels: Levels, batch: Batch) -> Detections:
        """Finds objects on a pyramid.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          batch: with `valid_size`, where images are padded.

        Returns:
          `Detections` with a leading axis of images.
        """

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> LossOutput:
        """Computes the losses of each image.

        Args:
          variables: as `init` returns them.
          batch: of detection.
          key: a typed PRNG key for this step.
          train: whether colour jitter and batch statistics are in training mode.

        Returns:
          Terms, the new batch statistics, and figures to log: `dropped_boxes`, boxes per image
          that augmentation or `max_boxes` left out, and those of `losses`.
        """
        colours, samples = jax.random.split(key)
        levels, state = part(PYRAMID, self.pyramid(variables, batch, colours, train=train))
        terms, figures = part(LOSSES, self.losses(variables, levels, batch, samples))
        return terms, state, {**figures, "dropped_boxes": dropped_boxes(batch)}

    def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Finds objects.

        Args:
          variables: as `init` returns them.
          batch: `image` uint8 [b, h, w, 3] and, where images are padded, `valid_size` int [b, 2].

        Returns:
          `boxes` [b, m, 4] in pixels of `image`, `scores` [b, m], `labels` int32 [b, m] and `valid`
          bool [b, m]; m is `max_detections`, the surest first.
        """
        levels, _ = self.pyramid(variables, batch, jax.random.key(0), train=False)
        return self.detect(variables, levels, batch)._asdict()

    def export(self, variables: Variables, *, network: int = 0) -> Exported:
        """Takes the detector out of its training.

        Args:
          variables: as `init` returns them.
          network: 0, the only one.

        Returns:
          The detector itself.

        Raises:
          UserError: `network` is not 0.
        """
        if network != 0:
            raise UserError(f"network is {network}; expected 0, the only one")
        return Exported(self, variables)

    def anchors(self, levels: Levels, batch: Batch) -> Anchors:
        """Lays anchors over a pyramid.

        Args:
          levels: as `pyramid` returns them.
          batch: with `valid_size`, where images are padded.

        Returns:
          The anchors.
        """
        sizes, boxes, valid = image_sizes(batch), [], []
        steps = [2 ** (octave / self.anchor_octaves) for octave in range(self.anchor_octaves)]
        for stride, level in zip(self.strides, levels, strict=True):
            rows, columns = level.shape[1:3]
            base = base_anchors(
                sizes=[self.anchor_scale * stride * step for step in steps],
                ratios=self.anchor_ratios,
            )
            boxes.append(grid_anchors(base, stride=stride, size=(rows, columns)))
            valid.append(
                valid_anchors(sizes, stride=stride, size=(rows, columns), per_cell=len(base))
            )
        return Anchors(
            jnp.concatenate(boxes), tuple(map(len, boxes)), jnp.concatenate(valid, axis=1)
        )


@functools.lru_cache(maxsize=256)
def stage_strides(backbone: Backbone) -> tuple[int, ...]:
    """Returns the pixels from one cell to the next, of every stage.

    Args:
      backbone: any.

    Returns:
      From the stem on.
    """
    return tuple(_SIDE // rows for rows, _, _ in feature_shapes(backbone, (_SIDE, _SIDE)))
