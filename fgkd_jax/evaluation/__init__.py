"""Evaluators: counts on the device, figures on the host.

`EVALUATORS` maps a method's task to a function that makes the evaluator which reads its
predictions: `make(info, extra_keys)`, `info` describing the data set (`num_classes`, `groupings`,
`separating_parts`) and `extra_keys` naming the annotations that batches carry.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fgkd_jax.evaluation.classification import ClassificationEvaluator, label_rank
from fgkd_jax.evaluation.sampling import SamplingEvaluator, share_inside
from fgkd_jax.protocols import Evaluator


def _classification(info: Any, extra_keys: Collection[str]) -> ClassificationEvaluator:
    del extra_keys
    return ClassificationEvaluator(num_classes=info.num_classes, groupings=info.groupings)


def _sampling(info: Any, extra_keys: Collection[str]) -> SamplingEvaluator:
    return SamplingEvaluator(
        classification=_classification(info, extra_keys),
        with_boxes="bbox" in extra_keys,
        separating_parts=info.separating_parts if "parts" in extra_keys else (),
    )


EVALUATORS: Mapping[str, Callable[[Any, Collection[str]], Evaluator]] = {
    "classification": _classification,
    "sampled_classification": _sampling,
}

__all__ = [
    "EVALUATORS",
    "ClassificationEvaluator",
    "SamplingEvaluator",
    "label_rank",
    "share_inside",
]
