"""Accuracy of several networks that are trained together: each, their mean, and all as one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.classification import ClassificationCounts, ClassificationEvaluator
from fgkd_jax.typing import Array, Batch


@dataclasses.dataclass(frozen=True)
class MutualEvaluator:
    """Every figure of the classification as its mean over networks, and accuracy by network.

    What is averaged is a figure of networks that each stand alone; the best of them, chosen by the
    split that is reported, is no figure of any. `ensemble_accuracy` is that of the mean of their
    probabilities.

    Reads `network_logits` [n, b, k] of the predictions, `label` and `mask` of the batch.

    Attributes:
      classification: the evaluator of one network's logits.
      networks: number of networks n.
    """

    classification: ClassificationEvaluator
    networks: int

    def __post_init__(self) -> None:
        if self.networks < 1:
            raise UserError(f"networks is {self.networks}; expected at least 1")

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `finalise` returns."""
        single = tuple(f"network{i}_accuracy" for i in range(self.networks))
        return (*self.classification.figures, *single, "ensemble_accuracy")

    def empty(self) -> ClassificationCounts:
        """Returns the counts before the first batch.

        Returns:
          Zeros of [n + 1, ...]: one row per network, and one for the ensemble.
        """
        rows = self.networks + 1
        return jax.tree.map(
            lambda leaf: np.zeros((rows, *leaf.shape), leaf.dtype), self.classification.empty()
        )

    def update(
        self, counts: ClassificationCounts, predictions: Mapping[str, Array], batch: Batch
    ) -> ClassificationCounts:
        """Adds one batch to the counts; runs under jit.

        Args:
          counts: as `empty` or an earlier `update` returned them.
          predictions: `network_logits` [n, b, k].
          batch: `label` int [b], in [0, k) where `mask` is True; `mask` bool [b].

        Returns:
          The new counts.

        Raises:
          UserError: the number of networks or of classes is another.
        """
        logits = predictions["network_logits"].astype(jnp.float32)
        if logits.shape[0] != self.networks:
            raise UserError(
                f"network_logits have shape {logits.shape}; expected {self.networks} networks"
            )
        log_p = jax.nn.log_softmax(logits)
        ensemble = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - np.log(self.networks)
        rows = jnp.concatenate([logits, ensemble])

        def one(counts: ClassificationCounts, logits: Array) -> ClassificationCounts:
            return self.classification.update(counts, {"logits": logits}, batch)

        return jax.vmap(one)(counts, rows)

    def finalise(self, counts: ClassificationCounts) -> dict[str, float]:
        """Turns the counts of a whole split into figures.

        Args:
          counts: after the last batch.

        Returns:
          The figures of the classification, each the mean over networks; `network<i>_accuracy`
          and `ensemble_accuracy` in [0, 1].

        Raises:
          UserError: no example was counted.
        """
        counts = jax.device_get(counts)
        rows = [
            self.classification.finalise(jax.tree.map(lambda leaf, i=i: leaf[i], counts))
            for i in range(self.networks + 1)
        ]
        *networks, ensemble = rows
        figures: dict[str, Any] = {
            name: float(np.mean([row[name] for row in networks])) for name in networks[0]
        }
        figures["examples"] = networks[0]["examples"]
        single = {f"network{i}_accuracy": row["accuracy"] for i, row in enumerate(networks)}
        return {**figures, **single, "ensemble_accuracy": ensemble["accuracy"]}
