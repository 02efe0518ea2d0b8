"""Cross-entropy and label smoothing against NumPy, and what happens to wrong labels."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import cross_entropy, smooth_labels

SMOOTHING = [0.0, 0.1, 0.9]
compiled = jax.jit(cross_entropy, static_argnames="label_smoothing")
gradient = jax.jit(
    jax.grad(
        lambda x, y, label_smoothing=0.0: compiled(x, y, label_smoothing=label_smoothing).sum()
    ),
    static_argnames="label_smoothing",
)


def example(b: int = 5, k: int = 7, seed: int = 0):
    random = np.random.default_rng(seed)
    return random.normal(scale=3.0, size=(b, k)).astype(np.float32), random.integers(0, k, b)


def oracle(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> np.ndarray:
    """By probabilities in float64: (1 - s) (-log p[label]) + s times the mean of -log p."""
    wide = logits.astype(np.float64)
    p = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    of_label = np.array([-np.log(row[label]) for row, label in zip(p, labels, strict=True)])
    return (1 - smoothing) * of_label - smoothing * np.log(p).mean(axis=1)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_it_equals_the_definition(smoothing):
    logits, labels = example()
    loss = compiled(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)
    np.testing.assert_allclose(loss, oracle(logits, labels, smoothing), rtol=1e-5)


def test_smoothed_labels_by_hand():
    rows = smooth_labels(jnp.array([2, 0]), num_classes=4, smoothing=0.2)
    np.testing.assert_allclose(
        rows, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6
    )
    np.testing.assert_array_equal(
        smooth_labels(jnp.array([1]), num_classes=3, smoothing=0.0), [[0, 1, 0]]
    )


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_gradients(smoothing):
    logits, labels = example()
    labels = jnp.asarray(labels)
    check_grads(
        lambda x: compiled(jnp.asarray(x), labels, label_smoothing=smoothing),
        (jnp.asarray(logits),),
        order=1,
        rtol=2e-2,
    )
    # The gradient is the softmax less the target.
    expected = jax.nn.softmax(logits) - smooth_labels(labels, num_classes=7, smoothing=smoothing)
    found = gradient(jnp.asarray(logits), labels, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_under_vmap_and_without_jit(smoothing):
    logits, labels = jnp.stack([example(seed=s)[0] for s in (0, 1)]), jnp.zeros((2, 5), jnp.int32)
    expected = [
        compiled(x, y, label_smoothing=smoothing) for x, y in zip(logits, labels, strict=True)
    ]
    mapped = jax.vmap(lambda x, y: compiled(x, y, label_smoothing=smoothing))(logits, labels)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    eager = cross_entropy(logits[0], labels[0], label_smoothing=smoothing)
    np.testing.assert_allclose(eager, expected[0], rtol=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_bfloat16_is_computed_in_float32_and_comes_back(smoothing):
    logits, labels = example(b=6, k=200)
    half = jnp.asarray(logits, jnp.bfloat16)
    loss = compiled(half, jnp.asarray(labels), label_smoothing=smoothing)
    assert loss.dtype == jnp.bfloat16
    wide = compiled(half.astype(jnp.float32), jnp.asarray(labels), label_smoothing=smoothing)
    np.testing.assert_array_equal(loss, wide.astype(jnp.bfloat16))


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-1e4, 1e4), smoothing=st.sampled_from(SMOOTHING))
def test_a_constant_added_to_all_logits_changes_nothing(shift, smoothing):
    logits, labels = example()
    logits = np.round(logits * 8) / 8  # exact also after the shift
    shift = round(shift)
    one, other = (
        compiled(jnp.asarray(x), jnp.asarray(labels), label_smoothing=smoothing)
        for x in (logits, logits + np.float32(shift))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_ties_and_extremes():
    labels = jnp.array([0, 3])
    uniform = compiled(jnp.zeros((2, 4)), labels, label_smoothing=0.3)
    np.testing.assert_allclose(uniform, np.log([4.0, 4.0]), rtol=1e-6)
    certain = jnp.array([[1e5, 0.0, 0.0, 0.0], [1e5, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(compiled(certain, labels), [0.0, 1e5], rtol=1e-6)
    assert bool(jnp.isfinite(gradient(certain, labels)).all())


def test_minus_infinity_excludes_a_class():
    logits, labels = jnp.array([[0.5, -jnp.inf, 1.5]]), jnp.array([2])
    kept = compiled(logits[:, ::2], jnp.array([1]))
    np.testing.assert_allclose(compiled(logits, labels), kept, rtol=1e-6)
    # Without jit, too: XLA turns the product with a one-hot into a choice, which hides a NaN.
    np.testing.assert_allclose(cross_entropy(logits, labels), kept, rtol=1e-6)
    slope = gradient(logits, labels)
    assert bool(jnp.isfinite(slope).all())
    assert float(slope[0, 1]) == 0.0


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("label", [-1, -4, 4, 100])
def test_a_label_out_of_range_is_nan_and_touches_no_other_example(label, smoothing):
    logits = jnp.asarray(example(b=2, k=4)[0])
    loss = compiled(logits, jnp.array([label, 1]), label_smoothing=smoothing)
    assert bool(jnp.isnan(loss[0]))
    np.testing.assert_allclose(
        loss[1:], oracle(np.asarray(logits[1:]), np.array([1]), smoothing), rtol=1e-5
    )


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("logits", "labels"), [((2, 3), (3,)), ((3,), (3,)), ((2, 3), (2, 3))])
def test_bad_shapes_are_quoted(logits, labels):
    with pytest.raises(UserError) as caught:
        cross_entropy(jnp.zeros(logits), jnp.zeros(labels, jnp.int32))
    assert str(caught.value) == (
        f"logits have the shape {logits} and labels {labels}; expected [b, k], [b]"
    )


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_of_smoothing_are_quoted():
    labels = jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(UserError, match=r"labels have the shape \(2, 1\); expected \[b\]"):
        smooth_labels(labels, num_classes=3, smoothing=0.1)
    with pytest.raises(UserError, match="num_classes is 0; expected at least 1"):
        smooth_labels(labels[0], num_classes=0, smoothing=0.1)
    for smoothing in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"label smoothing is {smoothing}; expected a number"):
            cross_entropy(jnp.zeros((1, 3)), labels[0], label_smoothing=smoothing)
