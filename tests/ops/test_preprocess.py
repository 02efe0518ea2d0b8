"""Normalisation and colour jitter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.ops import preprocess
from fgkd_jax.ops.preprocess import color_jitter, normalize_image

MEAN, STD = (0.5, 0.25, 0.75), (0.2, 0.25, 0.5)
ALL = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6}
IDS = jnp.array([7, 3, 2**31 - 1, 0], jnp.int32)


def images(batch=4, size=(5, 6)):
    levels = np.random.default_rng(0).integers(0, 256, (batch, *size, 3))
    return jnp.asarray(levels, jnp.uint8)


def test_normalisation_follows_its_equation():
    image = images()
    expected = (np.asarray(image, np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalize_image(image, mean=MEAN, std=STD), expected, atol=1e-6)
    as_float = normalize_image(image.astype(jnp.float32), mean=MEAN, std=STD)
    np.testing.assert_allclose(as_float, expected, atol=1e-6)


def test_every_grey_level_of_every_channel_has_its_value():
    levels = jnp.tile(jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1), (1, 1, 1, 3))
    out = normalize_image(levels)
    expected = (np.asarray(levels, np.float64) / 255 - preprocess.IMAGENET_MEAN) / np.array(
        preprocess.IMAGENET_STD
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_the_padding_is_zero_after_the_normalisation():
    image = images(batch=3)
    sizes = jnp.array([[5, 6], [2, 3], [0, 6]], jnp.int32)
    whole = normalize_image(image, mean=MEAN, std=STD)
    out = jax.jit(lambda i, s: normalize_image(i, mean=MEAN, std=STD, valid_size=s))(image, sizes)
    for one, full, (rows, columns) in zip(out, whole, np.asarray(sizes), strict=True):
        expected = np.zeros_like(full)
        expected[:rows, :columns] = full[:rows, :columns]
        np.testing.assert_allclose(one, expected, atol=1e-6)


def test_the_result_has_the_dtype_asked_for_and_is_computed_in_float32():
    image = images()
    out = normalize_image(image, mean=MEAN, std=STD, dtype=jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    exact = normalize_image(image, mean=MEAN, std=STD)
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"shape \(4, 5, 6, 3\); expected 3 numbers each"),
        ({"std": (0.5, 0.0, 0.5)}, r"std \(0.5, 0.0, 0.5\); expected numbers above 0"),
    ],
)
def test_wrong_constants_are_told(options, message):
    with pytest.raises(UserError, match=message):
        normalize_image(images(), **options)


def jitter(key, image, ids, **options):
    return jax.jit(lambda k, i, d: color_jitter(k, i, d, **options))(key, image, ids)


def test_no_strength_is_the_identity():
    image = images()
    out = color_jitter(jax.random.key(0), image, IDS)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, image)


def test_an_examples_colours_depend_on_the_key_and_its_id_alone():
    image = images()
    out = jitter(jax.random.key(0), image, IDS, **ALL)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(
        jitter(jax.random.key(0), image[order], IDS[order], **ALL), out[order]
    )
    alone = jitter(jax.random.key(0), image[1:2], IDS[1:2], **ALL)
    np.testing.assert_allclose(alone[0], out[1], atol=1e-4)

    same = jnp.broadcast_to(image[:1], image.shape)
    first, second = (jitter(jax.random.key(seed), same, IDS, **ALL) for seed in (0, 1))
    assert not np.allclose(first[0], first[1], atol=1)  # another id, another colour
    assert not np.allclose(first[0], second[0], atol=1)  # another key, another colour


def grey(x):
    return (x * np.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


def recovered_factor(x, other, out):
    """The f of out = f x + (1 - f) other, from the pixels that were not clipped."""
    inside = (out > 1) & (out < 254) & (np.abs(x - other) > 20)
    factors = ((out - other) / np.where(inside, x - other, 1))[inside]
    np.testing.assert_allclose(factors, factors.mean(), atol=1e-3)
    return factors.mean()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("brightness", lambda x: np.zeros_like(x)),
        ("contrast", lambda x: np.full_like(x, grey(x).mean())),
        ("saturation", lambda x: np.broadcast_to(grey(x), x.shape)),
    ],
)
def test_each_strength_blends_towards_what_it_says(name, other):
    many = jnp.arange(64, dtype=jnp.int32)
    image = jnp.broadcast_to(images(batch=1), (64, 5, 6, 3))
    out = np.asarray(jitter(jax.random.key(0), image, many, **{name: 0.5}), np.float64)
    x = np.asarray(image[0], np.float64)
    factors = np.array([recovered_factor(x, other(x), one) for one in out])
    assert factors.min() > 0.499
    assert factors.max() < 1.501
    # 64 draws from a uniform distribution of width 1: its mean is known to 1 / sqrt(12 * 64).
    assert abs(factors.mean() - 1) < 4 / np.sqrt(12 * 64)
    assert factors.max() - factors.min() > 0.8


def test_the_three_draws_are_independent_of_each_other_and_of_what_is_turned_on():
    image = images() // 6 + 100  # so that nothing is clipped
    only = jitter(jax.random.key(0), image, IDS, brightness=0.4)
    both = jitter(jax.random.key(0), image, IDS, brightness=0.4, saturation=0.5)
    assert not np.allclose(only, both, atol=1)
    np.testing.assert_allclose(grey(np.asarray(only)), grey(np.asarray(both)), atol=1e-2)
    draws = [
        preprocess._factors(jax.random.key(0), jnp.arange(200), index, 1.0) for index in range(3)
    ]
    correlation = np.corrcoef(np.array(draws))
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 0.3


def test_strengths_above_one_never_turn_colours_around():
    factors = preprocess._factors(jax.random.key(0), jnp.arange(500), 0, 3.0)
    assert float(factors.min()) >= 0
    out = jitter(jax.random.key(0), images(), IDS, brightness=3.0, contrast=3.0, saturation=3.0)
    assert float(out.min()) >= 0
    assert float(out.max()) <= 255


def test_the_mean_that_contrast_keeps_leaves_the_padding_out():
    image = images()
    padded = jnp.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=200)
    sizes = jnp.broadcast_to(jnp.array([5, 6], jnp.int32), (4, 2))
    expected = jitter(jax.random.key(0), image, IDS, contrast=0.9)
    out = jax.jit(lambda i, s: color_jitter(jax.random.key(0), i, IDS, contrast=0.9, valid_size=s))(
        padded, sizes
    )
    np.testing.assert_allclose(out[:, :5, :6], expected, atol=1e-3)


def test_floating_images_keep_their_dtype():
    image = images().astype(jnp.bfloat16)
    assert color_jitter(jax.random.key(0), image, IDS, **ALL).dtype == jnp.bfloat16
    np.testing.assert_array_equal(color_jitter(jax.random.key(0), image, IDS), image)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_impossible_strengths_are_told(strength):
    with pytest.raises(UserError, match=r"contrast=.*; expected a finite number"):
        color_jitter(jax.random.key(0), images(), IDS, contrast=strength)
