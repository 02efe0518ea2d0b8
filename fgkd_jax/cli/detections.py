"""What a detector finds: written in COCO's format, and drawn on images."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgkd_jax.cli import pictures
from fgkd_jax.cli.feeds import PipelineFeed
from fgkd_jax.cli.results import Restored
from fgkd_jax.cli.workdir import write_json
from fgkd_jax.data.base import Dataset, DatasetInfo, Example, Source, SplitSources, Subset
from fgkd_jax.data.boxes import BoxSource, DetectionDataset
from fgkd_jax.data.images import decode
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import FoundBoxes, ScenePredictions, coco_annotations, coco_detections
from fgkd_jax.train.processes import on_primary

FOLDER = "detections"
"""In a run's folder, where detections of whole splits are kept."""


def detection_writer(workdir: str, dataset: Dataset) -> Callable[[str, str, Any], None]:
    """Makes the function that keeps what was found in a split.

    Args:
      workdir: the run's folder.
      dataset: its data set.

    Returns:
      Of split, name of the checkpoint and counts of the evaluator; where the counts are those of a
      detector, it writes `detections/<split>-<checkpoint>.json` in COCO's format of results, with
      the ids of the data set's categories, and `detections/<split>-truth.json`, see `true_objects`.
    """

    def write(split: str, checkpoint: str, counts: Any) -> None:
        if not isinstance(counts, ScenePredictions) or not isinstance(dataset, DetectionDataset):
            return
        found = coco_detections(counts, category_ids=dataset.category_ids)
        folder = Path(workdir) / FOLDER

        def both() -> None:
            _write(folder / f"{split}-truth.json", true_objects(counts, dataset, split))
            _write(folder / f"{split}-{checkpoint}.json", found)

        on_primary(both)

    return write


def true_objects(counts: ScenePredictions, dataset: DetectionDataset, split: str) -> dict[str, Any]:
    """Lists the images and objects of a split in COCO's layout, for detections to be told by.

    Args:
      counts: of the split's evaluation.
      dataset: its data set.
      split: the split.

    Returns:
      `images` with their file names, as the data set's annotations give them, `annotations`, and
      `categories` with the ids of the data set's; areas are those of boxes.
    """
    content = coco_annotations(counts, class_names=dataset.info.class_names)
    numbers, names = dataset.category_ids, _file_names(dataset.source(split))
    for image in content["images"]:
        image["file_name"] = names[image["id"]]
    for one in content["annotations"]:
        one["category_id"] = numbers[one["category_id"]]
    for category in content["categories"]:
        category["id"] = numbers[category["id"]]
    return content


def _file_names(source: Source) -> dict[int, str]:
    """Names of images by id; those of a drawn data set, which has no files, are in its records."""
    if isinstance(source, BoxSource):
        return dict(zip(source.ids.tolist(), source.names, strict=True))
    if isinstance(source, Subset):
        names = _file_names(source.base)
        return {number: names[number] for number in source.ids.tolist()}
    examples = (source[index] for index in range(len(source)))
    return {int(one["id"]): one["name"] for one in examples}


@dataclasses.dataclass(frozen=True)
class _SceneFiles:
    """Image files as a source of scenes in which nothing is known."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return {
            "image": Path(path).read_bytes(),
            "boxes": np.zeros((0, 4), np.float32),
            "box_labels": np.zeros(0, np.int32),
            "box_ignored": np.zeros(0, bool),
            "id": index,
            "name": path,
        }


def detect_files(restored: Restored, paths: Sequence[str]) -> tuple[FoundBoxes, ...]:
    """Finds objects in image files.

    Args:
      restored: a run of a detector.
      paths: image files.

    Returns:
      What was found in each, in pixels of the file's image, the surest first.

    Raises:
      UserError: a file is not an image.
    """
    trainer, names = restored.trainer, restored.dataset.info.class_names
    files = SplitSources(
        DatasetInfo(name="files", class_names=names, splits={"files": len(paths)}),
        {"files": _SceneFiles(tuple(paths))},
    )
    # An image that cannot be read must not shift those behind it.
    options = dataclasses.replace(restored.experiment.data, on_corrupt="raise")
    size = trainer.run.train.eval_batch_size
    feed = PipelineFeed(files, options, batch_size=size, eval_batch_size=size, seed=0)
    before = trainer.run
    trainer.run = dataclasses.replace(before, feed=feed)
    try:
        scenes: ScenePredictions = trainer.count(restored.state, "files")
    finally:
        trainer.run = before
    return scenes.found


def show_files(
    restored: Restored, paths: Sequence[str], *, threshold: float, folder: str, as_json: bool
) -> list[str]:
    """Finds objects in image files, draws them, and writes them as JSON.

    Args:
      restored: a run of a detector.
      paths: image files.
      threshold: least score of what is drawn and listed; the files hold everything.
      folder: where pictures and JSON go; `none` for nowhere.
      as_json: whether to list as JSON.

    Returns:
      Lines to print.

    Raises:
      UserError: a file is not an image, or the folder cannot be written to.
    """
    names, lines = restored.dataset.info.class_names, []
    everything = detect_files(restored, paths)
    for path, title, found in zip(paths, pictures.unique_names(paths), everything, strict=True):
        row: dict[str, Any] = {"image": path, "detections": described(found, names=names)}
        shown = [one for one in row["detections"] if one["score"] >= threshold]
        drawn: list[str] = []
        if folder != "none":
            image = decode(Path(path).read_bytes(), path)
            kept = FoundBoxes(*(part[found.scores >= threshold] for part in found))
            picture = {"detections": pictures.framed_objects(image, kept, names=names)}
            drawn = [str(one) for one in pictures.write(Path(folder), title, picture)]
            file = Path(folder) / f"{title}.detections.json"
            _write(file, row)
            drawn.append(str(file))
        if as_json:
            lines.append(json.dumps({**row, "detections": shown, "pictures": drawn}))
        else:
            lines.append(_table(path, shown, drawn, of=len(row["detections"])))
    return lines


def described(found: FoundBoxes, *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Lists detections with the names of their classes.

    Args:
      found: in one image.
      names: of the classes.

    Returns:
      `class`, `score` and `bbox` (x, y, width, height) of each, of plain numbers.
    """
    return [
        {
            "class": names[label],
            "score": round(score, 6),
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        }
        for (x1, y1, x2, y2), score, label in zip(*(x.tolist() for x in found), strict=True)
    ]


def _table(path: str, shown: Sequence[Any], drawn: Sequence[str], *, of: int) -> str:
    lines = [path]
    for one in shown:
        x, y, width, height = one["bbox"]
        place = f"{width:.0f} x {height:.0f} at ({x:.0f}, {y:.0f})"
        lines.append(f"  {one['score']:6.1%}  {one['class']}  {place}")
    if len(shown) < of:
        lines.append(f"  {of - len(shown)} less sure ones are not shown")
    if drawn:
        lines.append(f"  written: {', '.join(drawn)}")
    return "\n".join(lines)


def _write(path: Path, values: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be made: {error.strerror}") from error
    write_json(path, values)
