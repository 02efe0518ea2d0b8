"""The attention sampler as a whole: its convention, its gradients, and many devices."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import attention_sample, corners_to_pixels, fractions_to_pixels

sample = jax.jit(attention_sample, static_argnames=("out_size", "max_density", "exact"))
COLLECTIVES = ["all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter"]


def make(b=2, size=(6, 5), cells=(3, 4), c=2, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(b, *size, c)).astype(np.float32),
        rng.uniform(0.1, 3.0, size=(b, *cells)).astype(np.float32),
    )


def oracle(image, attention, out_size, max_density):
    """Positions by bisection and interpolation, then every pixel as a weighted mean of all."""
    weights = []
    for axis in (0, 1):
        density = np.maximum(attention, 0.0).astype(np.float64).max(axis=1 - axis)
        density, n, extent = density / density.sum(), len(density), image.shape[axis]
        low, high = 0.0, 1.0
        for _ in range(60):
            level = (low + high) / 2
            enough = np.minimum(density + level, max_density / n).sum() >= 1
            low, high = (low, level) if enough else (level, high)
        cdf = np.cumsum([0.0, *np.minimum(density + high, max_density / n)])
        targets = (np.arange(out_size[axis]) + 0.5) / out_size[axis]
        pixels = np.interp(targets, cdf, np.linspace(-0.5, extent - 0.5, n + 1))
        distance = np.abs(np.clip(pixels, 0, extent - 1)[:, None] - np.arange(extent))
        weights.append(np.maximum(1 - distance, 0.0))
    return np.tensordot(weights[0], np.tensordot(weights[1], image, (1, 1)), (1, 1)).transpose(
        0, 1, 2
    )


@pytest.mark.parametrize("max_density", [1.0, 1.5, 4.0])
@pytest.mark.parametrize(("size", "cells"), [((6, 5), (3, 4)), ((9, 1), (1, 6)), ((2, 8), (20, 7))])
def test_it_follows_the_definition(size, cells, max_density):
    image, attention = make(size=size, cells=cells)
    attention = attention**6 - 0.5
    out = sample(image, attention, out_size=(7, 4), max_density=max_density)
    for one in range(2):
        expected = oracle(image[one], attention[one], (7, 4), max_density)
        np.testing.assert_allclose(out[one], expected, atol=1e-4)


def test_by_hand():
    # Half of the samples for each half of the attention: the right cell, of the right two pixels,
    # has 3/4 of the density, so that 3 of 4 samples lie in it.
    image = jnp.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 4, 1)
    out = attention_sample(image, jnp.array([[[1.0, 3.0]]]), out_size=(1, 4))
    # At fractions 1/4, 1/2 + 1/12, 1/2 + 3/12, 1/2 + 5/12.
    np.testing.assert_allclose(out.ravel(), [0.5, 11 / 6, 2.5, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(
        fractions_to_pixels(jnp.array([[0.0, 0.5, 1.0]]), extent=6)[0], [-0.5, 2.5, 5.5]
    )
    np.testing.assert_array_equal(
        corners_to_pixels(jnp.array([[-1.0, 0.5, 1.0]]), extent=5)[0], [0.0, 3.0, 4.0]
    )


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    out=st.sampled_from([(6, 5), (13, 3), 4]),
    level=st.sampled_from([-1.0, 0.0, 1e-45, 0.3, 3e38]),
)
def test_constant_attention_is_a_half_pixel_resize(seed, out, level):
    image, attention = make(seed=seed)
    out_shape = out if isinstance(out, tuple) else (out, out)
    expected = jax.image.resize(image, (2, *out_shape, 2), "linear", antialias=False)
    found = sample(image, np.full_like(attention, level), out_size=out)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), power=st.sampled_from([1, 4]))
def test_flips_flip_and_scale_does_not_matter(seed, power):
    image, attention = make(seed=seed)
    attention = attention**power
    out = sample(image, attention, out_size=(5, 7))
    for axis in (1, 2):
        flipped = sample(np.flip(image, axis), np.flip(attention, axis), out_size=(5, 7))
        np.testing.assert_allclose(flipped, np.flip(out, axis), atol=1e-3)
    np.testing.assert_array_equal(sample(image, 2**40 * attention, out_size=(5, 7)), out)
    np.testing.assert_array_equal(sample(image, attention - 0.0, out_size=(5, 7)), out)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_examples_do_not_influence_each_other(seed):
    image, attention = make(b=3, seed=seed)
    others, other = image.copy(), attention.copy()
    others[1], other[1] = np.nan, np.random.default_rng(seed).choice([-1, 0, 1e38], (3, 4))
    for out_size in (4, (5, 7)):
        one, two = (sample(*x, out_size=out_size) for x in ((image, attention), (others, other)))
        np.testing.assert_array_equal(one[::2], two[::2])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_bytes_and_floats_agree_exactly(seed):
    _, attention = make(seed=seed)
    grey = np.random.default_rng(seed).integers(0, 256, (2, 6, 5, 2)).astype(np.uint8)
    one, other = (sample(x, attention, out_size=4) for x in (grey, grey.astype(np.float32)))
    assert one.dtype == other.dtype == jnp.float32
    np.testing.assert_array_equal(one, other)


def test_bfloat16_comes_back():
    image, attention = make()
    assert sample(image.astype(jnp.bfloat16), attention, out_size=4).dtype == jnp.bfloat16
    half = attention.astype(jnp.bfloat16)
    out = sample(image, half, out_size=4)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, sample(image, half.astype(np.float32), out_size=4))


def test_jit_and_vmap_change_nothing():
    image, attention = (jnp.asarray(x) for x in make())
    plain = attention_sample(image, attention, out_size=4)
    np.testing.assert_allclose(sample(image, attention, out_size=4), plain, atol=1e-5)
    mapped = jax.vmap(lambda i, a: attention_sample(i[None], a[None], out_size=4)[0])
    np.testing.assert_allclose(mapped(image, attention), plain, atol=1e-5)


def loss(image, attention):
    return jnp.sum(jnp.sin(attention_sample(image, attention, out_size=4)))


slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))


def test_the_derivatives_are_right():
    # Chosen so that no sample is near a pixel, an edge of a cell or the border.
    image = make(b=1)[0]
    attention = np.array([[[1.0, 2.4], [4.0, 0.5]]], np.float32)
    arguments = jnp.asarray(image), jnp.asarray(attention)
    check_grads(jax.jit(loss), arguments, order=1, modes=("rev",), eps=3e-3, rtol=2e-2, atol=1e-2)


PEAK = np.zeros((1, 3, 4), np.float32)
PEAK[0, 1, 2] = 1.0


@pytest.mark.parametrize(
    "level",
    [
        0.0,
        1e-45,
        1e-30,
        1e-10,
        1.0,
        1e30,
        3e38,
    ],
)
@pytest.mark.parametrize("attention", [PEAK, np.ones_like(PEAK), make(b=1)[1] / 3])
def test_gradients_are_finite(attention, level):
    for slope in slopes(make(b=1)[0], np.float32(level) * attention):
        assert np.isfinite(slope).all()
    if level == 0.0:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_under_checkify_and_finite_without(bad):
    image, attention = make()
    attention[0, 1, 2] = bad
    f = partial(attention_sample, out_size=4)
    assert np.isfinite(jax.jit(f)(image, attention)).all()
    checked = jax.jit(checkify.checkify(f, errors=checkify.user_checks))
    with pytest.raises(checkify.JaxRuntimeError, match="attention is not finite"):
        checked(image, attention)[0].throw()
    checked(*make())[0].throw()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_each_platform_gets_its_lowering(platform):
    def text_of(function):
        return jax.jit(function).trace(*make()).lower(lowering_platforms=(platform,)).as_text()

    text = text_of(partial(attention_sample, out_size=4))
    assert ("stablehlo.gather" in text) == (platform != "tpu")
    assert ("dot_general" in text) == (platform == "tpu")
    assert "while" not in text
    text = text_of(jax.grad(loss, argnums=(0, 1)))
    assert ("while" in text) == (platform == "cpu")
    assert ("dot_general" in text) == (platform == "tpu")
    if platform == "tpu":
        assert not any(op in text for op in ("stablehlo.gather", "dynamic_slice"))


def test_eight_devices_need_no_collective_and_equal_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    image, attention = make(b=16)
    grey = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    alone = partial(attention_sample, out_size=(4, 7))
    for arguments in ((image, attention), (grey, attention)):
        placed = jax.device_put(arguments, split)
        compiled = jax.jit(alone, out_shardings=split).lower(*placed).compile()
        assert not [name for name in COLLECTIVES if name in compiled.as_text()]
        out = compiled(*placed)
        assert len(out.addressable_shards) == 8
        np.testing.assert_allclose(out, jax.jit(alone)(*arguments), rtol=1e-6, atol=1e-6)


def test_gradients_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    placed = jax.device_put(make(b=16), NamedSharding(mesh, PartitionSpec("data")))
    jax.jit(jax.grad(loss, argnums=1)).lower(*placed).compile()


@pytest.mark.parametrize(
    ("image", "attention", "options", "message"),
    [
        ((2, 6, 5, 3), (3, 4, 4), {}, r"shape \(2, 6, 5, 3\) and attention \(3, 4, 4\); expected"),
        ((2, 6, 5), (2, 4, 4), {}, r"shape \(2, 6, 5\) and attention"),
        ((2, 6, 5, 3), (2, 4), {}, r"attention \(2, 4\); expected"),
        ((2, 0, 5, 3), (2, 4, 4), {}, "extent is 0; expected at least 1"),
        ((2, 6, 5, 0), (2, 4, 4), {}, r"\(2, 6, 5, 0\).* expected at least one pixel, channel"),
        ((2, 6, 5, 3), (2, 0, 4), {}, r"attention has shape \(2, 0, 4\)"),
        ((2, 6, 5, 3), (2, 4, 4), {"out_size": 0}, "out_size is 0; expected at least 1"),
        ((2, 6, 5, 3), (2, 4, 4), {"out_size": (4, 0)}, r"out_size is \(4, 0\)"),
        ((2, 6, 5, 3), (2, 4, 4), {"out_size": (4, 4, 4)}, r"out_size is \(4, 4, 4\)"),
        ((2, 6, 5, 3), (2, 4, 4), {"max_density": 0.5}, "max_density is 0.5; expected at least 1"),
    ],
)
def test_mistakes_are_told(image, attention, options, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # told by us, as users call it
    try:
        with pytest.raises(UserError, match=message) as caught:
            attention_sample(jnp.zeros(image), jnp.zeros(attention), **{"out_size": 4} | options)
        assert "\n" not in str(caught.value)
        for function in (fractions_to_pixels, corners_to_pixels):
            with pytest.raises(UserError, match="extent is 0; expected at least 1"):
                function(jnp.zeros((1, 2)), extent=0)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
