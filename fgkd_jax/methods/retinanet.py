"""RetinaNet: a dense detector, trained by the focal loss on all anchors.

Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, with the conventions of
mmdet 2.0: L1 on box codes, and the best anchors of each level instead of the best pairs of anchor
and class.
"""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from typing_extensions import override

from fgkd_jax.losses.detectors import dense_losses
from fgkd_jax.methods.detector import Detector
from fgkd_jax.methods.detector_network import Levels, RetinaNetwork
from fgkd_jax.methods.scenes import image_sizes, objects, term
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.models.detection_heads import DensePredictions
from fgkd_jax.ops.assign import RETINA_RULE
from fgkd_jax.ops.detection_outputs import dense_detections
from fgkd_jax.ops.detection_targets import AnchorTargets, anchor_targets
from fgkd_jax.ops.suppression import Detections
from fgkd_jax.parts import part
from fgkd_jax.protocols import LossTerm, Metric
from fgkd_jax.typing import Array, Batch, Key, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetinaNet(Detector):
    """A pyramid from stride 8 on, nine anchors to a cell, and two towers that all levels share.

    Attributes, besides those of `Detector`:
      extra_levels: convolutions of stride 2 behind the coarsest stage.
      head_features: channels of the towers.
      head_depth: convolutions of a tower.
      focal_alpha: weight of the objects in the focal loss, in [0, 1].
      focal_gamma: how fast the loss of what is easy falls, at least 0.
      candidates: anchors of each level that compete.
    """

    pyramid_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    anchor_scale: float = 4.0
    anchor_octaves: int = 3
    extra_levels: int = 2
    head_features: int = 256
    head_depth: int = 4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    candidates: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(0, "extra_levels", "head_depth", "focal_gamma")
        self._check_least(1, "head_features", "candidates")
        self._check_shares("focal_alpha")

    @property
    @override
    def network(self) -> RetinaNetwork:
        return RetinaNetwork(
            backbone=backbone_from(self.backbone),
            stages=self.stages,
            frozen_stages=self.frozen_stages,
            features=self.pyramid_features,
            extra_levels=self.extra_levels,
            extra_convs=True,
            num_classes=self.num_classes or 1,
            anchors=self.anchors_per_cell,
            head_features=self.head_features,
            head_depth=self.head_depth,
        )

    def targets(self, levels: Levels, batch: Batch) -> AnchorTargets:
        """Assigns the objects of a batch to anchors.

        Args:
          levels: as `pyramid` returns them.
          batch: of detection.

        Returns:
          `AnchorTargets` with a leading axis of images.
        """
        anchors = self.anchors(levels, batch)
        assign = partial(
            anchor_targets,
            anchors.boxes,
            rule=RETINA_RULE,
            num_classes=self.num_classes or 1,
        )
        return jax.vmap(
            lambda boxes, labels, wanted, valid: assign(
                boxes, labels, gt_valid=wanted, anchor_valid=valid
            )
        )(*objects(batch), anchors.valid)

    def losses(
        self, variables: Variables, levels: Levels, batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], dict[str, Metric]]:
        """Computes the losses of the head on a pyramid.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          batch: of detection.
          key: unused, as nothing is sampled.

        Returns:
          The terms `classes` and `boxes`, and the figure `positives`, anchors on objects per image.
        """
        del key
        return self.dense_terms(*self.trained(variables, levels, batch), batch)

    def trained(
        self, variables: Variables, levels: Levels, batch: Batch
    ) -> tuple[DensePredictions, AnchorTargets]:
        """Predicts for every anchor, and says what was to be predicted.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          batch: of detection.

        Returns:
          What `dense` and `targets` return.
        """
        found = part("dense head", self.dense(variables, levels))
        return found, part("anchors assigned", self.targets(levels, batch))

    def dense_terms(
        self, found: DensePredictions, target: AnchorTargets, batch: Batch
    ) -> tuple[dict[str, LossTerm], dict[str, Metric]]:
        """Computes the losses of the head from its predictions.

        Args:
          found: as `dense` returns it.
          target: as `targets` returns it.
          batch: of detection.

        Returns:
          As of `losses`.
        """
        parts = dense_losses(
            found.logits,
            found.deltas,
            target.labels,
            target.positive,
            target.negative,
            target.deltas,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        terms = {
            "classes": term(parts.classes, batch),
            "boxes": term(parts.boxes, batch, weight=self.box_weight),
        }
        mask = batch["mask"].astype(jnp.float32)
        positives = jnp.sum(target.positive, axis=1, dtype=jnp.float32) * mask
        return terms, {"positives": (positives, mask)}

    @override
    def detect(self, variables: Variables, levels: Levels, batch: Batch) -> Detections:
        found, anchors = self.dense(variables, levels), self.anchors(levels, batch)
        detect = partial(
            dense_detections,
            level_sizes=anchors.level_sizes,
            pre_nms=self.candidates,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_outputs=self.max_detections,
        )
        return jax.vmap(
            lambda logits, deltas, size, valid: detect(
                logits, deltas, anchors.boxes, size, anchor_valid=valid
            )
        )(*found, image_sizes(batch), anchors.valid)
