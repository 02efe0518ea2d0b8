"""Distillation between networks that learn together: NumPy, the authors' code, invariants."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    aggregated_task,
    ensemble_distillation,
    knowledge_distillation,
    mutual_learning,
    soft_target_cross_entropy,
)

TEMPERATURES = [1.0, 3.0, 10.0]
knowledge = jax.jit(knowledge_distillation, static_argnames="temperature")
mutual = jax.jit(mutual_learning, static_argnames="temperature")
ensemble = jax.jit(ensemble_distillation, static_argnames=("temperature", "last_only"))
task = jax.jit(aggregated_task, static_argnames="temperature")
OF_NETWORKS = {
    "mutual": mutual,
    "ensemble": ensemble,
    "last only": partial(ensemble, last_only=True),
}


def example(*shape: int, seed: int = 0, dtype=np.float32):
    return np.random.default_rng(seed).normal(scale=3.0, size=shape).astype(dtype)


def probabilities(logits, temperature):
    powers = np.exp(np.asarray(logits, np.float64)) ** (1 / temperature)
    return powers / powers.sum()


def divergence(student, teacher, temperature):
    """Of one example, one class at a time; T^2 times cross-entropy less entropy."""
    p, q = probabilities(student, temperature), probabilities(teacher, temperature)
    cross = -sum(b * np.log(a) for a, b in zip(p, q, strict=True))
    entropy = -sum(b * np.log(b) for b in q)
    return temperature**2 * (cross - entropy)


def mutual_oracle(logits, temperature, teachers=None):
    teachers = logits if teachers is None else teachers
    n, b, _ = logits.shape
    loss = np.zeros(b)
    for r in range(b):
        for i in range(n):
            others = [j for j in range(n) if j != i]
            loss[r] += np.mean(
                [divergence(logits[i, r], teachers[j, r], temperature) for j in others]
            )
    return loss


def ensemble_oracle(logits, temperature, teachers=None, *, last_only=False):
    teachers = logits if teachers is None else teachers
    n, b, _ = logits.shape
    return np.array(
        [
            sum(
                divergence(logits[i, r], sum(teachers[:, r]) / n, temperature)
                for i in range(n - 1 if last_only else 0, n)
            )
            for r in range(b)
        ]
    )


ORACLES = {
    "mutual": mutual_oracle,
    "ensemble": ensemble_oracle,
    "last only": partial(ensemble_oracle, last_only=True),
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_knowledge_distillation_equals_the_definition(temperature):
    student, teacher = example(2, 5, 7)
    loss = knowledge(student, teacher, temperature=temperature)
    expected = [divergence(s, t, temperature) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", OF_NETWORKS)
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_losses_of_networks_equal_their_definitions(name, n, temperature):
    logits = example(n, 5, 7)
    loss = OF_NETWORKS[name](logits, temperature=temperature)
    np.testing.assert_allclose(loss, ORACLES[name](logits, temperature), rtol=1e-5)
    assert loss.shape == (5,)


def test_defaults_are_those_of_the_papers():
    logits = example(3, 4, 5)
    np.testing.assert_allclose(mutual(logits), mutual(logits, temperature=1.0), rtol=1e-6)
    np.testing.assert_allclose(ensemble(logits), ensemble(logits, temperature=3.0), rtol=1e-6)


def test_two_networks_learn_from_each_other_by_knowledge_distillation():
    logits = example(2, 4, 5)
    expected = knowledge(logits[0], logits[1], temperature=2.0)
    expected += knowledge(logits[1], logits[0], temperature=2.0)
    np.testing.assert_allclose(mutual(logits, temperature=2.0), expected, rtol=1e-6)


def test_knowledge_distillation_is_the_soft_cross_entropy_without_the_entropy():
    student, teacher = example(2, 5, 7)
    cross = soft_target_cross_entropy(
        jnp.asarray(student), jnp.asarray(teacher), temperature=4.0
    ) - soft_target_cross_entropy(jnp.asarray(teacher), jnp.asarray(teacher), temperature=4.0)
    np.testing.assert_allclose(
        knowledge(student, teacher, temperature=4.0), 16 * cross, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_reach_the_student_alone(temperature):
    student, teacher = example(2, 3, 4)
    check_grads(
        lambda s: knowledge(s, teacher, temperature=temperature),
        (jnp.asarray(student),),
        order=2,
        modes=("rev",),
        eps=1e-2,
        rtol=2e-2,
        atol=1e-2,
    )
    by_student, by_teacher = jax.grad(
        lambda s, t: knowledge(s, t, temperature=temperature).sum(), (0, 1)
    )(student, teacher)
    assert (np.asarray(by_teacher) == 0.0).all()
    for row in range(3):
        p = probabilities(student[row], temperature)
        q = probabilities(teacher[row], temperature)
        np.testing.assert_allclose(by_student[row], temperature * (p - q), atol=1e-5)


@pytest.mark.parametrize("name", OF_NETWORKS)
@pytest.mark.parametrize("n", [2, 3])
def test_what_teaches_gets_no_gradient(name, n):
    # The slope of the oracle whose teachers are held fixed, by differences in float64.
    logits = example(n, 2, 4, dtype=np.float64)
    gradient = jax.grad(lambda x: OF_NETWORKS[name](x, temperature=2.0).sum())(
        jnp.asarray(logits, jnp.float32)
    )
    slopes = np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[at] = 1e-5
        slopes[at] = (
            ORACLES[name](logits + step, 2.0, logits) - ORACLES[name](logits - step, 2.0, logits)
        ).sum() / 2e-5
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)
    if name == "last only":
        assert (np.asarray(gradient)[:-1] == 0.0).all()


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_under_vmap_without_jit_and_second_derivatives(name):
    function = OF_NETWORKS[name]
    logits = example(3, 2, 4, 5)
    expected = [function(x, temperature=2.0) for x in logits]
    mapped = jax.vmap(lambda x: function(x, temperature=2.0))(logits)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)
    with jax.disable_jit():
        eager = function(jnp.asarray(logits[0]), temperature=2.0)
    np.testing.assert_allclose(eager, expected[0], rtol=1e-5)
    hessian = jax.hessian(lambda x: function(x, temperature=2.0).sum())(logits[0, :, :1, :3])
    assert bool(jnp.isfinite(hessian).all())


def test_knowledge_distillation_under_vmap():
    student, teacher = example(2, 3, 4, 5)
    mapped = jax.vmap(partial(knowledge, temperature=2.0))(student, teacher)
    for got, s, t in zip(mapped, student, teacher, strict=True):
        np.testing.assert_allclose(got, knowledge(s, t, temperature=2.0), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.integers(-1000, 1000))
def test_shifts_and_the_order_of_networks_change_nothing(seed, shift):
    logits = np.round(example(3, 3, 5, seed=seed) * 8) / 8  # exact when shifted
    order = np.random.default_rng(seed).permutation(3)
    for name, function in OF_NETWORKS.items():
        loss = function(logits, temperature=2.0)
        assert (loss >= -1e-5).all()
        np.testing.assert_allclose(
            function(logits + shift, temperature=2.0), loss, rtol=1e-3, atol=1e-4
        )
        if name != "last only":
            shuffled = function(logits[order], temperature=2.0)
            np.testing.assert_allclose(shuffled, loss, rtol=1e-4, atol=1e-5)
    once = knowledge(logits[0], logits[1], temperature=2.0)
    moved = knowledge(logits[0] + shift, logits[1], temperature=2.0)
    np.testing.assert_allclose(moved, once, rtol=1e-3, atol=1e-4)


def test_equal_logits_give_exactly_zero_and_no_gradient():
    same = jnp.broadcast_to(example(4, 6), (3, 4, 6))
    losses = {
        "knowledge": lambda x: knowledge(x[0], x[1], temperature=3.0),
        "mutual": partial(mutual, temperature=3.0),
        "ensemble": partial(ensemble, temperature=3.0),
    }
    for function in losses.values():
        np.testing.assert_allclose(function(same), np.zeros(4), atol=2e-5)
        gradient = jax.grad(lambda x, f=function: f(x).sum())(same)
        np.testing.assert_allclose(gradient, np.zeros_like(same), atol=1e-5)
    assert (np.asarray(losses["knowledge"](same)) == 0.0).all()
    assert (np.asarray(losses["mutual"](same)) == 0.0).all()


def test_extreme_logits_are_finite_and_right():
    certain = jnp.array([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    np.testing.assert_allclose(knowledge(*certain, temperature=1.0), [2e4], rtol=1e-6)
    np.testing.assert_allclose(knowledge(*certain, temperature=10.0), [2e5], rtol=1e-6)
    np.testing.assert_allclose(mutual(certain), [4e4], rtol=1e-6)
    assert np.isfinite(ensemble(certain)).all()
    for function in (lambda x: knowledge(x[0], x[1], temperature=1.0), mutual, ensemble):
        gradient = jax.grad(lambda x, f=function: f(x).sum())(certain)
        assert bool(jnp.isfinite(gradient).all())


def test_minus_infinity_excludes_a_class():
    logits = example(3, 2, 4)
    without = np.delete(logits, 1, axis=2)
    logits[:, :, 1] = -np.inf
    for name, function in OF_NETWORKS.items():
        np.testing.assert_allclose(function(logits), function(without), rtol=1e-5, err_msg=name)
        gradient = jax.grad(lambda x, f=function: f(x).sum())(logits)
        assert bool(jnp.isfinite(gradient).all())
    # The teacher alone: what the student makes of the class is only probability that it lacks.
    student = example(2, 4, seed=1)
    teacher = np.where(np.isinf(logits[0]), -200.0, logits[0])
    np.testing.assert_allclose(
        knowledge(student, logits[0], temperature=1.0),
        knowledge(student, teacher, temperature=1.0),
        rtol=1e-6,
    )


def test_examples_do_not_influence_each_other():
    logits = example(3, 5, 4)
    stained = logits.copy()
    stained[1, 2] = np.nan
    for function in OF_NETWORKS.values():
        one, other = function(logits), function(stained)
        np.testing.assert_array_equal(np.isnan(other), [False, False, True, False, False])
        np.testing.assert_array_equal(np.delete(one, 2), np.delete(other, 2))


def test_bfloat16_is_computed_in_float32_and_comes_back():
    half = jnp.asarray(example(3, 4, 50), jnp.bfloat16)
    wide = half.astype(jnp.float32)
    for function in OF_NETWORKS.values():
        loss = function(half)
        assert loss.dtype == jnp.bfloat16
        np.testing.assert_array_equal(loss, function(wide).astype(jnp.bfloat16))
    # The mean 257 is no bfloat16; compiled, its digits would be kept anyway.
    close = jnp.array([[[256.0, 256.0]], [[258.0, 256.0]]], jnp.bfloat16)
    eager = ensemble_distillation(close, temperature=1.0)
    full = ensemble_distillation(close.astype(jnp.float32), temperature=1.0)
    np.testing.assert_array_equal(eager, full.astype(jnp.bfloat16))
    loss = knowledge(half[0], half[1], temperature=2.0)
    assert loss.dtype == jnp.bfloat16
    expected = knowledge(wide[0], wide[1], temperature=2.0).astype(jnp.bfloat16)
    np.testing.assert_array_equal(loss, expected)
    assert knowledge(wide[0], half[1], temperature=2.0).dtype == jnp.float32
    parts = task(half[:, None], half, jnp.zeros(4, jnp.int32))
    assert {part.dtype for part in parts} == {jnp.dtype(jnp.bfloat16)}
    for part, full in zip(parts, task(wide[:, None], wide, jnp.zeros(4, jnp.int32)), strict=True):
        np.testing.assert_array_equal(part, full.astype(jnp.bfloat16))


def task_oracle(stages, aggregated, labels, temperature, teachers=None):
    teachers = aggregated if teachers is None else teachers
    n, s, b, _ = stages.shape
    parts = np.zeros((3, b))
    for r in range(b):
        for i in range(n):
            for k in range(s):
                parts[0, r] -= np.log(probabilities(stages[i, k, r], 1.0)[labels[r]])
            parts[1, r] -= np.log(probabilities(aggregated[i, r], 1.0)[labels[r]])
            for j in range(n):
                parts[2, r] += divergence(stages[i, -1, r], teachers[j, r], temperature)
    return parts


def test_the_task_equals_its_definition():
    stages, aggregated, labels = example(3, 2, 4, 5), example(3, 4, 5, seed=1), np.arange(4)
    parts = task(stages, aggregated, labels, temperature=2.0)
    np.testing.assert_allclose(parts, task_oracle(stages, aggregated, labels, 2.0), rtol=1e-5)
    check_grads(
        lambda x: sum(task(x, aggregated, labels)), (jnp.asarray(stages),), 1, ("rev",), rtol=2e-2
    )
    mapped = jax.vmap(lambda x, a: task(x, a, labels))(stages[None], aggregated[None])
    for one, part in zip(mapped, task(stages, aggregated, labels), strict=True):
        np.testing.assert_allclose(one[0], part, rtol=1e-5)


def test_the_aggregated_logits_learn_from_labels_and_teach_without_learning():
    stages, aggregated, labels = example(2, 3, 4, 5), example(2, 4, 5, seed=1), np.arange(4)
    for name, is_zero in (("stages", True), ("aggregated", False), ("distillation", True)):
        gradient = jax.grad(lambda a, part=name: getattr(task(stages, a, labels), part).sum())(
            aggregated
        )
        assert bool((gradient == 0.0).all()) == is_zero
    gradient = jax.grad(lambda g: task(g, aggregated, labels).distillation.sum())(stages)
    assert (np.asarray(gradient)[:, :-1] == 0.0).all()
    assert (np.asarray(gradient)[:, -1] != 0.0).any()


def test_a_label_out_of_range_gives_nan_in_its_row():
    stages, aggregated = example(2, 3, 2, 5), example(2, 2, 5)
    parts = task(stages, aggregated, np.array([0, 5]))
    for part in parts[:2]:
        assert np.isnan(part).tolist() == [False, True]
    assert np.isfinite(parts.distillation).all()


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_bad_shapes_are_quoted():
    zeros = jnp.zeros
    cases = [
        (
            lambda: knowledge_distillation(zeros((2, 3)), zeros((2, 4)), temperature=1.0),
            "student_logits have the shape (2, 3) and teacher_logits (2, 4); "
            "expected the same [b, k]",
        ),
        (
            lambda: mutual_learning(zeros((1, 2, 3))),
            "logits have the shape (1, 2, 3); expected [n, b, k] with n at least 2",
        ),
        (
            lambda: ensemble_distillation(zeros((2, 3))),
            "logits have the shape (2, 3); expected [n, b, k] with n at least 1",
        ),
        (
            lambda: aggregated_task(zeros((2, 3, 4, 5)), zeros((2, 4, 6)), zeros(4, int)),
            "stage_logits have the shape (2, 3, 4, 5), aggregated_logits (2, 4, 6) and labels "
            "(4,); expected [n, s, b, k], [n, b, k], [b]",
        ),
        (
            lambda: aggregated_task(zeros((3, 4, 5)), zeros((3, 5)), zeros(4, int)),
            "stage_logits have the shape (3, 4, 5), aggregated_logits (3, 5) and labels (4,); "
            "expected [n, s, b, k], [n, b, k], [b]",
        ),
    ]
    for call, message in cases:
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperatures_are_quoted(temperature):
    logits = jnp.zeros((2, 1, 3))
    calls = (
        lambda: knowledge_distillation(logits[0], logits[1], temperature=temperature),
        lambda: mutual_learning(logits, temperature=temperature),
        lambda: ensemble_distillation(logits, temperature=temperature),
        lambda: aggregated_task(
            logits[:, None], logits, jnp.zeros(1, int), temperature=temperature
        ),
    )
    for call in calls:
        with pytest.raises(UserError, match=f"temperature is {temperature}; expected a number"):
            call()
