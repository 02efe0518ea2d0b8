"""Adversarial distillation of feature maps, as functions of the discriminators' outputs."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import feature_discrimination, feature_imitation
from fgkd_jax.models import FeatureDiscriminator

discrimination, imitation = jax.jit(feature_discrimination), jax.jit(feature_imitation)


def scores(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_they_equal_their_definitions():
    peer, own = scores(2, 6)
    targets = np.stack([np.ones(6), np.zeros(6)])
    expected = np.linalg.norm(np.stack([peer, own]) - targets, axis=0) ** 2
    np.testing.assert_allclose(discrimination(peer, own), expected, rtol=1e-5)
    np.testing.assert_allclose(imitation(own), np.abs(own - 1) ** 2, rtol=1e-5)


def test_by_hand():
    one, zero, half = jnp.ones(1), jnp.zeros(1), jnp.full(1, 0.5)
    assert discrimination(one, zero) == 0.0  # told apart
    assert discrimination(zero, one) == 2.0  # taken for each other
    assert discrimination(half, half) == 0.5  # undecided
    assert (imitation(one), imitation(zero), imitation(half)) == (0.0, 1.0, 0.25)


def test_gradients_and_vmap():
    peer, own = scores(2, 5)
    check_grads(discrimination, (peer, own), order=2, modes=("rev",), rtol=2e-2, eps=1e-2)
    check_grads(imitation, (own,), order=2, modes=("rev",), rtol=2e-2, eps=1e-2)
    by_peer, by_own = jax.grad(lambda p, o: discrimination(p, o).sum(), (0, 1))(peer, own)
    np.testing.assert_allclose(by_peer, 2 * (peer - 1), rtol=1e-5)
    np.testing.assert_allclose(by_own, 2 * own, rtol=1e-5)
    many = scores(2, 3, 5)
    mapped = jax.vmap(discrimination)(*many)
    np.testing.assert_allclose(mapped, [discrimination(*x) for x in many.swapaxes(0, 1)])
    np.testing.assert_allclose(jax.vmap(imitation)(many[0]), [imitation(x) for x in many[0]])


def test_bfloat16_is_computed_in_float32_and_comes_back():
    half = jnp.asarray(scores(2, 50), jnp.bfloat16)
    for function in (discrimination, feature_discrimination):  # op by op digits would be lost
        loss, wide = function(*half), function(*half.astype(jnp.float32))
        assert loss.dtype == jnp.bfloat16
        np.testing.assert_array_equal(loss, wide.astype(jnp.bfloat16))
    for function in (imitation, feature_imitation):
        loss, wide = function(half[0]), function(half[0].astype(jnp.float32))
        assert loss.dtype == jnp.bfloat16
        np.testing.assert_array_equal(loss, wide.astype(jnp.bfloat16))


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_bad_shapes_are_quoted():
    with pytest.raises(UserError, match=r"peer_scores have the shape \(2,\) and own_scores \(3,\)"):
        feature_discrimination(jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(UserError, match=r"own_scores have the shape \(2, 1\); expected \[b\]"):
        feature_imitation(jnp.zeros((2, 1)))


def test_a_discriminator_scores_each_map_by_itself():
    maps = jax.random.normal(jax.random.key(0), (4, 8, 6, 5))
    module = FeatureDiscriminator(features=7)
    out, variables = module.init_with_output(jax.random.key(1), maps)
    assert out.shape == (4,)
    assert out.dtype == jnp.float32
    assert bool(((out > 0) & (out < 1)).all())
    assert set(variables) == {"params"}
    alone = [module.apply(variables, maps[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(out, alone, rtol=1e-5)
    half = module.apply(variables, maps.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_a_discriminator_learns_to_tell_and_is_fooled_by_maps_that_learn():
    module = FeatureDiscriminator(features=8)
    key = jax.random.key(0)
    own, peer = (
        mean + 0.3 * jax.random.normal(jax.random.fold_in(key, i), (32, 4, 4, 2))
        for i, mean in enumerate((-1.0, 1.0))
    )
    variables = module.init(jax.random.fold_in(key, 2), own)

    def discriminate(variables):
        scores = module.apply(variables, peer), module.apply(variables, own)
        return feature_discrimination(*scores).mean()

    def imitate(own):
        return feature_imitation(module.apply(variables, own)).mean()

    descend = jax.jit(
        lambda v: jax.tree.map(lambda x, g: x - 0.1 * g, v, jax.grad(discriminate)(v))
    )
    before = discriminate(variables)
    for _ in range(50):
        variables = descend(variables)
    assert discriminate(variables) < 0.05 < before
    assert imitate(own) > 0.8
    step = jax.jit(lambda x: x - 30.0 * jax.grad(imitate)(x))
    moved = own
    for _ in range(300):
        moved = step(moved)
    assert imitate(moved) < 0.05
