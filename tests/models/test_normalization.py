"""Batch normalisation over groups: values, gradients, running statistics, sharding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.models.normalization import BatchNorm

CHANNELS = 3


def features(batch=16, size=(2, 3), mean=1.0):
    rng = np.random.default_rng(0)
    return jnp.asarray(mean + 2.0 * rng.normal(size=(batch, *size, CHANNELS)), jnp.float32)


def variables(seed=0):
    rng = np.random.default_rng(seed)
    scale, bias, mean = rng.normal(size=(3, CHANNELS)).astype(np.float32)
    var = rng.uniform(0.5, 2.0, CHANNELS).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def oracle(v, x, groups, *, unbiased=True, momentum=0.9, epsilon=1e-5):
    """Group after group in float64, with NumPy's own variance."""
    parts = np.split(np.asarray(x, np.float64), groups)
    axes = tuple(range(x.ndim - 1))
    out = [
        (part - part.mean(axes)) / np.sqrt(part.var(axes) + epsilon) * v["params"]["scale"]
        + v["params"]["bias"]
        for part in parts
    ]
    mean = np.mean([part.mean(axes) for part in parts], axis=0)
    var = np.mean([part.var(axes, ddof=int(unbiased)) for part in parts], axis=0)
    stats = {
        "mean": momentum * v["batch_stats"]["mean"] + (1 - momentum) * mean,
        "var": momentum * v["batch_stats"]["var"] + (1 - momentum) * var,
    }
    return np.concatenate(out), stats


def train_step(norm):
    return jax.jit(lambda v, x: norm.apply(v, x, train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize(("groups", "unbiased"), [(1, True), (4, True), (8, False)])
def test_training_follows_the_definition(groups, unbiased):
    v, x = variables(), features()
    norm = BatchNorm(groups=groups, unbiased_running_variance=unbiased)
    out, new = train_step(norm)(v, x)
    expected, stats = oracle(v, x, groups, unbiased=unbiased)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name, value in stats.items():
        np.testing.assert_allclose(new["batch_stats"][name], value, rtol=1e-6, err_msg=name)


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    v, x = variables(), features()
    out = jax.jit(lambda v, x: BatchNorm().apply(v, x, train=False))(v, x)
    stats = v["batch_stats"]
    expected = (np.asarray(x) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * v["params"]["scale"] + v["params"]["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_pytorch_gives_the_same_statistics_and_gradients():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    v, x = variables(), features()
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    norm = torch.nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        for name, ours in (("weight", "scale"), ("bias", "bias")):
            getattr(norm, name).copy_(torch.tensor(v["params"][ours]))
        for name, ours in (("running_mean", "mean"), ("running_var", "var")):
            getattr(norm, name).copy_(torch.tensor(v["batch_stats"][ours]))
    tx = torch.tensor(np.array(x.transpose(0, 3, 1, 2)), requires_grad=True)
    (norm(tx) * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()

    def loss(params, x):
        variables = {**v, "params": params}
        out, new = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(out * weights), new["batch_stats"]

    (to_params, to_x), new = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(v["params"], x)
    np.testing.assert_allclose(new["mean"], norm.running_mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], norm.running_var, rtol=1e-5)
    np.testing.assert_allclose(to_params["scale"], norm.weight.grad, atol=1e-4)
    np.testing.assert_allclose(to_params["bias"], norm.bias.grad, atol=1e-4)
    np.testing.assert_allclose(to_x, tx.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_derivatives_are_right_to_second_order():
    v, x = variables(), features(batch=4, size=(2, 1))

    def f(scale, x):
        new = {**v, "params": {**v["params"], "scale": scale}}
        return BatchNorm(groups=2).apply(new, x, train=True, mutable=["batch_stats"])[0]

    check_grads(jax.jit(f), (v["params"]["scale"], x), order=2, modes=("rev",), eps=1e-2, rtol=2e-2)


def test_the_running_statistics_carry_no_gradient():
    v, x = variables(), features(batch=4)

    def f(x):
        new = BatchNorm().apply(v, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]
        return jnp.sum(new["mean"]) + jnp.sum(new["var"])

    np.testing.assert_array_equal(jax.grad(f)(x), 0.0)


def collectives(compiled):
    """Results of all collectives in a compiled program."""
    pattern = r"= (\S.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    return re.findall(pattern + r"(?:-start)?\(", compiled.as_text())


@pytest.fixture(scope="module")
def shardings():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


@pytest.fixture(scope="module", params=[1, 8], ids=["one group", "as many groups as devices"])
def sharded(request, shardings):
    """Groups, the norm, its output alone, everything with gradients, and arrays on 8 devices."""
    data, everywhere = shardings
    norm = BatchNorm(groups=request.param)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=features().shape), jnp.float32)

    def output(v, x):
        return norm.apply(v, x, train=True, mutable=["batch_stats"])[0]

    def everything(v, x):
        def loss(params, x):
            new = {**v, "params": params}
            out, stats = norm.apply(new, x, train=True, mutable=["batch_stats"])
            return jnp.sum(out * weights), (out, stats)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(v["params"], x)

    v, x = jax.device_put(variables(), everywhere), jax.device_put(features(), data)
    return request.param, norm, output, everything, v, x


def test_the_normalised_output_needs_no_collective_where_groups_are_devices(sharded):
    groups, norm, output, _, v, x = sharded
    found = collectives(jax.jit(output).lower(v, x).compile())
    assert len(found) == (0 if groups == 8 else 2)
    with_statistics = collectives(train_step(norm).lower(v, x).compile())
    if groups == 8:  # the mean over groups of both statistics, and no more
        assert [(shape.split("{")[0], kind) for shape, kind in with_statistics] == [
            (f"f32[2,{CHANNELS}]", "all-reduce")
        ]


def test_eight_devices_and_one_give_the_same_values_and_gradients(sharded):
    groups, _, _, everything, v, x = sharded
    many = jax.jit(everything)(v, x)
    assert len(x.sharding.device_set) == 8
    one = jax.jit(everything)(variables(), jax.device_put(features(), jax.devices()[0]))
    for ours, theirs in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    out, stats = oracle(variables(), features(), groups)
    np.testing.assert_allclose(many[0][1][0], out, atol=1e-5)
    np.testing.assert_allclose(many[0][1][1]["batch_stats"]["var"], stats["var"], rtol=1e-6)


def test_the_variance_survives_a_mean_a_thousand_times_the_deviation():
    v, x = variables(), features(mean=4000.0)
    out, _ = train_step(BatchNorm())(v, x)
    expected, _ = oracle(v, x, 1)
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_bfloat16_features_have_float32_statistics():
    v, x = variables(), features(mean=20.0).astype(jnp.bfloat16)
    out, new = train_step(BatchNorm())(v, x)
    assert out.dtype == jnp.bfloat16
    expected, stats = oracle(v, x.astype(jnp.float32), 1)
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], stats["mean"], rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    wide = BatchNorm(dtype=jnp.float32).apply(v, x, train=False)
    assert wide.dtype == jnp.float32


def test_a_constant_channel_gives_its_bias_and_finite_gradients():
    v, x = variables(), jnp.full((4, 2, 2, CHANNELS), 7.0)

    def f(x):
        return BatchNorm().apply(v, x, train=True, mutable=["batch_stats"])[0]

    np.testing.assert_allclose(f(x), jnp.broadcast_to(v["params"]["bias"], x.shape), atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)).all()


def test_initialisation_takes_any_batch_and_leaves_the_statistics_alone():
    fresh = BatchNorm(groups=8).init(jax.random.key(0), jnp.full((1, 1, 1, 2), 5.0), train=True)
    np.testing.assert_array_equal(fresh["batch_stats"]["mean"], 0.0)
    np.testing.assert_array_equal(fresh["batch_stats"]["var"], 1.0)
    np.testing.assert_array_equal(fresh["params"]["scale"], 1.0)
    np.testing.assert_array_equal(fresh["params"]["bias"], 0.0)


class TwoNorms(nn.Module):
    """Two norms, the first of which can be frozen by its name."""

    frozen: str

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(frozen=self.frozen, name="first")(x, train=train)
        return x, BatchNorm(frozen=self.frozen, name="second")(x, train=train)


def test_a_frozen_norm_keeps_and_uses_its_running_statistics():
    x = features()
    v = {
        "params": {"first": variables()["params"], "second": variables()["params"]},
        "batch_stats": {"first": variables()["batch_stats"], "second": variables()["batch_stats"]},
    }

    def apply(v, train):
        return TwoNorms("^first$").apply(v, x, train=train, mutable=["batch_stats"])

    (out, _), new = apply(v, True)
    (evaluated, _), _ = apply(v, False)
    np.testing.assert_array_equal(out, evaluated)
    for name, same in (("first", True), ("second", False)):
        before, after = v["batch_stats"][name]["mean"], new["batch_stats"][name]["mean"]
        assert np.array_equal(before, after) == same
    grads = jax.grad(lambda p: jnp.sum(apply({**v, "params": p}, True)[0][0] ** 2))(v["params"])
    assert np.abs(grads["first"]["scale"]).min() > 0  # its parameters still learn


@pytest.mark.parametrize(
    ("groups", "shape", "message"),
    [
        (3, (8, 2, 2, 3), r"a batch of 8 \(x has shape \(8, 2, 2, 3\)\).*groups=3"),
        (0, (8, 2, 2, 3), "groups=0"),
        (8, (8, 1, 1, 3), r"\(8, 1, 1, 3\) in groups=8 has one value per channel"),
    ],
)
def test_batches_that_cannot_be_grouped_are_told(groups, shape, message):
    with pytest.raises(UserError, match=message):
        BatchNorm(groups=groups).apply(
            variables(), jnp.zeros(shape), train=True, mutable=["batch_stats"]
        )
