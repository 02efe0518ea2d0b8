"""What networks are called in a table, whoever chose them: a config, or who overrides it."""

from collections.abc import Callable, Mapping
from typing import Any

NETWORK_TITLES: Mapping[str, str] = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "shufflenet_v2_x0_5": "ShuffleNetV2 x0.5",
    "shufflenet_v2_x1_0": "ShuffleNetV2 x1.0",
    "mobilenet_v2": "MobileNetV2",
}
"""Backbones of detectors of photographs, and what they are called in a table."""


def retitled(title: str, *, before: Any, now: Any) -> str:
    """Renames the networks in a title whose backbones are others now.

    Args:
      title: of a row; it may name the one network that is trained, and behind it its teacher, as
        `NETWORK_TITLES` does or as their backbones are.
      before: the method that it was written for.
      now: the method that it is for.

    Returns:
      The title; a network without an entry has the name of its backbone.

    Example:
      >>> from fgkd_jax.methods import FasterRCNN
      >>> old, new = (FasterRCNN(backbone={"name": name}) for name in ("resnet50", "resnet18"))
      >>> retitled("Faster R-CNN, ResNet-50", before=old, now=new)
      'Faster R-CNN, ResNet-18'
    """
    (student, teacher), names = _networks(before), _networks(now)
    if teacher != names[1]:
        title = _renamed(title, teacher, names[1], cut=str.rpartition)
    if student != names[0]:
        title = _renamed(title, student, names[0], cut=str.partition)
    return title


def _renamed(
    title: str, before: str, now: str, *, cut: Callable[[str, str], tuple[str, str, str]]
) -> str:
    for called in (NETWORK_TITLES, {}):
        start, found, end = cut(title, called.get(before, before))
        if found:
            return f"{start}{called.get(now, now)}{end}"
    return title


def _networks(method: Any) -> tuple[str, str]:
    """Names of the backbones of a method and of its teacher, if there are any."""
    teacher = getattr(method, "teacher", {})
    holders = getattr(method, "backbone", {}), teacher.get("backbone", teacher)
    student, taught_by = (str(holder.get("name", "no backbone")) for holder in holders)
    return student, taught_by
