"""Looks for everything that is wrong with a data set, image by image."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from fgkd_jax.data.base import CorruptImageError, Dataset, Inspection, Source
from fgkd_jax.data.boxes import DetectionDataset, size_disagreement
from fgkd_jax.data.captions import NO_PHRASE, inspect_captions, read_captions
from fgkd_jax.data.files import MISSING
from fgkd_jax.data.images import configure_opencv, decode
from fgkd_jax.data.report import Report
from fgkd_jax.data.text import phrases_of
from fgkd_jax.data.vocabulary import build_vocabulary
from fgkd_jax.data.zero_shot import zero_shot_problems
from fgkd_jax.errors import UserError

_THREADS = 8
_CHUNK = 1024
# Published boxes often end a pixel beyond the image. One that is mostly outside is a mistake.
_LEAST_INSIDE = 0.5
_NO_LABEL = -1


def check_inspection(name: str, data_dir: str, inspection: Inspection) -> Report:
    """Completes what a reader found by looking at every example.

    Args:
      name: of the data set.
      data_dir: where it was looked for.
      inspection: the data set as far as it could be read.

    Returns:
      The report: examples per split, classes, missing and corrupt images by name, labels out of
      range, ids given twice, boxes of which less than half lies in the image, classes in the wrong
      split, and features that are not finite.
    """
    report = Report(name, data_dir, problems=list(inspection.problems))
    if inspection.dataset is not None:
        check_examples(report, inspection.dataset)
        report.problems += zero_shot_problems(inspection.dataset)
    report.lines += inspection.notes
    return report


def check_examples(report: Report, dataset: Dataset) -> None:
    """Reads and decodes every example of every split, in threads and with a progress bar.

    Args:
      report: gets the rows and problems.
      dataset: the data set.
    """
    configure_opencv()
    info = dataset.info
    report.add("classes", info.num_classes)
    if info.descriptions is not None:
        described = info.descriptions
        report.add("unseen classes", int((~described.seen).sum()))
        report.add("attributes", described.attributes.shape[1])
        vectors = described.word_vectors
        report.add(
            "word vectors", "none" if vectors is None else f"{vectors.shape[1]} numbers each"
        )
    found: list[_Found] = []
    twice: list[str] = []
    total = sum(info.splits.values())
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=total, desc=f"checking {info.name}", unit="image", disable=None) as bar,
    ):
        for split in info.splits:
            look = partial(_look, dataset.source(split), info.num_classes)
            part = []
            for one in _in_chunks(pool, look, info.splits[split]):
                part.append(one)
                bar.update()
            report.add(f"{split} images", len(part))
            found += part
            if isinstance(dataset, DetectionDataset):  # their ids are unique in a split alone
                twice += [f"{line} of the split {split!r}" for line in _given_twice(part)]
    _summarise(report, found)
    report.problems += twice if isinstance(dataset, DetectionDataset) else _given_twice(found)


def check_captions(report: Report, dataset: Dataset, captions_dir: str) -> None:
    """Reads the captions of every image, and counts what they hold.

    Args:
      report: gets the rows and problems.
      dataset: a data set of image files.
      captions_dir: the folder `text_c10`, or the one that it lies in.
    """
    report.add("captions in", captions_dir)
    try:
        told, problems = inspect_captions(dataset, captions_dir)
    except UserError as error:
        report.problems.append(str(error))
        return
    report.problems += problems
    counts: list[int] = []
    found: list[int] = []
    phrases: list[tuple[str, ...]] = []
    for split in told.info.splits:
        for captions in _readable(told.source(split)):
            counts.append(len(captions))
            some = phrases_of(captions, unique=False)
            found.append(len(set(some)))
            phrases += some if split == "train" else []
    report.add("images with captions", len(counts))
    if not counts:
        return
    report.add("captions of an image", _range(min(counts), max(counts)))
    report.add("phrases of an image", _range(min(found), max(found)))
    report.add("images without a phrase", found.count(0))
    report.add("words of training", len(build_vocabulary(phrases).words))
    if not phrases:
        report.problems.append(NO_PHRASE.format("data.text.chunker 'rules'"))


def _readable(source: Source) -> Iterator[tuple[str, ...]]:
    """The captions of the images whose file can be read."""
    for file in getattr(source, "files", ()):
        with contextlib.suppress(UserError):
            if file:
                yield read_captions(file)


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class _Found:
    """What there is to say about one example."""

    name: str
    id: int | None = None
    unreadable: str = ""
    label: str = ""
    box: str = ""
    overhangs: bool = False


def _in_chunks(pool: ThreadPoolExecutor, look: partial, size: int) -> Iterator[_Found]:
    """Maps over indices in order, without a million pending calls."""
    for start in range(0, size, _CHUNK):
        yield from pool.map(look, range(start, min(start + _CHUNK, size)))


def _look(source: Source, num_classes: int, index: int) -> _Found:
    """Looks at one example."""
    try:
        example = source[index]
    except CorruptImageError as error:
        return _Found(error.name, unreadable=error.reason)
    name, label = example["name"], example.get("label", _NO_LABEL)
    # A reader that knows no label has said so, and gives -1.
    wrong = f"label is {label}; expected 0 to {num_classes - 1}"
    label_problem = "" if label == _NO_LABEL or 0 <= label < num_classes else wrong
    if "features" in example:
        finite = np.isfinite(example["features"]).all()
        reason = "" if finite else "features are not finite"
        return _Found(name, example["id"], unreadable=reason, label=label_problem)
    try:
        height, width = decode(example["image"], name).shape[:2]
    except CorruptImageError as error:
        return _Found(name, example["id"], unreadable=error.reason, label=label_problem)
    size = size_disagreement(example, height, width)
    box, overhangs = _look_at_box(example.get("bbox"), height, width)
    return _Found(name, example["id"], label=label_problem, box=size or box, overhangs=overhangs)


def _look_at_box(box: np.ndarray | None, height: int, width: int) -> tuple[str, bool]:
    """Says what is wrong with a box, and whether it reaches over the image at all."""
    if box is None:
        return "", False
    x0, y0, x1, y1 = (float(v) for v in box)
    corners = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not (x1 > x0 and y1 > y0):
        return f"box {corners} is empty", False
    inside = max(0, min(x1, width) - max(x0, 0)) * max(0, min(y1, height) - max(y0, 0))
    share = inside / ((x1 - x0) * (y1 - y0))
    if share < _LEAST_INSIDE:
        return f"box {corners} lies outside the image of {width} x {height}", True
    return "", share < 1


def _summarise(report: Report, found: list[_Found]) -> None:
    """Turns what was found into rows and problems."""
    missing = [one for one in found if one.unreadable == MISSING]
    corrupt = [one for one in found if one.unreadable and one.unreadable != MISSING]
    report.add("missing images", len(missing))
    report.add("corrupt images", len(corrupt))
    report.add("labels out of range", sum(bool(one.label) for one in found))
    report.add("boxes over the border", sum(one.overhangs for one in found))
    report.problems += [
        f"image {one.name}: {what}"
        for one in found
        for what in (one.unreadable, one.label, one.box)
        if what
    ]


def _given_twice(found: list[_Found]) -> list[str]:
    """Complains of each id that several examples have."""
    ids = Counter(one.id for one in found if one.id is not None)
    twice = sorted(number for number, count in ids.items() if count > 1)
    return [f"id {number} belongs to {ids[number]} images" for number in twice]


__all__ = ["Report", "check_captions", "check_examples", "check_inspection"]
