"""Predictions of a whole split as a file: written by eval and ridge, read by compare."""

import contextlib
import dataclasses
import os
import zipfile
from typing import Any

import jax
import numpy as np

from fgkd_jax.cli.results import Restored
from fgkd_jax.errors import UserError
from fgkd_jax.train.sharding import put_batch

SCORES = ("scores", "probabilities")
"""What methods call their scores of the classes; the first that there is counts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of every image of a split; of networks that learn together, those of their ensemble.

    Attributes:
      ids: int64 [n], which image.
      labels: int64 [n], its class.
      scores: float [n, k].
      seen: bool [k], whether training had images of the class; all True where every class had.
    """

    ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    seen: np.ndarray

    def sorted(self) -> "Predictions":
        """Puts the images in the order of their ids.

        Returns:
          The same predictions.
        """
        order = np.argsort(self.ids, kind="stable")
        return Predictions(self.ids[order], self.labels[order], self.scores[order], self.seen)


def check_path(path: str) -> None:
    """Checks where predictions are to be written, before they are computed.

    Args:
      path: of the file.

    Raises:
      UserError: the name does not end in .npz, or there is such a file.
    """
    if not path.endswith(".npz"):
        raise UserError(f"--predictions is {path}; expected a name that ends in .npz")
    if os.path.exists(path):
        raise UserError(f"{path} exists already; expected a new file for --predictions")


def write_predictions(path: str, predictions: Predictions) -> None:
    """Writes predictions to a file that must not exist yet.

    Args:
      path: of the file; `check_path` says which.
      predictions: what to write.

    Raises:
      UserError: the file exists or cannot be written.
    """
    check_path(path)
    try:
        with open(path, "xb") as file:
            np.savez(file, **dataclasses.asdict(predictions))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_predictions(path: str) -> Predictions:
    """Reads predictions, sorted by image.

    Args:
      path: a file that `write_predictions` wrote.

    Returns:
      The predictions.

    Raises:
      UserError: there is no such file, or it is another one.
    """
    names = [field.name for field in dataclasses.fields(Predictions)]
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in names if name not in stored]
            if missing:
                raise UserError(f"{path} has no {missing[0]}; expected a file of --predictions")
            read = Predictions(**{name: stored[name] for name in names})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a file of predictions: {error}") from error
    return read.sorted()


def predict_split(restored: Restored, split: str) -> Predictions:
    """Predicts every example of a split.

    Args:
      restored: a run.
      split: one or several with "+" between them.

    Returns:
      The predictions, in the order of the split.

    Raises:
      UserError: the run's method gives no scores of classes, or there is no such split.
    """
    run = restored.trainer.run
    method: Any = run.method

    @jax.jit
    def predict(variables: Any, batch: Any) -> Any:
        found = method.predict(variables, batch)
        names = [name for name in SCORES if name in found]
        return found[names[0]] if names else None

    variables = restored.state.variables(ema=True)
    ids, labels, scores = [], [], []
    with contextlib.closing(run.feed.evaluation(split)) as batches:
        for batch in batches:
            rows = jax.device_get(predict(variables, put_batch(batch, mesh=run.mesh)))
            if rows is None:
                raise UserError("this run's method gives no scores of classes for --predictions")
            mask = np.asarray(batch["mask"])
            ids.append(np.asarray(batch["id"])[mask])
            labels.append(np.asarray(batch["label"])[mask])
            scores.append(rows[mask])
    described = restored.dataset.info.descriptions
    return Predictions(
        ids=np.concatenate(ids).astype(np.int64),
        labels=np.concatenate(labels).astype(np.int64),
        scores=np.concatenate(scores),
        seen=np.ones(scores[0].shape[1], bool) if described is None else described.seen,
    )
