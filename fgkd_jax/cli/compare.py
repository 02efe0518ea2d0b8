"""`fgkd compare`: a paired bootstrap between runs, over the images they were tested on."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from fgkd_jax.cli.command import Command, get
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Says how far apart two methods are on the same images, and whether that could be chance: images are
drawn anew, the same ones for both, and the interval of the difference is that of its percentiles.
Each side is one file that fgkd eval --predictions or fgkd ridge --predictions wrote, or several
with commas between them, whose accuracy is averaged: the seeds of one config.

  fgkd compare msdn0.npz,msdn1.npz,msdn2.npz ridge.npz --figure zero_shot_accuracy
  fgkd compare tasn.npz plain.npz

The interval covers the choice of the images, not that of the seeds, whose spread stands beside it.
"""

FIGURES = ("accuracy", "mean_class_accuracy", "zero_shot_accuracy")


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    flags.DEFINE_enum(
        "figure",
        "accuracy",
        FIGURES,
        "what to compare; zero_shot_accuracy is that of images of unseen classes among these, per "
        "class",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "resamples", 10_000, "how often to draw the images", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float("confidence", 0.95, "of the interval", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the draws", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: two of files with commas between them.

    Returns:
      The exit status.

    Raises:
      UserError: there are not two, a file cannot be read, or they are of other images or classes.
    """
    from fgkd_jax.train.writers import summary_table

    if len(arguments) != 2:
        raise UserError(
            f"fgkd compare was given {len(arguments)} arguments; expected FIRST SECOND, each files "
            "with commas between them"
        )
    found = compare(
        *(argument.split(",") for argument in arguments),
        figure=get(values, "figure"),
        resamples=get(values, "resamples"),
        confidence=get(values, "confidence"),
        seed=get(values, "seed"),
    )
    if get(values, "json"):
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        {"": name, **{key: _percent(found[name][key]) for key in ("mean", "lowest", "highest")}}
        | {"runs": found[name]["runs"]}
        for name in ("first", "second")
    ]
    print(f"{found['figure']} of {found['images']} images of {found['classes']} classes")
    print(summary_table(rows))
    print(
        f"difference {found['difference']:+.1%}, {get(values, 'confidence'):.0%} interval "
        f"[{found['low']:+.1%}, {found['high']:+.1%}]: "
        + ("separated" if found["separated"] else "not separated")
        + f"; not above in {found['not_above']:.1%} of {get(values, 'resamples')} resamples"
    )
    return 0


def compare(
    first: Sequence[str],
    second: Sequence[str],
    *,
    figure: str,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares files of predictions on the same images.

    Args:
      first: files of the runs of one method.
      second: files of the runs of the other.
      figure: one of `FIGURES`.
      resamples: as in `paired_bootstrap`, and so the next two.
      confidence: of the interval.
      seed: of the draws.

    Returns:
      `figure`; of `first` and `second` the `mean`, `lowest` and `highest` over their `runs`;
      `difference`, `low`, `high`, `not_above`, `separated`; and how many `images` and `classes`.

    Raises:
      UserError: a file cannot be read, or is of other images or classes than the first.
    """
    from fgkd_jax.cli.predictions import read_predictions
    from fgkd_jax.evaluation import paired_bootstrap

    names = [*first, *second]
    read = [read_predictions(name) for name in names]
    reference = read[0]
    for name, one in zip(names, read, strict=True):
        same = all(
            np.array_equal(getattr(one, field), getattr(reference, field))
            for field in ("ids", "labels", "seen")
        )
        if not same or len(np.unique(one.ids)) < len(one.ids):
            raise UserError(
                f"{name} has {len(one.ids)} images of {len(one.seen)} classes, not those of "
                f"{names[0]} ({len(reference.ids)} of {len(reference.seen)}); expected each image "
                "once, with the same class"
            )
    labels, right = _right(read, figure, names[0])
    sides = {"first": right[: len(first)], "second": right[len(first) :]}
    groups = None if figure == "accuracy" else labels
    found = paired_bootstrap(
        *sides.values(), groups=groups, resamples=resamples, confidence=confidence, seed=seed
    )
    result: dict[str, Any] = {"figure": figure}
    for name, rows in sides.items():
        each = [_accuracy(row, groups) for row in rows]
        mean = getattr(found, name)
        result[name] = {"mean": mean, "lowest": min(each), "highest": max(each), "runs": len(each)}
    more = {k: v for k, v in dataclasses.asdict(found).items() if k not in sides}
    counts = {"images": len(labels), "classes": len(np.unique(labels))}
    return result | more | {"separated": found.separated} | counts


def _right(read: Sequence[Any], figure: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the images that count, and whether each file is right about them: bool [r, n]."""
    from fgkd_jax.evaluation import decisions

    labels, seen = read[0].labels, read[0].seen
    if figure != "zero_shot_accuracy":
        # A row with a NaN is right about nothing.
        found = [np.where(np.isnan(p.scores).any(1), -1, p.scores.argmax(1)) for p in read]
        return labels, np.stack([one == labels for one in found])
    of_unseen = ~seen[labels]
    if not of_unseen.any():
        raise UserError(f"{name} has no image of an unseen class; expected some for {figure}")
    best = [decisions(one.scores, labels, seen=seen).best_unseen for one in read]
    return labels[of_unseen], np.stack([(one == labels)[of_unseen] for one in best])


def _accuracy(right: np.ndarray, groups: np.ndarray | None) -> float:
    from fgkd_jax.evaluation.seen_unseen import class_accuracy

    return float(right.mean()) if groups is None else class_accuracy(right, groups)


def _percent(value: float) -> str:
    return f"{value:.1%}"


COMMAND = Command(
    name="compare",
    usage="FIRST[,FIRST...] SECOND[,SECOND...] [--figure NAME]",
    description=DESCRIPTION,
    define=define,
    run=run,
)
