"""Optimisers against torch, schedules against NumPy, rules over parameters, moving averages."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.train.optim import (
    OptimOptions,
    ParamRule,
    ema_update,
    learning_rate_schedule,
    make_optimizer,
    trainable_mask,
)

STEPS = 5
SHAPES = {"backbone": {"conv": {"kernel": (3, 4)}, "norm": {"scale": (4,)}}, "head": {"bias": (4,)}}


def draw(seed: int):
    return jax.tree.map(
        lambda shape: np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )


PARAMS = draw(0)
GRADIENTS = [draw(seed) for seed in range(1, STEPS + 1)]


def updated(options: OptimOptions, params=PARAMS, gradients=GRADIENTS, total_steps: int = 100):
    """Parameters and state after one update per gradient, in one compiled loop."""
    optimizer = make_optimizer(options, params, total_steps=total_steps)

    def run(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            changes, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
        return params, state

    return jax.jit(run)(params, gradients)


def largest_difference(a, b) -> float:
    return max(
        float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


# Against torch.

TORCH = {
    "sgd": (
        OptimOptions("sgd", 0.1, momentum=0.9, weight_decay=0.05),
        lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    ),
    "plain sgd": (
        OptimOptions("sgd", 0.1, momentum=0.0, weight_decay=0.05),
        lambda torch, p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05),
    ),
    "nesterov": (
        OptimOptions("sgd", 0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
        lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    ),
    "adam": (
        OptimOptions("adam", 0.01, betas=(0.8, 0.99), epsilon=1e-3, weight_decay=0.1),
        lambda torch, p: torch.optim.Adam(
            p, lr=0.01, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1
        ),
    ),
    "adamw": (
        OptimOptions("adamw", 0.01, betas=(0.8, 0.99), epsilon=1e-3, weight_decay=0.1),
        lambda torch, p: torch.optim.AdamW(
            p, lr=0.01, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1
        ),
    ),
    "rmsprop": (
        OptimOptions("rmsprop", 0.01, momentum=0.9, rms_decay=0.95, epsilon=1e-2, weight_decay=0.1),
        lambda torch, p: torch.optim.RMSprop(
            p, lr=0.01, momentum=0.9, alpha=0.95, eps=1e-2, weight_decay=0.1
        ),
    ),
}


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", TORCH)
def test_five_updates_equal_those_of_torch(name, clip):
    torch = pytest.importorskip("torch", reason="compares with torch's optimisers")
    options, make = TORCH[name]
    options = dataclasses.replace(
        options, schedule="linear", end_fraction=0.2, decay_vectors=True, clip_norm=clip
    )
    ours, _ = updated(options, total_steps=10)
    theirs = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(PARAMS)]
    optimizer = make(torch, theirs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.08 * step)
    for gradient in GRADIENTS:
        for parameter, value in zip(theirs, jax.tree.leaves(gradient), strict=True):
            parameter.grad = torch.tensor(value)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        optimizer.step()
        scheduler.step()
    for leaf, parameter in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(leaf, parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_rmsprop_with_epsilon_under_the_root():
    options = OptimOptions(
        "rmsprop", 1.0, "constant", momentum=0.0, rms_decay=0.5, epsilon=0.1, epsilon_in_sqrt=True
    )
    ours, _ = updated(options, {"w": np.ones(1, np.float32)}, [{"w": np.full(1, 2, np.float32)}])
    np.testing.assert_allclose(ours["w"], 1 - 2 / math.sqrt(0.5 * 4 + 0.1), rtol=1e-6)


# Schedules.


def rates(total_steps: int, **options: Any) -> np.ndarray:
    schedule = learning_rate_schedule(OptimOptions(learning_rate=0.5, **options), total_steps)
    return np.asarray(jax.vmap(schedule)(jnp.arange(total_steps + 3)))


AFTER_WARMUP = {
    "constant": lambda x: 1.0,
    "cosine": lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2,
    "linear": lambda x: 0.1 + 0.9 * (1 - x),
    "polynomial": lambda x: 0.1 + 0.9 * (1 - x) ** 3,
}


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", AFTER_WARMUP)
def test_a_schedule_rises_to_the_peak_and_falls_to_the_end(schedule, warmup):
    total = 20
    found = rates(
        total,
        schedule=schedule,
        warmup_steps=warmup,
        warmup_init=0.05,
        end_fraction=0.1,
        polynomial_power=3.0,
    )
    for step, rate in enumerate(found):
        part = min(1.0, (step - warmup) / (total - warmup))
        expected = 0.5 * AFTER_WARMUP[schedule](part)
        if step < warmup:
            expected = 0.05 + (0.5 - 0.05) * step / warmup
        assert rate == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize("warmup", [0, 3])
def test_steps_fall_at_fractions_of_all_steps(warmup):
    found = rates(
        20, schedule="step", warmup_steps=warmup, step_boundaries=(0.25, 0.52), decay_factor=0.5
    )
    expected = [0.5 * 0.5 ** ((step >= 5) + (step >= 10)) for step in range(23)]
    expected[:warmup] = [0.5 * step / warmup for step in range(warmup)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_two_boundaries_on_one_step_both_count():
    found = rates(4, schedule="step", step_boundaries=(0.5, 0.51), decay_factor=0.1)
    np.testing.assert_allclose(found, [0.5, 0.5] + [0.005] * 5, rtol=1e-6)


def test_the_optimizer_follows_the_schedule_from_step_0():
    options = OptimOptions("sgd", 1.0, "linear", momentum=0.0, warmup_steps=2)
    params, gradient = {"w": np.zeros(1, np.float32)}, {"w": np.ones(1, np.float32)}
    ours, _ = updated(options, params, [gradient] * 4, total_steps=4)
    np.testing.assert_allclose(ours["w"], -(0 + 0.5 + 1 + 0.5), rtol=1e-6)


def test_a_warmup_longer_than_the_run_is_refused():
    for total in (0, 9, 10):
        with pytest.raises(UserError, match=f"train.steps is {total} and optim.warmup_steps 10"):
            learning_rate_schedule(OptimOptions(warmup_steps=10), total)


# Rules over parameters.


def test_vectors_are_not_decayed_by_default():
    options = OptimOptions("sgd", 1.0, "constant", momentum=0.0, weight_decay=0.1)
    still = [jax.tree.map(np.zeros_like, PARAMS)]
    ours, _ = updated(options, gradients=still)
    np.testing.assert_allclose(
        ours["backbone"]["conv"]["kernel"], 0.9 * PARAMS["backbone"]["conv"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(ours["head"]["bias"], PARAMS["head"]["bias"])
    ours, _ = updated(dataclasses.replace(options, decay_vectors=True), gradients=still)
    np.testing.assert_allclose(ours["head"]["bias"], 0.9 * PARAMS["head"]["bias"], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adam", "rmsprop"])
def test_frozen_parameters_stay_and_have_no_state(name):
    rules = (ParamRule("^backbone/", frozen=True),)
    options = OptimOptions(name, 0.1, weight_decay=0.1, decay_vectors=True, rules=rules)
    assert trainable_mask(options, PARAMS) == {
        "backbone": {"conv": {"kernel": False}, "norm": {"scale": False}},
        "head": {"bias": True},
    }
    ours, state = updated(options)
    frozen, trained = (tree["backbone"] for tree in (ours, PARAMS)), (ours["head"], PARAMS["head"])
    assert largest_difference(*frozen) == 0.0
    assert largest_difference(*trained) > 0.0
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert shapes <= {(), SHAPES["head"]["bias"]}
    alone, alone_state = updated(
        dataclasses.replace(options, rules=()),
        {"head": PARAMS["head"]},
        [{"head": gradient["head"]} for gradient in GRADIENTS],
    )
    assert largest_difference(ours["head"], alone["head"]) == 0.0
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(alone_state))


def test_updates_of_frozen_parameters_are_zero_even_for_gradients_that_are_not_finite():
    options = OptimOptions(clip_norm=1.0, rules=(ParamRule("backbone", frozen=True),))
    optimizer = make_optimizer(options, PARAMS, total_steps=10)
    gradient = GRADIENTS[0] | {"backbone": jax.tree.map(lambda x: x * np.nan, PARAMS["backbone"])}
    changes, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(changes["backbone"]))
    assert np.isfinite(changes["head"]["bias"]).all()


def test_only_trainable_gradients_count_in_the_norm():
    rules = (ParamRule("backbone", frozen=True),)
    options = OptimOptions("sgd", 1.0, "constant", momentum=0.0, clip_norm=0.25, rules=rules)
    ours, _ = updated(options, gradients=GRADIENTS[:1])
    step = np.asarray(PARAMS["head"]["bias"] - ours["head"]["bias"])
    assert np.linalg.norm(step) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rules_scale_rate_and_decay_and_the_first_holds(name):
    options = OptimOptions(name, 0.1, "constant", momentum=0.0, weight_decay=0.2)
    rules = (
        ParamRule("conv/kernel$", learning_rate_scale=0.5, weight_decay_scale=3.0),
        ParamRule("^backbone/", learning_rate_scale=0.0),
    )
    ours, _ = updated(dataclasses.replace(options, rules=rules), gradients=GRADIENTS[:1])
    plain, _ = updated(options, gradients=GRADIENTS[:1])
    other = dataclasses.replace(options, learning_rate=0.05, weight_decay=0.6)
    scaled, _ = updated(other, gradients=GRADIENTS[:1])
    np.testing.assert_allclose(
        ours["backbone"]["conv"]["kernel"], scaled["backbone"]["conv"]["kernel"], rtol=1e-6
    )
    assert largest_difference(ours["backbone"]["norm"], PARAMS["backbone"]["norm"]) == 0.0
    assert largest_difference(ours["head"], plain["head"]) == 0.0


def test_only_shapes_are_needed():
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    options = OptimOptions("adamw", weight_decay=0.1, rules=(ParamRule("norm", frozen=True),))
    optimizer = make_optimizer(options, abstract, total_steps=10)
    jax.eval_shape(optimizer.init, abstract)
    assert not trainable_mask(options, abstract)["backbone"]["norm"]["scale"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [ParamRule("backbone/conv/kernal")],
            r"'backbone/conv/kernal' matches no parameter; nearest are backbone/conv/kernel,",
        ),
        (
            [ParamRule("backbone"), ParamRule("norm", frozen=True)],
            r"pattern 'norm' never applies: earlier rules hold for all 1 .* backbone/norm/scale",
        ),
        ([ParamRule("", frozen=True)], "rules freeze every parameter"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    with pytest.raises(UserError, match=message) as caught:
        make_optimizer(OptimOptions(rules=tuple(rules)), PARAMS, total_steps=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a number at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, "betas is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"end_fraction": 1.5}, "end_fraction is 1.5; expected a number at least 0 and at most 1"),
        ({"decay_factor": 0.0}, "decay_factor is 0.0; expected a number above 0"),
        ({"step_boundaries": (0.5, 1.0)}, "step_boundaries is 1.0; expected a number above 0 and"),
        ({"step_boundaries": (0.7, 0.5)}, r"step_boundaries are \(0.7, 0.5\); expected rising"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"epsilon": float("inf")}, "epsilon is inf"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        OptimOptions(**options)


def test_rules_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"pattern 'a\(' is no regular expression: missing \)"):
        ParamRule("a(")
    with pytest.raises(UserError, match=r"learning_rate_scale of 'a' is -1.0"):
        ParamRule("a", learning_rate_scale=-1.0)
    with pytest.raises(UserError, match=r"weight_decay_scale of 'a' is -1.0"):
        ParamRule("a", weight_decay_scale=-1.0)


# The moving average.


def test_the_average_follows_its_recurrence():
    average, expected = jnp.zeros(3), np.zeros(3)
    for step in range(4):
        value = np.arange(3) + step
        average = ema_update(average, jnp.asarray(value, jnp.float32), decay=0.75, step=step)
        expected = 0.75 * expected + 0.25 * value
    np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.parametrize(("step", "kept"), [(0, 0.1), (8, 0.5), (10**6, 0.9)])
def test_the_warmup_of_the_average(step, kept):
    found = ema_update(jnp.ones(1), jnp.zeros(1), decay=0.9, step=jnp.int32(step), warmup=True)
    np.testing.assert_allclose(found, [kept], rtol=1e-6)


def test_the_average_keeps_dtypes_constants_and_integers():
    ema = {
        "half": jnp.ones(2, jnp.bfloat16),
        "same": jnp.asarray([0.1, 1e30]),
        "count": jnp.int32(1),
    }
    params = {"half": jnp.zeros(2, jnp.bfloat16), "same": ema["same"], "count": jnp.int32(5)}
    found = jax.jit(lambda e, p, s: ema_update(e, p, decay=0.999, step=s))(ema, params, 3)
    assert found["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["same"], ema["same"])
    assert int(found["count"]) == 5
