"""Softmax over what is left, and the maximum: NumPy, masks that leave nothing, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import first_max, masked_softmax

soften = jax.jit(masked_softmax)


def oracle(scores, left):
    """Over the short list of entries that are left, one row after the other."""
    out = np.zeros(scores.shape)
    for row, kept, into in zip(scores, left, out, strict=True):
        chosen = np.flatnonzero(kept)
        if len(chosen):
            e = np.exp(row[chosen].astype(np.float64) - row[chosen].max())
            into[chosen] = e / e.sum()
    return out


def make(seed=0, rows=4, n=6):
    rng = np.random.default_rng(seed)
    left = rng.random((rows, n)) < np.linspace(0, 1, rows)[:, None]
    return 3 * rng.normal(size=(rows, n)).astype(np.float32), left


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 1.0, 50.0, 1e30]))
def test_it_is_the_softmax_of_what_is_left(seed, scale):
    scores, left = make(seed)
    weights = np.asarray(soften(scores * scale, left))
    np.testing.assert_allclose(weights, oracle(scores * np.float32(scale), left), atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), left.any(1), atol=1e-6)


def test_gradients_are_exact_and_zero_where_masked():
    scores, left = make()
    scores, left = jnp.asarray(scores), jnp.asarray(left)
    check_grads(
        lambda s: masked_softmax(jnp.asarray(s), left), (scores,), order=2, modes=("fwd", "rev")
    )
    odd = jnp.where(left, scores, jnp.tile(jnp.array([jnp.inf, jnp.nan]), 12).reshape(4, 6))
    weight = np.random.default_rng(1).normal(size=scores.shape)
    grads = jax.grad(lambda s: jnp.sum(weight * masked_softmax(s, left)))
    assert not np.asarray(grads(odd))[~left].any()
    np.testing.assert_array_equal(grads(odd), grads(scores))
    np.testing.assert_array_equal(soften(odd, left), soften(scores, left))


def test_ties_vmap_and_no_entries():
    np.testing.assert_array_equal(soften(jnp.zeros(5), jnp.arange(5) > 0)[1:], 0.25)
    scores, left = map(jnp.asarray, make())
    np.testing.assert_array_equal(jax.vmap(masked_softmax)(scores, left), soften(scores, left))
    assert soften(jnp.zeros((2, 0)), jnp.zeros((2, 0), bool)).shape == (2, 0)


def test_bfloat16_is_computed_in_float32():
    scores, left = make()
    low = jnp.asarray(scores, jnp.bfloat16)
    weights = soften(low, left)
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        weights, soften(low.astype(jnp.float32), left).astype(jnp.bfloat16)
    )


def test_shapes_are_to_agree():
    with pytest.raises((UserError, TypeError)):
        masked_softmax(jnp.zeros((2, 3)), jnp.zeros((2, 4), bool))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_maximum_and_its_gradient_at_the_first_of_several(axis):
    x = np.random.default_rng(0).integers(-3, 4, (4, 5, 6)).astype(np.float32)
    x[0, 0] = -np.inf
    x[..., 0] = 1
    np.testing.assert_array_equal(
        first_max(jnp.asarray(x), axis=axis), x.max(axis=axis, keepdims=True)
    )
    weights = np.random.default_rng(1).normal(size=x.max(axis=axis, keepdims=True).shape)
    found = jax.jit(jax.grad(lambda x: jnp.sum(weights * first_max(x, axis=axis))))(jnp.asarray(x))
    expected = np.zeros(x.shape)
    for place in np.ndindex(weights.shape):
        line = list(place)
        line[axis] = slice(None)
        best = int(np.argmax(x[tuple(line)]))
        line[axis] = best
        expected[tuple(line)] = weights[place]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_maximum_is_compared_with_what_it_is_the_maximum_of():
    # That is what goes wrong where XLA computes both apart; then nothing may be divided by a count.
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(first_max(x, axis=0))))(jnp.ones((3, 2))))
    assert " div " not in jaxpr
    assert " div " in str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(x.max(0))))(jnp.ones((3, 2))))
