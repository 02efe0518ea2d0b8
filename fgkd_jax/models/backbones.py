"""Backbones by name: the one list of them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fgkd_jax.errors import UserError, nearest
from fgkd_jax.models.hcgnet import HCGNet
from fgkd_jax.models.mobilenet_v2 import MobileNetV2
from fgkd_jax.models.resnet import ResNet
from fgkd_jax.models.shufflenet_v2 import ShuffleNetV2
from fgkd_jax.models.stages import Backbone
from fgkd_jax.models.vgg import VGG
from fgkd_jax.models.wide_resnet import WideResNet

# On images of 32 x 32: maps of 32, 32, 16 and 8 pixels.
_cifar_resnet = partial(ResNet, width=16, stem="small", strides=(1, 2, 2), dilations=(1, 1, 1))

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), bottleneck=True),
    "resnet_narrow": partial(
        ResNet, stage_sizes=(1, 1, 1, 1), width=16, stem="small", zero_init_residual=True
    ),
    "cifar_resnet20": partial(_cifar_resnet, stage_sizes=(3, 3, 3)),
    "cifar_resnet32": partial(_cifar_resnet, stage_sizes=(5, 5, 5)),
    "cifar_resnet56": partial(_cifar_resnet, stage_sizes=(9, 9, 9)),
    "cifar_resnet110": partial(_cifar_resnet, stage_sizes=(12, 12, 12), bottleneck=True),
    "wrn_16_2": partial(WideResNet, stage_sizes=(2, 2, 2), widening=2),
    "wrn_40_2": partial(WideResNet, stage_sizes=(6, 6, 6), widening=2),
    "wrn_28_4": partial(WideResNet, stage_sizes=(4, 4, 4), widening=4),
    "shufflenet_v2_x0_5": partial(ShuffleNetV2, channels=(48, 96, 192)),
    "shufflenet_v2_x1_0": ShuffleNetV2,
    "cifar_shufflenet_v2_x0_5": partial(ShuffleNetV2, channels=(48, 96, 192), stem="small"),
    "cifar_shufflenet_v2_x1_0": partial(ShuffleNetV2, stem="small"),
    "cifar_hcgnet_a1": partial(HCGNet, growth=(12, 24, 36)),
    "cifar_hcgnet_a2": partial(HCGNet, growth=(24, 36, 64)),
    "mobilenet_v2": MobileNetV2,
    "vgg16": partial(VGG, stage_sizes=(2, 2, 3, 3, 3)),
    "vgg16_bn": partial(VGG, stage_sizes=(2, 2, 3, 3, 3), batch_norm=True),
    "vgg19": partial(VGG, stage_sizes=(2, 2, 4, 4, 4)),
    "vgg19_bn": partial(VGG, stage_sizes=(2, 2, 4, 4, 4), batch_norm=True),
}


def make_backbone(name: str, **options: Any) -> Backbone:
    """A backbone by name.

    Args:
      name: a key of `BACKBONES`.
      **options: fields of its class (`ResNet`, `WideResNet`, `ShuffleNetV2`, `HCGNet`,
        `MobileNetV2`, `VGG`) that shall differ from the named network; lists become tuples, dtypes
        may be given by name.

    Returns:
      The module, without variables.

    Raises:
      UserError: no such backbone, no such option, or a value of another type or out of range.

    Example:
      >>> make_backbone("resnet18", strides=(1, 1, 2, 1)).num_stages
      5
    """
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r}{nearest(name, BACKBONES)}")
    make = BACKBONES[name]
    module: Any = make.func if isinstance(make, partial) else make
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    valid = defaults.keys() - {"parent", "name"}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    for option, value in values.items():
        if option not in valid:
            raise UserError(f"backbone {name}: option {option!r}{nearest(option, valid)}")
        if option != "dtype" and not _is_like(value, defaults[option]):
            kind = type(defaults[option]).__name__
            kind = "tuple of int" if kind == "tuple" else kind
            raise UserError(f"backbone {name}: {option}={value!r}; expected {kind}")
    return make(**values)


def _is_like(value: object, default: object) -> bool:
    """Whether an option's value is of its default's type; a whole number may stand for a float."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def feature_shapes(
    backbone: Backbone, image_size: tuple[int, int], *, channels: int = 3
) -> tuple[tuple[int, int, int], ...]:
    """The shapes of all stages, without computing anything.

    Args:
      backbone: a backbone.
      image_size: rows and columns of the image.
      channels: of the image.

    Returns:
      (rows, columns, channels) of the output of each stage.

    Example:
      >>> feature_shapes(make_backbone("resnet_narrow"), (64, 64))
      ((64, 64, 16), (64, 64, 16), (32, 32, 32), (16, 16, 64), (8, 8, 128))
    """

    def outputs() -> tuple[jax.Array, ...]:
        image = jnp.zeros((1, *image_size, channels))
        stages, _ = backbone.init_with_output(jax.random.key(0), image, train=False)
        return stages

    return tuple(stage.shape[1:] for stage in jax.eval_shape(outputs))


def backbone_from(options: Mapping[str, Any], *, owner: str = "backbone") -> Backbone:
    """A backbone from the options of a config.

    Args:
      options: `name`, and what else `make_backbone` takes.
      owner: what the options are called, for the message.

    Returns:
      The module, without variables.

    Raises:
      UserError: there is no name, or `make_backbone` refuses what is there.

    Example:
      >>> backbone_from({"name": "resnet18"}).num_stages
      5
    """
    rest = dict(options)
    name = rest.pop("name", None)
    if name is None:
        raise UserError(f"{owner} is {rest}; expected a key 'name'")
    return make_backbone(name, **rest)
