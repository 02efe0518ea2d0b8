"""The losses of detectors against the reference, NumPy and each other."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    absolute_error,
    cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal,
    smooth_l1,
)

REGRESSION = {
    "smoothl1_b1": smooth_l1,
    "smoothl1_b9th": lambda p, t: smooth_l1(p, t, beta=1 / 9),
    "l1": absolute_error,
}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def golden(shared):
    file = np.load(shared / "golden" / "detection" / "losses.npz")
    return {name: jnp.asarray(file[name]) for name in file.files}


def test_focal_loss_of_the_reference(golden):
    labels, weight = golden["focal_targets"].astype(jnp.int32), golden["focal_weight"][:, None]
    options = {"alpha": float(golden["focal_alpha"]), "gamma": float(golden["focal_gamma"])}

    def loss(logits):
        return sigmoid_focal(logits, labels, **options)

    for name in ("cuda", "py"):
        found, pull = jax.vjp(jax.jit(loss), golden["focal_logits"])
        np.testing.assert_allclose(found, golden[f"focal_elementwise_{name}"], rtol=1e-5, atol=2e-6)
        grad = pull(jnp.ones_like(found))[0]
        np.testing.assert_allclose(grad, golden[f"focal_grad_{name}"], rtol=1e-5, atol=2e-6)

    def total(logits):
        return jnp.sum(loss(logits) * weight) / golden["focal_avg_factor"]

    value, grad = jax.value_and_grad(total)(golden["focal_logits"])
    np.testing.assert_allclose(value, golden["focal_total"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden["focal_total_grad"], **CLOSE)


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_of_the_reference(golden, name):
    loss = REGRESSION[name]
    prediction, target = golden["reg_pred"], golden["reg_target"]
    np.testing.assert_allclose(loss(prediction, target), golden[f"{name}_elementwise"], **CLOSE)

    def total(prediction):
        return jnp.sum(golden["reg_weight"] * loss(prediction, target)) / golden["reg_avg"]

    value, grad = jax.value_and_grad(jax.jit(total))(prediction)
    np.testing.assert_allclose(value, golden[f"{name}_total"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden[f"{name}_grad"], **CLOSE)
    mean = jnp.mean(loss(prediction, target))
    np.testing.assert_allclose(mean, golden[f"{name}_mean_noavg"], rtol=1e-5)


def test_classification_of_the_reference(golden):
    weight = golden["ce_weight"]

    def total(logits):
        losses = cross_entropy(logits, golden["ce_labels"].astype(jnp.int32))
        return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)

    value, grad = jax.value_and_grad(total)(golden["ce_logits"])
    np.testing.assert_allclose(value, golden["ce_total"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden["ce_grad"], **CLOSE)

    def objectness(logits):
        losses = sigmoid_cross_entropy(logits[:, 0], golden["bce_labels01"])
        return jnp.sum(losses * golden["bce_weight"]) / golden["bce_avg"]

    value, grad = jax.value_and_grad(jax.jit(objectness))(golden["bce_logits"])
    np.testing.assert_allclose(value, golden["bce_total"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden["bce_grad"], **CLOSE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_by_its_formula(gamma):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3.0, size=(2, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5)).astype(np.int32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -0.7 * p**gamma * np.log(1 - p)
    for place in np.ndindex(labels.shape):
        if labels[place] < 3:
            q = p[place][labels[place]]
            expected[place][labels[place]] = -0.3 * (1 - q) ** gamma * np.log(q)
    found = sigmoid_focal(jnp.asarray(logits), jnp.asarray(labels), alpha=0.3, gamma=gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_far_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 100.0, 0.0]])
    for gamma in (0.0, 0.5, 2.0):
        for label in range(5):

            def total(x, gamma=gamma, label=label):
                return jnp.sum(sigmoid_focal(x, jnp.array([label]), gamma=gamma))

            value, grad = jax.value_and_grad(total)(logits)
            assert np.isfinite(value)
            assert np.all(np.isfinite(grad))


def test_gradients_kinks_and_dtypes():
    x = jnp.array([-2.0, -0.3, 0.4, 3.0])
    for loss in (smooth_l1, absolute_error, lambda a, b: sigmoid_cross_entropy(a, jnp.abs(b))):
        run = jax.jit(lambda a, loss=loss: loss(a, 0.1 * jnp.ones(4)))
        check_grads(run, (x,), order=1, modes=("rev",), eps=1e-3, rtol=1e-2)
        half = loss(x.astype(jnp.bfloat16), jnp.ones(4, jnp.bfloat16))
        assert half.dtype == jnp.bfloat16
        mapped = jax.vmap(lambda a, loss=loss: loss(a[None], jnp.ones(1))[0])(x)
        np.testing.assert_allclose(mapped, loss(x, jnp.ones(4)), rtol=1e-6)
    assert sigmoid_focal(x[None].astype(jnp.bfloat16), jnp.array([1])).dtype == jnp.bfloat16
    focal = jax.jit(lambda a: sigmoid_focal(a, jnp.array([1])))
    check_grads(focal, (x[None],), order=1, modes=("rev",), eps=1e-2, rtol=2e-2)
    at_zero = jax.grad(lambda a: jnp.sum(absolute_error(a, jnp.zeros(1))))(jnp.zeros(1))
    assert at_zero[0] == 0.0


def test_mistakes_are_told():
    x, labels = jnp.zeros((3, 2)), jnp.zeros(3, int)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in (
            (lambda: sigmoid_focal(x, labels[:2]), r"labels \(2,\)"),
            (lambda: sigmoid_focal(x, labels, alpha=2.0), "alpha 2.0"),
            (lambda: sigmoid_focal(x, labels, gamma=-1.0), "gamma -1.0"),
            (lambda: smooth_l1(x, x[:1]), r"targets \(1, 2\)"),
            (lambda: smooth_l1(x, x, beta=0.0), "beta is 0.0"),
            (lambda: sigmoid_cross_entropy(x, labels), r"targets \(3,\)"),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
