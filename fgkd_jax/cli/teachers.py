"""Whether a file holds the frozen teacher that a method learns from, and if not, why not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from fgkd_jax.cli.experiment import Experiment, method_to_dict, parse_method
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.vocabulary import Vocabulary, check_vocabulary
from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import backbone_from
from fgkd_jax.protocols import ChoosingMethod, Taught
from fgkd_jax.train.weight_files import load_metadata

FROM_DATA = ("num_classes", "vocabulary_size")
"""Options that the data set gives a teacher, and not whoever writes a config."""

UNHEARD = frozenset(
    {
        # Of training.
        *("brightness", "contrast", "saturation", "dropout", "text_dropout", "label_smoothing"),
        *("frozen_stages", "box_weight", "focal_alpha", "focal_gamma"),
        *("anchor_samples", "region_samples", "positive_share"),
        # Of a backbone: of training, of its memory and precision.
        *("norm_groups", "frozen_norm", "zero_init_residual", "remat", "dtype"),
        # Which boxes are kept, and how many, is for whoever asks.
        *("score_threshold", "iou_threshold", "max_detections"),
        *("train_candidates", "candidates", "proposals", "proposal_iou"),
    }
)
"""Options that may differ: by them a trained network says nothing else of an image."""


def check_teacher(experiment: Experiment, dataset: Dataset) -> None:
    """Raises before a run begins where a file says that it is not the teacher.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Raises:
      UserError: the file is of another method than the teacher or of one with other options, knows
        other classes, or numbers words otherwise.
    """
    path, method = experiment.pretrained.teacher, experiment.method
    if not isinstance(method, Taught):
        return
    metadata = load_metadata(path)
    described = metadata.get("method")
    expected = method_to_dict(method.teaching)["name"]
    if isinstance(described, Mapping):
        if described.get("name") != expected:
            kind = described.get("name")
            raise UserError(f"the teacher {path} is a {kind}; expected a {expected}")
        _check_options(method, described, path)
    _check_classes(metadata.get("class_names"), dataset, path)
    words = metadata.get("vocabulary")
    if words and dataset.info.vocabulary and experiment.text:
        theirs = Vocabulary(tuple(words))
        check_vocabulary(dataset.info.vocabulary, theirs, owner=f"the teacher {path}")


def _check_classes(known: list[str] | None, dataset: Dataset, path: str) -> None:
    classes = dataset.info.class_names
    if known and len(known) != len(classes):
        raise UserError(
            f"the teacher {path} knows {len(known)} classes; expected {len(classes)}, those of "
            f"{dataset.info.name}"
        )
    for i, (their, ours) in enumerate(zip(known or (), classes, strict=False)):
        if their != ours:
            raise UserError(
                f"class {i} of the teacher {path} is {their!r}; expected {ours!r}, as in "
                f"{dataset.info.name}"
            )


_ABSENT = object()

_Option = tuple[str, ...]


def differing_options(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Looks for the options by which two methods of one name make different things of an image.

    Args:
      ours: `name` and options, as of `method_to_dict`.
      theirs: likewise, or as JSON has them; what is left out has its default.

    Returns:
      Paths of the options that are not the same in both, without those that change nothing outside
      of training (`UNHEARD`) and those that the data give; the name of a backbone in place of all
      else of it.

    Raises:
      UserError: `theirs` are no options of a method.
    """
    # Ours has all options that a method has: others are of another version of the library.
    known = {name: value for name, value in theirs.items() if name in ours}
    a, b = _meaning(ours), _meaning(known)
    differing = [key for key in {**a, **b} if a.get(key, _ABSENT) != b.get(key, _ABSENT)]
    name: _Option = ("backbone", "name")
    if any(key[0] == "backbone" for key in differing) and _flat(ours)[name] != _flat(known).get(
        name
    ):
        return [name, *(key for key in differing if key[0] != "backbone")]
    return differing


def _flat(options: Mapping[str, Any]) -> dict[_Option, Any]:
    return flatten_dict(dict(options), keep_empty_nodes=True)


def _meaning(options: Mapping[str, Any]) -> dict[_Option, Any]:
    """The options that make a difference to what a method says, with defaults, by path."""
    method: Any = parse_method(options, path="method")
    # What a method chooses where an option is None is as if it had been given.
    whole = method_to_dict(method.chosen() if isinstance(method, ChoosingMethod) else method)
    if "backbone" in whole:
        module: Any = backbone_from(whole["backbone"])
        fields = [field.name for field in dataclasses.fields(module)]
        values = {name: getattr(module, name) for name in fields if name not in ("parent", "name")}
        whole["backbone"] = {"kind": type(module), **values}
    unheard = UNHEARD.union(FROM_DATA)
    return {key: value for key, value in _flat(whole).items() if not unheard & set(key)}


def _check_options(method: Taught, theirs: Mapping[str, Any], path: str) -> None:
    """Raises where the teacher that is expected says other things than the one of the file."""
    ours = method_to_dict(method.teaching)
    try:
        differing = differing_options(ours, theirs)
    except UserError as error:
        raise UserError(f"the teacher {path}: {error}") from error
    if not differing:
        return
    option = differing[0]
    where = _place(method, option)
    name = where.removeprefix("method.teacher.") if option[0] == "backbone" else ".".join(option)
    has, expected = (stated(options, option) for options in (theirs, ours))
    has = f"{name} {has}" if option in _flat(theirs) else f"{has} of {name}"
    raise UserError(f"the teacher {path} has {has}; expected {expected} ({where})")


def stated(options: Mapping[str, Any], option: tuple[str, ...]) -> str:
    """Tells the value of an option.

    Args:
      options: of a method, as a config or JSON has them.
      option: its path.

    Returns:
      The value as a config has it; `the default` where it is left out.
    """
    given = _flat(options).get(option, _ABSENT)
    return "the default" if given is _ABSENT else repr(_with_tuples(given))


def _place(method: Taught, option: _Option) -> str:
    """Where an option of the teacher is set."""
    # Of some methods `teacher` is a backbone, of others it holds one.
    if "name" not in method.teacher:
        return ".".join(("method", "teacher", *option))
    if option[0] == "backbone":
        return ".".join(("method", "teacher", *option[1:]))
    return f"method.{option[0].replace('image', 'teacher')}"


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value
