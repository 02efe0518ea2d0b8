"""The data sets by name."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fgkd_jax.data import (
    aircraft,
    cifar,
    coco_json,
    cub,
    cub_zero_shot,
    feature_folder,
    flowers,
    image_folder,
    tfds_names,
    voc_xml,
    xlsa17,
)
from fgkd_jax.data.base import Dataset, Inspection
from fgkd_jax.data.check import check_captions, check_inspection
from fgkd_jax.data.report import Report
from fgkd_jax.data.zero_shot import check_zero_shot
from fgkd_jax.errors import UserError, nearest

_ENVIRONMENT = "FGKD_DATA_DIR"
_DEFAULT = "~/.cache/fgkd_jax"


@dataclass(frozen=True)
class Opener:
    """What can be done with a data set; each takes its name and folder (None: not given).

    Attributes:
      open: reads it.
      check: looks for everything that is wrong with it.
      build: makes it, or says where to get it.
      with_boxes: whether its images have boxes, and no label that captions could belong to.
    """

    open: Callable[[str, str | None], Dataset]
    check: Callable[[str, str | None], Report]
    build: Callable[[str, str | None], None]
    with_boxes: bool = False


def open_dataset(name: str, *, data_dir: str | None = None) -> Dataset:
    """Opens a data set.

    Args:
      name: "procedural_birds/classification", "procedural_birds/zero_shot", "cub200_2011",
        "cub200_2011/zero_shot", "cifar10", "cifar100", "flowers102", "fgvc_aircraft",
        "image_folder", "xlsa17/CUB" (or another of its folders), "features" (what `fgkd features`
        wrote), with boxes "coco_json", "voc_xml", "voc_xml/trainval" and
        "procedural_birds/detection", or "tfds/" and the name of a data set that TensorFlow Datasets
        prepared.
      data_dir: its folder, or the one it lies in; None is `$FGKD_DATA_DIR`, else
        `~/.cache/fgkd_jax` (for TFDS, TFDS's own default).

    Returns:
      The data set.

    Raises:
      UserError: there is no such data set, its files are missing or wrong, or it has an unseen
        class in its training split.
    """
    return check_zero_shot(_opener(name).open(name, data_dir))


def check_dataset(
    name: str, *, data_dir: str | None = None, captions_dir: str | None = None
) -> Report:
    """Looks for everything that is wrong with a data set, decoding every image.

    Args:
      name: as `open_dataset` takes it.
      data_dir: likewise.
      captions_dir: folder of captions of its images, to be checked with them.

    Returns:
      The report, which prints as a table.

    Raises:
      UserError: there is no such data set, or captions are given with one that has boxes.
    """
    opener = _opener(name)
    if captions_dir is not None and opener.with_boxes:
        raise UserError(f"{name} has boxes, no labels; expected no --captions_dir")
    report = opener.check(name, data_dir)
    if captions_dir is not None:
        try:
            dataset = opener.open(name, data_dir)
        except UserError:
            report.problems.append(f"captions in {captions_dir}: not read, for the data set is not")
        else:
            check_captions(report, dataset, captions_dir)
    return report


def build_dataset(name: str, *, data_dir: str | None = None) -> None:
    """Makes a data set that the library draws itself.

    Args:
      name: as `open_dataset` takes it.
      data_dir: where to put it.

    Raises:
      UserError: there is no such data set, or it has to be downloaded; the message says where.
    """
    _opener(name).build(name, data_dir)


def default_data_dir() -> str:
    """Returns the folder of data sets whose place is not given."""
    return os.environ.get(_ENVIRONMENT) or str(Path(_DEFAULT).expanduser())


def _opener(name: str) -> Opener:
    """Finds a data set by its name, or by what comes before the slash."""
    family = name.partition("/")[0] + "/*"
    if name in DATASETS:
        return DATASETS[name]
    if family in DATASETS and len(name) > len(family) - 1:
        return DATASETS[family]
    raise UserError(f"there is no data set {name!r}{nearest(name, DATASETS)}")


def _from_files(
    inspect: Callable[[str, str], Inspection], where: str, *, with_boxes: bool = False
) -> Opener:
    """A data set in the layout its authors publish."""

    def open_files(name: str, data_dir: str | None) -> Dataset:
        return inspect(name, data_dir or default_data_dir()).usable()

    def check(name: str, data_dir: str | None) -> Report:
        folder = data_dir or default_data_dir()
        report = check_inspection(name, folder, inspection := inspect(name, folder))
        if data_dir is None and inspection.dataset is None:
            report.problems[0] += "; give --data_dir, for this is the default folder"
        return report

    def build(name: str, data_dir: str | None) -> None:
        raise UserError(f"{name} cannot be drawn here; {where}")

    return Opener(open_files, check, build, with_boxes)


def _tfds_place(name: str, data_dir: str | None) -> tuple[str, str | None]:
    """TFDS's own name, and its folder; without one TFDS looks where it usually does."""
    return name.removeprefix("tfds/"), data_dir or os.environ.get(_ENVIRONMENT) or None


def _open_tfds(name: str, data_dir: str | None) -> Dataset:
    """Opens a data set that TFDS prepared."""
    return tfds_names.inspect(*_tfds_place(name, data_dir)).usable()


def _check_tfds(name: str, data_dir: str | None) -> Report:
    """Checks a data set that TFDS prepared."""
    own_name, folder = _tfds_place(name, data_dir)
    inspection = tfds_names.inspect(own_name, folder)
    return check_inspection(name, folder or "TFDS's default folder", inspection)


def _build_tfds(name: str, data_dir: str | None) -> None:
    """Says how TFDS prepares a data set."""
    how = tfds_names.how_to_prepare(*_tfds_place(name, data_dir))
    raise UserError(f"{name} cannot be drawn here; {how}")


def _birds_place(name: str, data_dir: str | None) -> tuple[str, str]:
    """The folder of data sets, and the configuration after the slash."""
    return data_dir or default_data_dir(), name.partition("/")[2]


def _open_birds(name: str, data_dir: str | None) -> Dataset:
    """Opens the drawn birds, drawing them first where they are missing."""
    from fgkd_jax.data.procedural_birds import open_birds

    folder, config = _birds_place(name, data_dir)
    return open_birds(folder, config=config)


def _check_birds(name: str, data_dir: str | None) -> Report:
    """Checks the drawn birds, and draws none."""
    from fgkd_jax.data.procedural_birds import birds_folder, open_birds

    folder, config = _birds_place(name, data_dir)
    place = birds_folder(folder, config=config)
    if not place.is_dir():
        missing = f"{place}: is not there; draw it with: fgkd data build {name}"
        return check_inspection(name, folder, Inspection(None, (missing,)))
    return check_inspection(name, folder, Inspection(open_birds(folder, config=config)))


def _build_birds(name: str, data_dir: str | None) -> None:
    """Draws the birds."""
    from fgkd_jax.data.procedural_birds import build_birds

    folder, config = _birds_place(name, data_dir)
    build_birds(folder, config=config)


_FEATURES = _from_files(lambda _, data_dir: feature_folder.inspect(data_dir), feature_folder.WHERE)


def _check_features(name: str, data_dir: str | None) -> Report:
    """Checks features, and that no file of them has changed."""
    report = _FEATURES.check(name, data_dir)
    if report.lines:  # it could be opened
        report.problems[:0] = feature_folder.verify(data_dir or default_data_dir())
    return report


_BIRDS = Opener(_open_birds, _check_birds, _build_birds)
_BIRD_SCENES = Opener(_open_birds, _check_birds, _build_birds, with_boxes=True)

DATASETS: Mapping[str, Opener] = {
    "procedural_birds/classification": _BIRDS,
    "procedural_birds/tiny": _BIRDS,
    "procedural_birds/zero_shot": _BIRDS,
    "procedural_birds/detection": _BIRD_SCENES,
    "procedural_birds/detection_tiny": _BIRD_SCENES,
    "cub200_2011": _from_files(lambda _, data_dir: cub.inspect(data_dir), cub.WHERE),
    "cub200_2011/zero_shot": _from_files(
        lambda _, data_dir: cub_zero_shot.inspect(data_dir), cub.WHERE
    ),
    "xlsa17/*": _from_files(xlsa17.inspect, xlsa17.WHERE),
    "features": Opener(_FEATURES.open, _check_features, _FEATURES.build),
    "cifar10": _from_files(cifar.inspect, cifar.WHERE),
    "cifar100": _from_files(cifar.inspect, cifar.WHERE),
    "flowers102": _from_files(lambda _, data_dir: flowers.inspect(data_dir), flowers.WHERE),
    "fgvc_aircraft": _from_files(aircraft.inspect, aircraft.WHERE),
    "fgvc_aircraft/trainval": _from_files(aircraft.inspect, aircraft.WHERE),
    "image_folder": _from_files(
        lambda _, data_dir: image_folder.inspect(data_dir), image_folder.LAYOUT
    ),
    "coco_json": _from_files(
        lambda _, data_dir: coco_json.inspect(data_dir), coco_json.WHERE, with_boxes=True
    ),
    "voc_xml": _from_files(voc_xml.inspect, voc_xml.WHERE, with_boxes=True),
    "voc_xml/trainval": _from_files(voc_xml.inspect, voc_xml.WHERE, with_boxes=True),
    "tfds/*": Opener(_open_tfds, _check_tfds, _build_tfds),
}
"""Every data set; a name that ends in `/*` stands for all that begin like it."""
