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
    assert np.abs(kernel).max() <= 2e-4
    assert 0.8e-4 < kernel.std() < 1e-4  # the tails are cut off
    assert (y[0].shape, y[0].dtype) == ((1, 5, 5, 128), jnp.bfloat16)
    usual = np.asarray(Adapters((128,)).init(jax.random.key(0), maps)["params"]["conv0"]["kernel"])
    np.testing.assert_allclose(usual.std(), 1 / 8, rtol=0.05)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"size=2 and std=0.0; expected an odd number"):
        Adapters((3,), size=2)
    with pytest.raises(UserError, match=r"std=-1.0"):
        Adapters((3,), std=-1.0)
    with pytest.raises(UserError, match="1 maps; expected 2"):
        Adapters((3, 4)).init(jax.random.key(0), [jnp.ones((1, 2, 2, 3))])
