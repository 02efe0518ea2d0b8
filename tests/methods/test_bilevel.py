"""Gradients through training steps: by hand, by finite differences, and the exact ones of L-MCL."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import cross_entropy, layerwise_mutual_contrastive, normalize_embeddings
from fgkd_jax.methods.bilevel import INNER, JUDGE, OUTER, unrolled_gradient


def test_a_quadratic_by_hand():
    # inner = phi theta, outer = theta^2 / 2, one inner step: theta_1 = theta - a phi, then
    # v = mu phi + theta_1 and theta_2 = theta_1 - a v.
    a, mu, theta, phi = 0.1, 0.9, 2.0, 3.0
    loss, grad = unrolled_gradient(
        lambda t, p, phase: jnp.where(phase == INNER, p * t, t**2 / 2),
        jnp.float32(theta), jnp.float32(phi),
        inner_steps=1, learning_rate=a, momentum=mu,
    )  # fmt: skip
    first = theta - a * phi
    second = first - a * (mu * phi + first)
    np.testing.assert_allclose(loss, second**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(grad, second * (-a - a * mu + a * a), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_finite_differences_and_plain_unrolling(steps):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        theta = {"w": jnp.asarray(rng.normal(size=4)), "b": jnp.asarray(rng.normal())}
        phi = jnp.asarray(rng.normal(size=4))

        def objective(t, p, phase):
            inner = jnp.sum(jnp.sin(t["w"] * p)) + t["b"] ** 2 * jnp.sum(p)
            outer = jnp.sum(jnp.cos(t["w"])) * t["b"]
            judge = jnp.sum(t["w"] ** 3) - t["b"]
            return jnp.select(
                [phase == INNER, phase == OUTER, phase == JUDGE], [inner, outer, judge]
            )

        def run(p):
            return unrolled_gradient(
                objective, theta, p,
                inner_steps=steps, learning_rate=0.1, momentum=0.8, weight_decay=0.05,
            )  # fmt: skip

        def unrolled(p):
            t, v = theta, jax.tree.map(jnp.zeros_like, theta)
            for phase in [INNER] * steps + [OUTER]:
                grads = jax.grad(objective)(t, p, phase)
                v = jax.tree.map(lambda v, g, t: 0.8 * v + g + 0.05 * t, v, grads, t)
                t = jax.tree.map(lambda t, v: t - 0.1 * v, t, v)
            return objective(t, p, JUDGE)

        loss, grad = jax.jit(run)(phi)
        expected = jax.jit(jax.value_and_grad(unrolled))(phi)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        np.testing.assert_allclose(grad, expected[1], rtol=1e-9)
        for i in range(4):
            step = jnp.zeros(4).at[i].set(1e-5)
            numeric = (run(phi + step)[0] - run(phi - step)[0]) / 2e-5
            np.testing.assert_allclose(grad[i], numeric, rtol=1e-6, atol=1e-9)


def test_the_number_of_steps_is_checked():
    with pytest.raises(UserError, match="inner_steps is 0; expected at least 1"):
        unrolled_gradient(lambda t, p, phase: t * p, 1.0, 1.0, inner_steps=0, learning_rate=1)


# The released L-MCL on a network of three linear stages


def tree(arrays, prefix):
    return {
        k.removeprefix(prefix): jnp.asarray(v) for k, v in arrays.items() if k.startswith(prefix)
    }


def linear(params, name, x):
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"][None]


def features_of(net, x):
    features = []
    for i in range(2):
        h, stages = x, []
        for k in range(3):
            h = jax.nn.relu(linear(net, f"body.{i}.{k}", h))
            stages.append(h)
        features.append(stages)
    return features


def weights_of(phi, features):
    cosines = jnp.stack([
        normalize_embeddings(linear(phi, f"proj.{i}.{k}", features[i][k]))
        for i in range(2) for k in range(3)
    ]).reshape(2, 3, -1, 128)  # fmt: skip
    return jax.nn.sigmoid(jnp.einsum("ikbd,jzbd->ikjzb", cosines, cosines))


def embeddings_of(heads, features):
    def one(i, k):
        name = f"embed_list.{i}.{k}.proj_head"
        hidden = jax.nn.relu(linear(heads, f"{name}.0", features[i][k]))
        return normalize_embeddings(linear(heads, f"{name}.2", hidden), eps=1e-30)

    return jnp.stack([jnp.stack([one(i, k) for k in range(3)]) for i in range(2)])


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_exact_gradient_of_lmcl(shared, iteration):
    with np.load(shared / "golden" / "lmcl" / "meta_mlp_f64.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta, it = json.loads(str(arrays["meta_json"])), f"it{iteration}_"
    with jax.enable_x64(True):
        theta = {
            "net": tree(arrays, f"{it}after_main_net."),
            "heads": tree(arrays, f"{it}after_main_crit."),
        }
        before = "init_lwn." if iteration == 0 else "it0_after_meta_lwn."
        phi = tree(arrays, before)
        x, labels = jnp.asarray(arrays[f"{it}x"]), jnp.asarray(arrays[f"{it}labels"])

        def objective(theta, phi, phase):
            features = features_of(theta["net"], x)
            terms = layerwise_mutual_contrastive(
                embeddings_of(theta["heads"], features), labels, weights_of(phi, features)
            )
            weights = meta["weights"]
            named = {"alpha": "vcl", "beta": "icl", "gamma": "soft_vcl", "lam": "soft_icl"}
            contrast = sum(weights[w] * jnp.mean(getattr(terms, t)) for w, t in named.items())
            task = sum(
                jnp.mean(cross_entropy(linear(theta["net"], f"fc.{i}.{k}", h), labels))
                for i, stages in enumerate(features) for k, h in enumerate(stages)
            )  # fmt: skip
            return jnp.where(phase == INNER, contrast, task)

        loss, grads = jax.jit(
            lambda theta, phi: unrolled_gradient(
                objective, theta, phi,
                inner_steps=meta["times"], learning_rate=meta["lr"],
                momentum=meta["meta_momentum"], weight_decay=meta["weight_decay"],
            )
        )(theta, phi)  # fmt: skip
        np.testing.assert_allclose(loss, arrays[f"{it}outer_loss_final"], rtol=1e-9)
        exact = tree(arrays, f"{it}meta_grad_exact.")
        released = tree(arrays, f"{it}meta_grad_ref.")
        assert grads.keys() == exact.keys()
        largest = max(float(jnp.abs(value).max()) for value in exact.values())
        for name, value in grads.items():
            np.testing.assert_allclose(value, exact[name], rtol=0, atol=1e-6 * largest)
        # The released sweep is another gradient, so that the comparison above means something.
        off = max(float(jnp.abs(grads[name] - released[name]).max()) for name in grads)
        assert off > 1e-4 * largest
