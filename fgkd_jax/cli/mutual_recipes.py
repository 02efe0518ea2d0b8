"""What the configs of networks that learn from each other have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.cli.recipes import CIFAR10_MEAN, CIFAR10_STD, NO_RUN, drawn_birds, photographs
from fgkd_jax.errors import UserError

MUTUAL_PAIRS: tuple[str, ...] = (
    "cifar_resnet32",
    "cifar_resnet56",
    "cifar_resnet110",
    "wrn_16_2",
    "wrn_40_2",
    "wrn_28_4",
    "cifar_shufflenet_v2_x0_5",
    "cifar_shufflenet_v2_x1_0",
    "cifar_hcgnet_a1",
    "cifar_hcgnet_a2",
)
"""Networks for small images that learn from each other, in pairs of any two or more of them."""

IMAGENET_PAIRS: tuple[str, ...] = (
    "resnet18",
    "resnet34",
    "resnet50",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
)
"""Networks for photographs that learn from each other, likewise."""


def mutual_networks(
    names: str, known: tuple[str, ...] = MUTUAL_PAIRS
) -> tuple[dict[str, Any], ...]:
    """Reads which networks learn together.

    Args:
      names: some of those known, separated by commas; one stands for two of it.
      known: those that there are.

    Returns:
      Options of each backbone.

    Raises:
      UserError: there is no such network.
    """
    found = names.split(",")
    for name in found:
        if name not in known:
            raise UserError(
                f"no network {name!r}; expected some of {', '.join(known)}, separated by commas"
            )
    return tuple({"name": name} for name in (found * 2 if len(found) == 1 else found))


def mutual_small_images(
    method: Mapping[str, Any], *, networks: Sequence[Mapping[str, Any]], title: str
) -> ConfigDict:
    """Completes a config in which networks learn CIFAR-100 together, as released.

    300 epochs in batches of 64 pairs, of which an epoch has 390. The released rate falls once an
    epoch; here it falls with every step.

    Args:
      method: `name` and options.
      networks: as `mutual_networks` returns them.
      title: of the row, before their names.

    Returns:
      The config.
    """
    names = [network["name"] for network in networks]
    return ConfigDict(
        {
            "seed": 0,
            "method": {
                "image_mean": (0.5071, 0.4867, 0.4408),
                "image_std": (0.2675, 0.2565, 0.2761),
                **method,
            },
            "data": {
                "dataset": "cifar100",
                "image_size": 32,
                "train_geometry": "shift_crop",
                "max_shift": 4,
                "eval_geometry": "resize",
                "images_per_class": 2,
                "validation_fraction": 0.02,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "schedule": "cosine",
                "weight_decay": 5e-4,
                "decay_vectors": True,
            },
            "train": {
                "steps": 300 * 390,
                "batch_size": 128,
                "eval_batch_size": 512,
                "log_every": 100,
                "eval_every": 3900,
            },
            "checkpoint": {"every_steps": 3900, "best_metric": "accuracy"},
            "report": {
                "title": f"{title}: {' with '.join(names)}",
                "paper": NO_RUN,
                "figures": mutual_figures(len(method.get("networks", ()))),
            },
        }
    )


def mutual_birds(
    method: Mapping[str, Any], *, title: str, controls: Sequence[str] = ()
) -> ConfigDict:
    """Completes a config in which narrow networks learn 768 drawn birds together.

    The images are cropped to the true box, without which 48 x 48 pixels show no species, and are 32
    of each class, few enough to learn by heart: what is compared is what networks make of images
    that they never saw.

    Args:
      method: `name` and options.
      title: of the row, before what it is trained on.
      controls: other configs that `fgkd reproduce` runs with it.

    Returns:
      The config.
    """
    config = drawn_birds(
        method,
        image_size=48,
        steps=1200,
        batch_size=32,
        data={
            "train_geometry": "box",
            "eval_geometry": "box",
            "images_per_class": 2,
            "train_fraction": 0.4,
        },
        report={
            "title": f"{title}, 48 x 48 of the true box, 768 images",
            "figures": mutual_figures(len(method.get("networks", ()))),
            "controls": tuple(controls),
        },
    )
    config.optim.warmup_steps = 120
    config.train.eval_every = config.checkpoint.every_steps = 300
    return config


def mutual_cifar10(
    method: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    *,
    title: str,
    networks: str = "",
) -> ConfigDict:
    """Completes a config in which networks learn CIFAR-10 together.

    Two ResNet-8 learn 10,000 images, in minutes on two CPU cores. Networks that are named learn all
    48,000, 30 times, in minutes on a GPU; the last step is reported. The images are the same in
    every run, as many of each class; 2,000 others are for validation.

    Args:
      method: from the networks to `name` and options.
      title: of the row, before the networks' names.
      networks: as `mutual_networks` reads them; empty for the two ResNet-8.

    Returns:
      The config.

    Raises:
      UserError: there is no such network.
    """
    small = ({"name": "cifar_resnet20", "stage_sizes": (1, 1, 1)},) * 2
    pair = mutual_networks(networks) if networks else small
    config = mutual_small_images(method(pair), networks=pair, title=title)
    config.method.image_mean, config.method.image_std = CIFAR10_MEAN, CIFAR10_STD
    config.data.update(dataset="cifar10", validation_fraction=0.04)
    if networks:
        config.train.update(steps=30 * 375, eval_every=1125)
        config.checkpoint.every_steps = 1125
        config.report.title += ", 48,000 images"
        config.report.paper = "none on JPEG copies"
        return config
    config.data.train_fraction = 1000 / 4800
    config.train.update(steps=2400, batch_size=64, eval_every=400)
    config.checkpoint.every_steps = 400
    config.report.title = f"{title}: two ResNet-8"
    config.report.paper = "none on 10,000 images"
    return config


def mutual_imagenet(
    method: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    *,
    networks: str,
    title: str,
    data: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    epochs: int = 90,
) -> ConfigDict:
    """Completes a config in which networks learn ImageNet together, as released.

    Batches of 256, of which an epoch of all images has 5,004. One image in a hundred is held out,
    to choose checkpoints by. Batch norm is over groups of 32, as on the 8 devices that such a
    batch was spread over.

    Args:
      method: from the networks to `name` and options.
      networks: names of `IMAGENET_PAIRS`, separated by commas; one stands for two of it.
      title: of the row, before the names.
      data: further options of the data.
      optim: what differs from SGD at a rate of 0.1, a tenth of it after 1/3 and 2/3 of the steps.
      epochs: how many.

    Returns:
      The config.

    Raises:
      UserError: there is no such network.
    """
    options = {"norm_groups": 8, "dtype": "bfloat16"}
    backbones = tuple({**one, **options} for one in mutual_networks(networks, IMAGENET_PAIRS))
    completed = method(backbones)
    config = photographs(
        completed,
        data={
            "dataset": "tfds/imagenet2012",
            "image_size": 224,
            "train_geometry": "random_resized_crop",
            "validation_fraction": 0.01,
            **(data or {}),
        },
        optim={
            "learning_rate": 0.1,
            "schedule": "step",
            "step_boundaries": (1 / 3, 2 / 3),
            "decay_vectors": True,
            **(optim or {}),
        },
        steps=epochs * 5004,
        batch_size=256,
        every_steps=5004,
        report={
            "title": f"{title}: {' with '.join(one['name'] for one in backbones)}",
            "figures": mutual_figures(len(completed.get("networks", ()))),
        },
    )
    config.train.eval_every = 5004
    config.checkpoint.best_metric = "accuracy"
    return config


def mutual_figures(networks: int) -> tuple[str, ...]:
    """Names the figures of a row.

    Args:
      networks: how many are trained together; 0 where a network is trained alone.

    Returns:
      The mean accuracy, that of each network, and that of their ensemble.
    """
    if not networks:
        return ("accuracy",)
    single = (f"network{i}_accuracy" for i in range(networks))
    return ("accuracy", *single, "ensemble_accuracy")
