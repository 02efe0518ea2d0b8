"""Adapters: a convolution by hand, what they start with, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.models import Adapters


def test_every_map_has_its_own_convolution():
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(2, n, n, c)), jnp.float32) for n, c in ((4, 3), (2, 5))]
    module = Adapters((6, 7), relu=True)
    variables = module.init(jax.random.key(0), maps)
    biases = [np.linspace(-1, 1, n) for n in (6, 7)]
    for index, bias in enumerate(biases):
        variables["params"][f"conv{index}"]["bias"] = jnp.asarray(bias, jnp.float32)
    found = jax.jit(module.apply)(variables, maps)
    for index, (x, y) in enumerate(zip(maps, found, strict=True)):
        kernel = np.asarray(variables["params"][f"conv{index}"]["kernel"])
        assert kernel.shape[:2] == (1, 1)
        expected = np.asarray(x) @ kernel[0, 0] + biases[index]
        np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)
    plain = Adapters((6, 7)).apply(variables, maps)
    np.testing.assert_allclose(jnp.maximum(plain[0], 0), found[0], rtol=1e-6)
    assert float(plain[0].min()) < 0


def test_kernels_start_as_asked_and_keep_the_size_of_maps():
    maps = [jnp.ones((1, 5, 5, 64), jnp.bfloat16)]
    module = Adapters((128,), size=3, std=1e-4)
    y, variables = module.init_with_output(jax.random.key(0), maps)
    kernel = np.asarray(variables["params"]["conv0"]["kernel"])
    assert kernel.dtype == np.float32
    z = np.fmod(np.random.default_rng(0).normal(size=1_000_000), 2)
    assert np.abs(kernel).max() < 2e-4
    np.testing.assert_allclose(kernel.std(), 1e-4 * z.std(), rtol=0.01)
    # Beyond two a number comes back near 0; cut-off tails would be drawn again.
    near = np.mean(np.abs(kernel) < 0.2e-4)
    np.testing.assert_allclose(near, np.mean(np.abs(z) < 0.2), rtol=0.03)
    bias = np.asarray(variables["params"]["conv0"]["bias"])
    bound = (3 * 3 * 64) ** -0.5
    assert bound / 2 < np.abs(bias).max() < bound
    assert abs(bias.mean()) < 0.25 * bound
    np.testing.assert_allclose(bias.std(), bound / 3**0.5, rtol=0.15)
    assert (y[0].shape, y[0].dtype) == ((1, 5, 5, 128), jnp.bfloat16)
    usual = Adapters((128,)).init(jax.random.key(0), maps)["params"]["conv0"]
    np.testing.assert_allclose(np.std(usual["kernel"]), 1 / 8, rtol=0.05)
    assert not np.any(usual["bias"])


def test_mistakes_are_told():
    with pytest.raises(UserError, match="size=2; expected an odd number above 0"):
        Adapters((3,), size=2)
    with pytest.raises(UserError, match=r"std=-1.0; expected at least 0"):
        Adapters((3,), std=-1.0)
    with pytest.raises(UserError, match="1 maps; expected 2"):
        Adapters((3, 4)).init(jax.random.key(0), [jnp.ones((1, 2, 2, 3))])
