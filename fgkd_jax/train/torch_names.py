"""PyTorch's names and layouts of our variables.

A family of networks has one pure function from the place of a module in our variables to its name
in PyTorch; everything else (which tensors a file must hold, in which shape, and the export) is
derived from it and from the variables at hand. Supported are torchvision's ResNets, ShuffleNetV2,
MobileNetV2 and VGGs (timm's `resnet*` without a deep stem and the convolutions of its `vgg*` have the same
names), MobileNetV2 also with folded norms and the activation ranges of a quantised network, and
the ResNets for CIFAR of the same names, whatever they call their classifier.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.typing import Variables

Path = tuple[str, ...]
Arrays = Mapping[str, np.ndarray]

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


SHUFFLENET_V2_LAYERS = {
    "side_depthwise": (1, 0),
    "side_project": (1, 2),
    "expand": (2, 0),
    "depthwise": (2, 3),
    "project": (2, 5),
}
"""Branch and place in it of the convolutions of a ShuffleNetV2's block; its norm is the next."""

HEADS = ("fc", "linear", "classifier")
"""What PyTorch's networks for CIFAR call their linear classifier."""

MOBILENET_V2_SUMS = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
"""The blocks of MobileNetV2 that end in a residual sum."""


class Family(NamedTuple):
    """How the tensors of one family of networks are named in PyTorch.

    Attributes:
      module_name: from the path of a backbone's module to its name, None where there is none.
      head: name of the linear classifier.
      classifier: regular expression of all names of a file's classifier, which stay unused where
        the head is not loaded; more than the linear one where others are in use.
      optional: regular expression of names that a file may hold in vain.
      prepare: what is done to a file's arrays before names are compared.
    """

    module_name: Callable[[Path], str | None]
    head: str
    classifier: str
    optional: str
    prepare: Callable[[Arrays], Arrays]


def resnet_name(path: Path) -> str | None:
    """The torchvision name of a module of `ResNet`.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where torchvision has no such module.

    Example:
      >>> resnet_name(("stage2", "block0", "shortcut_norm"))
      'layer2.0.downsample.1'
    """
    stem = {"stem/conv": "conv1", "stem/norm": "bn1"}
    joined = "/".join(path)
    if joined in stem:
        return stem[joined]
    match = re.fullmatch(
        r"stage(\d+)/block(\d+)/(?:conv(\d)|norm(\d)|shortcut_(conv|norm))", joined
    )
    if match is None:
        return None
    stage, block, conv, norm, shortcut = match.groups()
    if shortcut:
        module = f"downsample.{int(shortcut == 'norm')}"
    else:
        module = f"conv{conv}" if conv else f"bn{norm}"
    return f"layer{stage}.{block}.{module}"


def wide_resnet_name(path: Path) -> str | None:
    """The name of a module of `WideResNet` in the PyTorch networks of MCL.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where there is no such module.

    Example:
      >>> wide_resnet_name(("stage2", "block0", "shortcut"))
      'block2.layer.0.convShortcut'
    """
    joined = "/".join(path)
    if joined == "stem/conv":
        return "conv1"
    if re.fullmatch(r"stage\d+/norm", joined):
        return "bn1"
    match = re.fullmatch(r"stage(\d+)/block(\d+)/(conv\d|norm\d|shortcut)", joined)
    if match is None:
        return None
    stage, block, layer = match.groups()
    layer = "convShortcut" if layer == "shortcut" else layer.replace("norm", "bn")
    return f"block{stage}.layer.{block}.{layer}"


def shufflenet_v2_name(path: Path) -> str | None:
    """The torchvision name of a module of `ShuffleNetV2`.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where torchvision has no such module.

    Example:
      >>> shufflenet_v2_name(("stage1", "block0", "depthwise", "norm"))
      'stage2.0.branch2.4'
    """
    match = re.fullmatch(
        r"(?:stem|stage\d+/last|stage(\d+)/block(\d+)/(\w+))/(conv|norm)", "/".join(path)
    )
    if match is None:
        return None
    stage, block, layer, kind = match.groups()
    second = int(kind == "norm")
    if stage is None:
        return f"conv{1 if path[0] == 'stem' else 5}.{second}"
    if layer not in SHUFFLENET_V2_LAYERS:
        return None
    branch, position = SHUFFLENET_V2_LAYERS[layer]
    return f"stage{int(stage) + 1}.{block}.branch{branch}.{position + second}"


def mobilenet_v2_name(path: Path) -> str | None:
    """The torchvision name of a module of `MobileNetV2`.

    The range of a layer's activations is named as its convolution, that of a residual sum
    `features.<block>.add`.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where torchvision has no such module.

    Example:
      >>> mobilenet_v2_name(("stage1", "block2", "project", "norm"))
      'features.2.conv.3'
    """
    match = re.fullmatch(
        r"(?:stage\d/)?(stem|last|block\d+)(?:/(expand|depthwise|project))?(?:/(conv|norm))?",
        "/".join(path),
    )
    if match is None:
        return None
    place, layer, kind = match.groups()
    second = int(kind == "norm")
    if place in ("stem", "last"):
        return f"features.{0 if place == 'stem' else 18}.{second}"
    block = int(place.removeprefix("block"))
    if layer is None:
        return f"features.{block}.add"
    # Block 1 does not expand, so its layers are counted from the depthwise one.
    position = ("expand", "depthwise", "project").index(layer) - (block == 1)
    if layer == "project":
        return f"features.{block}.conv.{position + second}"
    return f"features.{block}.conv.{position}.{second}"


def vgg_name(path: Path) -> str | None:
    """The torchvision name of a module of `VGG`, whose own names carry the number in it.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where torchvision has no such module.

    Example:
      >>> vgg_name(("stage1", "norm8"))
      'features.8'
    """
    match = re.fullmatch(r"stage\d+/(?:conv|norm)(\d+)", "/".join(path))
    return match and f"features.{match[1]}"


def _unchanged(arrays: Arrays) -> Arrays:
    return arrays


def _head_renamed(arrays: Arrays, *, head: str) -> Arrays:
    """The linear classifier under the name `head`, whichever of `HEADS` the file has for it."""
    others = [name for name in HEADS if f"{name}.weight" in arrays]
    if f"{head}.weight" in arrays or len(others) != 1:
        return arrays
    pattern = re.compile(rf"^{others[0]}\.(?=(weight|bias)$)")
    return {pattern.sub(f"{head}.", name): array for name, array in arrays.items()}


def _split_sums(arrays: Arrays) -> Arrays:
    """Gives each row of `add.out_range` (the ranges of all residual sums) a name of its own."""
    if "add.out_range" not in arrays:
        return arrays
    ranges, expected = arrays["add.out_range"], (len(MOBILENET_V2_SUMS), 2)
    if ranges.shape != expected:
        raise UserError(f"add.out_range has shape {ranges.shape}; expected {expected}")
    rest = {name: array for name, array in arrays.items() if name != "add.out_range"}
    rows = zip(MOBILENET_V2_SUMS, ranges, strict=True)
    return rest | {f"features.{block}.add.out_range": row for block, row in rows}


FAMILIES: dict[str, Family] = {
    "resnet": Family(
        resnet_name,
        head="fc",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc"),
    ),
    "wide_resnet": Family(
        wide_resnet_name,
        head="fc",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc"),
    ),
    "shufflenet_v2": Family(
        shufflenet_v2_name,
        head="fc",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc"),
    ),
    "mobilenet_v2": Family(
        mobilenet_v2_name,
        head="classifier.1",
        classifier=r"^classifier\.1\.",
        optional=r"(num_batches_tracked|out_range)$",
        prepare=_split_sums,
    ),
    # The three layers of a VGG's classifier are `classifier.{0,3,6}` in torchvision, and in timm
    # `pre_logits.fc1`, `pre_logits.fc2` and `head.fc`. The last is, as ours, a linear layer on an
    # average over positions: it has the name, though its 4096 inputs fit no head of ours.
    "vgg": Family(
        vgg_name,
        head="head.fc",
        classifier=r"^(classifier|pre_logits|head)\.",
        optional=r"num_batches_tracked$",
        prepare=_unchanged,
    ),
}


def family_rules(name: str) -> Family:
    """The rules of a family by name; a wrong name is a `UserError`."""
    if name not in FAMILIES:
        raise UserError(f"family of weights {name!r}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


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
            name = rules.head if key[-2] == "dense" else None
        else:
            name = rules.module_name(key[1 + len(_split(backbone)) : -1])
        if name is None or key[-1] not in LEAVES:
            raise UserError(f"variable {'/'.join(key)} is not part of a {family}")
        names[f"{name}.{LEAVES[key[-1]]}"] = key
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
