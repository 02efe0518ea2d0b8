"""PyTorch's names and layouts of our variables.

A family of networks has one pure function from the place of a module in our variables to its name
in PyTorch (`torch_families`); everything else (which tensors a file must hold, in which shape, and
the export) is derived from it and from the variables at hand.

Supported are torchvision's ResNets, ShuffleNetV2, MobileNetV2 and VGGs (timm's `resnet*` without a
deep stem and the convolutions of its `vgg*` have the same names), MobileNetV2 also with folded
norms and the activation ranges of a quantised network; and of the networks for CIFAR, the ResNets
of torchvision's names, and the wide ResNets and HCGNets of MCL.
"""

from collections.abc import Sequence

import numpy as np
from flax.traverse_util import flatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.train.torch_families import FAMILIES, Path, family_rules
from fgkd_jax.typing import Variables

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "out_range": "out_range",
    "add_range": "out_range",
}
"""PyTorch's names of our variables, whatever the module."""


def family_of(
    variables: Variables, *, backbone: str = "backbone", head: str | None = "head"
) -> str:
    """The family whose modules a backbone is made of.

    Args:
      variables: collections by name; only their structure is looked at.
      backbone: path of the backbone, as in `load_pretrained`.
      head: path of the head, or None.

    Returns:
      A key of `FAMILIES`.

    Raises:
      UserError: it belongs to none of them.
    """
    reasons = []
    for name in FAMILIES:
        try:
            torch_names(variables, family=name, backbone=backbone, head=head)
        except UserError as error:
            reasons.append(str(error))
        else:
            return name
    raise UserError(reasons[0] if len(set(reasons)) == 1 else "; ".join(reasons))


def torch_names(
    variables: Variables, *, family: str, backbone: str = "backbone", head: str | None = "head"
) -> dict[str, Path]:
    """PyTorch's name of every variable of a backbone and its head.

    Args:
      variables: collections by name; only their structure is looked at.
      family: a key of `FAMILIES`.
      backbone: path of the backbone, as in `load_pretrained`.
      head: path of the head, or None.

    Returns:
      Name -> (collection, path of the variable); one to one.

    Raises:
      UserError: the paths lead to nothing of this family.
    """
    rules = family_rules(family)
    keys = list(flatten_dict(dict(variables)))
    head_keys = [] if head is None else _below(keys, head)
    backbone_keys = [key for key in _below(keys, backbone) if key not in head_keys]
    for part, path, found in (("backbone", backbone, backbone_keys), ("head", head, head_keys)):
        if not found and path is not None:
            top = ", ".join(sorted({key[1] for key in keys}))
            hint = "; head=None leaves it out" if part == "head" else ""
            raise UserError(f"variables hold nothing under {part}={path!r}; found {top}{hint}")
    names: dict[str, Path] = {}
    for key in (*backbone_keys, *head_keys):
        if key in head_keys:
            start = rules.head if key[-2] == "dense" else None
        else:
            module = rules.module_name(key[1 + len(_split(backbone)) : -1])
            start = None if module is None else f"{module}."
        if start is None or key[-1] not in LEAVES:
            raise UserError(f"variable {'/'.join(key)} is not part of a {family}")
        names[f"{start}{LEAVES[key[-1]]}"] = key
    return names


def _below(keys: Sequence[Path], path: str) -> list[Path]:
    """The keys (collection, ...) of the variables below a path."""
    parts = _split(path)
    return [key for key in keys if key[1 : 1 + len(parts)] == parts]


def _split(path: str) -> Path:
    return tuple(part for part in path.split("/") if part)


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a variable has in PyTorch's layout."""
    return to_torch(np.broadcast_to(np.float32(0), shape)).shape


def to_torch(array: np.ndarray) -> np.ndarray:
    """Transposes a variable: HWIO -> OIHW, depthwise HWC -> C1HW, linear IO -> OI."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 3:
        return array.transpose(2, 0, 1)[:, None]
    return array.T


def from_torch(array: np.ndarray, *, ndim: int) -> np.ndarray:
    """The inverse of `to_torch` for a variable with `ndim` axes."""
    if ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if ndim == 3:
        return array[:, 0].transpose(1, 2, 0)
    return array.T
