"""Captions in the layout of their authors: `text_c10/<class>/<image>.txt`, one sentence a line.

Reed, Akata, Lee and Schiele, "Learning deep representations of fine-grained visual descriptions",
CVPR 2016, gave ten captions to every image of CUB-200-2011 and Oxford Flowers-102. Classes of CUB
have the names of their image folders, those of the flowers are `class_00001` and so on; a file has
the name of its image.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fgkd_jax.data.base import Dataset, Example, Source, SplitSources, captions_of, labels_and_ids
from fgkd_jax.data.holdout import hash_ids
from fgkd_jax.data.text import TextOptions, phrases_of
from fgkd_jax.data.vocabulary import build_vocabulary
from fgkd_jax.errors import UserError, first_of

FOLDER = "text_c10"
"""The folder of the class folders."""

WHERE = (
    "expected <captions_dir>/<class>/<image>.txt; get those of CUB and Flowers from "
    "https://github.com/reedscot/cvpr2016"
)
"""What the folder should look like, and where captions come from."""


NO_PHRASE = (
    "the captions of train have no noun phrase, by {}; expected English sentences such as 'this "
    "bird has a red crown'"
)
"""What is wrong with captions that say nothing."""


def read_captions(path: str) -> tuple[str, ...]:
    """Reads the captions of an image, and remembers them until the file changes.

    Args:
      path: a text file, one sentence a line.

    Returns:
      The sentences, without empty lines.

    Raises:
      UserError: the file cannot be read, is empty or is not UTF-8.
    """
    try:
        found = os.stat(path)
        return _read(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise UserError(f"captions {path}: cannot be read ({error.strerror})") from None


@functools.lru_cache(maxsize=2**16)
def _read(path: str, changed: int, size: int) -> tuple[str, ...]:
    """Reads a file, as it was at a time."""
    del changed, size
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"captions {path}: byte {error.start} is 0x{byte:02x}, which is not UTF-8; expected "
            "captions in UTF-8"
        ) from None
    sentences = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not sentences:
        raise UserError(f"captions {path}: is empty; expected one sentence a line")
    return sentences


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedSource:
    """A source with a file of captions for each example.

    Attributes:
      base: the source.
      files: one file per example.
      labels: int64[n].
      ids: int64[n].
    """

    base: Source
    files: tuple[str, ...]
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Example:
        return self.base[index]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of an example.

        Args:
          index: which example.

        Returns:
          Sentences.
        """
        return read_captions(self.files[index])


def inspect_captions(dataset: Dataset, captions_dir: str) -> tuple[SplitSources, tuple[str, ...]]:
    """Finds and reads the captions of every image of a data set.

    Args:
      dataset: a data set of image files.
      captions_dir: the folder `text_c10`, or the one that it lies in.

    Returns:
      The data set with captions, and what is wrong with them, one line each; images without
      captions have an empty file name.

    Raises:
      UserError: there is no such folder, or the data set is not one of image files.
    """
    root = Path(captions_dir).expanduser()
    nested = root / FOLDER
    root = nested if nested.is_dir() else root
    if not root.is_dir():
        raise UserError(f"there is no folder of captions {root}; {WHERE}")
    names = {split: _names(dataset, split, root) for split in dataset.info.splits}
    files = _CaptionFiles(root, [name for some in names.values() for name in some])
    missing: list[tuple[int, str]] = []
    sources: dict[str, Source] = {}
    classes: dict[int, list[bool]] = {}
    for split, some in names.items():
        source = dataset.source(split)
        found = tuple(files.of(name, split) for name in some)
        labels, ids = labels_and_ids(source)
        sources[split] = CaptionedSource(source, found, labels, ids)
        for name, file, label in zip(some, found, labels.tolist(), strict=True):
            classes.setdefault(label, []).append(bool(file))
            if not file:
                missing.append((label, f"image {name}: has no captions in {root}"))
    if not files.count:
        problems = [f"captions {root}: there are none; {WHERE}"]
    else:
        problems = list(_without_captions(dataset, classes, root))
        problems += [line for label, line in missing if label < 0 or any(classes[label])]
    problems += files.problems
    problems += [line for source in sources.values() for line in _unreadable(source)]
    return SplitSources(dataset.info, sources), tuple(problems)


def _names(dataset: Dataset, split: str, root: Path) -> tuple[str, ...]:
    """The names of a split's image files."""
    names = getattr(dataset.source(split), "names", None)
    if names is None:
        raise UserError(
            f"{dataset.info.name} is not made of image files; expected one that is, to find "
            f"captions in {root} by their names"
        )
    return tuple(names)


class _CaptionFiles:
    """The files of captions under a root, by class folder and image; each is of one image.

    A file whose class folder and name are those of an image is of no other class, so that a class
    without captions is not given those of another that numbers its images alike.
    """

    def __init__(self, root: Path, images: Iterable[str]):
        self.problems: list[str] = []
        self.count = 0
        self._owners: dict[str, str] = {}
        self._by_place: dict[tuple[str, str], str] = {}
        self._by_stem: dict[str, str] = {}
        places = {_place(image) for image in images}
        for path in sorted(root.glob("*/*.txt")):
            self.count += 1
            place = _place(str(path))
            self._by_place[place] = str(path)
            if place not in places:
                self._by_stem[path.stem] = str(path)

    def of(self, image: str, split: str) -> str:
        """The file of an image, by its folder and name, else by its name; "" for none."""
        place, image = _place(image), f"{split}: {image}"
        file = self._by_place.get(place) or self._by_stem.get(place[1], "")
        owner = self._owners.setdefault(file, image) if file else image
        if owner != image:
            self.problems.append(
                f"captions {file}: are those of {owner} and of {image}; expected names that differ"
            )
        return file


def _place(path: str) -> tuple[str, str]:
    """The folder that a file lies in, and its name without the ending."""
    return Path(path).parent.name, Path(path).stem


def with_text(dataset: Dataset, options: TextOptions) -> Dataset:
    """Gives a data set captions and a vocabulary.

    The vocabulary is the data set's own where it has one, else the words of the phrases of all
    captions of the split `train`, validation images that are held out of it among them.

    Args:
      dataset: with captions of its own, or of image files.
      options: where captions are, and how they are read.

    Returns:
      The data set; its sources have `captions`, its description a vocabulary.

    Raises:
      UserError: captions are missing or cannot be read; the first problem is told, and how many
        more there are.
    """
    if options.captions_dir:
        dataset, problems = inspect_captions(dataset, options.captions_dir)
        if problems:
            raise UserError(first_of(problems))
    sources = {split: dataset.source(split) for split in dataset.info.splits}
    vocabulary = dataset.info.vocabulary
    if vocabulary is None:
        phrases = _all_phrases(sources["train"], options)
        one = next(phrases, None)
        if one is None:
            raise UserError(NO_PHRASE.format(f"data.text.chunker {options.chunker!r}"))
        vocabulary = build_vocabulary(itertools.chain([one], phrases), min_count=options.min_count)
    return SplitSources(dataclasses.replace(dataset.info, vocabulary=vocabulary), sources)


def partners(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Pairs each example with another, of another class where that is possible.

    Examples are put in an order that scrambles classes, and in each class examples; each goes with
    the one half the split further on, around the end. Neighbouring classes, which are often close
    relatives, are thus no more likely than others. Where a class has more than half of all
    examples, the shift with the fewest pairs of one class is taken instead of half.

    Args:
      labels: int64[n].
      ids: int64[n]; with the labels they alone decide.

    Returns:
      Positions int64[n].
    """
    n = len(labels)
    order = np.lexsort((ids, hash_ids(ids, seed=0), labels, hash_ids(labels, seed=1)))
    sorted_labels = labels[order]
    best, fewest = 0, n + 1
    for shift in (*range(n // 2, n), *range(1, n // 2)):
        same = int(np.sum(sorted_labels == np.roll(sorted_labels, -shift)))
        if same < fewest:
            best, fewest = shift, same
        if not same:
            break
    paired = np.empty(n, np.int64)
    paired[order] = np.roll(order, -best)
    return paired


def _all_phrases(source: Source, options: TextOptions) -> Iterator[tuple[str, ...]]:
    for index in range(len(source)):
        yield from phrases_of(captions_of(source, index), chunker=options.chunker, unique=False)


def _without_captions(
    dataset: Dataset, classes: Mapping[int, list[bool]], root: Path
) -> Iterator[str]:
    """One line per class none of whose images has captions."""
    for label, found in sorted(classes.items()):
        if label >= 0 and not any(found):
            yield (
                f"class {dataset.info.class_names[label]!r}: none of its {len(found)} images has "
                f"captions in {root}; {WHERE}"
            )


def _unreadable(source: Source) -> Iterator[str]:
    """One line per file of captions that cannot be read."""
    for file in getattr(source, "files", ()):
        if file:
            try:
                read_captions(file)
            except UserError as error:
                yield str(error)
