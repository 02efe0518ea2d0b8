"""Whether a file holds the frozen teacher that a method learns from, and if not, why not."""

import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fgkd_jax.cli.experiment import Experiment, method_to_dict, parse_method
from fgkd_jax.data.base import Dataset
from fgkd_jax.data.vocabulary import Vocabulary, check_vocabulary
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import Taught
from fgkd_jax.train.init import abstract_variables
from fgkd_jax.train.weight_files import load_metadata
from fgkd_jax.typing import Batch

FROM_DATA = ("num_classes", "vocabulary_size")
"""Options that the data set gives a teacher, and not whoever writes a config."""


def check_teacher(experiment: Experiment, dataset: Dataset) -> None:
    """Raises before a run begins where a file says that it is not the teacher.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Raises:
      UserError: the file is of another method than the teacher, knows other classes, or numbers
        words otherwise.
    """
    path, method = experiment.pretrained.teacher, experiment.method
    if not isinstance(method, Taught):
        return
    metadata = load_metadata(path)
    described = metadata.get("method")
    expected = method_to_dict(method.teaching)["name"]
    if isinstance(described, Mapping) and described.get("name") != expected:
        raise UserError(f"the teacher {path} is a {described.get('name')}; expected a {expected}")
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


def differing_option(method: Taught, path: str, spec: Batch) -> str | None:
    """Looks for the option by which a teacher's tensors are not those that are expected.

    Options that differ are tried one by one: if the expected teacher would have other tensors with
    the one of the file, it is that one. Where none is, for values that go together, it is the first
    that the expected teacher cannot have alone.

    Args:
      method: learns from the teacher.
      path: the file.
      spec: `jax.ShapeDtypeStruct` by batch key.

    Returns:
      What to say, in one line; None where no option of the file explains it.
    """
    theirs = load_metadata(path).get("method")
    if not isinstance(theirs, Mapping):
        return None
    # As JSON has it, tuples are lists, in the file too.
    ours = json.loads(json.dumps(method_to_dict(method.teaching)))
    expected = _shapes(ours, spec)
    impossible = []
    for option in _differing(ours, theirs):
        shapes = _shapes(_with(ours, theirs, option), spec)
        # What has another name has other options, so that its name alone may be impossible.
        if shapes != expected and (shapes is not None or option[-1] == "name"):
            return _told(method, path, option, ours, theirs)
        impossible += [option] if shapes is None else []
    return _told(method, path, impossible[0], ours, theirs) if impossible else None


_ABSENT = object()

_Option = tuple[str, ...]


def _flat(options: Mapping[str, Any]) -> dict[_Option, Any]:
    return flatten_dict(dict(options), keep_empty_nodes=True)


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[_Option]:
    """Paths of the options that are not the same in both, names first."""
    a, b = _flat(ours), _flat(theirs)
    differing = [
        key
        for key in {**a, **b}
        # Ours has all options that a method has: others are of another version of the library.
        if key[0] in ours and key[0] not in FROM_DATA and a.get(key, _ABSENT) != b.get(key, _ABSENT)
    ]
    return sorted(differing, key=lambda key: key[-1] != "name")


def _with(ours: Mapping[str, Any], theirs: Mapping[str, Any], option: _Option) -> dict[str, Any]:
    """Our options with one of theirs."""
    mixed = {key: value for key, value in _flat(ours).items() if key != option}
    value = _flat(theirs).get(option, _ABSENT)
    return unflatten_dict(mixed if value is _ABSENT else {**mixed, option: value})


def _shapes(options: Mapping[str, Any], spec: Batch) -> Any:
    """Shapes of a method's variables by path; None where there is no such method."""
    try:
        variables = abstract_variables(parse_method(options, path="teacher"), spec)
    except Exception:  # whatever it is: the file is refused already, this only looks for a reason
        return None
    return {path: leaf.shape for path, leaf in flatten_dict(dict(variables)).items()}


def _told(
    method: Taught,
    path: str,
    option: _Option,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
) -> str:
    """Says in what the teacher differs, and where that is set."""
    # Of some methods `teacher` is a backbone, of others it holds one.
    if "name" in method.teacher and option[0] == "backbone":
        option, ours, theirs = option[1:], ours["backbone"], theirs["backbone"]
    name = ".".join(option)
    given, wanted = (_flat(options).get(option, _ABSENT) for options in (theirs, ours))
    has = f"the default of {name}" if given is _ABSENT else f"{name} {_value(given)}"
    expected = "the default" if wanted is _ABSENT else _value(wanted)
    return f"the teacher {path} has {has}; expected {expected} (method.teacher.{name})"


def _value(value: Any) -> str:
    """A value of JSON as a config has it."""
    return repr(_with_tuples(value))


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value
