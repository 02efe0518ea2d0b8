"""`fgkd predict`: classifies image files with a run, or finds objects in them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from fgkd_jax.cli.command import Command, define_run, get, require
from fgkd_jax.errors import UserError

DESCRIPTION = """\
Classifies image files with the network of a run, and prints the likeliest classes of each with
their probabilities. Images are prepared as in the run's evaluation; where that crops to true boxes,
all of a file is shown. A method that samples images also writes, for each of them, what it looked
at: the attention over the image, the grid of sampled rows and columns, the sampled structure image
and a detail image. One that locates blocks frames them on the image; with --caption it is given a
text, and its phrases are printed, and written beside the blocks, with the weight that each stage
gives them. A detector frames what it finds on the image, with class and score, and writes it as
JSON beside the picture.

  fgkd predict --workdir runs/birds photo.jpg other.png
  fgkd predict --workdir runs/pma --caption "a red bird with black wings" photo.jpg
  fgkd predict --workdir runs/detector --threshold 0.5 photo.jpg
"""


def define(values: flags.FlagValues) -> None:
    """Adds the command's flags.

    Args:
      values: where the flags are defined.
    """
    define_run(values)
    flags.DEFINE_integer("top", 3, "how many classes to print", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON lines instead of a table", flag_values=values)
    flags.DEFINE_string(
        "caption", None, "what is said of every image, for a method that reads", flag_values=values
    )
    flags.DEFINE_float(
        "threshold",
        0.3,
        "of a detector: least score of what is drawn and printed",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "pictures",
        None,
        "folder for pictures of what was looked at or found; WORKDIR/pictures by default, none for "
        "none",
        flag_values=values,
    )


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command.

    Args:
      values: parsed flags.
      arguments: image files.

    Returns:
      The exit status.

    Raises:
      UserError: a file is missing or not an image, or the workdir holds no checkpoint.
    """
    from fgkd_jax.cli import detections, pictures, results
    from fgkd_jax.evaluation import DetectionEvaluator

    workdir = require(values, "workdir", command="predict")
    if not arguments:
        raise UserError("fgkd predict needs at least one image file; see fgkd predict --help")
    for name in arguments:
        if not Path(name).is_file():
            raise UserError(f"image {name} does not exist")
    restored = results.restore_run(values, workdir)
    names = restored.dataset.info.class_names
    folder = get(values, "pictures") or str(Path(workdir) / "pictures")
    caption = get(values, "caption")
    if isinstance(restored.trainer.run.evaluator, DetectionEvaluator):
        if caption is not None:
            raise UserError(f"--caption is {caption!r}, but the run reads no text; expected none")
        lines = detections.show_files(
            restored,
            arguments,
            threshold=get(values, "threshold"),
            folder=folder,
            as_json=get(values, "json"),
        )
        print("\n".join(lines))
        return 0
    predictions = results.predict_files(
        restored, arguments, explain=folder != "none" or caption is not None, caption=caption
    )
    titles = pictures.unique_names(arguments)
    for path, title, prediction in zip(arguments, titles, predictions, strict=True):
        row = prediction.probabilities
        order = np.argsort(-row, kind="stable")[: get(values, "top")]
        classes = [{"class": names[i], "probability": round(float(row[i]), 6)} for i in order]
        drawn: list[Path] = []
        if prediction.explained and folder != "none":
            shown = pictures.draw(prediction.image, prediction.explained, prediction.phrases)
            drawn = pictures.write(Path(folder), title, shown)
        print(_line(path, classes, drawn, prediction.phrases, as_json=get(values, "json")))
    return 0


def _line(
    path: str,
    classes: list[dict[str, Any]],
    drawn: list[Path],
    phrases: Sequence[Mapping[str, float]],
    *,
    as_json: bool,
) -> str:
    if as_json:
        shown: dict[str, Any] = {"pictures": [str(one) for one in drawn]} if drawn else {}
        if phrases:
            shown["phrases"] = [dict(stage) for stage in phrases]
        return json.dumps({"image": path, "classes": classes, **shown})
    lines = [f"  {entry['probability']:6.1%}  {entry['class']}" for entry in classes]
    for number, stage in enumerate(phrases, start=1):
        told = ", ".join(f"{phrase} {weight:.2f}" for phrase, weight in stage.items())
        lines.append(f"  stage {number}: {told}")
    if drawn:
        kinds = ",".join(one.name.split(".")[-2] for one in drawn)
        stem = drawn[0].name.rsplit(".", 2)[0]
        lines.append(f"  looked at: {drawn[0].parent}/{stem}.{{{kinds}}}.png")
    return "\n".join([path, *lines])


COMMAND = Command(
    name="predict",
    usage="--workdir FOLDER IMAGE...",
    description=DESCRIPTION,
    define=define,
    run=run,
)
