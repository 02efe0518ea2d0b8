"""Faster R-CNN on a feature pyramid: proposals first, then a head on the regions they name.

Source: Ren et al., "Faster R-CNN", NIPS 2015; Lin et al., "Feature pyramid networks for object
detection", CVPR 2017; with the conventions of mmdet 2.0.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from typing_extensions import override

from fgkd_jax.losses.detectors import proposal_losses, region_losses
from fgkd_jax.methods.detector import Detector
from fgkd_jax.methods.detector_network import Levels, RegionNetwork
from fgkd_jax.methods.scenes import image_keys, image_sizes, objects, term
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.models.detection_heads import DensePredictions
from fgkd_jax.ops.assign import RPN_RULE, sample_mask
from fgkd_jax.ops.detection_outputs import Proposals, region_proposals, roi_detections
from fgkd_jax.ops.detection_targets import RoiTargets, anchor_targets, roi_targets
from fgkd_jax.ops.regions import RoiOptions, pyramid_levels, pyramid_roi_align
from fgkd_jax.ops.suppression import Detections
from fgkd_jax.parts import part
from fgkd_jax.protocols import LossTerm, Metric
from fgkd_jax.typing import Array, Batch, Bool, Float, Key, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class FasterRCNN(Detector):
    """A pyramid from stride 4 on, three anchors to a cell, and a head on sampled proposals.

    Attributes, besides those of `Detector`:
      proposal_features: channels of the head that proposes.
      region_features: width of the head on regions.
      region_size: rows and columns that a region is read as.
      region_scale: boxes of less than twice so many strides of the first level are read from that
        level, boxes twice as large from the next one, and so on.
      anchor_samples: anchors of an image that the first head is trained on, half of them on
        objects.
      region_samples: regions of an image that the second head is trained on.
      positive_share: largest share of these on objects, in [0, 1].
      train_candidates: anchors of each level that compete in training.
      candidates: the same in evaluation.
      proposals: of an image.
      proposal_iou: of two proposals of a level that overlap more, the better one is kept.
    """

    proposal_features: int = 256
    region_features: int = 1024
    region_size: int = 7
    region_scale: float = 14.0
    anchor_samples: int = 256
    region_samples: int = 512
    positive_share: float = 0.25
    train_candidates: int = 2000
    candidates: int = 1000
    proposals: int = 1000
    proposal_iou: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(
            1,
            *("proposal_features", "region_features", "region_size", "anchor_samples"),
            *("region_samples", "train_candidates", "candidates", "proposals"),
        )
        self._check_shares("positive_share", "proposal_iou")
        if not self.region_scale > 0:
            self._refuse("region_scale", "a number above 0")

    @property
    @override
    def network(self) -> RegionNetwork:
        return RegionNetwork(
            backbone=backbone_from(self.backbone),
            stages=self.stages,
            frozen_stages=self.frozen_stages,
            features=self.pyramid_features,
            extra_levels=1,
            extra_convs=False,
            num_classes=self.num_classes or 1,
            anchors=self.anchors_per_cell,
            proposal_features=self.proposal_features,
            region_features=self.region_features,
            region_size=self.region_size,
        )

    def propose(
        self, found: DensePredictions, levels: Levels, batch: Batch, *, train: bool
    ) -> Proposals:
        """Makes proposals; no gradient passes.

        Args:
          found: as `dense` returns it.
          levels: as `pyramid` returns them.
          batch: with `valid_size`, where images are padded.
          train: whether `train_candidates` compete.

        Returns:
          `Proposals` with a leading axis of images.
        """
        anchors = self.anchors(levels, batch)
        propose = partial(
            region_proposals,
            level_sizes=anchors.level_sizes,
            pre_nms=self.train_candidates if train else self.candidates,
            max_outputs=self.proposals,
            iou_threshold=self.proposal_iou,
        )
        return jax.vmap(
            lambda logits, deltas, size, valid: propose(
                logits, deltas, anchors.boxes, size, anchor_valid=valid
            )
        )(found.logits[..., 0], found.deltas, image_sizes(batch), anchors.valid)

    def regions(
        self, variables: Variables, levels: Levels, boxes: Float[Array, "b p 4"]
    ) -> tuple[Float[Array, "b p n"], Float[Array, "b p k 4"]]:
        """Predicts of given boxes, whoever proposed them.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          boxes: `[b p 4]`, in pixels of the batch's images; they get no gradient.

        Returns:
          Logits `[b p k+1]`, the background last, and box codes `[b p k 4]`.
        """
        count = len(self.stages)
        strides = self.strides[:count]
        places = pyramid_levels(boxes, num_levels=count, base_size=self.region_scale * strides[0])
        cells = pyramid_roi_align(
            levels[:count],
            boxes,
            places,
            strides=strides,
            options=RoiOptions(size=self.region_size),
        )
        network: Any = self.network
        return network.apply(variables, cells, method="regions")

    def sample_regions(self, proposals: Proposals, batch: Batch, key: Key[Array, ""]) -> RoiTargets:
        """Samples regions to train on among proposals and objects.

        Args:
          proposals: with a leading axis of images, as `propose` returns them.
          batch: of detection.
          key: a typed PRNG key.

        Returns:
          `RoiTargets` with a leading axis of images: boxes, labels and codes.
        """
        sample = partial(
            roi_targets,
            num_classes=self.num_classes or 1,
            size=self.region_samples,
            positive_share=self.positive_share,
        )
        return jax.vmap(
            lambda one, boxes, valid, gt, labels, wanted: sample(
                one, boxes, valid, gt, labels, gt_valid=wanted
            )
        )(image_keys(key, batch), proposals.boxes, proposals.valid, *objects(batch))

    def losses(
        self, variables: Variables, levels: Levels, batch: Batch, key: Key[Array, ""]
    ) -> tuple[dict[str, LossTerm], dict[str, Metric]]:
        """Computes the losses of both heads on a pyramid.

        Args:
          variables: as `init` returns them.
          levels: as `pyramid` returns them.
          batch: of detection.
          key: a typed PRNG key for the samples of anchors and regions.

        Returns:
          The terms `proposal_classes`, `proposal_boxes`, `region_classes` and `region_boxes`, and
          the figure `positives`, sampled regions on objects per image.
        """
        anchor_key, region_key = jax.random.split(key)
        found = part("proposal head", self.dense(variables, levels))
        chosen = part("anchors sampled", self._sample_anchors(levels, batch, anchor_key))
        proposals = part("proposals", self.propose(found, levels, batch, train=True))
        sample = part("regions sampled", self.sample_regions(proposals, batch, region_key))
        logits, deltas = part("region head", self.regions(variables, levels, sample.boxes))
        first = proposal_losses(found.logits[..., 0], found.deltas, *chosen)
        second = region_losses(
            logits, deltas, sample.labels, sample.positive, sample.valid, sample.deltas
        )
        terms = {
            "proposal_classes": term(first.classes, batch),
            "proposal_boxes": term(first.boxes, batch, weight=self.box_weight),
            "region_classes": term(second.classes, batch),
            "region_boxes": term(second.boxes, batch, weight=self.box_weight),
        }
        mask = batch["mask"].astype(jnp.float32)
        positives = jnp.sum(sample.positive, axis=1, dtype=jnp.float32) * mask
        return terms, {"positives": (positives, mask)}

    def _sample_anchors(
        self, levels: Levels, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Bool[Array, "b p"], Bool[Array, "b p"], Float[Array, "b p 4"]]:
        """Anchors that the first head is trained on: on objects, on background, and box codes."""
        anchors = self.anchors(levels, batch)

        def sampled(
            one: Array, boxes: Array, wanted: Array, valid: Array
        ) -> tuple[Array, Array, Array]:
            # There is one class here: an object.
            target = anchor_targets(
                anchors.boxes,
                boxes,
                jnp.zeros(boxes.shape[:1], jnp.int32),
                gt_valid=wanted,
                rule=RPN_RULE,
                num_classes=1,
                anchor_valid=valid,
            )
            positive, negative = sample_mask(
                one,
                target.positive,
                target.negative,
                size=self.anchor_samples,
                positive_share=0.5,
            )
            return positive, negative, target.deltas

        boxes, _, wanted = objects(batch)
        keys = image_keys(key, batch)
        return jax.vmap(sampled)(keys, boxes, wanted, anchors.valid)

    @override
    def detect(self, variables: Variables, levels: Levels, batch: Batch) -> Detections:
        found = self.dense(variables, levels)
        proposals = self.propose(found, levels, batch, train=False)
        logits, deltas = self.regions(variables, levels, proposals.boxes)
        detect = partial(
            roi_detections,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_outputs=self.max_detections,
        )
        return jax.vmap(
            lambda scores, codes, boxes, size, valid: detect(
                scores, codes, boxes, size, valid=valid
            )
        )(logits, deltas, proposals.boxes, image_sizes(batch), proposals.valid)
