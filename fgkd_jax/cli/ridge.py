"""`fgkd ridge`: the linear baseline of zero-shot recognition."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from fgkd_jax.cli.command import Command, get
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Fits ridge regression from mean features to class attributes, on features that fgkd features wrote
or on those of xlsa17, and prints the figures that zero-shot methods are given. The regulariser and
the offset of calibrated stacking are chosen on seen classes that are held out, over --divisions of
them; the unseen classes are looked at once, at the end.

  fgkd ridge --data_dir FEATURES
  fgkd ridge --dataset xlsa17/CUB --data_dir /data --predictions ridge.npz

--predictions stores ids, labels and scores of the test images, for fgkd compare.
"""

SHARE, IMAGES = 0.25, 0.2
"""Shares of the seen classes, and of the images of the others, that a division holds out."""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_string("dataset", "features", "data set with features", flag_values=values)
    flags.DEFINE_string("data_dir", None, "its folder", flag_values=values)
    flags.DEFINE_integer(
        "divisions", 5, "divisions to choose by", lower_bound=1, flag_values=values
    )
    flags.DEFINE_boolean(
        "centre", True, "compare with what classes differ by from their mean", flag_values=values
    )
    flags.DEFINE_string("predictions", None, ".npz file to write scores to", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: none are expected.

    Returns:
      The exit status.

    Raises:
      UserError: the data set has no features or no unseen classes, or the file cannot be written.
    """
    from fgkd_jax.cli.predictions import check_path, write_predictions
    from fgkd_jax.cli.results import results_table
    from fgkd_jax.data.registry import open_dataset

    if arguments:
        raise UserError(f"fgkd ridge takes no argument '{arguments[0]}'; see fgkd ridge --help")
    path = get(values, "predictions")
    if path:
        check_path(path)
    dataset = open_dataset(get(values, "dataset"), data_dir=get(values, "data_dir"))
    found = ridge_baseline(
        dataset, divisions=get(values, "divisions"), centre=get(values, "centre")
    )
    predictions = found.pop("predictions")
    if path:
        write_predictions(path, predictions)
    if get(values, "json"):
        print(json.dumps(found, indent=2))
        return 0
    row = {"split": found["split"], "checkpoint": "ridge", "step": 0, "figures": found["figures"]}
    chosen = f"regulariser {found['regulariser']:g}, offset {found['offset']:.4f}"
    print(f"{chosen}, chosen by {found['divisions']} divisions of the seen classes")
    print(results_table([row]))
    return 0


def ridge_baseline(dataset: Any, *, divisions: int = 5, centre: bool = True) -> dict[str, Any]:
    """Chooses the regulariser and the offset on held-out seen classes, and tests once.

    Args:
      dataset: with features and unseen classes; splits `train`, `test_seen` and `test_unseen`.
      divisions: of the seen classes; what is chosen is best on average over them.
      centre: see `fit_ridges`.

    Returns:
      `regulariser`, `offset`, the `figures` on `split`, and the `predictions` of its images.

    Raises:
      UserError: the data set has no features or no unseen classes.
    """
    from fgkd_jax.cli.predictions import Predictions
    from fgkd_jax.data.base import split_source
    from fgkd_jax.data.zero_shot import hold_out_classes
    from fgkd_jax.evaluation import (
        REGULARISERS,
        choose_offset,
        decisions,
        seen_unseen_curve,
        zero_shot_figures,
    )
    from fgkd_jax.evaluation.seen_unseen import check_classes

    if dataset.info.feature_shape is None:
        raise UserError(f"{dataset.info.name} has images; expected features, see fgkd features")
    validated: list[list[Any]] = []
    for seed in range(divisions):
        part = hold_out_classes(dataset, classes=SHARE, fraction=IMAGES, seed=seed)
        maps = _fit(part, REGULARISERS, centre)
        features, labels, _ = pooled(part.source("validation"))
        seen = _seen(part)
        validated.append([decisions(m.scores(features), labels, seen=seen) for m in maps])
    accuracies = [[zero_shot_figures(d)["zero_shot_accuracy"] for d in row] for row in validated]
    best = int(np.argmax(np.mean(accuracies, axis=0)))
    offset = float(np.mean([choose_offset(seen_unseen_curve(row[best])) for row in validated]))

    (final,) = _fit(dataset, REGULARISERS[best : best + 1], centre)
    split = "test_seen+test_unseen"
    features, labels, ids = pooled(split_source(dataset, split))
    check_classes(labels, seen=_seen(dataset), class_names=dataset.info.class_names)
    scores = final.scores(features)
    found = decisions(scores, labels, seen=_seen(dataset))
    return {
        "regulariser": REGULARISERS[best],
        "offset": offset,
        "divisions": divisions,
        "validation_accuracy": float(np.mean(accuracies, axis=0)[best]),
        "split": split,
        "figures": zero_shot_figures(found, offset=offset),
        "predictions": Predictions(ids, labels, scores, _seen(dataset)),
    }


def pooled(source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the features of a source, as their means over regions.

    Args:
      source: examples with `features` [h, w, f].

    Returns:
      float32 [n, f], and labels and ids int64 [n].
    """
    from fgkd_jax.data.base import labels_and_ids

    rows = [source[i]["features"].mean(axis=(0, 1), dtype=np.float32) for i in range(len(source))]
    return np.stack(rows), *labels_and_ids(source)


def _fit(dataset: Any, regularisers: Sequence[float], centre: bool) -> list[Any]:
    from fgkd_jax.evaluation import fit_ridges

    features, labels, _ = pooled(dataset.source("train"))
    attributes = dataset.info.descriptions.attributes
    return fit_ridges(
        features, labels, attributes=attributes, regularisers=regularisers, centre=centre
    )


def _seen(dataset: Any) -> np.ndarray:
    return dataset.info.descriptions.seen


COMMAND = Command(
    name="ridge",
    usage="--data_dir FOLDER [--dataset NAME] [--predictions FILE]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
