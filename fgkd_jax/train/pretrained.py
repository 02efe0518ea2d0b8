"""Pretrained weights: files in, variables out, and back."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.protocols import FROZEN
from fgkd_jax.train.torch_families import Arrays, Family, Path, family_rules
from fgkd_jax.train.torch_names import (
    family_of,
    from_torch,
    to_torch,
    torch_names,
    torch_shape,
)
from fgkd_jax.train.weight_files import file_sha256, load_arrays
from fgkd_jax.typing import Variables


@dataclasses.dataclass(frozen=True)
class PretrainedReport:
    """What `load_pretrained` did.

    Attributes:
      path: the file.
      sha256: of the file's bytes.
      loaded: names of the tensors that were put in place.
      kept: names of the tensors that the variables hold but keep as they were initialised.
      unused: names of the file's tensors that were left out.
    """

    path: str
    sha256: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        kept = f", {_some(self.kept)} kept as initialised" if self.kept else ""
        unused = f", {_some(self.unused)} of the file unused" if self.unused else ""
        return f"{self.path} (sha256 {self.sha256[:12]}): {len(self.loaded)} tensors{kept}{unused}"


def load_pretrained(
    variables: Variables,
    path: str | PathLike[str],
    *,
    family: str | None = None,
    backbone: str = "backbone",
    head: str | None = "head",
    reinit_head: bool = False,
    truncated: bool = False,
    skip: Sequence[str] = (),
) -> tuple[dict[str, Any], PretrainedReport]:
    """Lays the tensors of a weights file over initialised variables.

    The tensors have PyTorch's names, or our own (`named_arrays`).

    Every variable below `backbone` and `head` must be in the file and every tensor of the file
    must be wanted, in the right shape, unless an option says otherwise; all other variables stay.

    Args:
      variables: collections by name, as `init` returns them; not changed.
      path: .safetensors, .npz, or a PyTorch file (`load_arrays`).
      family: a key of `FAMILIES`; None: the one that the variables belong to.
      backbone: "/"-joined path of the backbone within each collection; "" when it is the root.
      head: path of the `LinearHead`; None: there is none, and the file's classifier is unused.
      reinit_head: keep the head as it was initialised, whatever the file's number of classes;
        needed for published VGGs, whose classifier of three layers is not the head's.
      truncated: the network may end before the file's: tensors that nothing wants are unused.
      skip: regular expressions; a variable whose PyTorch name contains one is kept as initialised,
        and such a tensor of the file is unused.

    Returns:
      The variables with the loaded arrays in their own dtype, and what was loaded.

    Raises:
      UserError: the file cannot be read, the paths lead to nothing of this family, or tensors are
        missing, unexpected, misshapen or not finite; all are counted and the first is named.
    """
    arrays = load_arrays(path)
    try:
        name = family or family_of(variables, backbone=backbone, head=head)
        rules = family_rules(name)
        without_head = (rules.classifier,) if reinit_head or head is None else ()
        given, others = _under_torch_names(arrays)
        new, loaded, kept, unused = _overlay(
            variables,
            rules.prepare(given),
            names=torch_names(variables, family=name, backbone=backbone, head=head),
            rules=rules,
            skip=(*skip, *without_head),
            optional="" if truncated else rules.optional,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return new, PretrainedReport(str(path), file_sha256(path), loaded, kept, (*unused, *others))


def load_exported(
    variables: Variables, path: str | PathLike[str]
) -> tuple[dict[str, Any], PretrainedReport]:
    """Lays a whole network, as `fgkd export` wrote it, over its variables.

    A backbone with a head is read by `load_pretrained`, so PyTorch's files serve too. Any other
    network has no names but its own (`named_arrays`), and every variable must be in the file.

    Args:
      variables: collections by name, of the one network; not changed.
      path: .safetensors, .npz, or, for a backbone with a head, a PyTorch file.

    Returns:
      The variables with the loaded arrays in their own dtype, and what was loaded.

    Raises:
      UserError: as `load_pretrained`.
    """
    if set(variables["params"]) <= {"backbone", "head"}:
        return load_pretrained(variables, path)
    return _lay(variables, load_arrays(path), path, kept=(), hint="")


def load_detector(
    variables: Variables,
    path: str | PathLike[str],
    *,
    of_classes: Collection[str] = (),
    reinit_head: bool = False,
    truncated: bool = False,
) -> tuple[dict[str, Any], PretrainedReport]:
    """Lays a weights file over a detector: another detector as a whole, or a backbone.

    A file of `named_arrays` that holds more than a backbone and a classifier, and nothing but parts
    that the variables have too (backbone, neck, heads), is laid over them as a whole; the other
    parts of the variables stay. Of any other file the backbone alone is taken (`load_pretrained`).

    Args:
      variables: collections by name; not changed. A teacher's stay as they are.
      path: in any format that `load_pretrained` reads.
      of_classes: names, as of `named_arrays`, of the variables whose shapes the number of classes
        decides.
      reinit_head: keep those of them as they were initialised that have another shape in the file.
      truncated: as of `load_pretrained`, for a backbone.

    Returns:
      The variables with the loaded arrays in their own dtype, and what was loaded.

    Raises:
      UserError: as `load_pretrained`.
    """
    arrays = load_arrays(path)
    parts = {name.split("/")[1] for name in arrays if name.startswith("params/")}
    if parts <= {"backbone", "head"} or not parts <= set(variables["params"]):
        return load_pretrained(variables, path, head=None, truncated=truncated)
    own = {name: tree for name, tree in variables.items() if name != FROZEN}
    there = {
        name: {part: tree for part, tree in collection.items() if part in parts}
        for name, collection in own.items()
    }
    other = set()
    for name, leaf in flatten_dict(there, sep="/").items():
        if name in of_classes and name in arrays and arrays[name].shape != tuple(leaf.shape):
            other.add(name)
    kept = tuple(sorted(other)) if reinit_head else ()
    hint = "others.backbone in place of path takes the backbone alone"
    if other and not reinit_head:
        hint = f"reinit_head=True starts with new layers for other classes; {hint}"
    new, report = _lay(there, arrays, path, kept=kept, hint=hint)
    rest = [name for name in flatten_dict(own, sep="/") if name.split("/")[1] not in parts]
    merged = {name: {**tree, **new.get(name, {})} for name, tree in own.items()}
    return {**variables, **merged}, dataclasses.replace(report, kept=(*kept, *rest))


def _lay(
    variables: Variables,
    arrays: Arrays,
    path: str | PathLike[str],
    *,
    kept: Collection[str],
    hint: str,
) -> tuple[dict[str, Any], PretrainedReport]:
    """Lays arrays over the variables of the same names, but for those that are kept."""
    flat = flatten_dict(dict(variables), sep="/")
    shapes = {name: tuple(leaf.shape) for name, leaf in flat.items() if name not in kept}
    _refuse(
        {
            "missing": [name for name in shapes if name not in arrays],
            "unexpected": [f"{n} {arrays[n].shape}" for n in arrays if n not in flat],
            "misshapen": [
                f"{n} with shape {arrays[n].shape}, expected {shape}"
                for n, shape in shapes.items()
                if n in arrays and arrays[n].shape != shape
            ],
            "not finite numbers": [n for n in shapes if n in arrays and not _finite(arrays[n])],
        },
        f"{path}: of {len(arrays)} tensors",
        hint,
    )
    new = {name: jnp.asarray(arrays[name], flat[name].dtype) for name in shapes}
    unused = tuple(name for name in arrays if name in kept)
    report = PretrainedReport(str(path), file_sha256(path), tuple(new), tuple(kept), unused)
    return unflatten_dict({**flat, **new}, sep="/"), report


def _refuse(problems: Mapping[str, Sequence[str]], what: str, hint: str) -> None:
    """Raises one line that counts all problems and names the first of each kind."""
    told = [f"{kind}: {_some(items)}" for kind, items in problems.items() if items]
    if told:
        raise UserError(f"{what}, {'; '.join([*told, hint] if hint else told)}")


def to_torch_state_dict(
    variables: Variables,
    *,
    family: str | None = None,
    backbone: str = "backbone",
    head: str | None = "head",
) -> dict[str, np.ndarray]:
    """The variables under PyTorch's names and in its layouts: the inverse of `load_pretrained`.

    Args:
      variables: collections by name.
      family: a key of `FAMILIES`; None: the one that the variables belong to.
      backbone: path of the backbone, as in `load_pretrained`.
      head: path of the head; None leaves it out.

    Returns:
      New arrays by name, for `load_state_dict` (after `torch.from_numpy`) or a safetensors file.

    Raises:
      UserError: the paths lead to nothing of this family.
    """
    flat = flatten_dict(dict(variables))
    name = family or family_of(variables, backbone=backbone, head=head)
    names = torch_names(variables, family=name, backbone=backbone, head=head)
    return {
        torch_name: np.array(to_torch(np.asarray(flat[key])), order="C")
        for torch_name, key in names.items()
    }


def named_arrays(variables: Variables) -> dict[str, np.ndarray]:
    """The variables under their own names, for a file that `load_pretrained` reads as well.

    Args:
      variables: collections by name.

    Returns:
      Arrays by "/"-joined path, the collection first: `params/backbone/stem/conv/kernel`.
    """
    flat = flatten_dict(dict(variables), sep="/")
    return {name: np.asarray(array) for name, array in flat.items()}


def _under_torch_names(arrays: Arrays) -> tuple[Arrays, tuple[str, ...]]:
    """The arrays of a file of `named_arrays` under PyTorch's names; those of others as they are.

    PyTorch has names for a backbone and its head alone: the names of all else are returned, too.
    """
    if not any(name.startswith("params/") for name in arrays):
        return arrays, ()
    variables = unflatten_dict(dict(arrays), sep="/")
    head = "head" if "head" in variables["params"] else None
    others = tuple(name for name in arrays if name.split("/")[1] not in ("backbone", "head"))
    return to_torch_state_dict(variables, head=head), others


def _overlay(
    variables: Variables,
    arrays: Arrays,
    *,
    names: Mapping[str, Path],
    rules: Family,
    skip: Sequence[str],
    optional: str,
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The variables with the arrays in their places, and the names loaded, kept and unused."""
    try:
        skipped = re.compile("|".join(f"(?:{pattern})" for pattern in skip) or r"(?!)")
    except re.error as error:
        raise UserError(f"skip={list(skip)} is not a regular expression: {error}") from error
    flat = flatten_dict(dict(variables), keep_empty_nodes=True)
    kept = tuple(name for name in names if skipped.search(name))
    wanted = {name: key for name, key in names.items() if name not in kept}
    unused = tuple(
        name
        for name in arrays
        if skipped.search(name) or (name not in wanted and re.search(optional, name))
    )
    offered = {name: array for name, array in arrays.items() if name not in unused}
    _check(offered, wanted, flat, classifier=rules.classifier)
    for name, key in wanted.items():
        leaf = flat[key]
        flat[key] = jnp.asarray(from_torch(offered[name], ndim=len(leaf.shape)), leaf.dtype)
    return unflatten_dict(flat), tuple(wanted), kept, unused


def _check(
    offered: Arrays, wanted: Mapping[str, Path], flat: Mapping[Path, Any], *, classifier: str
) -> None:
    """Raises one line that tells everything that keeps the tensors from their places."""
    missing = [f"{n} (for {'/'.join(wanted[n])})" for n in wanted if n not in offered]
    unexpected = [f"{n} {offered[n].shape}" for n in offered if n not in wanted]
    both = [n for n in wanted if n in offered]
    shapes = {n: torch_shape(tuple(flat[wanted[n]].shape)) for n in both}
    # Matrices first: their shapes say more than those of biases.
    misshapen = sorted(
        (n for n in both if offered[n].shape != shapes[n]), key=lambda n: -offered[n].ndim
    )
    described = [
        f"{n} with shape {offered[n].shape}, expected {shapes[n]}, for {'/'.join(wanted[n])}"
        for n in misshapen
    ]
    bad = [n for n in both if not _finite(offered[n])]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": described,
        "not finite numbers": bad,
    }
    told = [f"{kind}: {_some(items)}" for kind, items in problems.items() if items]
    if not told:
        return
    # What tells of another head: other shapes of its tensors, or (VGG) other tensors altogether.
    odd = misshapen or [n for n in (*offered, *wanted) if n not in both]
    if odd and all(re.search(classifier, n) for n in odd):
        told.append("reinit_head=True starts with a new head")
    raise UserError(f"of {len(offered)} tensors, {'; '.join(told)}")


def _some(items: Sequence[str]) -> str:
    """The first item, and how many more there are."""
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    return f"{items[0]}{more}"


def _finite(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating)) and bool(
        np.isfinite(array.astype(np.float32)).all()
    )
