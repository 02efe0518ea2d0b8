"""`fgkd bench msdn`: a training step on region features, against one product per map in torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.cli.zero_shot_recipes import released_optimizer
from fgkd_jax.methods.msdn import MSDN
from fgkd_jax.methods.msdn_presets import msdn_preset
from fgkd_jax.train.optim import OptimOptions, make_optimizer
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.step import make_train_step
from fgkd_jax.typing import Array, PyTree


class Sizes(NamedTuple):
    """Sizes of the released training on CUB.

    Attributes:
      batch_size: images.
      attributes: a.
      classes: k, of which every fourth is unseen.
      side: rows and columns of regions.
      channels: f.
      word_size: v.
    """

    batch_size: int = 50
    attributes: int = 312
    classes: int = 200
    side: int = 7
    channels: int = 2048
    word_size: int = 300


SIZES = Sizes()
STEPS = 1_000_000
"""Of a run that the optimiser is told of; at a constant rate it is of no account."""


class Arrays(NamedTuple):
    """What a step starts from.

    Attributes:
      batch: as of the task.
      params: of the method, as released: the maps of text to image random, all others zero.
      constants: of the method.
    """

    batch: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]


def random_arrays(sizes: Sizes) -> Arrays:
    """Draws features, and descriptions of classes.

    Args:
      sizes: how many of what.

    Returns:
      Always the same arrays.
    """
    rng = np.random.default_rng(0)
    grid = (sizes.batch_size, sizes.side, sizes.side, sizes.channels)
    seen = np.arange(sizes.classes) % 4 > 0
    batch = {
        "features": np.maximum(rng.standard_normal(grid, np.float32), 0),
        "label": rng.choice(np.flatnonzero(seen), sizes.batch_size).astype(np.int32),
        "id": np.arange(sizes.batch_size, dtype=np.int32),
        "mask": np.ones(sizes.batch_size, bool),
    }
    method = make_method(sizes)
    told = method.describe(
        rng.random((sizes.classes, sizes.attributes), np.float32),
        seen,
        rng.standard_normal((sizes.attributes, sizes.word_size), np.float32),
        class_names=(),
    )
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)["params"]
    params = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}
    drawn = rng.standard_normal(shapes["region_score"].shape, np.float32)
    params |= {**told["params"], "region_score": drawn}
    return Arrays(batch, params, told["constants"])


def make_method(sizes: Sizes) -> MSDN:
    """Makes the method as released for CUB.

    Args:
      sizes: how many of what.

    Returns:
      The method.
    """
    return MSDN(
        num_classes=sizes.classes,
        num_attributes=sizes.attributes,
        word_size=sizes.word_size,
        **msdn_preset("reference"),
    )


def ours(arrays: Arrays, sizes: Sizes) -> Callable[[], tuple[Array, PyTree]]:
    """Compiles our training step.

    Args:
      arrays: what it starts from.
      sizes: of them.

    Returns:
      A call that makes a step, from where the one before ended, and returns the loss before it and
      the new parameters, which the next call overwrites.
    """
    method = make_method(sizes)
    options = OptimOptions(**released_optimizer())
    optimizer = make_optimizer(options, arrays.params, total_steps=STEPS)
    batch, params, constants = jax.device_put((arrays.batch, arrays.params, arrays.constants))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        params=jax.tree.map(jnp.copy, params),
        model_state={},
        opt_state=optimizer.init(params),
        constants={"constants": constants},
    )
    step = jax.jit(make_train_step(method, optimizer), donate_argnums=0)

    def call() -> tuple[Array, PyTree]:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"], state.params

    return call


def one_product_per_map(torch: Any, params: Mapping[str, Any], regions: Any) -> tuple[Any, ...]:
    """Computes the maps as they are published, one after the other.

    Args:
      torch: the module.
      params: tensors by our names; matrices are [v, f].
      regions: [b, f, r].

    Returns:
      Both maps of text to image [b, a, r], the first of image to text [b, r, a], its second
      [b, a, r].
    """
    words = params["words"]
    first, second = (
        torch.einsum("iv,vf,bfr->bir", words, params[name], regions)
        for name in ("region_score", "region_attention")
    )
    third = torch.einsum("bfr,fv,iv->bri", regions, params["attribute_score"].T, words)
    fourth = torch.einsum("iv,vf,bfr->bir", words, params["attribute_attention"], regions)
    return first, second, third, fourth


def one_product(torch: Any, params: Mapping[str, Any], regions: Any) -> tuple[Any, ...]:
    """Computes the same maps as ours are, in one product.

    Args:
      torch: the module.
      params: likewise.
      regions: likewise.

    Returns:
      As `one_product_per_map`.
    """
    names = ("region_score", "region_attention", "attribute_score", "attribute_attention")
    queries = torch.cat([params["words"] @ params[name] for name in names])
    maps = torch.matmul(queries, regions).chunk(4, dim=1)
    return maps[0], maps[1], maps[2].transpose(1, 2), maps[3]


AGAINST: Mapping[str, Callable[[Any, Mapping[str, Any], Any], tuple[Any, ...]]] = {
    "torch": one_product_per_map,
    "torch_one_product": one_product,
}
"""How the maps are made, by alternative."""


def theirs(
    arrays: Arrays, make_maps: Callable[[Any, Mapping[str, Any], Any], tuple[Any, ...]]
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """Writes the training step in eager torch, with all that a loss needs and nothing else.

    Args:
      arrays: what it starts from.
      make_maps: a value of `AGAINST`.

    Returns:
      A call that makes a step and returns what a call of `ours` returns.
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    functional = torch.nn.functional
    method = MSDN(**msdn_preset("reference"))
    params = {
        name: torch.from_numpy(value.copy()).to(device).requires_grad_()
        for name, value in arrays.params.items()
    }
    features = torch.from_numpy(np.moveaxis(arrays.batch["features"], 3, 1).copy()).to(device)
    labels = torch.from_numpy(arrays.batch["label"]).long().to(device)
    attributes = torch.from_numpy(arrays.constants["attributes"]).to(device)
    seen = torch.from_numpy(arrays.constants["seen"]).to(device)
    bias = torch.where(seen, -method.bias, method.bias)
    optimizer = _optimizer(torch, params.values())

    def one_loss(scores: Any) -> Any:
        mass = torch.softmax(scores, 1)[:, ~seen].sum(1).mean()
        label_loss = functional.cross_entropy(scores - bias, labels)
        return label_loss - method.calibration_weight * torch.log(mass)

    def distillation(first: Any, second: Any) -> Any:
        apart = first - second
        cubes = (apart.abs() ** 3).sum(1) / apart.norm(dim=1)
        p, q = torch.softmax(first, 1), torch.softmax(second, 1)
        log_m = torch.log((p + q) / 2)
        divergence = (p * (p.log() - log_m) + q * (q.log() - log_m)).sum(1) / 2
        return (cubes + divergence).mean()

    def call() -> tuple[Any, dict[str, Any]]:
        regions = functional.normalize(features.flatten(2), dim=1)
        score, attention, back_score, back = make_maps(torch, params, regions)
        first = (torch.softmax(attention, 2) * score).sum(2) @ attributes.T + bias
        values = torch.softmax(back, 1) * back_score.transpose(1, 2)
        second = values.sum(2) @ attributes.T + bias
        loss = one_loss(first) + one_loss(second)
        loss = loss + method.distillation_weight * distillation(first, second)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach(), params

    return call


def _optimizer(torch: Any, params: Any) -> Any:
    """The optimiser of the released code."""
    options = OptimOptions(**released_optimizer())
    return torch.optim.RMSprop(
        params,
        lr=options.learning_rate,
        alpha=options.rms_decay,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
    )


def cases(request: Request) -> Iterator[Case]:
    """Makes the one case: a training step, optimiser included.

    Args:
      request: may set the batch size.

    Yields:
      The case.
    """
    sizes = SIZES._replace(batch_size=request.batch_size or SIZES.batch_size)
    arrays = random_arrays(sizes)
    yield Case(
        name=f"training step of {sizes.batch_size} on features",
        sizes=sizes._asdict(),
        alternatives=tuple(_alternatives(request, arrays, sizes)),
        images=sizes.batch_size,
    )


def _alternatives(request: Request, arrays: Arrays, sizes: Sizes) -> Iterator[Alternative]:
    yield jax_alternative("fgkd_jax", ours(arrays, sizes), chained=True)
    for name in request.against:
        device = torch_models.torch_device()
        yield torch_alternative(name, theirs(arrays, AGAINST[name]), device=device)


BENCHMARK = Benchmark(name=__name__.rpartition(".")[2], cases=cases, against=tuple(AGAINST))
"""The benchmark of a training step on features."""
