"""Every config that comes with the project is built and shape-checked."""

import ast
import dataclasses

import jax
import numpy as np
import pytest

from fgkd_jax.cli.config import config_folder, find_config, load_config
from fgkd_jax.cli.experiment import experiment_to_dict, parse_experiment
from fgkd_jax.cli.session import image_spec
from fgkd_jax.train.init import abstract_variables
from fgkd_jax.train.optim import make_optimizer
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.step import make_train_step

NAMES = sorted(path.stem for path in config_folder().glob("*.py"))


def test_there_are_configs():
    assert "classify_birds" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_first_line_is_the_command(name):
    docstring = ast.get_docstring(ast.parse(find_config(name).read_text()))
    line = docstring.splitlines()[0]
    assert line.startswith(f"fgkd train --config configs/{name}.py --workdir runs/"), line


@pytest.mark.parametrize("name", NAMES)
def test_train_step_has_consistent_shapes(name):
    experiment = load_config(name)
    method = dataclasses.replace(experiment.method, num_classes=7)
    size = experiment.train.batch_size
    spec = image_spec(experiment.data, batch_size=size)
    variables = abstract_variables(method, spec)
    optimizer = make_optimizer(
        experiment.optim, variables["params"], total_steps=experiment.train.steps
    )
    params = variables["params"]
    state = TrainState(
        step=jax.ShapeDtypeStruct((), np.int32),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        params=params,
        model_state={k: v for k, v in variables.items() if k not in ("params", "constants")},
        opt_state=jax.eval_shape(optimizer.init, params),
        constants={k: v for k, v in variables.items() if k == "constants"},
    )
    step = make_train_step(method, optimizer, accumulate=experiment.train.accumulate)
    new, metrics = jax.eval_shape(step, state, spec)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        new.to_save(),
        state.to_save(),
    )
    assert metrics["loss"].shape == ()
    assert metrics["example_finite"].shape == (size,)
    predictions = jax.eval_shape(method.predict, variables, spec)
    assert predictions["logits"].shape == (size, 7)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_survives_its_own_json(name):
    experiment = load_config(name)
    assert parse_experiment(experiment_to_dict(experiment)) == experiment


def test_every_option_can_be_overridden():
    experiment = load_config(
        "classify_birds",
        [
            "--config.train.steps=120",
            "--config.data.data_dir=/data",
            "--config.data.crop_scale=(0.5, 1.0)",
            "--config.method.num_classes=5",
            "--config.method.backbone.width=8",
            "--config.optim.learning_rate=1",
            "--config.features.views=0",
        ],
    )
    assert experiment.train.steps == 120
    assert experiment.data.data_dir == "/data"
    assert experiment.data.crop_scale == (0.5, 1.0)
    assert experiment.method.num_classes == 5
    assert experiment.method.backbone["width"] == 8
    assert experiment.optim.learning_rate == 1.0


def test_a_config_takes_an_argument():
    assert load_config("classify_imagenet:resnet18").method.backbone["name"] == "resnet18"
