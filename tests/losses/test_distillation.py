"""The loss against soft targets: NumPy, the authors' own code, and its invariants."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import soft_target_cross_entropy

TEMPERATURES = [1.0, 4.0, 10.0]
compiled = jax.jit(soft_target_cross_entropy, static_argnames="temperature")
gradients = jax.jit(
    jax.grad(lambda s, t, temperature: compiled(s, t, temperature=temperature).sum(), (0, 1)),
    static_argnames="temperature",
)


def example(b: int = 5, k: int = 7, seed: int = 0):
    random = np.random.default_rng(seed)
    return tuple(random.normal(scale=3.0, size=(2, b, k)).astype(np.float32))


def probabilities(logits, temperature):
    powers = np.exp(np.asarray(logits, np.float64)) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def oracle(student, teacher, temperature):
    """Divergence plus entropy, by probabilities in float64."""
    p, q = (probabilities(x, temperature) for x in (student, teacher))
    return (q * np.log(q / p)).sum(axis=1) - (q * np.log(q)).sum(axis=1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_equals_the_definition(temperature):
    student, teacher = example()
    loss = compiled(student, teacher, temperature=temperature)
    np.testing.assert_allclose(loss, oracle(student, teacher, temperature), rtol=1e-5)


def test_by_hand():
    # Student (1/2, 1/2), teacher (1/4, 3/4): log 2. The other way: -(log 1/4 + log 3/4) / 2.
    flat, tilted = jnp.zeros((1, 2)), jnp.array([[0.0, 2.0 * np.log(3.0)]])
    np.testing.assert_allclose(compiled(flat, tilted, temperature=2.0), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(
        compiled(tilted, flat, temperature=2.0), [-np.log(3 / 16) / 2], rtol=1e-6
    )


@pytest.mark.parametrize("case", ["l0", "l1"])
def test_the_released_code_gives_the_same(shared, case):
    golden = np.load(shared / "golden" / "tasn" / "losses_mxnet.npz")
    student, teacher = golden[f"{case}_fc2_master"], golden[f"{case}_fc1_part"]
    loss = compiled(student, teacher, temperature=10.0)
    np.testing.assert_allclose(loss, golden[f"{case}_distill_loss"], rtol=1e-5, atol=1e-5)
    by_student, by_teacher = gradients(student, teacher, temperature=10.0)
    np.testing.assert_allclose(by_student, golden[f"{case}_distill_grad_fc2"], atol=1e-6)
    np.testing.assert_allclose(by_teacher, golden[f"{case}_distill_grad_fc1"], atol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients(temperature):
    student, teacher = example(b=2, k=4)
    check_grads(
        lambda s, t: compiled(s, t, temperature=temperature),
        (jnp.asarray(student), jnp.asarray(teacher)),
        order=2,
        modes=("rev",),
        eps=1e-2,
        rtol=2e-2,
        atol=1e-3,
    )
    p, q = (probabilities(x, temperature) for x in (student, teacher))
    by_student, by_teacher = gradients(student, teacher, temperature=temperature)
    np.testing.assert_allclose(by_student, (p - q) / temperature, atol=1e-6)
    loss = oracle(student, teacher, temperature)[:, None]
    np.testing.assert_allclose(by_teacher, -q * (np.log(p) + loss) / temperature, atol=1e-6)


def test_under_vmap_and_without_jit():
    student, teacher = (np.stack(x) for x in zip(example(seed=0), example(seed=1), strict=True))
    expected = [compiled(s, t, temperature=4.0) for s, t in zip(student, teacher, strict=True)]
    mapped = jax.vmap(lambda s, t: compiled(s, t, temperature=4.0))(student, teacher)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    eager = soft_target_cross_entropy(
        jnp.asarray(student[0]), jnp.asarray(teacher[0]), temperature=4.0
    )
    np.testing.assert_allclose(eager, expected[0], rtol=1e-6)


def test_bfloat16_is_computed_in_float32_and_comes_back():
    half, teacher = (jnp.asarray(x, jnp.bfloat16) for x in example(b=6, k=200))
    loss = compiled(half, teacher, temperature=4.0)
    assert loss.dtype == jnp.bfloat16
    wide = compiled(half.astype(jnp.float32), teacher.astype(jnp.float32), temperature=4.0)
    np.testing.assert_array_equal(loss, wide.astype(jnp.bfloat16))
    assert compiled(half.astype(jnp.float32), teacher, temperature=4.0).dtype == jnp.float32


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shifts=st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)),
    temperature=st.sampled_from(TEMPERATURES),
)
def test_shifts_change_nothing_and_the_least_loss_is_the_entropy(seed, shifts, temperature):
    student, teacher = (np.round(x * 8) / 8 for x in example(seed=seed))  # exact when shifted
    loss = compiled(student, teacher, temperature=temperature)
    moved = compiled(student + shifts[0], teacher + shifts[1], temperature=temperature)
    np.testing.assert_allclose(moved, loss, rtol=1e-4)
    entropy = compiled(teacher, teacher, temperature=temperature)
    assert (loss >= entropy - 1e-5).all()
    by_student, _ = gradients(teacher, teacher, temperature=temperature)
    np.testing.assert_allclose(by_student, np.zeros_like(teacher), atol=1e-6)


def test_examples_do_not_influence_each_other():
    student, teacher = example()
    one = compiled(student, teacher, temperature=4.0)
    student[1], teacher[3] = np.nan, np.nan
    other = compiled(student, teacher, temperature=4.0)
    np.testing.assert_array_equal(np.isnan(other), [False, True, False, True, False])
    np.testing.assert_array_equal(one[::2], other[::2])


def test_ties_and_extremes():
    zeros = jnp.zeros((2, 4))
    np.testing.assert_allclose(compiled(zeros, zeros, temperature=10.0), np.log([4, 4]), rtol=1e-6)
    certain = jnp.array([[1e5, 0.0, 0.0, 0.0], [0.0, 1e5, 0.0, 0.0]])
    loss = compiled(certain, certain[:1].repeat(2, axis=0), temperature=1.0)
    np.testing.assert_allclose(loss, [0.0, 1e5], rtol=1e-6)
    for slope in gradients(certain, certain[::-1], temperature=1.0):
        assert bool(jnp.isfinite(slope).all())


def test_minus_infinity_excludes_a_class():
    student = jnp.array([[0.5, -jnp.inf, 1.5]])
    teacher = jnp.array([[2.0, -jnp.inf, 1.0]])
    kept = compiled(student[:, ::2], teacher[:, ::2], temperature=2.0)
    for s in (student, student.at[0, 1].set(3.0)):
        expected = (
            kept if s is student else compiled(s, teacher.at[0, 1].set(-1e4), temperature=2.0)
        )
        np.testing.assert_allclose(compiled(s, teacher, temperature=2.0), expected, rtol=1e-6)
        eager = soft_target_cross_entropy(s, teacher, temperature=2.0)
        np.testing.assert_allclose(eager, expected, rtol=1e-6)
        assert bool(jnp.isfinite(gradients(s, teacher, temperature=2.0)[0]).all())


def test_a_class_that_both_exclude_gives_the_teacher_a_finite_gradient():
    logits = jnp.array([[0.5, -jnp.inf, 1.5]])
    assert bool(jnp.isfinite(gradients(logits, logits, temperature=2.0)[1]).all())


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("student", "teacher"), [((2, 3), (2, 4)), ((3,), (3,)), ((2, 3), (1, 3))])
def test_bad_shapes_are_quoted(student, teacher):
    with pytest.raises(UserError) as caught:
        soft_target_cross_entropy(jnp.zeros(student), jnp.zeros(teacher), temperature=1.0)
    assert str(caught.value) == (
        f"student_logits have the shape {student} and teacher_logits {teacher}; "
        "expected the same [b, k]"
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperatures_are_quoted(temperature):
    with pytest.raises(UserError, match=f"temperature is {temperature}; expected a number above"):
        soft_target_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((1, 2)), temperature=temperature)
