"""Aggregated logits, match weights and projections against the authors' own code."""

import json
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import aggregated_task
from fgkd_jax.models import Aggregator, MatchNetwork, ProjectionHead

PRECISIONS = [(np.float64, 1e-9), (np.float32, 1e-5)]


def layer(golden, name: str, dtype) -> dict:
    return {
        "kernel": jnp.asarray(golden[f"{name}.weight"].T, dtype),
        "bias": jnp.asarray(golden[f"{name}.bias"], dtype),
    }


def assert_close(ours, reference, tolerance, message=""):
    """Relative to the largest element: an element near zero is a difference of large ones."""
    assert np.asarray(ours).shape == reference.shape, message
    scale = max(1.0, np.abs(reference).max())
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * scale, err_msg=message)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_released_task_objective_is_the_same(shared, dtype, tolerance):
    golden = np.load(shared / "golden" / "lmcl" / "objective_n2_l3_f64.npz")
    about = json.loads(str(golden["meta_json"]))
    n, s = about["N"], about["L"]

    with jax.enable_x64(dtype == np.float64):
        features = [
            [jnp.asarray(golden[f"in_rep_{i}_{k}"], dtype) for k in range(s)] for i in range(n)
        ]
        logits = jnp.asarray(
            [[golden[f"in_logits_{i}_{k}"] for k in range(s)] for i in range(n)], dtype
        )
        labels = jnp.asarray(golden["in_labels"])
        params = [
            {
                "dense1": layer(golden, f"param_proj_head_{i}.0", dtype),
                "dense2": layer(golden, f"param_proj_head_{i}.2", dtype),
            }
            for i in range(n)
        ]

        def aggregate(params, features, logits):
            return jnp.stack(
                [
                    Aggregator().apply({"params": p}, h, g)
                    for p, h, g in zip(params, features, logits, strict=True)
                ]
            )

        def objective(params, features, logits):
            mixed = aggregate(params, features, logits)
            options = {"temperature": float(about["kd_T"])}
            parts = aggregated_task(logits, mixed, labels, **options)
            return jnp.stack([part.mean() for part in (*parts, sum(parts))])

        mixed = aggregate(params, features, logits)
        losses = jax.jit(objective)(params, features, logits)
        slopes = jax.jit(jax.jacrev(objective, (0, 1, 2)))(params, features, logits)

    assert losses.dtype == dtype
    for i in range(n):
        assert_close(mixed[i], golden[f"mid_aggregated_logits_{i}"], tolerance)
    for row, name in enumerate(("ce_stages", "ce_aggregated", "logit_kd", "task")):
        assert_close(losses[row], golden[f"out_{name}"], tolerance, name)
        by_params, by_features, by_logits = slopes
        for i, k in product(range(n), range(s)):
            mark = f"grad_{name}__{{}}_{i}_{k}"
            assert_close(by_features[i][k][row], golden[mark.format("rep")], tolerance, mark)
            assert_close(by_logits[row, i, k], golden[mark.format("logits")], tolerance, mark)
        for i, (ours, theirs) in product(range(n), (("dense1", 0), ("dense2", 2))):
            mark = f"grad_{name}__proj_head_{i}.{theirs}"
            kernel, bias = by_params[i][ours]["kernel"][row], by_params[i][ours]["bias"][row]
            assert_close(kernel, golden[f"{mark}.weight"].T, tolerance, mark)
            assert_close(bias, golden[f"{mark}.bias"], tolerance, mark)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_released_weight_network_is_the_same(shared, dtype, tolerance):
    golden = np.load(shared / "golden" / "lmcl" / "metanet_f64.npz")
    n, s = 2, 3
    with jax.enable_x64(dtype == np.float64):
        features = [
            [jnp.asarray(golden[f"in_feat_{i}_{k}"], dtype) for k in range(s)] for i in range(n)
        ]
        params = {
            f"dense{i}_{k}": layer(golden, f"metaparam_proj.{i}.{k}", dtype)
            for i, k in product(range(n), range(s))
        }
        order = golden["weight_order_ijkz"]

        def weights(params, features):
            full = MatchNetwork().apply({"params": params}, features)
            return full[order[:, 0], order[:, 2], order[:, 1], order[:, 3]]

        def dot(params, features):
            return (jnp.asarray(golden["coef"], dtype) * weights(params, features)).sum()

        found = jax.jit(weights)(params, features)
        by_params, by_features = jax.jit(jax.grad(dot, (0, 1)))(params, features)
    assert found.dtype == dtype
    assert_close(found, golden["weights"], tolerance)
    for i, k in product(range(n), range(s)):
        assert_close(by_features[i][k], golden[f"grad_dot__feat_{i}_{k}"], tolerance)
        mark, own = f"grad_dot__meta.proj.{i}.{k}", by_params[f"dense{i}_{k}"]
        assert_close(own["kernel"], golden[f"{mark}.weight"].T, tolerance)
        assert_close(own["bias"], golden[f"{mark}.bias"], tolerance)


def features_of(*widths, b: int = 4, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(widths))
    return tuple(
        jax.random.normal(k, (b, d)).astype(dtype) for k, d in zip(keys, widths, strict=True)
    )


def test_aggregated_logits_are_a_weighted_mean_for_stages_of_any_width():
    features, logits = features_of(3, 5, 6), jax.random.normal(jax.random.key(1), (3, 4, 7))
    module = Aggregator()
    mixed, variables = module.init_with_output(jax.random.key(2), features, logits)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["dense1"] == {"kernel": (14, 6), "bias": (6,)}
    assert shapes["dense2"] == {"kernel": (6, 3), "bias": (3,)}
    assert bool((logits.min(0) <= mixed).all() and (mixed <= logits.max(0)).all())
    # The weights, read off by logits that are one-hot over the stages.
    alpha = module.apply(variables, features, jnp.broadcast_to(jnp.eye(3)[:, None], (3, 4, 3)))
    np.testing.assert_allclose(alpha.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed, np.einsum("bs,sbk->bk", alpha, logits), rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(alpha)[:, 0])) == 4
    wider = Aggregator(hidden=2).init(jax.random.key(2), features, logits)
    assert wider["params"]["dense1"]["bias"].shape == (2,)
    apply = jax.jit(module.apply)
    check_grads(lambda h, g: apply(variables, h, g), (features, logits), 1, ("rev",), rtol=2e-2)


def test_match_weights_are_symmetric_bounded_and_by_example():
    features = (features_of(3, 5), features_of(4, 2), features_of(6, 6))
    module = MatchNetwork(features=8)
    weights, variables = module.init_with_output(jax.random.key(2), features)
    assert weights.shape == (3, 2, 3, 2, 4)
    np.testing.assert_allclose(weights, weights.transpose(2, 3, 0, 1, 4), rtol=1e-6)
    low, high = (1 / (1 + np.exp(-c)) for c in (-1.0, 1.0))
    assert float(weights.min()) > low - 1e-6
    assert float(weights.max()) < high + 1e-6
    same = weights.reshape(6, 6, 4)[np.arange(6), np.arange(6)]
    np.testing.assert_allclose(same, high, rtol=1e-6)
    p = variables["params"]
    for i, k, j, z, r in ((0, 1, 2, 0, 3), (1, 0, 0, 0, 0), (2, 1, 1, 1, 2)):
        x, y = (
            features[a][c][r] @ p[f"dense{a}_{c}"]["kernel"] + p[f"dense{a}_{c}"]["bias"]
            for a, c in ((i, k), (j, z))
        )
        cosine = np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
        np.testing.assert_allclose(weights[i, k, j, z, r], 1 / (1 + np.exp(-cosine)), rtol=1e-5)
    one = jax.tree.map(lambda x: x[2:3], features)
    np.testing.assert_allclose(module.apply(variables, one), weights[..., 2:3], rtol=1e-5)


def test_features_of_zeros_have_finite_gradients():
    features = ((jnp.zeros((2, 3)),), (jnp.zeros((2, 3)),))
    module = MatchNetwork(features=4)
    variables = module.init(jax.random.key(0), features)
    np.testing.assert_allclose(module.apply(variables, features), 0.5)
    slopes = jax.grad(lambda v, h: module.apply(v, h).sum(), (0, 1))(variables, features)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_released_projection_is_the_same(shared, dtype, tolerance):
    golden = np.load(shared / "golden" / "mcl" / "cifar_m3_f64.npz")
    with jax.enable_x64(dtype == np.float64):
        for i in range(3):
            params = {
                "dense1": layer(golden, f"param_embed_list.{i}.proj_head.0", dtype),
                "dense2": layer(golden, f"param_embed_list.{i}.proj_head.2", dtype),
            }
            width = params["dense2"]["bias"].shape[0]
            x = ProjectionHead(width).apply(
                {"params": params}, jnp.asarray(golden[f"in_rep_{i}"], dtype)
            )
            assert x.dtype == dtype
            assert_close(x, golden[f"mid_emb_{i}"], tolerance)


def test_a_projection_has_length_one_and_the_width_asked_for():
    x = features_of(5)[0]
    module = ProjectionHead()
    out, variables = module.init_with_output(jax.random.key(0), x)
    assert out.shape == (4, 128)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), 1, rtol=1e-6)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["dense1"]["kernel"] == (5, 128)
    assert shapes["dense2"]["kernel"] == (128, 128)
    apply = jax.jit(module.apply)
    check_grads(lambda x: apply(variables, x), (x,), 1, ("rev",), rtol=2e-2)


def test_half_precision_is_computed_in_float32():
    features = features_of(3, 5, dtype=jnp.bfloat16)
    logits = jnp.ones((2, 4, 7), jnp.bfloat16)
    key = jax.random.key(0)
    outputs = (
        Aggregator().init_with_output(key, features, logits),
        MatchNetwork().init_with_output(key, (features, features)),
        ProjectionHead().init_with_output(key, features[0]),
    )
    for out, variables in outputs:
        assert out.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_what_does_not_fit_is_told():
    features = features_of(3, 5)
    with pytest.raises(UserError, match=r"features of 2 stages and logits of the shape \(3, 4"):
        Aggregator().init(jax.random.key(0), features, jnp.zeros((3, 4, 7)))
    with pytest.raises(UserError, match=r"features of networks with \[2, 1\] stages; expected"):
        MatchNetwork().init(jax.random.key(0), (features, features[:1]))
