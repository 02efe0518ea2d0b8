"""Ridge regression from pooled features to class attributes: the baseline of zero-shot methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgkd_jax.errors import UserError

REGULARISERS = tuple(float(10 ** (power / 2)) for power in range(-2, 13))
"""Half decades from 0.1 to a million, from which one is chosen on validation classes."""


@dataclass(frozen=True, eq=False)
class AttributeRidge:
    """A linear map from features to attributes, and the class vectors its outcome is held against.

    Attributes:
      mean: float64 [f], of the training features.
      weights: float64 [f, a].
      classes: float64 [k, a], of unit length.
    """

    mean: np.ndarray
    weights: np.ndarray
    classes: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores images.

        Args:
          features: float [n, f].

        Returns:
          float64 [n, k], cosines between predicted and true attributes; 0 for a prediction of 0.
        """
        predicted = (features.astype(np.float64) - self.mean) @ self.weights
        return _unit(predicted) @ self.classes.T


def fit_ridges(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    attributes: np.ndarray,
    regularisers: Sequence[float],
    centre: bool = True,
) -> list[AttributeRidge]:
    """Fits one map for each of several regularisers, in closed form.

    W = (X^T X + r I)^-1 X^T A, with X the features less their mean and A the attribute vectors of
    the labels, each of unit length. X^T X is decomposed once for all r.

    Args:
      features: float [n, f], one row per training image.
      labels: int [n], in [0, k).
      attributes: float [k, a], of all classes, seen and unseen.
      regularisers: r, each above 0.
      centre: whether class vectors, of unit length, are held against predictions as what they
        differ by from their mean over all classes. Attributes that nearly all classes share then
        decide nothing.

    Returns:
      The maps, in the order of the regularisers.

    Raises:
      UserError: shapes do not fit, or a regulariser is not above 0.

    Source:
      Ridge regression to attributes as in Romera-Paredes and Torr, "An embarrassingly simple
      approach to zero-shot learning", ICML 2015, with attributes in place of their signatures of
      classes, one regulariser, and the cosine to decide.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise UserError(
            f"features have shape {features.shape} and labels {labels.shape}; expected [n, f] and "
            "[n] with n of at least 1"
        )
    if attributes.ndim != 2 or labels.max() >= len(attributes) or labels.min() < 0:
        raise UserError(
            f"attributes have shape {attributes.shape}; expected [k, a] with k above label "
            f"{labels.max()}"
        )
    for value in regularisers:
        if not value > 0:
            raise UserError(f"the regulariser is {value}; expected more than 0")
    unit = _unit(attributes.astype(np.float64))
    mean = features.mean(axis=0, dtype=np.float64)
    x = features.astype(np.float64) - mean
    values, vectors = np.linalg.eigh(x.T @ x)
    # Centred features make the mean of the targets of no account.
    target = vectors.T @ (x.T @ unit[labels])
    classes = _unit(unit - unit.mean(axis=0)) if centre else unit
    scale = np.maximum(values, 0.0)
    return [
        AttributeRidge(mean, vectors @ (target / (scale + r)[:, None]), classes)
        for r in regularisers
    ]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; a row of zeros stays one."""
    squared = np.sum(rows * rows, axis=1, keepdims=True)
    return rows / np.sqrt(np.where(squared > 0, squared, 1.0))
