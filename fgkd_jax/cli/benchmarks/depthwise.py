"""`fgkd bench depthwise`: the lowerings of `fgkd_jax.ops.depthwise_conv` against each other."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.ops import depthwise
from fgkd_jax.typing import Array

BATCH_SIZE = 8
KERNEL = 3
PAD = KERNEL // 2

LOWERINGS: dict[str, Callable[..., Array]] = {
    "shifted products": depthwise._shifted,
    "grouped convolution": depthwise._grouped,
}


class Shape(NamedTuple):
    """The size of one depthwise convolution.

    Attributes:
      side: rows and columns of the input.
      channels: of input and output.
      stride: both ways.
    """

    side: int
    channels: int
    stride: int


SHAPES = (Shape(112, 32, 1), Shape(56, 144, 1), Shape(56, 144, 2), Shape(14, 384, 1))
"""Layers of MobileNetV2 on images of 224 x 224."""


class Arrays(NamedTuple):
    """What a convolution is given.

    Attributes:
      x: float32 [b, h, w, c].
      kernel: float32 [3, 3, c].
      cotangent: float32 [b, oh, ow, c], the gradient that comes from behind.
    """

    x: np.ndarray
    kernel: np.ndarray
    cotangent: np.ndarray


def random_arrays(shape: Shape, *, batch_size: int) -> Arrays:
    """Draws the arrays of a convolution.

    Args:
      shape: its size.
      batch_size: number of maps.

    Returns:
      Normal deviates, always the same.
    """
    rng = np.random.default_rng(0)
    side = (shape.side + 2 * PAD - KERNEL) // shape.stride + 1
    draw = [
        (batch_size, shape.side, shape.side, shape.channels),
        (KERNEL, KERNEL, shape.channels),
        (batch_size, side, side, shape.channels),
    ]
    return Arrays(*(rng.standard_normal(one, np.float32) for one in draw))


def ours(
    lowering: str, shape: Shape, arrays: Arrays, *, gradients: bool
) -> Callable[[], tuple[Array, ...]]:
    """Compiles one of our lowerings.

    Args:
      lowering: a key of `LOWERINGS`.
      shape: the size.
      arrays: what it is given.
      gradients: whether the gradients to x and kernel are computed too.

    Returns:
      A call that returns the output [b, oh, ow, c] and, with `gradients`, those of x and kernel.
    """
    x, kernel, cotangent = jax.device_put(tuple(arrays))
    pads = ((PAD, PAD), (PAD, PAD))

    def forward(x: Array, kernel: Array) -> Array:
        return LOWERINGS[lowering](x, kernel, strides=(shape.stride, shape.stride), pads=pads)

    def backward(x: Array, kernel: Array, cotangent: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(forward, x, kernel)
        return out, *pull(cotangent)

    if gradients:
        both = jax.jit(backward)
        return lambda: both(x, kernel, cotangent)
    alone = jax.jit(forward)
    return lambda: (alone(x, kernel),)


def theirs(
    layout: str, shape: Shape, arrays: Arrays, *, gradients: bool
) -> Callable[[], tuple[Any, ...]]:
    """Writes the convolution in torch.

    Args:
      layout: torch's name of a memory format.
      shape: the size.
      arrays: what it is given.
      gradients: whether the gradients to x and kernel are computed too.

    Returns:
      A call that returns what `ours` returns, with torch's axes: [b, c, h, w] and [c, 1, 3, 3].
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    order = getattr(torch, layout)

    def place(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
        return tensor.contiguous(memory_format=order).to(device)

    x, cotangent = place(arrays.x), place(arrays.cotangent)
    kernel = torch.from_numpy(arrays.kernel).permute(2, 0, 1)[:, None].contiguous().to(device)

    def convolve() -> Any:
        return torch.nn.functional.conv2d(
            x, kernel, stride=shape.stride, padding=PAD, groups=shape.channels
        )

    def forward() -> tuple[Any, ...]:
        with torch.no_grad():
            return (convolve(),)

    def backward() -> tuple[Any, ...]:
        out = convolve()
        return out.detach(), *torch.autograd.grad(out, (x, kernel), cotangent)

    if not gradients:
        return forward
    x.requires_grad_()
    kernel.requires_grad_()
    return backward


def cases(request: Request) -> Iterator[Case]:
    """Makes two cases per shape: forward, and forward with gradients.

    Args:
      request: may set the batch size.

    Yields:
      The cases; the lowering that the library chooses on this platform comes first.
    """
    batch_size = request.batch_size or BATCH_SIZE
    for shape in SHAPES:
        arrays = random_arrays(shape, batch_size=batch_size)
        for gradients in (False, True):
            yield Case(
                name=f"{shape.side}x{shape.side}x{shape.channels}"
                f"{f' stride {shape.stride}' if shape.stride > 1 else ''}"
                f" {'with gradients' if gradients else 'forward'}",
                sizes={
                    **shape._asdict(),
                    "batch_size": batch_size,
                    "kernel": KERNEL,
                    "dtype": "float32",
                    "gradients": gradients,
                },
                alternatives=tuple(_alternatives(request, shape, arrays, gradients)),
            )


def _alternatives(
    request: Request, shape: Shape, arrays: Arrays, gradients: bool
) -> Iterator[Alternative]:
    chosen = "shifted products" if jax.default_backend() == "cpu" else "grouped convolution"
    for name in sorted(LOWERINGS, key=lambda name: name != chosen):
        yield jax_alternative(name, ours(name, shape, arrays, gradients=gradients))
    for name in request.against:
        call = theirs(torch_models.LAYOUTS[name], shape, arrays, gradients=gradients)
        yield torch_alternative(name, call, device=torch_models.torch_device())


BENCHMARK = Benchmark(name="depthwise", cases=cases, against=tuple(torch_models.LAYOUTS))
