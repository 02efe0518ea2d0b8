"""Residual networks in PyTorch, the counterpart of `fgkd_jax.models.resnet` in benchmarks.

Modules are called as torchvision calls them, so `to_torch_state_dict` fits. PyTorch is an optional
dependency and only imported by the functions that need it.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import UserError
from fgkd_jax.models.resnet import EXPANSION, ResNet

LAYOUTS = {"torch": "contiguous_format", "torch_channels_last": "channels_last"}
"""Alternatives by the order in which torch keeps the axes of an image in memory."""


def import_torch() -> Any:
    """Imports PyTorch.

    Returns:
      The module.

    Raises:
      UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # What it says about the packages around it while it loads is nothing to act on here.
            warnings.simplefilter("ignore")
            import torch
    except ImportError as error:
        raise UserError("comparing with PyTorch needs it: pip install 'fgkd-jax[bench]'") from error
    return torch


def torch_device() -> Any:
    """Finds the torch device that is the one JAX computes on.

    Returns:
      A `torch.device`.

    Raises:
      UserError: torch has no such device, or is not installed.
    """
    torch = import_torch()
    platform = jax.default_backend()
    if platform == "cpu":
        return torch.device("cpu")
    if platform == "gpu" and torch.cuda.is_available():
        # As XLA does by default: its products of float32 are TF32, and it tries out algorithms.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    raise UserError(
        f"PyTorch {torch.__version__} cannot use the {platform} that JAX uses; expected --device "
        "cpu, or no alternative in torch"
    )


def resnet(
    backbone: ResNet,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dropout: float,
) -> Any:
    """Writes a residual network and its linear classifier in PyTorch.

    Args:
      backbone: the network in JAX.
      num_classes: number of logits.
      mean: per channel, subtracted from images in 0..1.
      std: per channel, divides afterwards.
      dropout: rate on the pooled features.

    Returns:
      A `torch.nn.Module` from uint8 [b, 3, h, w] to float32 logits [b, num_classes]; its weights
      are torch's own random ones.
    """
    torch = import_torch()
    nn, functional = torch.nn, torch.nn.functional
    block, low = _block_class(), jnp.dtype(backbone.dtype) == jnp.bfloat16
    base: Any = nn.Module

    class Network(base):
        """Normalisation, stem, one layer per stage, mean over positions, linear classifier."""

        def __init__(self) -> None:
            super().__init__()
            constant = functools.partial(self.register_buffer, persistent=False)
            constant("shift", torch.tensor([255.0 * m for m in mean]).reshape(1, -1, 1, 1))
            constant("scale", torch.tensor([1 / (255.0 * s) for s in std]).reshape(1, -1, 1, 1))
            width = backbone.width
            small = backbone.stem == "small"
            self.conv1 = _conv(3, width, 3) if small else _conv(3, width, 7, stride=2)
            self.bn1 = nn.BatchNorm2d(width)
            self.pool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
            self.stages = []
            inputs, before = width, 1
            for number, (count, stride, dilation) in enumerate(
                zip(backbone.stage_sizes, backbone.strides, backbone.dilations, strict=True), 1
            ):
                features, blocks = width * 2 ** (number - 1), []
                for index in range(count):
                    step, entry = (stride, before) if index == 0 else (1, dilation)
                    blocks.append(
                        block(inputs, features, step, entry, dilation, backbone.bottleneck)
                    )
                    inputs = features * (EXPANSION if backbone.bottleneck else 1)
                self.add_module(f"layer{number}", nn.Sequential(*blocks))
                self.stages.append(f"layer{number}")
                before = dilation
            self.fc = nn.Linear(inputs, num_classes)

        def forward(self, images: Any) -> Any:
            """Logits of uint8 images."""
            x = (images.float() - self.shift) * self.scale
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
                x = self.pool(functional.relu(self.bn1(self.conv1(x)), inplace=True))
                for name in self.stages:
                    x = getattr(self, name)(x)
            pooled = x.float().mean(dim=(2, 3))
            return self.fc(functional.dropout(pooled, dropout, training=self.training))

    return Network()


@functools.cache
def _block_class() -> Any:
    """The class of residual blocks; made on demand, for its base is torch's."""
    torch = import_torch()
    nn, functional = torch.nn, torch.nn.functional
    base: Any = nn.Module

    class Block(base):
        """relu(x + f(x)); f is two or three convolutions, each with its batch norm."""

        def __init__(
            self, inputs: int, features: int, stride: int, entry: int, dilation: int, deep: bool
        ) -> None:
            super().__init__()
            spatial = _conv(features if deep else inputs, features, 3, stride, entry)
            if deep:
                outputs = EXPANSION * features
                convs = [_conv(inputs, features, 1), spatial, _conv(features, outputs, 1)]
            else:
                outputs = features
                convs = [spatial, _conv(features, features, 3, 1, dilation)]
            for number, conv in enumerate(convs, 1):
                self.add_module(f"conv{number}", conv)
                self.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
            self.convs = len(convs)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                shortcut = _conv(inputs, outputs, 1, stride)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            """The features of x."""
            y = x
            for number in range(1, self.convs + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                if number < self.convs:
                    y = functional.relu(y, inplace=True)
            shortcut = x if self.downsample is None else self.downsample(x)
            return functional.relu(y + shortcut, inplace=True)

    return Block


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> Any:
    """A square convolution without bias, padded alike on every side."""
    return import_torch().nn.Conv2d(
        inputs,
        outputs,
        size,
        stride=stride,
        padding=dilation * (size // 2),
        dilation=dilation,
        bias=False,
    )


def load_weights(network: Any, state: Mapping[str, np.ndarray]) -> None:
    """Puts converted weights into a network in PyTorch.

    Args:
      network: as `resnet` makes it.
      state: arrays under torch's names, as `to_torch_state_dict` returns them.

    Raises:
      UserError: they are not exactly the network's.
    """
    torch = import_torch()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    # Only norms with a cumulative average would need to know how many batches they saw.
    own = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    differing = sorted(own ^ tensors.keys())
    if differing:
        raise UserError(f"the network in torch and ours differ in '{differing[0]}'")
    network.load_state_dict(tensors, strict=False)


def parameter_count(network: Any) -> int:
    """Counts a network's parameters.

    Args:
      network: a `torch.nn.Module`.

    Returns:
      The number of scalars that are trained.
    """
    return sum(parameter.numel() for parameter in network.parameters())
