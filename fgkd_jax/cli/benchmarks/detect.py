"""`fgkd bench detect`: suppression and RoIAlign, against torch code that does the same."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.ops import RoiOptions, nms, pyramid_levels, pyramid_roi_align
from fgkd_jax.typing import Array

IMAGE_SIZE = (800, 1344)
STRIDES = (4.0, 8.0, 16.0, 32.0)
CHANNELS, ROI_SIZE = 256, 7
BOXES, REGIONS = 2000, 512
IOU_THRESHOLD = 0.7
KINDS = ((2, False), (2, True), (0, False))
"""Samples per bin and axis, 0 for as many as the bin has cells, and whether with gradients.

Adaptive gradients are left out: torch would make a gradient of the whole map for every box.
"""


class Pyramid(NamedTuple):
    """What RoIAlign is given.

    Attributes:
      features: of every level float32 [1, h, w, c].
      boxes: float32 [1, p, 4].
    """

    features: tuple[np.ndarray, ...]
    boxes: np.ndarray


def random_boxes(count: int, *, least: float, most: float) -> np.ndarray:
    """Draws boxes inside the image, as many small ones as large ones.

    Args:
      count: how many.
      least: side of the smallest.
      most: side of the largest, before it is cut at the border.

    Returns:
      float32 [count, 4], always the same.
    """
    rng = np.random.default_rng(0)
    side = np.exp(rng.uniform(np.log(least), np.log(most), (count, 1)))
    shape = np.exp(rng.uniform(-0.5, 0.5, (count, 1)))
    half = np.concatenate([side * shape, side / shape], axis=1) / 2
    size = np.array(IMAGE_SIZE[::-1])
    centre = rng.uniform(0, 1, (count, 2)) * size
    corners = np.clip([centre - half, centre + half], 0, size)
    return np.concatenate(corners, axis=1).astype(np.float32)


def random_pyramid() -> Pyramid:
    """Draws a pyramid of features and boxes for all of its levels.

    Returns:
      Always the same arrays.
    """
    rng = np.random.default_rng(0)
    shapes = [tuple(int(n // stride) for n in IMAGE_SIZE) for stride in STRIDES]
    features = tuple(rng.standard_normal((1, *shape, CHANNELS), np.float32) for shape in shapes)
    return Pyramid(features, random_boxes(REGIONS, least=16.0, most=600.0)[None])


def our_nms(boxes: np.ndarray, scores: np.ndarray) -> Callable[[], Array]:
    """Compiles our suppression, which keeps whatever there is to keep.

    Args:
      boxes: float32 [p, 4].
      scores: float32 [p].

    Returns:
      A call that returns indices and their validity.
    """
    placed = jax.device_put((boxes, scores))
    compiled = jax.jit(partial(nms, iou_threshold=IOU_THRESHOLD, max_outputs=len(boxes)))
    return lambda: compiled(*placed)


def their_nms(boxes: np.ndarray, scores: np.ndarray) -> Callable[[], Any]:
    """Writes suppression in torch: all overlaps at once, then a loop over the sorted boxes.

    Args:
      boxes: float32 [p, 4].
      scores: float32 [p].

    Returns:
      A call that returns the indices that are kept.
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    corners, confidence = (torch.from_numpy(x).to(device) for x in (boxes, scores))

    def call() -> Any:
        order = torch.argsort(confidence, descending=True, stable=True)
        x1, y1, x2, y2 = corners[order].unbind(1)
        width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
        height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
        inside = width.clamp_(min=0) * height.clamp_(min=0)
        area = (x2 - x1) * (y2 - y1)
        # The rows are looked at one by one, which NumPy does with the least overhead.
        rivals = (inside / (area[:, None] + area - inside) > IOU_THRESHOLD).cpu().numpy()
        dropped, kept = np.zeros(len(rivals), bool), []
        for index in range(len(rivals)):
            if not dropped[index]:
                kept.append(index)
                dropped |= rivals[index]
        return order[torch.tensor(kept, device=device)]

    return call


def our_regions(
    pyramid: Pyramid, *, ratio: int, with_gradient: bool
) -> Callable[[], tuple[Array, ...]]:
    """Compiles our RoIAlign.

    Args:
      pyramid: what it is given.
      ratio: samples per bin and axis, or 0.
      with_gradient: whether the gradient of the sum of squares is computed too.

    Returns:
      A call that returns the regions [1, p, size, size, c], or the sum of their squares and the
      gradients [1, h, w, c].
    """
    placed = jax.device_put(pyramid.features)
    boxes = jnp.asarray(pyramid.boxes)
    options = RoiOptions(size=ROI_SIZE, sampling_ratio=ratio)

    def align(features: tuple[Array, ...]) -> Array:
        levels = pyramid_levels(boxes, num_levels=len(STRIDES))
        return pyramid_roi_align(features, boxes, levels, strides=STRIDES, options=options)

    def squares(features: tuple[Array, ...]) -> Array:
        return jnp.sum(jnp.square(align(features)))

    forward, both = jax.jit(align), jax.jit(jax.value_and_grad(squares))

    def call() -> tuple[Array, ...]:
        if not with_gradient:
            return (forward(placed),)
        value, grads = both(placed)
        return value, *grads

    return call


def their_regions(
    pyramid: Pyramid, *, ratio: int, with_gradient: bool
) -> Callable[[], tuple[Any, ...]]:
    """Writes RoIAlign in torch: `grid_sample` of all samples of a level, then their mean.

    With as many samples as a bin has cells it takes one box after the other.

    Args:
      pyramid: what it is given.
      ratio: samples per bin and axis, or 0.
      with_gradient: whether the gradient of the sum of squares is computed too.

    Returns:
      A call that returns what `our_regions` returns, channels first.
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    maps = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in pyramid.features]
    maps = [x.to(device).requires_grad_(with_gradient) for x in maps]
    boxes = torch.from_numpy(pyramid.boxes[0]).to(device)
    root = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.floor(torch.log2(root / 56 + 1e-6)).clamp(0, len(STRIDES) - 1).long()

    def axis(start: Any, extent: Any, samples: int) -> Any:
        steps = (torch.arange(ROI_SIZE * samples, device=device) + 0.5) / (ROI_SIZE * samples)
        return start[:, None] + steps * extent[:, None]

    def read(level: Any, rows: Any, samples: tuple[int, int]) -> Any:
        """[n, c, size, size] of the boxes in `rows`, in cells of a level."""
        height, width = level.shape[2:]
        y = axis(rows[:, 1], rows[:, 3] - rows[:, 1], samples[0])
        x = axis(rows[:, 0], rows[:, 2] - rows[:, 0], samples[1])
        inside = ((y >= -1) & (y <= height))[:, :, None] & ((x >= -1) & (x <= width))[:, None]
        place = [(2 * p + 1) / n - 1 for p, n in ((x, width), (y, height))]
        shape = inside.shape
        grid = torch.stack(
            [place[0][:, None].expand(shape), place[1][:, :, None].expand(shape)], dim=-1
        )
        flat = grid.reshape(1, -1, shape[2], 2)
        options = {"padding_mode": "border", "align_corners": False}
        found = torch.nn.functional.grid_sample(level, flat, **options)[0]
        found = found.reshape(len(found), *shape).transpose(0, 1) * inside[:, None]
        return torch.nn.functional.avg_pool2d(found, samples)

    def align() -> Any:
        out = boxes.new_zeros(len(boxes), CHANNELS, ROI_SIZE, ROI_SIZE)
        for index, (level, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            chosen = torch.nonzero(levels == index)[:, 0]
            rows = boxes[chosen] / stride - 0.5
            if ratio:
                out = out.index_copy(0, chosen, read(level, rows, (ratio, ratio)))
                continue
            bins = ((rows[:, 2:] - rows[:, :2]) / ROI_SIZE).ceil().clamp(min=1).int().tolist()
            parts = [
                read(level, row[None], (down, across))
                for row, (across, down) in zip(rows, bins, strict=True)
            ]
            out = out.index_copy(0, chosen, torch.cat(parts)) if parts else out
        return out

    def call() -> tuple[Any, ...]:
        if not with_gradient:
            return (align(),)
        value = align().square().sum()
        return value.detach(), *torch.autograd.grad(value, maps, materialize_grads=True)

    return call


def cases(request: Request) -> Iterator[Case]:
    """Makes the cases: suppression, then RoIAlign forward and with gradients.

    Args:
      request: names the alternatives.

    Yields:
      One case after the other.
    """
    boxes = random_boxes(BOXES, least=16.0, most=200.0)
    scores = np.random.default_rng(1).uniform(size=BOXES).astype(np.float32)
    yield Case(
        name=f"suppression of {BOXES} boxes",
        sizes={"boxes": BOXES, "iou_threshold": IOU_THRESHOLD},
        alternatives=tuple(
            _alternatives(
                request, partial(our_nms, boxes, scores), partial(their_nms, boxes, scores)
            )
        ),
    )
    pyramid = random_pyramid()
    for ratio, with_gradient in KINDS:
        options: Any = {"ratio": ratio, "with_gradient": with_gradient}
        samples = f"{ratio} samples per bin" if ratio else "adaptive samples"
        make = (partial(one, pyramid, **options) for one in (our_regions, their_regions))
        yield Case(
            name=f"RoIAlign, {samples}" + (", with gradients" if with_gradient else ""),
            sizes={
                "boxes": REGIONS,
                "levels": [list(x.shape) for x in pyramid.features],
                "size": ROI_SIZE,
                **options,
            },
            alternatives=tuple(_alternatives(request, *make)),
        )


def _alternatives(
    request: Request, ours: Callable[[], Callable], theirs: Callable[[], Callable]
) -> Iterator[Alternative]:
    yield jax_alternative("fgkd_jax", ours())
    if "torch" in request.against:
        yield torch_alternative("torch", theirs(), device=torch_models.torch_device())


BENCHMARK = Benchmark(name=__name__.rpartition(".")[2], cases=cases, against=("torch",))
"""The benchmark of suppression and RoIAlign."""
