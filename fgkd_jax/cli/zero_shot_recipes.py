"""What the configs of zero-shot recognition on region features have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgkd_jax.cli.recipes import NO_RUN
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.methods.msdn_presets import ABLATIONS, PRESETS, msdn_preset

BATCH_SIZE = 50
"""Of the released training, by which its epochs are counted too."""


@dataclasses.dataclass(frozen=True)
class ReleasedRun:
    """How the released code trains on one data set.

    Attributes:
      train_examples: images of seen classes to train on, by the proposed splits.
      epochs: how many, counted in images: batches are drawn anew each time.
      momentum: of RMSprop.
      seed: of the released script; ours draws other numbers from it.
      batch_size: what its sampler makes of 50: of AWA2 one image of each of the 40 seen classes.
      images_per_class: 1 where all images of a batch are of different seen classes; 0 where it is
        drawn from all images.
    """

    train_examples: int
    epochs: int
    momentum: float
    seed: int
    batch_size: int = BATCH_SIZE
    images_per_class: int = 0

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.train_examples * self.epochs // BATCH_SIZE


RELEASED_RUNS: Mapping[str, ReleasedRun] = {
    "cub": ReleasedRun(train_examples=7057, epochs=30, momentum=0.9, seed=214),
    "sun": ReleasedRun(
        train_examples=10320, epochs=70, momentum=0.9, seed=2339, images_per_class=1
    ),
    "awa2": ReleasedRun(
        train_examples=23527,
        epochs=50,
        momentum=0.0,
        seed=87778,
        batch_size=40,
        images_per_class=1,
    ),
}
"""By data set, as of the options in `fgkd_jax.methods.msdn_presets.RELEASED`."""


FIGURES = (
    "zero_shot_accuracy",
    "seen_accuracy",
    "unseen_accuracy",
    "harmonic_mean",
    "ausuc",
)
"""Of a row of zero-shot recognition."""

CALIBRATED = tuple(f"calibrated_{name}" for name in FIGURES[1:4])
"""Of a row whose config has `report.unseen_offset`, besides."""


def released_optimizer(*, momentum: float = 0.9) -> dict[str, Any]:
    """Describes the optimiser of the released code: PyTorch's RMSprop with coupled weight decay.

    Args:
      momentum: 0.9, or 0 for AWA2.

    Returns:
      Options of `optim`. Everything that is trained decays, vectors too.
    """
    return {
        "name": "rmsprop",
        "learning_rate": 1e-4,
        "schedule": "constant",
        "momentum": momentum,
        "rms_decay": 0.99,
        "epsilon": 1e-8,
        "weight_decay": 1e-4,
        "decay_vectors": True,
    }


def region_features(
    name: str,
    recipe: str,
    *,
    title: str,
    variant: str = "",
    data: Mapping[str, Any] | None = None,
    method: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> ConfigDict:
    """Completes a config that trains MSDN on region features with the released hyperparameters.

    Args:
      name: of the method.
      recipe: a key of `RELEASED_RUNS`.
      title: of the row, before its variant.
      variant: words separated by commas: a preset (`reference`, `paper`) and an ablation (`both`,
        `undistilled`, `text_to_image`, `image_to_text`).
      data: options of the data besides a folder of features.
      method: options that differ from the released ones.
      report: what else there is to the row.
      steps: of the whole run, where it is not the released one.
      batch_size: of training, likewise.

    Returns:
      The config.

    Raises:
      UserError: there is no such recipe, or the variant has an unknown word.
    """
    if recipe not in RELEASED_RUNS:
        raise UserError(f"no recipe {recipe!r}{nearest(recipe, RELEASED_RUNS)}")
    run = RELEASED_RUNS[recipe]
    total = steps or run.steps
    every = max(1, total // run.epochs)
    return ConfigDict(
        {
            "seed": run.seed,
            "method": {"name": name, **_options(variant, recipe), **(method or {})},
            "data": {
                "dataset": "features",
                "images_per_class": run.images_per_class,
                **(data or {}),
            },
            "optim": released_optimizer(momentum=run.momentum),
            "train": {
                "steps": total,
                "batch_size": batch_size or run.batch_size,
                "eval_batch_size": 100,
                "log_every": min(100, every),
                "eval_every": every,
            },
            "checkpoint": {"every_steps": total, "best_metric": "best_harmonic_mean"},
            "report": {
                "title": f"{title}, {variant.replace(',', ', ')}" if variant else title,
                "paper": NO_RUN,
                "split": "test_seen+test_unseen",
                "figures": FIGURES,
                **(report or {}),
            },
        }
    )


def _options(variant: str, recipe: str) -> dict[str, Any]:
    """Options of the method from words."""
    kinds = {"name": PRESETS, "ablation": ABLATIONS}
    chosen = {"name": "reference"}
    words = [word for word in variant.split(",") if word]
    for word in words:
        fits = [kind for kind, known in kinds.items() if word in known]
        if not fits:
            hint = nearest(word, (*PRESETS, *ABLATIONS))
            raise UserError(f"MSDN has no preset or ablation {word!r}{hint}")
        chosen[fits[0]] = word
    if len(words) > len(set(words) & set(chosen.values())):
        raise UserError(f"variant {variant!r} has several of a kind; expected one")
    return msdn_preset(chosen.pop("name"), dataset=recipe, **chosen)
