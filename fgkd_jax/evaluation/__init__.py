"""Evaluators: counts on the device, figures on the host.

`EVALUATORS` maps a method's task to a function that makes the evaluator which reads its
predictions: `make(info, extra_keys, networks)`, `info` describing the data set (`num_classes`,
`class_names`, `groupings`, `separating_parts`, `descriptions`, `splits`), `extra_keys` naming the
annotations that batches carry, and `networks` counting the networks that a method trains together.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.bimodal import BlockEvaluator, holds_point
from fgkd_jax.evaluation.classification import ClassificationEvaluator, label_rank
from fgkd_jax.evaluation.coco import CocoPrecision, coco_precision, to_coco
from fgkd_jax.evaluation.detection import (
    ClassPrecision,
    FoundBoxes,
    TrueBoxes,
    background_false_positives,
    mean_precision,
    voc_precision,
)
from fgkd_jax.evaluation.detector import (
    DetectionEvaluator,
    ScenePredictions,
    coco_annotations,
    coco_detections,
)
from fgkd_jax.evaluation.mutual import MutualEvaluator
from fgkd_jax.evaluation.paired import PairedDifference, paired_bootstrap
from fgkd_jax.evaluation.pointing import pointing_hits, regions_near
from fgkd_jax.evaluation.ridge import REGULARISERS, AttributeRidge, fit_ridges
from fgkd_jax.evaluation.sampling import SamplingEvaluator, share_inside
from fgkd_jax.evaluation.seen_unseen import (
    Decisions,
    SeenUnseenCurve,
    choose_offset,
    decisions,
    seen_unseen_curve,
    zero_shot_figures,
)
from fgkd_jax.evaluation.zero_shot import ZeroShotEvaluator, calibrated
from fgkd_jax.protocols import Evaluator


def _classification(
    info: Any, extra_keys: Collection[str], networks: int = 1
) -> ClassificationEvaluator:
    del extra_keys, networks
    return ClassificationEvaluator(num_classes=info.num_classes, groupings=info.groupings)


def _sampling(info: Any, extra_keys: Collection[str], networks: int) -> SamplingEvaluator:
    del networks
    return SamplingEvaluator(
        classification=_classification(info, extra_keys),
        with_boxes="bbox" in extra_keys,
        separating_parts=info.separating_parts if "parts" in extra_keys else (),
    )


def _mutual(info: Any, extra_keys: Collection[str], networks: int) -> MutualEvaluator:
    return MutualEvaluator(_classification(info, extra_keys), networks=networks)


def _blocks(info: Any, extra_keys: Collection[str], networks: int) -> BlockEvaluator:
    del networks
    return BlockEvaluator(_classification(info, extra_keys), with_parts="parts" in extra_keys)


def _bimodal(info: Any, extra_keys: Collection[str], networks: int) -> BlockEvaluator:
    blocks = _blocks(info, extra_keys, networks)
    return dataclasses.replace(blocks, with_text=True)


def _zero_shot(info: Any, extra_keys: Collection[str], networks: int) -> ZeroShotEvaluator:
    del networks
    if info.descriptions is None:
        raise UserError(
            f"{info.name} says nothing of its classes; expected a data set with class attributes "
            "and unseen classes"
        )
    parts = info.descriptions.attribute_parts
    return ZeroShotEvaluator(
        seen=tuple(info.descriptions.seen.tolist()),
        class_names=info.class_names,
        # Several splits may be evaluated together.
        capacity=sum(info.splits.values()),
        attribute_parts=(
            () if parts is None or "parts" not in extra_keys else tuple(parts.tolist())
        ),
    )


def _detection(info: Any, extra_keys: Collection[str], networks: int) -> DetectionEvaluator:
    del extra_keys, networks
    return DetectionEvaluator(class_names=info.class_names)


EVALUATORS: Mapping[str, Callable[[Any, Collection[str], int], Evaluator]] = {
    "classification": _classification,
    "sampled_classification": _sampling,
    "mutual_classification": _mutual,
    "block_classification": _blocks,
    "bimodal": _bimodal,
    "zero_shot": _zero_shot,
    "detection": _detection,
}

__all__ = [
    "EVALUATORS",
    "REGULARISERS",
    "AttributeRidge",
    "BlockEvaluator",
    "ClassPrecision",
    "ClassificationEvaluator",
    "CocoPrecision",
    "Decisions",
    "DetectionEvaluator",
    "FoundBoxes",
    "MutualEvaluator",
    "PairedDifference",
    "SamplingEvaluator",
    "ScenePredictions",
    "SeenUnseenCurve",
    "TrueBoxes",
    "ZeroShotEvaluator",
    "background_false_positives",
    "calibrated",
    "choose_offset",
    "coco_annotations",
    "coco_detections",
    "coco_precision",
    "decisions",
    "fit_ridges",
    "holds_point",
    "label_rank",
    "mean_precision",
    "paired_bootstrap",
    "pointing_hits",
    "regions_near",
    "seen_unseen_curve",
    "share_inside",
    "to_coco",
    "voc_precision",
    "zero_shot_figures",
]
