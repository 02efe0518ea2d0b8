"""`fgkd bench data`: the training pipeline against the same work done with Pillow.

A sample is taken in the steady state: as many batches as are prepared ahead are taken from a fresh
iterator before the clock starts, and afterwards its threads are waited for, so that no alternative
works while another is measured. Files are read again and again, so from the system's page cache.
"""

import collections
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case
from fgkd_jax.cli.session import open_data
from fgkd_jax.data.base import CorruptImageError, Dataset, Example
from fgkd_jax.data.options import DataOptions, train_transform
from fgkd_jax.data.pipeline import train_iterator
from fgkd_jax.data.transforms import Window
from fgkd_jax.errors import UserError


@runtime_checkable
class Batches(Protocol):
    """Batches without end."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def close(self) -> None:
        """Ends the threads behind it."""
        ...


def pillow_image(image: Image.Image, *, window: Window, size: tuple[int, int]) -> Image.Image:
    """Cuts a window out of an image and resizes it, as `crop_and_resize` does.

    Args:
      image: in RGB.
      window: (x, y, width, height); outside the image is black.
      size: (height, width) of the result.

    Returns:
      The window, interpolated linearly, over the pixels that an output pixel covers where it
      shrinks.
    """
    x, y, width, height = window
    cut = image.crop((x, y, x + width, y + height))
    return cut.resize(size[::-1], Image.Resampling.BILINEAR)


def open_pillow(data: bytes | np.ndarray, name: str) -> Image.Image:
    """Decodes an image with Pillow.

    Args:
      data: a file's bytes, or uint8 [h, w, 3].
      name: what to call it in an error.

    Returns:
      The image in RGB, upright.

    Raises:
      CorruptImageError: it cannot be decoded.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    try:
        image = Image.open(io.BytesIO(data))
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGB")
    except OSError as error:
        raise CorruptImageError(name, str(error)) from error


class PillowBatches:
    """Training batches made with Pillow: the threads, the buffer and the windows of the pipeline.

    The windows come from the pipeline's own transform, which draws them as it does for itself.
    """

    def __init__(self, dataset: Dataset, options: DataOptions, *, batch_size: int) -> None:
        """Starts the threads.

        Args:
          dataset: has a `train` split.
          options: of the pipeline.
          batch_size: images of a batch.
        """
        transform: Any = train_transform(options, dataset.info)
        self._geometry, self._mirror = transform.transforms
        self._source, self._options = dataset.source("train"), options
        self._batch_size, self._made = batch_size, 0
        self._executor = ThreadPoolExecutor(options.read_threads)
        self._pending: collections.deque[Future[dict[str, np.ndarray]]] = collections.deque()
        while len(self._pending) < buffered(options):
            self._submit()

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns a batch and has another one prepared."""
        batch = self._pending.popleft().result()
        self._submit()
        return batch

    def close(self) -> None:
        """Ends the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        self._pending.append(self._executor.submit(self._make, self._made))
        self._made += 1

    def _make(self, number: int) -> dict[str, np.ndarray]:
        """Batch `number`: images drawn at random, for the order costs nothing."""
        rng = np.random.default_rng(number)
        rows = [
            self._source[int(i)] for i in rng.integers(len(self._source), size=self._batch_size)
        ]
        return {
            "image": np.stack([self._image(example, rng) for example in rows]),
            "label": np.array([example["label"] for example in rows], np.int32),
            "id": np.array([example["id"] for example in rows], np.int32),
            "mask": np.ones(len(rows), np.bool_),
        }

    def _image(self, example: Example, rng: np.random.Generator) -> np.ndarray:
        image = open_pillow(example["image"], example["name"])
        # The geometry looks at the shape alone.
        shape = np.broadcast_to(np.uint8(0), (image.height, image.width, 3))
        window = self._geometry._window({**example, "image": shape}, rng)
        image = pillow_image(image, window=window, size=self._options.size)
        if rng.random() < self._mirror.probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)


def buffered(options: DataOptions) -> int:
    """Says how many batches are prepared ahead.

    Args:
      options: of the pipeline.

    Returns:
      The number, with which a steady state begins.
    """
    return max(options.prefetch_batches, options.read_threads)


def streaming(name: str, open_batches: Callable[[], Batches], *, ahead: int) -> Alternative:
    """Makes an alternative of an iterator over batches.

    Args:
      name: of the alternative.
      open_batches: opens a fresh iterator.
      ahead: batches to take before the clock starts.

    Returns:
      The alternative; a call takes one batch.
    """
    opened: list[Batches] = []
    others: list[set[threading.Thread]] = []

    def begin() -> None:
        others.append(set(threading.enumerate()))
        opened.append(open_batches())
        run(ahead)

    def run(count: int) -> None:
        for _ in range(count):
            next(opened[-1])

    def end() -> None:
        opened.pop().close()
        # Closing lets the threads finish the batches they are at: wait for them, by themselves
        # they would do so at the next alternative's expense.
        for thread in set(threading.enumerate()) - others.pop():
            thread.join()

    return Alternative(name, run, begin, end)


def cases(request: Request) -> Iterator[Case]:
    """Makes the one case: a training batch.

    Args:
      request: names the config.

    Yields:
      The case.

    Raises:
      UserError: the data set is missing, or the pipeline would use several processes.
    """
    experiment = request.config
    options = experiment.images("fgkd bench data")
    if options.num_workers:
        raise UserError(
            f"config.data.num_workers is {options.num_workers}; fgkd bench data compares threads "
            "of one process, expected 0"
        )
    dataset = open_data(experiment)
    batch_size = request.batch_size or experiment.train.batch_size

    def pipeline() -> Batches:
        return train_iterator(dataset, options, batch_size=batch_size, seed=experiment.seed)

    def pillow() -> Batches:
        return PillowBatches(dataset, options, batch_size=batch_size)

    ahead = buffered(options)
    openers = {"pillow": pillow}
    yield Case(
        name=f"batch of {batch_size}",
        sizes={
            "dataset": dataset.info.name,
            "train_images": len(dataset.source("train")),
            "image_size": list(options.size),
            "train_geometry": options.train_geometry,
            "batch_size": batch_size,
            "read_threads": options.read_threads,
            "batches_ahead": ahead,
        },
        alternatives=(
            streaming("fgkd_jax", pipeline, ahead=ahead),
            *(streaming(name, openers[name], ahead=ahead) for name in request.against),
        ),
        images=batch_size,
        notes=("data: files come from the system's page cache",),
    )


BENCHMARK = Benchmark(
    name="data",
    cases=cases,
    against=("pillow",),
    default_against=("pillow",),
    takes_config=True,
)
