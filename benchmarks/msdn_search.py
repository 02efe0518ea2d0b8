"""Chooses how MSDN is trained, on seen classes alone: many runs at once on one accelerator.

  python benchmarks/msdn_search.py --config msdn_cub50 --data_dir FEATURES --output search.json

Divides the seen classes into ones to train on and ones that play unseen ones, as
`data.validation_classes` does, `--divisions` times, and trains a run per division and setting from
the training images, which stay on the device. The test splits are never opened. Each run is looked
at `--looks` times: accuracy among the classes held out, the area under the seen-unseen curve and
the best harmonic mean with its offset, for several weights between the sub-nets, and for the
parameters as well as for their running mean.
"""

import argparse
import itertools
import json
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.session import open_data, open_run
from fgkd_jax.train.loop import Trainer

FUSIONS = ((1.0, 0.0), (0.9, 0.1), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.0, 1.0))
OFFSETS = np.linspace(-4, 8, 241)
EMA = 0.99
SETTINGS = ("learning_rate", "weight_decay", "calibration_weight", "distillation_weight")


def main() -> None:
    """Runs the search and writes its rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--override", action="append", default=[], help="of the config")
    parser.add_argument("--divisions", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=0.2)
    parser.add_argument("--looks", type=int, default=12)
    parser.add_argument("--at_once", type=int, default=16)
    parser.add_argument("--order", choices=["draws", "epochs", "pipeline"], default="draws")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", type=float, nargs="+")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise SystemExit(f"{arguments.output} exists; expected a new file")
    rows = search(arguments)
    best = choose(rows)
    print(json.dumps(best, indent=2))
    arguments.output.write_text(json.dumps({"chosen": best, "rows": rows}) + "\n")
    arguments.output.with_suffix(".args").write_text("\n".join(best["overrides"]) + "\n")


def choose(rows: list[dict]) -> dict:
    """Picks what is most accurate among the classes held out, on average over divisions and seeds.

    Args:
      rows: of `search`.

    Returns:
      The means of the best and of what the config says at the end, and overrides for `fgkd train`:
      the steps at which it was looked at, and the mean offset with the best harmonic mean.
    """
    names = [*SETTINGS, "step", "mean_of_steps", "fusion"]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    figures = ("zero_shot_accuracy", "ausuc", "best_harmonic_mean", "best_offset")
    means = {
        key: {f: float(np.mean([row[f] for row in group])) for f in figures}
        for key, group in groups.items()
    }
    key = max(means, key=lambda k: (means[k]["zero_shot_accuracy"], means[k]["ausuc"]))
    best = dict(zip(names, key, strict=True))
    spread = np.std([row["zero_shot_accuracy"] for row in groups[key]], ddof=1)
    overrides = [
        f"--config.optim.learning_rate={best['learning_rate']:g}",
        f"--config.optim.weight_decay={best['weight_decay']:g}",
        f"--config.method.calibration_weight={best['calibration_weight']:g}",
        f"--config.train.steps={best['step']}",
        f"--config.report.unseen_offset={means[key]['best_offset']:.3g}",
    ]
    if best["fusion"] is not None:
        overrides += [
            f"--config.method.distillation_weight={best['distillation_weight']:g}",
            f"--config.method.fusion=({best['fusion']},{1 - best['fusion']:.1f})",
        ]
    if best["mean_of_steps"]:
        overrides += [f"--config.optim.ema_decay={EMA}", "--config.optim.ema_warmup=True"]
    return {**best, **means[key], "spread": float(spread), "overrides": overrides}


def search(arguments) -> list[dict]:
    """Trains every setting on every division and seed.

    Args:
      arguments: as parsed.

    Returns:
      One row per run, look, weights between the sub-nets, and kind of parameters.
    """
    divisions = [Division(arguments, seed) for seed in range(arguments.divisions)]
    experiment = divisions[0].experiment
    released = {
        "learning_rate": experiment.optim.learning_rate,
        "weight_decay": experiment.optim.weight_decay,
        "calibration_weight": experiment.method.calibration_weight,
        "distillation_weight": experiment.method.distillation_weight,
    }
    grid = [getattr(arguments, name) or [released[name]] for name in SETTINGS]
    runs = [
        (dict(zip(SETTINGS, values, strict=True)), division, seed)
        for values in itertools.product(*grid)
        for division in range(arguments.divisions)
        for seed in range(arguments.seeds)
    ]
    features = jnp.asarray(divisions[0].features)
    train = make_run(divisions[0], looks=arguments.looks)
    rows, start = [], time.monotonic()
    for first in range(0, len(runs), arguments.at_once):
        chunk = runs[first : first + arguments.at_once]
        padded = [*chunk, *([chunk[-1]] * (min(arguments.at_once, len(runs)) - len(chunk)))]
        inputs = [divisions[d].inputs(seed, arguments.order) for _, d, seed in padded]
        stacked = jax.tree.map(lambda *x: np.stack(x), *inputs)
        values = {n: np.array([s[n] for s, _, _ in padded], np.float32) for n in SETTINGS}
        figures = jax.device_get(train(features, stacked, values))
        rows += list(_rows(chunk, figures, divisions[0].look_every))
        done = first + len(chunk)
        print(f"{done} of {len(runs)} runs, {time.monotonic() - start:.0f} s", flush=True)
    return rows


class Division:
    """One division of the seen classes, with its images and the start of its runs."""

    def __init__(self, arguments, seed: int):
        options = [
            f"--config.data.data_dir={arguments.data_dir}",
            "--config.data.validation_classes=0.25",
            f"--config.data.validation_fraction={arguments.fraction}",
            f"--config.data.validation_seed={seed}",
            "--config.report.split=validation",
            *arguments.override,
        ]
        self.options, self.config = options, arguments.config
        self.experiment = load_config(arguments.config, options)
        self.dataset = open_data(self.experiment)
        self.steps = self.experiment.train.steps
        self.looks = arguments.looks
        self.look_every = self.steps // arguments.looks
        parts = {split: _examples(self.dataset.source(split)) for split in ("train", "validation")}
        # All divisions hold the same images: rows are told by id, in one order.
        every = {key: np.concatenate([p[key] for p in parts.values()]) for key in parts["train"]}
        order = np.argsort(every["id"])
        self.features, self.ids = every["features"][order], every["id"][order]
        self.rows = {
            split: {
                "row": np.searchsorted(self.ids, part["id"]).astype(np.int32),
                "label": part["label"].astype(np.int32),
            }
            for split, part in parts.items()
        }
        self.trainer = Trainer(open_run(self.experiment, dataset=self.dataset))
        self.method = self.trainer.run.method

    def inputs(self, seed: int, order: str) -> dict[str, np.ndarray]:
        """Returns what a run starts from: parameters, constants, batches, images to look at."""
        options = [*self.options, f"--config.seed={seed}"]
        experiment = load_config(self.config, options)
        state = Trainer(open_run(experiment, dataset=self.dataset)).initial_state()
        part, held = self.rows["train"], self.rows["validation"]
        batch = experiment.train.batch_size
        chosen = self._batches(experiment, order, np.random.default_rng([17, seed]), batch)
        # Of one length in all divisions, whose classes differ in size.
        pad = (0, 64 * -(-len(self.ids) // 64) - len(held["row"]))
        return {
            "params": jax.tree.map(np.asarray, state.params),
            "constants": jax.tree.map(np.asarray, state.variables()["constants"]),
            "row": part["row"][chosen],
            "label": part["label"][chosen],
            "held_row": np.pad(held["row"], pad),
            "held_label": np.pad(held["label"], pad),
            "held_mask": np.pad(np.ones(len(held["row"]), bool), pad),
        }

    def _batches(self, experiment, order: str, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Rows of the training images, int [steps, batch]."""
        size, steps = len(self.rows["train"]["row"]), self.looks * self.look_every
        if order == "draws":
            # Each batch by itself, without repetition within it: the released code's order.
            return np.stack([rng.choice(size, batch, replace=False) for _ in range(steps)])
        if order == "epochs":
            epochs = -(-steps * batch // size)
            return np.concatenate([rng.permutation(size) for _ in range(epochs)])[
                : steps * batch
            ].reshape(steps, batch)
        from fgkd_jax.data.pipeline import train_iterator

        where = {int(self.ids[row]): i for i, row in enumerate(self.rows["train"]["row"])}
        batches = train_iterator(
            self.dataset, experiment.data, batch_size=batch, seed=experiment.seed
        )
        drawn = (next(batches)["id"] for _ in range(steps))
        return np.array([[where[int(one)] for one in ids] for ids in drawn])


def make_run(division: Division, *, looks: int):
    """Makes the function that trains a stack of runs.

    Args:
      division: any of them, for the method and the optimiser.
      looks: how often a run is looked at.

    Returns:
      A jitted function of the features, stacked inputs and stacked settings.
    """
    method, optim = division.method, division.experiment.optim
    every = division.look_every
    frozen = [re.compile(pattern) for pattern in method.frozen_parameters()]

    def total(params, constants, batch, setting):
        variables = {"params": params, "constants": constants}
        terms, *_ = method.loss(variables, batch, jax.random.key(0), train=True)
        weights = {name: jnp.float32(1) for name in terms}
        for name in terms:
            if name.endswith("_calibration"):
                weights[name] = setting["calibration_weight"]
            elif name == "distillation":
                weights[name] = setting["distillation_weight"]
        return sum(
            weights[name] * jnp.sum(one.sum) / jnp.sum(one.count) for name, one in terms.items()
        )

    def one_run(features, inputs, setting):
        def step(carry, batch):
            params, second, momentum, mean, count = carry
            images = {
                "features": features[batch["row"]],
                "label": batch["label"],
                "mask": jnp.ones(batch["label"].shape, bool),
            }
            grads = jax.grad(total)(params, inputs["constants"], images, setting)
            grads = jax.tree.map(lambda g, p: g + setting["weight_decay"] * p, grads, params)
            second = jax.tree.map(
                lambda s, g: optim.rms_decay * s + (1 - optim.rms_decay) * g * g, second, grads
            )
            momentum = jax.tree.map(
                lambda m, g, s: optim.momentum * m + g / (jnp.sqrt(s) + optim.epsilon),
                momentum,
                grads,
                second,
            )
            params = {
                name: p
                if any(pattern.search(name) for pattern in frozen)
                else p - setting["learning_rate"] * momentum[name]
                for name, p in params.items()
            }
            keep = jnp.minimum(EMA, (1 + count) / (10 + count))
            mean = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, mean, params)
            return (params, second, momentum, mean, count + 1), None

        def until_look(carry, batches):
            carry, _ = jax.lax.scan(step, carry, batches)
            kinds = jax.tree.map(lambda *x: jnp.stack(x), carry[0], carry[3])
            looked = jax.lax.map(lambda p: look(features, p, inputs), kinds)
            return carry, looked

        params = inputs["params"]
        zeros = jax.tree.map(jnp.zeros_like, params)
        batches = {
            key: inputs[key].reshape(looks, every, *inputs[key].shape[1:])
            for key in ("row", "label")
        }
        carry = (params, zeros, zeros, params, jnp.float32(0))
        return jax.lax.scan(until_look, carry, batches)[1]

    def look(features, params, inputs):
        variables = {"params": params, "constants": inputs["constants"]}
        rows = inputs["held_row"].reshape(-1, 64)

        def scores(row):
            return method.predict(variables, {"features": features[row]})["subnet_scores"]

        found = jnp.moveaxis(jax.lax.map(scores, rows), 1, 0)
        found = found.reshape(found.shape[0], -1, found.shape[-1])
        weights = jnp.asarray(FUSIONS)[:, : found.shape[0]]
        if found.shape[0] == 1:
            weights = jnp.ones((1, 1))
        fused = jnp.einsum("ws,snk->wnk", weights, found)
        return jax.vmap(lambda one: _figures(one, inputs))(fused)

    return jax.jit(jax.vmap(one_run, in_axes=(None, 0, 0)))


def _figures(scores, inputs):
    """Accuracy among classes held out, area under the curve, best harmonic mean and its offset."""
    seen, label, mask = inputs["constants"]["seen"], inputs["held_label"], inputs["held_mask"]
    classes = jax.nn.one_hot(label, len(seen)) * mask[:, None]
    count = classes.sum(axis=0)

    def per_class(right, group):
        accuracy = jnp.sum(classes * right[:, None], axis=0) / jnp.maximum(count, 1)
        group = group & (count > 0)
        return jnp.sum(jnp.where(group, accuracy, 0)) / jnp.sum(group)

    best = {}
    for name, group in (("seen", seen), ("unseen", ~seen)):
        only = jnp.where(group[None], scores, -jnp.inf)
        best[name] = (jnp.argmax(only, axis=1), jnp.max(only, axis=1))
    margin = best["seen"][1] - best["unseen"][1]

    def at(offset):
        predicted = jnp.where(margin > offset, best["seen"][0], best["unseen"][0])
        right = predicted == label
        return per_class(right, seen), per_class(right, ~seen)

    s, u = jax.vmap(at)(jnp.asarray(OFFSETS, jnp.float32))
    harmonic = 2 * s * u / jnp.maximum(s + u, 1e-6)
    top = jnp.argmax(harmonic)
    s0, u0 = at(0.0)
    return {
        "zero_shot_accuracy": per_class(best["unseen"][0] == label, ~seen),
        "ausuc": -jnp.trapezoid(u, s),
        "best_harmonic_mean": harmonic[top],
        "best_offset": jnp.asarray(OFFSETS, jnp.float32)[top],
        "seen_accuracy": s0,
        "unseen_accuracy": u0,
    }


def _rows(chunk, figures, every):
    """Tables of figures, [run, look, kind, fusion], as rows."""
    shape = figures["ausuc"].shape
    for run, (setting, division, seed) in enumerate(chunk):
        for look, kind, fusion in np.ndindex(*shape[1:]):
            yield {
                **setting,
                "division": division,
                "seed": seed,
                "step": (look + 1) * every,
                "mean_of_steps": bool(kind),
                "fusion": FUSIONS[fusion][0] if shape[3] > 1 else None,
                **{k: round(float(v[run, look, kind, fusion]), 4) for k, v in figures.items()},
            }


def _examples(source) -> dict[str, np.ndarray]:
    """All examples of a source."""
    examples = [source[i] for i in range(len(source))]
    return {
        "features": np.stack([e["features"] for e in examples]),
        "label": np.array([e["label"] for e in examples]),
        "id": np.array([e["id"] for e in examples]),
    }


if __name__ == "__main__":
    main()
