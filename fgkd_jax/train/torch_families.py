"""The families of networks whose PyTorch weights are read, and how each names its tensors.

Each has one pure function from the place of a module in our variables to its name in PyTorch.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from fgkd_jax.errors import UserError, nearest

Path = tuple[str, ...]
Arrays = Mapping[str, np.ndarray]

SHUFFLENET_V2_LAYERS = {
    "side_depthwise": (1, 0),
    "side_project": (1, 2),
    "expand": (2, 0),
    "depthwise": (2, 3),
    "project": (2, 5),
}
"""Branch and place in it of the convolutions of a ShuffleNetV2's block; its norm is the next."""

HCGNET_CONVOLUTIONS = {
    "squeeze1": "conv1_1x1",
    "squeeze2": "conv2_3x3",
    "small": "conv_3x3",
    "large": "conv_5x5",
}
"""The convolutions of an HCGNet's module, each of which has a norm in front."""

HCGNET_GATES = {
    ("small_context", "score"): "global_context3x3",
    ("large_context", "score"): "global_context5x5",
    ("update_reduce", None): "fcall",
    ("update_norm", None): "bn_attention",
    ("update_small", None): "fc3x3",
    ("update_large", None): "fc5x5",
    ("forget_context", "score"): "global_forget_context",
    ("forget_reduce", None): "fc1",
    ("forget_norm", None): "bn_forget",
    ("forget_expand", None): "fc2",
}
"""The layers of its gates."""

HEADS = ("fc.", "linear.", "classifier.")
"""How the names of the linear classifier begin in PyTorch's networks for CIFAR."""

MOBILENET_V2_SUMS = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
"""The blocks of MobileNetV2 that end in a residual sum."""


class Family(NamedTuple):
    """How the tensors of one family of networks are named in PyTorch.

    Attributes:
      module_name: from the path of a backbone's module to its name, None where there is none.
      head: how the names of the linear classifier begin.
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


def hcgnet_name(path: Path) -> str | None:
    """The name of a module of `HCGNet` in the released PyTorch networks.

    Args:
      path: of the module within the backbone.

    Returns:
      Its name, None where there is no such module.

    Example:
      >>> hcgnet_name(("stage1", "module0", "small_context", "score"))
      'features.HybridBlock1.SMG1.global_context3x3'
    """
    joined = "/".join(path)
    if joined == "stem/conv":
        return "features.conv0"
    if re.fullmatch(r"stage\d+/norm", joined):
        return "features.norm5"
    match = re.fullmatch(r"stage(\d+)/(?:module(\d+)|transition)/(\w+)(?:/(\w+))?", joined)
    if match is None:
        return None
    stage, number, layer, part = match.groups()
    if (layer, part) in HCGNET_GATES:
        layer = HCGNET_GATES[layer, part]
    elif layer in HCGNET_CONVOLUTIONS and part in ("conv", "norm"):
        layer = f"{HCGNET_CONVOLUTIONS[layer]}.{part}"
    else:
        return None
    if number is None:
        return f"features.Transition{stage}.{layer}"
    return f"features.HybridBlock{stage}.SMG{int(number) + 1}.{layer}"


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
    """The linear classifier under names that begin with `head`, whichever of `HEADS` it has."""
    others = [start for start in HEADS if f"{start}weight" in arrays]
    if head in others or len(others) != 1:
        return arrays
    renamed = {f"{others[0]}{leaf}": f"{head}{leaf}" for leaf in ("weight", "bias")}
    return {renamed.get(name, name): array for name, array in arrays.items()}


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
        head="fc.",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc."),
    ),
    "wide_resnet": Family(
        wide_resnet_name,
        head="fc.",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc."),
    ),
    "hcgnet": Family(
        hcgnet_name,
        head="classifier.",
        classifier=r"^classifier\.",
        optional=r"num_batches_tracked$",
        prepare=_unchanged,
    ),
    "shufflenet_v2": Family(
        shufflenet_v2_name,
        head="fc.",
        classifier=r"^fc\.",
        optional=r"num_batches_tracked$",
        prepare=partial(_head_renamed, head="fc."),
    ),
    "mobilenet_v2": Family(
        mobilenet_v2_name,
        head="classifier.1.",
        classifier=r"^classifier\.1\.",
        optional=r"(num_batches_tracked|out_range)$",
        prepare=_split_sums,
    ),
    # The three layers of a VGG's classifier are `classifier.{0,3,6}` in torchvision, and in timm
    # `pre_logits.fc1`, `pre_logits.fc2` and `head.fc`. The last is, as ours, a linear layer on an
    # average over positions: it has the name, though its 4096 inputs fit no head of ours.
    "vgg": Family(
        vgg_name,
        head="head.fc.",
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
