"""`fgkd bench mcl`: the layer-wise contrast, against a loop over pairs of stages in torch."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.benchmarks.base import Benchmark, Request
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, jax_alternative, torch_alternative
from fgkd_jax.losses import layerwise_mutual_contrastive
from fgkd_jax.typing import Array

BATCH_SIZE, DIMENSIONS = 128, 128
NETWORKS, STAGES = 2, 4
TEMPERATURE, SOFT_TEMPERATURE = 0.1, 3.0
WEIGHTS = (0.1, 0.1, 1.0, 1.0)
"""Of vcl, icl, soft_vcl and soft_icl."""

MEMORY_SIZES = tuple((n, s) for n in (2, 3, 4) for s in (1, 2, 3, 4))
"""Networks and stages for which the temporary memory is told."""


class Arrays(NamedTuple):
    """What the loss is given.

    Attributes:
      embeddings: float32 [n, s, b, d], of length one.
      labels: int32 [b], two of each class.
      match_weights: float32 [n, s, n, s, b], in (0, 1).
    """

    embeddings: np.ndarray
    labels: np.ndarray
    match_weights: np.ndarray


def random_arrays(*, networks: int, stages: int, batch_size: int) -> Arrays:
    """Draws the arguments of the loss.

    Args:
      networks: n.
      stages: s.
      batch_size: b.

    Returns:
      Always the same arrays.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((networks, stages, batch_size, DIMENSIONS), np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    labels = rng.permutation(np.arange(batch_size) // 2).astype(np.int32)
    shape = (networks, stages, networks, stages, batch_size)
    return Arrays(x, labels, rng.uniform(0.27, 0.73, shape).astype(np.float32))


def total(embeddings: Array, labels: Array, match_weights: Array) -> Array:
    """Computes the weighted loss of a batch.

    Args:
      embeddings: as in `Arrays`.
      labels: likewise.
      match_weights: likewise.

    Returns:
      A scalar in nats.
    """
    terms = layerwise_mutual_contrastive(
        embeddings,
        labels,
        match_weights,
        temperature=TEMPERATURE,
        soft_temperature=SOFT_TEMPERATURE,
    )
    pairs = zip(WEIGHTS, terms, strict=True)
    return jnp.sum(jnp.stack([weight * jnp.mean(term) for weight, term in pairs]))


def ours(arrays: Arrays) -> Callable[[], tuple[Array, ...]]:
    """Compiles our loss and its gradients.

    Args:
      arrays: what it is given.

    Returns:
      A call that returns the loss and the gradients to embeddings and weights.
    """
    placed = jax.device_put(tuple(arrays))
    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 2)))

    def call() -> tuple[Array, ...]:
        loss, grads = compiled(*placed)
        return loss, *grads

    return call


def theirs(arrays: Arrays) -> Callable[[], tuple[Any, ...]]:
    """Writes the loss in torch as its formulas are: a loop over ordered pairs of stages.

    Every pair makes its own products of all images with all images, four of them.

    Args:
      arrays: what it is given.

    Returns:
      A call that returns what `ours` returns.
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    x, labels, weights = (torch.from_numpy(array).to(device) for array in arrays)
    x.requires_grad_()
    weights.requires_grad_()
    networks, stages = x.shape[:2]
    others = ~torch.eye(len(labels), dtype=torch.bool, device=device)
    positives = (labels[:, None] == labels[None]) & others

    def contrast(logits: Any, weight: Any) -> Any:
        log_p = logits - torch.logsumexp(logits.masked_fill(~others, -torch.inf), 1, keepdim=True)
        mean = (log_p * positives).sum(1) / positives.sum(1)
        return -(weight * mean).mean()

    def divergence(student: Any, teacher: Any, weight: Any) -> Any:
        log_p = torch.log_softmax(student / SOFT_TEMPERATURE, 1)
        log_q = torch.log_softmax(teacher.detach() / SOFT_TEMPERATURE, 1)
        per_anchor = (log_q.exp() * (log_q - log_p)).sum(1)
        return SOFT_TEMPERATURE**2 * (weight * per_anchor).mean()

    def pair(one: Any, other: Any, weight: Any) -> Any:
        first, second = one @ one.T / TEMPERATURE, other @ other.T / TEMPERATURE
        across, back = one @ other.T / TEMPERATURE, other @ one.T / TEMPERATURE
        vcl, icl, soft_vcl, soft_icl = WEIGHTS
        return (
            vcl * (contrast(first, weight) + contrast(second, weight))
            + icl * (contrast(across, weight) + contrast(back, weight))
            + soft_vcl * (divergence(first, second, weight) + divergence(second, first, weight))
            + soft_icl * (divergence(across, back, weight) + divergence(back, across, weight))
        )

    def call() -> tuple[Any, ...]:
        loss = sum(
            pair(x[i, k], x[j, z], weights[i, k, j, z])
            for i in range(networks)
            for j in range(networks)
            if i != j
            for k in range(stages)
            for z in range(stages)
        )
        return loss.detach(), *torch.autograd.grad(loss, (x, weights))

    return call


def temporary_memory(*, networks: int, stages: int, batch_size: int) -> int:
    """Asks the compiler how much memory the loss and its gradients take besides their arguments.

    Args:
      networks: n.
      stages: s.
      batch_size: b.

    Returns:
      Bytes.
    """
    arrays = random_arrays(networks=networks, stages=stages, batch_size=batch_size)
    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 2))).lower(*arrays).compile()
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)


def cases(request: Request) -> Iterator[Case]:
    """Makes the one case: forward and backward of the loss.

    Args:
      request: may set the batch size.

    Yields:
      The case.
    """
    batch_size = request.batch_size or BATCH_SIZE
    arrays = random_arrays(networks=NETWORKS, stages=STAGES, batch_size=batch_size)
    memory = {
        f"{n} x {s}": temporary_memory(networks=n, stages=s, batch_size=batch_size)
        for n, s in MEMORY_SIZES
    }
    told = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in memory.items())
    yield Case(
        name="layer-wise contrast with gradients",
        sizes={
            "batch_size": batch_size,
            "networks": NETWORKS,
            "stages": STAGES,
            "dimensions": DIMENSIONS,
            "temporary_bytes": memory,
        },
        alternatives=tuple(_alternatives(request, arrays)),
        notes=(f"mcl: temporary memory in MiB for networks x stages: {told}",),
    )


def _alternatives(request: Request, arrays: Arrays) -> Iterator[Alternative]:
    yield jax_alternative("fgkd_jax", ours(arrays))
    if "torch" in request.against:
        yield torch_alternative("torch", theirs(arrays), device=torch_models.torch_device())


BENCHMARK = Benchmark(name=__name__.rpartition(".")[2], cases=cases, against=("torch",))
"""The benchmark of the layer-wise contrast."""
