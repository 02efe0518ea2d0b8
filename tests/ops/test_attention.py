"""Trilinear attention and its maps: NumPy, the authors' own code, and what must hold for any."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import (
    corner_aligned_resize,
    detail_map,
    structure_map,
    trilinear_attention,
    trilinear_product,
)

attend = jax.jit(trilinear_attention, static_argnames="scale")
FUNCTIONS = [trilinear_attention, trilinear_product]


def make_features(b=2, h=3, w=4, c=5, seed=0):
    return np.random.default_rng(seed).normal(size=(b, h, w, c)).astype(np.float32)


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def oracle(features, scale=None):
    """One relation, then one map after the other, in float64; without a scale, the product."""
    out = np.zeros(features.shape, np.float64)
    for image, maps in zip(features.astype(np.float64), out, strict=True):
        channels = [image[:, :, i] for i in range(image.shape[2])]
        for i, one in enumerate(channels):
            where = one if scale is None else softmax(scale * one)
            relation = np.array([(where * other).sum() for other in channels])
            relation = relation if scale is None else softmax(relation)
            maps[:, :, i] = sum(r * other for r, other in zip(relation, channels, strict=True))
    return out


@pytest.mark.parametrize("scale", [1.0, 2.0, 7.0])
def test_attention_follows_the_definition(scale):
    features = make_features()
    np.testing.assert_allclose(attend(features, scale=scale), oracle(features, scale), atol=1e-5)


def test_the_product_follows_the_definition():
    features = make_features()
    np.testing.assert_allclose(
        jax.jit(trilinear_product)(features), oracle(features), rtol=1e-5, atol=1e-4
    )


def test_by_hand():
    x = jnp.array([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 1, 2, 2)
    # The relation X^T X is [[10, 2], [2, 4]].
    np.testing.assert_array_equal(trilinear_product(x)[0, 0], [[14.0, 10.0], [30.0, 6.0]])
    # At a single position the relation is softmax(0, log 3) = (1/4, 3/4) for either channel.
    x = jnp.array([0.0, np.log(3.0)]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(trilinear_attention(x).ravel(), [0.75 * np.log(3.0)] * 2, rtol=1e-6)
    # A single channel can only attend to itself.
    x = make_features(c=1)
    np.testing.assert_array_equal(trilinear_attention(jnp.asarray(x)), x)
    x = jnp.array([[1.0, 3.0], [-2.0, 0.0]]).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(structure_map(x), [[[2.0, -1.0]]])
    np.testing.assert_array_equal(structure_map(x, squared=True), [[[4.0, 1.0]]])


@pytest.mark.parametrize(
    ("file", "case", "scale"),
    [("mxnet", "s16", 7), ("mxnet", "dup12", 7)] + [("pytorch", case, 2) for case in "abc"],
)
def test_the_released_code_gives_the_same(shared, file, case, scale):
    golden = np.load(shared / "golden" / "tasn" / f"trilinear_{file}.npz")
    attention = attend(golden[f"{case}_feat"].transpose(0, 2, 3, 1), scale=float(scale))
    theirs = golden[f"{case}_att"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(attention, theirs, atol=1e-5)

    channel_sum = structure_map(attention) * theirs.shape[-1]
    structure = golden[f"{case}_structure"]
    if case == "s16":  # dup12 drops the wrong channels there: a bug that we do not share
        resized = corner_aligned_resize(channel_sum[..., None], size=structure.shape[1:])
        np.testing.assert_allclose(jnp.square(resized[..., 0]), structure, rtol=1e-5)
    elif file == "pytorch":
        np.testing.assert_allclose(channel_sum, structure[:, 0], rtol=1e-5, atol=1e-5)
        index = golden[f"{case}_index"]
        picked = np.stack([maps[..., i] for maps, i in zip(attention, index, strict=True)])
        np.testing.assert_allclose(picked + 0.01, golden[f"{case}_detail"][:, 0], atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_derivatives_are_right_to_second_order(function):
    check_grads(
        jax.jit(lambda x: jnp.sin(function(0.5 * x))),
        (jnp.asarray(make_features(1, 2, 2, 3)),),
        order=2,
        modes=("rev",),
        eps=1e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("function", [*FUNCTIONS, structure_map])
def test_jit_and_vmap_change_nothing(function):
    features = jnp.asarray(make_features())
    plain = function(features)
    np.testing.assert_allclose(jax.jit(function)(features), plain, rtol=1e-5, atol=1e-5)
    mapped = jax.vmap(lambda one: function(one[None])[0])(features)
    np.testing.assert_allclose(mapped, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [*FUNCTIONS, structure_map])
def test_bfloat16_is_computed_in_float32_and_comes_back(function):
    half = jnp.asarray(make_features(c=40), jnp.bfloat16)
    out = jax.jit(function)(half)
    assert out.dtype == jnp.bfloat16
    wide = jax.jit(function)(half.astype(jnp.float32))
    np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([0.0, 1e-30, 1.0, 100.0, 1e30]))
def test_maps_are_mixtures_of_the_features_in_any_order(seed, size):
    rng = np.random.default_rng(seed)
    features = np.float32(size) * make_features(seed=seed)
    attention = np.asarray(attend(features))
    slack = 1e-5 * np.abs(features).max()
    assert (attention <= features.max(axis=3, keepdims=True) + slack).all()
    assert (attention >= features.min(axis=3, keepdims=True) - slack).all()
    if size <= 1.0:  # beyond, a softmax over almost equal sums of large numbers amplifies rounding
        ways = [rng.permutation(n) for n in features.shape[1:]]
        moved = attend(features[:, ways[0]][:, :, ways[1]][..., ways[2]])
        expected = attention[:, ways[0]][:, :, ways[1]][..., ways[2]]
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=max(slack, 1e-35))


def test_equal_channels_get_equal_maps_and_dead_ones_are_finite():
    features = make_features(c=4)
    features[..., 2] = features[..., 1]
    features[..., 3] = 0.0
    attention, slope = jax.jit(jax.value_and_grad(lambda x: attend(x).sum()))(features)
    assert np.isfinite(attention)
    assert np.isfinite(slope).all()
    attention = attend(features)
    np.testing.assert_allclose(attention[..., 2], attention[..., 1], rtol=1e-6)
    np.testing.assert_array_equal(attend(np.zeros_like(features)), np.zeros_like(features))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_examples_do_not_influence_each_other(function):
    features = make_features(b=3)
    other = features.copy()
    other[1] = np.nan
    run = jax.jit(function)
    np.testing.assert_array_equal(run(features)[::2], run(other)[::2])


def test_the_detail_map_depends_on_key_and_id_alone():
    attention, ids = jnp.asarray(make_features(b=64, c=4)), jnp.arange(64) * 37 - 5
    draw = jax.jit(detail_map)
    maps = draw(jax.random.key(0), attention, ids)
    same = (maps[..., None] == attention).all(axis=(1, 2))
    np.testing.assert_array_equal(same.sum(axis=1), np.ones(64))
    counts = same.sum(axis=0)
    assert int(counts.min()) >= 6  # of 16 expected

    order = np.random.default_rng(0).permutation(64)[:20]
    np.testing.assert_array_equal(
        draw(jax.random.key(0), attention[order], ids[order]), maps[order]
    )
    assert not np.array_equal(draw(jax.random.key(1), attention, ids), maps)
    mapped = jax.vmap(lambda a, i: detail_map(jax.random.key(0), a[None], i[None])[0])
    np.testing.assert_array_equal(mapped(attention, ids), maps)
    half = draw(jax.random.key(0), attention.astype(jnp.bfloat16), ids)
    np.testing.assert_array_equal(half, maps.astype(jnp.bfloat16))
    # The gradient goes to the channel that was drawn, whole.
    slope = jax.jit(jax.grad(lambda a: draw(jax.random.key(0), a, ids).sum()))(attention)
    np.testing.assert_array_equal(
        slope, jnp.broadcast_to(same[:, None, None].astype(slope.dtype), slope.shape)
    )


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [*FUNCTIONS, structure_map])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 3, 4), (2, 3, 4, 0)])
def test_bad_shapes_are_quoted(function, shape):
    with pytest.raises(UserError) as caught:
        function(jnp.zeros(shape))
    assert str(caught.value).startswith(f"{function.__name__}: an input of shape {shape}; expected")


@pytest.mark.usefixtures("unchecked")
def test_bad_shapes_of_the_detail_map_are_quoted():
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"shape \(2, 3, 4, 5\) and ids \(3,\); expected"):
        detail_map(key, jnp.zeros((2, 3, 4, 5)), jnp.arange(3))
    with pytest.raises(UserError, match=r"detail_map: an input of shape \(2, 3, 4, 0\)"):
        detail_map(jax.random.clone(key), jnp.zeros((2, 3, 4, 0)), jnp.arange(2))
