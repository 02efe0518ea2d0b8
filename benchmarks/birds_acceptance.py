"""Measures whether `procedural_birds/classification` is as hard as it is meant to be.

    python benchmarks/birds_acceptance.py --seeds 3 --out benchmarks/results/birds_acceptance.json

A small residual network is trained from random weights on one of four views of each picture, all
64x64 pixels:

- `plain`: the whole picture, shrunk. Genus accuracy is to be above .95, species accuracy in
  .35 .. .45: the genus is plain to see, its species are not.
- `oracle`: a crop by the true box. Species accuracy is to be .80 or more: the detail is there for
  whoever looks in the right place.
- `empty`: the same scene drawn without its bird, shrunk. Chance: 1/24 and 1/8.
- `hole`: the picture with the bird and a margin painted grey. What the outline alone gives away;
  no bound is set, since shapes of bill and tail are part of the bird.

Figures are those of the last epoch on the test split. One view and seed at a time is trained on one
thread; `--only plain --seed 0` runs that one and adds it to the file.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgkd_jax.data import procedural_birds as birds

SIDE = 64
EPOCHS = {"plain": 30, "oracle": 30, "empty": 12, "hole": 12}
BATCH = 32
MEAN, STD = 105.0, 55.0


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the last norm starts at zero."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block to [b, h, w, c]."""
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = functools.partial(nn.Conv, self.width, (3, 3), use_bias=False)
        y = nn.relu(norm()(conv(strides=self.stride)(x)))
        y = norm(scale_init=nn.initializers.zeros)(conv()(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(self.width, (1, 1), strides=self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class Network(nn.Module):
    """Stem and four residual blocks of 16, 32, 64 and 128 channels."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """From uint8 [b, 64, 64, 3] to logits [b, classes]."""
        x = (x.astype(jnp.float32) - MEAN) / STD
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for width, stride in ((16, 2), (32, 2), (64, 2), (128, 2)):
            x = Block(width, stride)(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


def shifted(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Flips and shifts by up to 24 pixels when training, then shrinks to 64x64."""
    if rng is not None:
        if rng.random() < 0.5:
            image = image[:, ::-1]
        dy, dx = rng.integers(0, 49, 2)
        image = cv2.copyMakeBorder(image, 24, 24, 24, 24, cv2.BORDER_REFLECT_101)
        image = image[dy : dy + birds.SIZE, dx : dx + birds.SIZE]
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def cropped(image: np.ndarray, box: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Cuts the square around the box, a tenth wider (jittered when training), to 64x64."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    side = max(box[2] - box[0], box[3] - box[1]) * 1.1
    flip = False
    if rng is not None:
        side *= rng.uniform(0.9, 1.15)
        x, y = x + side * rng.uniform(-0.06, 0.06), y + side * rng.uniform(-0.06, 0.06)
        flip = rng.random() < 0.5
    scale = SIDE / side
    matrix = np.array([[scale, 0, SIDE / 2 - scale * x], [0, scale, SIDE / 2 - scale * y]])
    patch = cv2.warpAffine(
        image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return patch[:, ::-1] if flip else patch


def holed(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paints the mask and six pixels round it grey."""
    wide = cv2.dilate(mask, np.ones((13, 13), np.uint8))
    return np.where(wide[:, :, None] > 0, np.uint8(110), image)


def load(split: str, view: str, data_dir: str | None) -> dict[str, np.ndarray]:
    """Reads a split into memory: image, label, bbox; `empty` scenes are drawn, not read."""
    source = birds.open_birds(data_dir).source(split)
    rows: dict[str, list] = {"image": [], "label": [], "bbox": []}
    for index in range(len(source)):
        example = source[index]
        if view == "empty":
            image = birds.draw_example(split, index, with_bird=False).image
        else:
            image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
            image = holed(image, example["mask"]) if view == "hole" else image
        rows["image"].append(image)
        rows["label"].append(example["label"])
        rows["bbox"].append(example["bbox"])
    return {name: np.stack(row) for name, row in rows.items()}


def view_of(data: dict[str, np.ndarray], i: int, view: str, rng: Any) -> np.ndarray:
    """The 64x64 picture the network is given."""
    if view == "oracle":
        return cropped(data["image"][i], data["bbox"][i], rng)
    return shifted(data["image"][i], rng)


def batches(data: dict[str, np.ndarray], view: str, seed: int, epochs: int) -> Iterator[tuple]:
    """Endless full batches, each epoch in a new order."""
    rng = np.random.default_rng([seed, 17])
    for _ in range(epochs):
        order = rng.permutation(len(data["label"]))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            images = np.stack([view_of(data, i, view, rng) for i in chosen])
            yield images, data["label"][chosen]


def make_step(network: Network, optimizer: optax.GradientTransformation) -> Callable:
    """One training step: (variables, optimiser state, images, labels) -> the first two, loss."""

    def loss_of(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple:
        logits, new = network.apply(
            {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, new["batch_stats"]

    @jax.jit
    def step(variables: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, stats), grads = grad(variables["params"], variables["batch_stats"], images, labels)
        updates, state = optimizer.update(grads, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, state, loss

    return step


def run(view: str, seed: int, *, data_dir: str | None, epochs: int) -> dict[str, Any]:
    """Trains on one view with one seed; returns the figures."""
    train, test = (load(split, view, data_dir) for split in ("train", "test"))
    genus = np.array(birds.birds_world().genus_of)
    network = Network(len(genus))
    variables = network.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8), False)
    steps = len(train["label"]) // BATCH * epochs
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 60, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=1e-3)
    )
    state, step = optimizer.init(variables["params"]), make_step(network, optimizer)
    began, losses = time.process_time(), []
    for number, (images, labels) in enumerate(batches(train, view, seed, epochs), start=1):
        variables, state, loss = step(variables, state, images, labels)
        losses.append(loss)
        if number % (5 * (len(train["label"]) // BATCH)) == 0:
            print(
                f"{view} {seed}: step {number}/{steps}, loss {np.mean(losses[-60:]):.3f}",
                flush=True,
            )
    seconds = time.process_time() - began
    apply = jax.jit(lambda x: network.apply(variables, x, False).argmax(-1))

    def right(data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        views = np.stack([view_of(data, i, view, None) for i in range(len(data["label"]))])
        guess = np.concatenate(
            [np.asarray(apply(part)) for part in np.split(views, len(views) // 96)]
        )
        return guess == data["label"], genus[guess] == genus[data["label"]]

    species, genera = right(test)
    by_genus = [species[genus[test["label"]] == one].mean() for one in range(genus.max() + 1)]
    return {
        "view": view,
        "seed": seed,
        "epochs": epochs,
        "species_accuracy": round(float(species.mean()), 4),
        "genus_accuracy": round(float(genera.mean()), 4),
        "species_accuracy_by_genus": [round(float(one), 3) for one in by_genus],
        "train_species_accuracy": round(float(right(train)[0].mean()), 4),
        "test_images": len(test["label"]),
        "cpu_seconds": round(seconds),
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    packages = ("jax", "flax", "optax", "numpy", "pillow", "opencv-python-headless")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"procedural_birds": birds.VERSION, "python": platform.python_version(), **found}


def main() -> None:
    """Runs what is asked for and writes the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", help="where the data set is, or is to be built")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="this seed only")
    parser.add_argument("--only", choices=sorted(EPOCHS), help="this view only")
    parser.add_argument("--epochs", type=int, help="instead of the view's own number")
    parser.add_argument("--out", type=Path, help="JSON file to write, or to add to")
    options = parser.parse_args()
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    for view in [options.only] if options.only else list(EPOCHS):
        for seed in seeds:
            epochs = options.epochs or EPOCHS[view]
            figures = run(view, seed, data_dir=options.data_dir, epochs=epochs)
            print(json.dumps(figures), flush=True)
            if options.out:
                add(options.out, figures)


def add(path: Path, figures: dict[str, Any]) -> None:
    """Puts a run into the file, in place of an earlier one of the same view, seed and length."""
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    same = [figures[name] for name in ("view", "seed", "epochs")]
    kept = [row for row in kept if [row[n] for n in ("view", "seed", "epochs")] != same]
    rows = sorted([*kept, figures], key=lambda row: (row["view"], row["epochs"], row["seed"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions(), "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
