"""The plain classifier: loss against NumPy, frozen stages, precomputed features."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fgkd_jax.errors import UserError
from fgkd_jax.methods import METHODS, Classifier

TINY = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1, 1), "strides": (1, 2),
        "dilations": (1, 1), "zero_init_residual": False}  # fmt: skip


def make_batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 12, 12, 3), np.uint8)),
        "label": jnp.asarray(rng.integers(0, 5, size), jnp.int32),
        "id": jnp.arange(size, dtype=jnp.int32),
        "mask": jnp.asarray(np.arange(size) < size - 1),
    }


def run_init(method, key, batch):
    return jax.jit(method.init)(key, batch)


def run_loss(method, variables, batch, key, *, train):
    return jax.jit(method.loss, static_argnames="train")(variables, batch, key, train=train)


def run_predict(method, variables, batch):
    return jax.jit(method.predict)(variables, batch)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def method():
    return Classifier(num_classes=5, backbone=TINY, label_smoothing=0.2)


@pytest.fixture(scope="module")
def variables(method, batch):
    return run_init(method, jax.random.key(0), batch)


def test_loss_is_the_smoothed_cross_entropy_of_the_predictions(method, variables, batch):
    terms, state, figures = run_loss(method, variables, batch, jax.random.key(1), train=False)
    log_p = np.log(np.asarray(run_predict(method, variables, batch)["probabilities"], np.float64))
    target = np.eye(5)[np.asarray(batch["label"])] * 0.8 + 0.2 / 5
    mask = np.asarray(batch["mask"])
    term = terms["cross_entropy"]
    np.testing.assert_allclose(term.sum, -(target * log_p).sum(1) * mask, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(term.count, mask)
    right, count = figures["accuracy"]
    np.testing.assert_array_equal(right, (log_p.argmax(1) == batch["label"]) & mask)
    np.testing.assert_array_equal(count, mask)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_masked_examples_do_not_poison_the_loss(method, variables, batch):
    def total(features):
        poisoned = {**batch, "features": features}
        terms, _, _ = run_loss(method, variables, poisoned, jax.random.key(0), train=False)
        return jnp.sum(terms["cross_entropy"].sum)

    images = jax.random.normal(jax.random.key(0), (6, 12, 12, 3))
    poisoned = images.at[-1].set(jnp.nan)
    assert jnp.isfinite(total(poisoned))
    np.testing.assert_allclose(total(poisoned), total(images), rtol=1e-6)


def test_training_moves_the_statistics_and_evaluation_does_not(method, variables, batch):
    _, state, _ = run_loss(method, variables, batch, jax.random.key(1), train=True)
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), state, {"batch_stats": variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("frozen_stages", [1, 2])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(batch, frozen_stages):
    method = Classifier(num_classes=5, backbone=TINY, frozen_stages=frozen_stages)
    variables = run_init(method, jax.random.key(0), batch)

    def total(params):
        terms, state, _ = run_loss(
            method, {**variables, "params": params}, batch, jax.random.key(1), train=True
        )
        return jnp.sum(terms["cross_entropy"].sum), state

    grads, state = jax.grad(total, has_aux=True)(variables["params"])
    frozen = [re.compile(pattern) for pattern in method.frozen_parameters()]
    assert frozen
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        if any(pattern.search(path) for pattern in frozen):
            assert not np.any(grad), path
        elif not path.endswith("bias"):
            assert np.any(grad), path
    stats = traverse_util.flatten_dict(state["batch_stats"], sep="/")
    before = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    kept = {path for path in stats if np.array_equal(stats[path], before[path])}
    own = {pattern.pattern.strip("^$").replace("\\", "").rpartition("/")[0] for pattern in frozen}
    assert kept == {path for path in stats if path.rpartition("/")[0] in own}


def test_features_stand_for_the_images(batch):
    method = Classifier(num_classes=5, backbone=TINY, frozen_stages=2)
    variables = run_init(method, jax.random.key(0), batch)
    features = method.features(variables, batch)
    cached = {name: value for name, value in batch.items() if name != "image"}
    cached["features"] = features.astype(jnp.float16)
    np.testing.assert_allclose(
        run_predict(method, variables, cached)["logits"],
        run_predict(method, variables, batch)["logits"],
        atol=2e-3,
    )


def test_jitter_belongs_to_the_example_and_the_step(batch):
    method = Classifier(num_classes=5, backbone=TINY, brightness=0.5, contrast=0.3)
    variables = run_init(method, jax.random.key(0), batch)

    def losses(batch, key, train=True):
        # The statistics of the whole batch do not depend on the order of its examples.
        terms, _, _ = run_loss(method, variables, batch, key, train=train)
        return np.asarray(terms["cross_entropy"].sum)

    order = jnp.array([3, 1, 0, 2, 4, 5])
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    one = losses(batch, jax.random.key(1))
    np.testing.assert_allclose(one[order], losses(shuffled, jax.random.key(1)), rtol=1e-4)
    assert not np.allclose(one, losses(batch, jax.random.key(2)))
    np.testing.assert_array_equal(
        losses(batch, jax.random.key(1), train=False), losses(batch, jax.random.key(2), train=False)
    )


def test_dropout_draws_from_the_key(batch):
    method = Classifier(num_classes=5, backbone=TINY, dropout=0.5)
    variables = run_init(method, jax.random.key(0), batch)
    one, two, again = (
        run_loss(method, variables, batch, jax.random.key(seed), train=True)[0]["cross_entropy"].sum
        for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(batch):
    method = Classifier(num_classes=5, backbone={**TINY, "dtype": "bfloat16"})
    variables = run_init(method, jax.random.key(0), batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert run_predict(method, variables, batch)["logits"].dtype == jnp.float32
    assert "bf16" in str(jax.make_jaxpr(method.predict)(variables, batch))


def test_the_registry_lists_it():
    assert METHODS["classifier"] is Classifier


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"dropout is 1\.0; expected it in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ({"frozen_stages": -1}, r"frozen_stages is -1; expected at least 0"),
        ({"backbone": {"width": 8}}, "expected a key 'name'"),
        ({"backbone": {"name": "resnet17"}}, "did you mean 'resnet1"),
    ],
)
def test_wrong_options_are_told_at_once(options, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(Classifier(num_classes=5, backbone=TINY), **options)
