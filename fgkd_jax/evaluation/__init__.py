"""Evaluators: counts on the device, figures on the host.

`EVALUATORS` maps a method's task to the evaluator that reads its predictions.
"""

from fgkd_jax.evaluation.classification import ClassificationEvaluator, label_rank

EVALUATORS = {"classification": ClassificationEvaluator}

__all__ = ["EVALUATORS", "ClassificationEvaluator", "label_rank"]
