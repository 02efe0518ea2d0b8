"""What a data set says of its classes, on the way into the variables of a method."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fgkd_jax.data.base import Dataset, labels_and_ids
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.errors import UserError
from fgkd_jax.protocols import DescribedMethod, Method
from fgkd_jax.train.init import Overlay
from fgkd_jax.typing import Variables

FINGERPRINT = "class descriptions fingerprint"
"""Under which every checkpoint has that of the descriptions it was trained with."""


class Described(NamedTuple):
    """What descriptions add to a run.

    Attributes:
      constants: the collection of this name.
      overlay: puts the parameters that start from descriptions in place of random ones.
      metadata: by which a resumed run knows the descriptions again.
    """

    constants: dict[str, Any]
    overlay: Overlay
    metadata: dict[str, str]


def described_sizes(method: Method, dataset: Dataset) -> dict[str, int]:
    """Counts what a method has to know of descriptions before it makes its variables.

    Args:
      method: a method of any kind.
      dataset: the data set.

    Returns:
      By option of the method; nothing where it needs no descriptions.

    Raises:
      UserError: it does, and the data set has none.
    """
    if not isinstance(method, DescribedMethod):
        return {}
    found = _descriptions(method, dataset)
    sizes = {"num_attributes": found.attributes.shape[1]}
    if found.word_vectors is not None:
        sizes["word_size"] = found.word_vectors.shape[1]
    return sizes


def describe(method: Method, dataset: Dataset) -> Described | None:
    """Gives a method the descriptions of a data set's classes.

    Args:
      method: a method of any kind, its sizes known.
      dataset: the data set.

    Returns:
      What comes of it; None where the method needs no descriptions.

    Raises:
      UserError: the descriptions lack something, are of other classes, or training has images of a
        class that they call unseen.
    """
    if not isinstance(method, DescribedMethod):
        return None
    found = _descriptions(method, dataset)
    names = zip(found.class_names, dataset.info.class_names, strict=False)
    for i, (theirs, ours) in enumerate(names):
        if theirs != ours:
            raise UserError(
                f"class {i} is {theirs!r} in the descriptions and {ours!r} in {dataset.info.name}; "
                "expected the same classes in the same order"
            )
    if len(found.class_names) != dataset.info.num_classes:
        raise UserError(
            f"{len(found.class_names)} classes are described; expected the "
            f"{dataset.info.num_classes} of {dataset.info.name}"
        )
    _check_training_classes(found, dataset)
    arrays = method.describe(
        found.attributes, found.seen, found.word_vectors, class_names=found.class_names
    )
    params = arrays.get("params", {})

    def overlay(variables: Variables) -> Variables:
        return {**variables, "params": replaced(variables["params"], params)}

    return Described(arrays["constants"], overlay, {FINGERPRINT: found.fingerprint})


def replaced(tree: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Puts arrays in place of others of the same names.

    Args:
      tree: nested mappings of arrays.
      arrays: some of them, nested alike.

    Returns:
      The whole tree.

    Raises:
      ValueError: there is nothing of a name, or it has another shape.
    """
    new = dict(tree)
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            new[name] = replaced(tree[name], value)
            continue
        if name not in tree or np.shape(tree[name]) != np.shape(value):
            there = np.shape(tree[name]) if name in tree else "missing"
            raise ValueError(f"{name} of shape {np.shape(value)} replaces what is {there}")
        new[name] = value
    return new


def chained(*overlays: Overlay | None) -> Overlay | None:
    """Makes one overlay of several.

    Args:
      overlays: in the order in which they are applied; those that are None are left out.

    Returns:
      One that applies all of them; None where there is none.
    """
    given = [one for one in overlays if one is not None]
    if not given:
        return None

    def overlay(variables: Variables) -> Variables:
        for one in given:
            variables = one(variables)
        return variables

    return overlay


def _descriptions(method: Method, dataset: Dataset) -> ClassDescriptions:
    if dataset.info.descriptions is None:
        raise UserError(
            f"{type(method).__name__} knows classes by their attributes, but {dataset.info.name} "
            "describes none of its classes"
        )
    return dataset.info.descriptions


def _check_training_classes(found: ClassDescriptions, dataset: Dataset) -> None:
    """Raises where the training split has an image of an unseen class."""
    labels, ids = labels_and_ids(dataset.source("train"))
    for i in np.flatnonzero(~found.seen[labels])[:1]:
        raise UserError(
            f"the training example with id {ids[i]} is of class "
            f"{found.class_names[labels[i]]!r}, which is unseen; expected seen classes alone"
        )
