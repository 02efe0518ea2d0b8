"""`fgkd bench sampler`: the separable resample, against torch's `grid_sample` and a plain copy."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.ops import resample_lowerings, separable_resample
from fgkd_jax.typing import Array

BATCH_SIZE = 16
SIDE, OUT, CHANNELS = 512, 224, 3

OTHER_LOWERINGS: Mapping[str, tuple[str, Callable[..., Array]]] = {
    "cpu": ("products", resample_lowerings.resample_by_products),
    "gpu": ("products", resample_lowerings.resample_by_products),
    "tpu": ("gathers", resample_lowerings.resample_by_gathers),
}
"""The lowering that the library does not choose, by platform."""


class Arrays(NamedTuple):
    """What the resample is given.

    Attributes:
      image: uint8 or float32 [b, SIDE, SIDE, CHANNELS], grey levels.
      rows: float32 [b, OUT], in pixels, rising.
      cols: float32 [b, OUT], likewise.
      cotangent: float32 [b, OUT, OUT, CHANNELS], the gradient that comes from behind.
    """

    image: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    cotangent: np.ndarray


def random_arrays(dtype: str, *, batch_size: int) -> Arrays:
    """Draws the arrays of a resample.

    Args:
      dtype: of the image, `uint8` or `float32`.
      batch_size: number of images.

    Returns:
      Always the same arrays; positions are uniform in the image and sorted.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch_size, SIDE, SIDE, CHANNELS), np.uint8)
    rows, cols = np.sort(rng.uniform(0, SIDE - 1, (2, batch_size, OUT)), -1).astype(np.float32)
    cotangent = rng.standard_normal((batch_size, OUT, OUT, CHANNELS), np.float32)
    return Arrays(image.astype(dtype), rows, cols, cotangent)


def ours(
    arrays: Arrays, *, gradients: str, lowering: Callable[..., Array] = separable_resample
) -> Callable[[], tuple[Array, ...]]:
    """Compiles our resample.

    Args:
      arrays: what it is given.
      gradients: `none`, `image` or `positions`.
      lowering: which resample.

    Returns:
      A call that returns the output and the gradients asked for.
    """
    image, rows, cols, cotangent = jax.device_put(tuple(arrays))

    def call(image: Array, rows: Array, cols: Array, cotangent: Array) -> tuple[Array, ...]:
        if gradients == "image":
            out, pull = jax.vjp(lambda x: lowering(x, rows, cols), image)
        elif gradients == "positions":
            out, pull = jax.vjp(partial(lowering, image), rows, cols)
        else:
            return (lowering(image, rows, cols),)
        return out, *pull(cotangent)

    compiled = jax.jit(call)
    return lambda: compiled(image, rows, cols, cotangent)


def theirs(arrays: Arrays, *, gradients: str) -> Callable[[], tuple[Any, ...]]:
    """Writes the resample in torch: `grid_sample` on a dense grid, which it needs.

    An image of bytes is converted first, for `grid_sample` takes floating images alone. The grid of
    a forward pass is made beforehand.

    Args:
      arrays: what it is given.
      gradients: `none`, `image` or `positions`.

    Returns:
      A call that returns what `ours` returns, with torch's axes [b, c, h, w].
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()

    def place(array: np.ndarray) -> Any:
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().to(device)

    image, cotangent = place(arrays.image), place(arrays.cotangent)
    rows, cols = (torch.from_numpy(p).to(device) for p in (arrays.rows, arrays.cols))

    def grid_of(rows: Any, cols: Any) -> Any:
        y, x = (2 * p / (SIDE - 1) - 1 for p in (rows, cols))
        shape = (len(y), OUT, OUT)
        return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)

    def sample(image: Any, grid: Any) -> Any:
        return torch.nn.functional.grid_sample(image.float(), grid, align_corners=True)

    fixed = grid_of(rows, cols)

    def forward() -> tuple[Any, ...]:
        with torch.no_grad():
            return (sample(image, fixed),)

    def to_image() -> tuple[Any, ...]:
        out = sample(image, fixed)
        return out.detach(), *torch.autograd.grad(out, (image,), cotangent)

    def to_positions() -> tuple[Any, ...]:
        out = sample(image, grid_of(rows, cols))
        return out.detach(), *torch.autograd.grad(out, (rows, cols), cotangent)

    if gradients == "image":
        image.requires_grad_()
        return to_image
    if gradients == "positions":
        rows.requires_grad_()
        cols.requires_grad_()
        return to_positions
    return forward


def copy(arrays: Arrays) -> Callable[[], tuple[Array, ...]]:
    """Compiles a copy that moves as many bytes as the resample must: the image and the output.

    Args:
      arrays: what the resample is given.

    Returns:
      A call that reads and writes half of these bytes each.
    """
    moved = arrays.image.nbytes + arrays.cotangent.nbytes
    source = jax.device_put(np.zeros(moved // 2 // 4, np.float32))
    compiled = jax.jit(lambda x: x + 1.0)
    return lambda: (compiled(source),)


def cases(request: Request) -> Iterator[Case]:
    """Makes the cases: forward from both types of image, and both gradients.

    Args:
      request: may set the batch size.

    Yields:
      The cases.
    """
    batch_size = request.batch_size or BATCH_SIZE
    wanted = (
        ("float32", "none", "forward, float32"),
        ("uint8", "none", "forward, uint8"),
        ("float32", "image", "with gradient to the image"),
        ("float32", "positions", "with gradient to the positions"),
    )
    for dtype, gradients, name in wanted:
        arrays = random_arrays(dtype, batch_size=batch_size)
        yield Case(
            name=name,
            sizes={
                "batch_size": batch_size,
                "image": [SIDE, SIDE, CHANNELS],
                "out": [OUT, OUT],
                "dtype": dtype,
                "gradients": gradients,
                "bytes": int(arrays.image.nbytes + arrays.cotangent.nbytes),
            },
            alternatives=tuple(_alternatives(request, arrays, gradients)),
            images=batch_size,
            notes=("sampler: 512 x 512 x 3 to 224 x 224, random sorted positions",),
        )


def _alternatives(request: Request, arrays: Arrays, gradients: str) -> Iterator[Alternative]:
    yield jax_alternative("fgkd_jax", ours(arrays, gradients=gradients))
    if gradients == "none":
        name, lowering = OTHER_LOWERINGS.get(jax.default_backend(), OTHER_LOWERINGS["cpu"])
        yield jax_alternative(name, ours(arrays, gradients="none", lowering=lowering))
    if "torch" in request.against:
        device = torch_models.torch_device()
        yield torch_alternative("torch", theirs(arrays, gradients=gradients), device=device)
    if "copy" in request.against and gradients == "none":
        yield jax_alternative("copy", copy(arrays))


BENCHMARK = Benchmark(
    name="sampler", cases=cases, against=("torch", "copy"), default_against=("copy",)
)
"""The sampler's benchmark."""
