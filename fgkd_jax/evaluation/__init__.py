"""Evaluators: counts on the device, figures on the host.

`EVALUATORS` maps a method's task to a function that makes the evaluator which reads its
predictions: `make(info, extra_keys, networks)`, `info` describing the data set (`num_classes`,
`groupings`, `separating_parts`), `extra_keys` naming the annotations that batches carry, and
`networks` counting the networks that a method trains together.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

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
from fgkd_jax.evaluation.mutual import MutualEvaluator
from fgkd_jax.evaluation.sampling import SamplingEvaluator, share_inside
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


EVALUATORS: Mapping[str, Callable[[Any, Collection[str], int], Evaluator]] = {
    "classification": _classification,
    "sampled_classification": _sampling,
    "mutual_classification": _mutual,
    "block_classification": _blocks,
    "bimodal": _bimodal,
}

__all__ = [
    "EVALUATORS",
    "BlockEvaluator",
    "ClassPrecision",
    "ClassificationEvaluator",
    "CocoPrecision",
    "FoundBoxes",
    "MutualEvaluator",
    "SamplingEvaluator",
    "TrueBoxes",
    "background_false_positives",
    "coco_precision",
    "holds_point",
    "label_rank",
    "mean_precision",
    "share_inside",
    "to_coco",
    "voc_precision",
]
