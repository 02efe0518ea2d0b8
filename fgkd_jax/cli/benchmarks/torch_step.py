"""One training step in PyTorch: loss, gradients, optimiser, as an experiment describes them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.cli.benchmarks import torch_models
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.classifier import Classifier
from fgkd_jax.models.resnet import ResNet
from fgkd_jax.train.optim import OptimOptions, learning_rate_schedule
from fgkd_jax.train.pretrained import to_torch_state_dict
from fgkd_jax.typing import Batch, Variables


def _sgd(torch: Any, groups: Any, options: OptimOptions) -> Any:
    momentum, nesterov = options.momentum, options.nesterov
    return torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)


def _adam(torch: Any, groups: Any, options: OptimOptions) -> Any:
    return torch.optim.Adam(groups, betas=options.betas, eps=options.epsilon)


def _adamw(torch: Any, groups: Any, options: OptimOptions) -> Any:
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.epsilon)


OPTIMIZERS: Mapping[str, Callable[[Any, Any, OptimOptions], Any]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}
"""Torch's optimisers by our names; the same formulas, weight decay included."""

RATES = 1000
"""Learning rates that are computed beforehand, for the first steps."""


def check_comparable(experiment: Experiment, *, devices: int) -> None:
    """Checks that the torch side computes the same as an experiment.

    Args:
      experiment: the experiment.
      devices: how many it runs on.

    Raises:
      UserError: an option has a value that is not written in torch.
    """
    method = experiment.method
    if not isinstance(method, Classifier):
        raise UserError(
            f"the method {type(method).__name__} has no counterpart in torch; expected Classifier"
        )
    backbone = method.network.backbone
    if not isinstance(backbone, ResNet):
        raise UserError(
            f"config.method.backbone.name is {method.backbone['name']!r}, which has no "
            "counterpart in torch; expected a ResNet"
        )
    if experiment.optim.name not in OPTIMIZERS:
        hint = nearest(experiment.optim.name, OPTIMIZERS)
        raise UserError(f"config.optim.name {experiment.optim.name!r} is not compared{hint}")
    plain = {
        "mesh.data": (devices, 1),
        "train.accumulate": (experiment.train.accumulate, 1),
        "method.frozen_stages": (method.frozen_stages, 0),
        "method.brightness": (method.brightness, 0.0),
        "method.contrast": (method.contrast, 0.0),
        "method.saturation": (method.saturation, 0.0),
        "method.backbone.norm_groups": (backbone.norm_groups, 1),
        "method.backbone.frozen_norm": (backbone.frozen_norm, ""),
        "method.backbone.remat": (backbone.remat, ()),
        "optim.ema_decay": (experiment.optim.ema_decay, 0.0),
        "optim.rules": (experiment.optim.rules, ()),
    }
    for name, (value, expected) in plain.items():
        if value != expected:
            raise UserError(
                f"config.{name} is {value!r}; the comparison with torch expects {expected!r}"
            )
    if jnp.dtype(backbone.dtype) not in (jnp.float32, jnp.bfloat16):
        raise UserError(
            f"config.method.backbone.dtype is {backbone.dtype}; expected float32 or bfloat16"
        )


@dataclasses.dataclass
class TorchStep:
    """A training step in torch and all it changes.

    Attributes:
      network: the module, in training mode.
      optimizer: its optimiser.
      call: makes one step on the batch and returns the loss, which may not be ready yet.
      device: where it computes.
    """

    network: Any
    optimizer: Any
    call: Callable[[], Any]
    device: Any


def make_torch_step(
    experiment: Experiment,
    variables: Variables,
    batch: Batch,
    *,
    layout: str,
    compiled: bool = False,
) -> TorchStep:
    """Writes the training step of an experiment in torch.

    Args:
      experiment: passes `check_comparable`; its method knows the number of classes.
      variables: the weights to start from.
      batch: `image` uint8 [b, h, w, 3] and `label` int [b], on the host.
      layout: torch's name of a memory format.
      compiled: whether network and loss go through `torch.compile`.

    Returns:
      The step, on the device that JAX uses.

    Raises:
      UserError: torch or the device is missing.
    """
    torch, device = torch_models.import_torch(), torch_models.torch_device()
    method: Any = experiment.method
    order = getattr(torch, layout)
    network = torch_models.resnet(
        method.network.backbone,
        num_classes=method.num_classes,
        mean=method.image_mean,
        std=method.image_std,
        dropout=method.dropout,
    )
    torch_models.load_weights(network, to_torch_state_dict(jax.device_get(variables)))
    network = network.to(device, memory_format=order).train()
    images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=order).to(device)
    labels = torch.from_numpy(np.array(batch["label"])).long().to(device)
    optimizer = _make_optimizer(torch, network, experiment.optim)
    rates = _learning_rates(experiment)
    parameters = list(network.parameters())
    clip, made = experiment.optim.clip_norm, 0

    def loss(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(
            network(images), labels, label_smoothing=method.label_smoothing
        )

    loss_of = _compiled(torch, loss) if compiled else loss

    def call() -> Any:
        nonlocal made
        for group in optimizer.param_groups:
            group["lr"] = rates[min(made, len(rates) - 1)]
        made += 1
        optimizer.zero_grad(set_to_none=True)
        value = loss_of(images, labels)
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return value.detach()

    return TorchStep(network, optimizer, call, device)


def _make_optimizer(torch: Any, network: Any, options: OptimOptions) -> Any:
    """The optimiser, with weight decay on what ours decays."""
    decayed: list[Any] = []
    others: list[Any] = []
    for parameter in network.parameters():
        decays = options.decay_vectors or parameter.ndim >= 2
        (decayed if decays else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[options.name](torch, groups, options)


def _learning_rates(experiment: Experiment) -> list[float]:
    """The rates of the first steps, so that looking one up costs nothing."""
    total = experiment.train.steps
    schedule = learning_rate_schedule(experiment.optim, total)
    steps = jnp.arange(min(RATES, total))
    return np.asarray(
        jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(steps)
    ).tolist()


def _compiled(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile, with one line where that fails."""
    fast = torch.compile(function)

    def call(*args: Any) -> Any:
        try:
            return fast(*args)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torch.compile fails on this machine: {reason}") from error

    return call
