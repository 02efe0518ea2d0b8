"""Released hyperparameters as configs: what they come to, and words that choose another."""

import pytest

from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.cli.zero_shot_recipes import RELEASED_RUNS, region_features
from fgkd_jax.errors import UserError
from fgkd_jax.methods.msdn import SUBNETS
from fgkd_jax.methods.msdn_presets import RELEASED


def make(recipe="cub", variant="", **options):
    config = region_features(
        "msdn",
        recipe,
        variant=variant,
        title="features",
        **options,
    )
    return parse_experiment(config.to_dict())


def test_every_data_set_has_its_released_settings():
    assert RELEASED_RUNS.keys() == RELEASED.keys()
    # weight of calibration, of distillation, words normalised, momentum, steps, batch, fusion, seed
    table = {
        "cub": (0.1, 1e-3, False, 0.9, 7057 * 30 // 50, 50, 0, (0.9, 0.1), 214),
        "sun": (1e-4, 1e-2, False, 0.9, 10320 * 70 // 50, 50, 1, (0.7, 0.3), 2339),
        "awa2": (0.12, 1e-7, True, 0.0, 23527 * 50 // 50, 40, 1, (1.0, 0.0), 87778),
    }
    for recipe, row in table.items():
        made = make(recipe)
        method, optim = made.method, made.optim
        assert row == (
            *(method.calibration_weight, method.distillation_weight, method.normalize_words),
            *(optim.momentum, made.train.steps, made.train.batch_size),
            *(made.data.images_per_class, method.fusion, made.seed),
        )
        assert (optim.name, optim.learning_rate, optim.schedule) == ("rmsprop", 1e-4, "constant")
        assert (optim.weight_decay, optim.decay_vectors, optim.rms_decay) == (1e-4, True, 0.99)
        assert (optim.epsilon, optim.epsilon_in_sqrt, optim.warmup_steps) == (1e-8, False, 0)
        assert (method.normalize_features, method.label_classes, method.bias) == (True, "all", 1.0)
        assert method.clip_attributes == (recipe == "awa2")
        assert made.train.steps // made.train.eval_every == RELEASED_RUNS[recipe].epochs


def test_words_choose_a_preset_and_an_ablation():
    assert make(variant="reference,both").method == make().method
    assert make(variant="paper").report.title == "features, paper"
    assert make(variant="image_to_text").method.subnets == SUBNETS[1:]
    paper = make("sun", "undistilled,paper").method
    assert (paper.label_classes, paper.distillation_weight, paper.fusion) == ("seen", 0, (0.7, 0.3))


def test_options_may_differ_from_the_released_ones():
    made = make(method={"bias": 0.5}, steps=10, batch_size=8)
    assert (made.method.bias, made.train.steps, made.train.batch_size) == (0.5, 10, 8)
    assert made.method.calibration_weight == 0.1


@pytest.mark.parametrize(
    ("recipe", "variant", "message"),
    [
        ("flo", "", "no recipe 'flo'; expected one of awa2, cub, sun"),
        ("cub", "papers", "MSDN has no preset or ablation 'papers'; did you mean 'paper'"),
        ("cub", "paper,reference", "variant 'paper,reference' has several of a kind"),
        ("cub", "both,both", "variant 'both,both' has several of a kind"),
    ],
)
def test_unknown_words_are_told(recipe, variant, message):
    with pytest.raises(UserError, match=message):
        make(recipe, variant)
