"""Mutual contrast within a batch: loops in NumPy, the authors' own code, and its invariants."""

import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    MutualContrastive,
    layerwise_mutual_contrastive,
    mutual_contrastive,
    normalize_embeddings,
)

OPTIONS = ("temperature", "soft_temperature", "groups")
COLLECTIVES = ["all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter"]
LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 1])  # classes of three, three, one and one
compiled = jax.jit(mutual_contrastive, static_argnames=OPTIONS)
layerwise = jax.jit(layerwise_mutual_contrastive, static_argnames=OPTIONS)


def means(terms):
    return jnp.stack([term.mean() for term in terms])


jacobian = jax.jit(
    jax.jacrev(lambda x, labels, **options: means(mutual_contrastive(x, labels, **options))),
    static_argnames=OPTIONS,
)
layerwise_jacobian = jax.jit(
    jax.jacrev(lambda x, w, y, **o: means(layerwise_mutual_contrastive(x, y, w, **o)), (0, 1)),
    static_argnames=OPTIONS,
)


def example(*shape, seed=0, dtype=np.float32):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def positive_weights(n, s, b, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).uniform(0.2, 0.9, (n, s, n, s, b)).astype(dtype)


def matrix(x, y, temperature):
    return np.array([[np.dot(p, q) / temperature for q in y] for p in x])


def contrast(logits, labels):
    """Per anchor, one probability at a time."""
    values = []
    for i, row in enumerate(logits):
        others = sum(np.exp(v) for j, v in enumerate(row) if j != i)
        positives = [j for j in range(len(row)) if j != i and labels[j] == labels[i]]
        logs = [-np.log(np.exp(row[j]) / others) for j in positives]
        values.append(np.mean(logs) if logs else 0.0)
    return np.array(values)


def divergence(student, teacher, t):
    values = []
    for s, q in zip(student, teacher, strict=True):
        p, q = (np.exp(v / t) / np.exp(v / t).sum() for v in (s, q))
        values.append(t**2 * sum(b * np.log(b / a) for a, b in zip(p, q, strict=True)))
    return np.array(values)


def oracle(x, labels, temperature=0.1, soft_temperature=3.0, teacher=None):
    """`teacher` stands in for `x` where no gradient is to flow."""
    x = np.asarray(x, np.float64)
    y = x if teacher is None else teacher
    vcl, icl, soft_vcl, soft_icl = np.zeros((4, len(labels)))
    for a in range(len(x)):
        vcl += contrast(matrix(x[a], x[a], temperature), labels)
        for c in range(len(x)):
            if c != a:
                student = matrix(x[a], x[c], temperature)
                icl += contrast(student, labels)
                soft_icl += divergence(student, matrix(y[c], y[a], temperature), soft_temperature)
                itself, other = matrix(x[a], x[a], temperature), matrix(y[c], y[c], temperature)
                soft_vcl += divergence(itself, other, soft_temperature)
    return np.stack([vcl, icl, soft_vcl, soft_icl])


def layerwise_oracle(x, labels, weights, temperature=0.1, soft_temperature=3.0, teacher=None):
    x = np.asarray(x, np.float64)
    y = x if teacher is None else teacher
    t, total = soft_temperature, np.zeros((4, len(labels)))
    for i, k, j, z in np.ndindex(weights.shape[:4]):
        if i != j:
            a, b, ta, tb = x[i, k], x[j, z], y[i, k], y[j, z]
            aa, bb, ab, ba = (
                matrix(p, q, temperature) for p, q in ((a, a), (b, b), (a, b), (b, a))
            )
            taa, tbb, tab, tba = (
                matrix(p, q, temperature) for p, q in ((ta, ta), (tb, tb), (ta, tb), (tb, ta))
            )
            total += weights[i, k, j, z] * np.stack(
                [
                    contrast(aa, labels) + contrast(bb, labels),
                    contrast(ab, labels) + contrast(ba, labels),
                    divergence(aa, tbb, t) + divergence(bb, taa, t),
                    divergence(ab, tba, t) + divergence(ba, tab, t),
                ]
            )
    return total


def slope(function, x, direction, epsilon=1e-5):
    return (function(x + epsilon * direction) - function(x - epsilon * direction)) / (2 * epsilon)


def assert_close(ours, reference, tolerance, message=""):
    """Relative to the largest element: an element near zero is a difference of large ones."""
    scale = max(1.0, np.abs(reference).max())
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * scale, err_msg=message)


def read(path, kind):
    golden = np.load(path)
    about = json.loads(str(golden["meta_json"]))
    assert about["kind"] == kind
    return golden, {"temperature": about["tau"], "soft_temperature": float(about["kd_T"])}, about


def assert_losses(terms, golden, weights, tolerance):
    average = {name: np.asarray(term).mean() for name, term in terms._asdict().items()}
    for name, value in average.items():
        assert_close(value, golden[f"out_{name}"], tolerance, name)
    total = combined(average, weights)
    assert_close(total, golden["out_mcl_total"], tolerance, "mcl_total")


def combined(terms, weights):
    names = {"vcl": "alpha", "icl": "beta", "soft_vcl": "gamma", "soft_icl": "lam"}
    return sum(weights[names[name]] * value for name, value in terms.items())


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("cifar_m2_pairs_f32", np.float32),
        ("cifar_m2_pairs_f64", np.float64),
        ("cifar_m3_f64", np.float64),
        ("cifar_m3_f64", np.float32),
    ],
)
def test_the_released_code_gives_the_same(shared, case, dtype):
    golden, options, about = read(shared / "golden" / "mcl" / f"{case}.npz", "cifar")
    x = np.stack([golden[f"mid_emb_{a}"] for a in range(about["number_net"])])
    x, tolerance = x.astype(dtype), 1e-12 if dtype == np.float64 else 1e-5
    with jax.enable_x64(dtype == np.float64):
        terms = compiled(x, golden["in_labels"], **options)
        gradients = jacobian(x, golden["in_labels"], **options)
    assert terms.vcl.dtype == x.dtype
    assert_losses(terms, golden, about["weights"], tolerance)
    by_name = dict(zip(MutualContrastive._fields, np.asarray(gradients), strict=True))
    by_name["mcl_total"] = combined(by_name, about["weights"])
    for name, gradient in by_name.items():
        expected = [golden[f"grad_{name}__emb_{a}"] for a in range(len(x))]
        assert_close(gradient, np.stack(expected), tolerance, name)


def test_a_class_with_one_sample_is_finite_where_the_released_code_is_nan(shared):
    path = shared / "golden" / "mcl" / "cifar_singleton_nan_f64.npz"
    golden, options, about = read(path, "cifar")
    x = np.stack([golden[f"mid_emb_{a}"] for a in range(about["number_net"])])
    labels = golden["in_labels"]
    with jax.enable_x64(True):
        terms = compiled(x, labels, **options)
        gradients = np.asarray(jacobian(x, labels, **options))
    assert np.isnan(golden["out_vcl"])
    assert np.isnan(golden["out_icl"])
    assert np.isfinite(gradients).all()
    for name, gradient in zip(terms._fields[2:], gradients[2:], strict=True):
        assert_close(np.asarray(getattr(terms, name)).mean(), golden[f"out_{name}"], 1e-12)
        expected = np.stack([golden[f"grad_{name}__emb_{a}"] for a in range(len(x))])
        assert_close(gradient, expected, 1e-12)
    alone = np.bincount(labels)[labels] == 1
    assert alone.any()
    for term in terms[:2]:
        assert (np.asarray(term)[alone] == 0.0).all()
        assert (np.asarray(term)[~alone] > 0.0).all()
    np.testing.assert_allclose(np.stack(terms), oracle(x, labels, **options), rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("cifar_n2_l2_hetero_random_f32", np.float32),
        ("cifar_n2_l3_network_f64", np.float64),
        ("cifar_n2_l3_network_f64", np.float32),
    ],
)
def test_the_released_layerwise_code_gives_the_same(shared, case, dtype):
    golden, options, about = read(shared / "golden" / "lmcl" / f"{case}.npz", "cifar")
    n, s = about["N"], about["L"]
    x = np.stack([[golden[f"mid_emb_{i}_{k}"] for k in range(s)] for i in range(n)])
    x, tolerance = x.astype(dtype), 1e-12 if dtype == np.float64 else 1e-5
    i, j, k, z = golden["weight_order_ijkz"].T
    weights = np.zeros((n, s, n, s, x.shape[2]), dtype)
    weights[i, k, j, z] = golden["weights"]
    with jax.enable_x64(dtype == np.float64):
        terms = layerwise(x, golden["in_labels"], weights, **options)
        gradients = layerwise_jacobian(x, weights, golden["in_labels"], **options)
    assert_losses(terms, golden, about["weights"], tolerance)
    for kind, stacked in zip(("emb", "weights"), gradients, strict=True):
        by_name = dict(zip(MutualContrastive._fields, np.asarray(stacked), strict=True))
        by_name["mcl_total"] = combined(by_name, about["weights"])
        for name, gradient in by_name.items():
            if kind == "emb":
                expected = np.stack(
                    [[golden[f"grad_{name}__emb_{a}_{c}"] for c in range(s)] for a in range(n)]
                )
            else:
                gradient, expected = gradient[i, k, j, z], golden[f"grad_{name}__weights"]
            assert_close(gradient, expected, tolerance, f"{name} by {kind}")


def test_by_hand():
    # One axis per class and network; classes of two. Within: one 1/T against two zeros; the soft
    # rows of both networks are the same. Between: all zero.
    x = jnp.eye(4)[jnp.array([[0, 0, 1, 1], [2, 2, 3, 3]])]
    terms = compiled(x, jnp.array([5, 5, -1, -1]), temperature=0.5)
    np.testing.assert_allclose(terms.vcl, [2 * np.log(1 + 2 * np.exp(-2))] * 4, rtol=1e-6)
    np.testing.assert_allclose(terms.icl, [2 * np.log(3)] * 4, rtol=1e-6)
    np.testing.assert_array_equal(terms.soft_vcl, 0.0)
    np.testing.assert_array_equal(terms.soft_icl, 0.0)
    # Rows (1, 1) against (1, 0) at t = 1: log-softmax -log 2 twice, and of (1, 0).
    x = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    p, q = np.array([0.5, 0.5]), np.array([np.e, 1.0]) / (np.e + 1)
    soft = (q * np.log(q / p)).sum() + (p * np.log(p / q)).sum()
    terms = compiled(x, jnp.array([0, 0]), temperature=1.0, soft_temperature=1.0)
    np.testing.assert_allclose(terms.soft_vcl, [soft, soft], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "soft_temperature": 1.5}])
def test_they_equal_the_loops(options):
    x = example(3, 8, 5)
    np.testing.assert_allclose(
        np.stack(compiled(x, LABELS, **options)),
        oracle(x, LABELS, **options),
        rtol=2e-5,
        atol=1e-5,
    )
    x, weights = example(3, 2, 8, 5), positive_weights(3, 2, 8)
    np.testing.assert_allclose(
        np.stack(layerwise(x, LABELS, weights, **options)),
        layerwise_oracle(x, LABELS, weights, **options),
        rtol=2e-5,
        atol=1e-4,
    )


def test_gradients_are_those_of_the_loops_with_fixed_teachers():
    x, weights = example(3, 8, 5, dtype=float), positive_weights(2, 2, 8, dtype=float)
    stages = example(2, 2, 8, 5, seed=2, dtype=float)
    with jax.enable_x64(True):
        ours = np.asarray(jacobian(x, LABELS))
        by_stages, by_weights = map(np.asarray, layerwise_jacobian(stages, weights, LABELS))
    for seed in (3, 4):
        step = example(*x.shape, seed=seed, dtype=float)
        expected = slope(lambda v: oracle(v, LABELS, teacher=x).mean(axis=1), x, step)
        np.testing.assert_allclose((ours * step).sum(axis=(1, 2, 3)), expected, rtol=1e-6)
        step = example(*stages.shape, seed=seed, dtype=float)
        expected = slope(
            lambda v: layerwise_oracle(v, LABELS, weights, teacher=stages).mean(axis=1),
            stages,
            step,
        )
        found = (by_stages * step).sum(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        step = example(*weights.shape, seed=seed, dtype=float)
        expected = slope(lambda w: layerwise_oracle(stages, LABELS, w).mean(axis=1), weights, step)
        found = (by_weights * step).sum(axis=(1, 2, 3, 4, 5))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradients_of_the_contrasts_numerically():
    labels = jnp.array([0, 1, 0, 1])
    with jax.enable_x64(True):
        check_grads(
            lambda x: compiled(x, labels, temperature=0.5)[:2],
            (jnp.asarray(example(2, 4, 3, dtype=float)),),
            order=2,
            modes=("rev",),
        )


def test_no_gradient_reaches_a_teacher():
    """A network teaches within itself alone: how one is taught must not depend on its teacher.

    The slope of `soft_vcl` by network 0 holds that of its own student, in which network 1 is a
    constant, and what would leak to it as the teacher of 1.
    """

    def soft_vcl(first, second):
        stacked = jnp.stack([first, second])
        return compiled(stacked, LABELS).soft_vcl.sum()

    def by_first(first, second):
        return jax.grad(soft_vcl)(first, second)

    first, second = map(jnp.asarray, example(2, 8, 5))
    mixed = jax.jit(jax.jacrev(by_first, argnums=1))(first, second)
    np.testing.assert_array_equal(mixed, 0.0)


def test_under_vmap():
    x, labels = example(2, 3, 8, 5), np.stack([LABELS, LABELS[::-1]])
    expected = [np.stack(compiled(a, c)) for a, c in zip(x, labels, strict=True)]
    mapped = jax.jit(jax.vmap(mutual_contrastive))(x, labels)
    np.testing.assert_allclose(np.stack(mapped, axis=1), expected, rtol=1e-5, atol=1e-5)
    x, weights = example(2, 2, 2, 8, 5), np.stack([positive_weights(2, 2, 8, i) for i in (0, 1)])
    expected = [np.stack(layerwise(*each)) for each in zip(x, labels, weights, strict=True)]
    mapped = jax.jit(jax.vmap(layerwise_mutual_contrastive))(x, labels, weights)
    np.testing.assert_allclose(np.stack(mapped, axis=1), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    networks=st.permutations(range(3)),
    order=st.permutations(range(8)),
)
def test_the_order_of_networks_and_of_examples_does_not_matter(seed, networks, order):
    x, labels = example(3, 8, 5, seed=seed), np.random.default_rng(seed).integers(0, 4, 8)
    terms = np.stack(compiled(x, labels))
    moved = np.stack(compiled(x[networks][:, order], labels[order]))
    np.testing.assert_allclose(moved, terms[:, order], rtol=1e-4, atol=1e-4)
    x, weights = example(3, 2, 8, 5, seed=seed), positive_weights(3, 2, 8, seed)
    terms = np.stack(layerwise(x, labels, weights))
    shuffled = weights[networks][:, :, networks][..., order]
    moved = np.stack(layerwise(x[networks][:, :, order], labels[order], shuffled))
    np.testing.assert_allclose(moved, terms[:, order], rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), groups=st.sampled_from([2, 4]))
def test_groups_are_separate_calls(seed, groups):
    x, labels = example(2, 8, 5, seed=seed), np.random.default_rng(seed).integers(0, 2, 8)
    parts = [
        np.stack(compiled(a, y))
        for a, y in zip(np.split(x, groups, axis=1), np.split(labels, groups), strict=True)
    ]
    together = np.stack(compiled(x, labels, groups=groups))
    np.testing.assert_allclose(together, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-5)
    x, weights = example(2, 2, 8, 5, seed=seed), positive_weights(2, 2, 8, seed)
    parts = [
        np.stack(layerwise(a, y, w))
        for a, y, w in zip(
            np.split(x, groups, axis=2),
            np.split(labels, groups),
            np.split(weights, groups, axis=4),
            strict=True,
        )
    ]
    together = np.stack(layerwise(x, labels, weights, groups=groups))
    np.testing.assert_allclose(together, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-4)


def test_one_stage_with_halved_weights_is_the_form_without_stages():
    x = example(3, 8, 5)
    plain = compiled(x, LABELS)
    staged = layerwise(x[:, None], LABELS, np.full((3, 1, 3, 1, 8), 0.5, np.float32))
    np.testing.assert_allclose(staged.vcl, 2 * plain.vcl, rtol=1e-5)  # one for each partner
    for name in ("icl", "soft_vcl", "soft_icl"):
        np.testing.assert_allclose(getattr(staged, name), getattr(plain, name), rtol=1e-4)


def test_entries_of_a_network_with_itself_are_ignored():
    x, weights = example(2, 2, 8, 5), positive_weights(2, 2, 8)
    terms = layerwise(x, LABELS, weights)
    weights[np.arange(2), :, np.arange(2)] = np.nan
    np.testing.assert_array_equal(np.stack(layerwise(x, LABELS, weights)), np.stack(terms))
    by_x, by_weights = layerwise_jacobian(x, weights, LABELS)
    assert np.isfinite(by_x).all()
    for i in range(2):
        np.testing.assert_array_equal(by_weights[:, i, :, i], 0.0)


def test_a_network_alone_has_no_partner():
    x = example(1, 8, 5)
    terms = compiled(x, LABELS)
    assert np.asarray(terms.vcl).any()
    np.testing.assert_array_equal(np.stack(terms[1:]), 0.0)
    terms = layerwise(x[:, None], LABELS, positive_weights(1, 1, 8))
    np.testing.assert_array_equal(np.stack(terms), 0.0)


ONES = np.full((2, 8, 5), 5**-0.5, np.float32)
SAME, APART = np.zeros(8, int), np.arange(8)


@pytest.mark.parametrize("labels", [SAME, APART, LABELS])
@pytest.mark.parametrize("x", [example(2, 8, 5), np.zeros_like(ONES), ONES])
@pytest.mark.parametrize("temperature", [0.1, 1e-4])
def test_extremes_are_finite(x, labels, temperature):
    terms = np.stack(compiled(x, labels, temperature=temperature))
    gradients = np.asarray(jacobian(x, labels, temperature=temperature))
    assert np.isfinite(terms).all()
    assert np.isfinite(gradients).all()
    np.testing.assert_array_equal(terms[:2, np.bincount(labels)[labels] == 1], 0.0)
    if labels is APART:
        np.testing.assert_array_equal(gradients[:2], 0.0)
    if labels is SAME and not x.any():
        np.testing.assert_allclose(terms[1], [2 * np.log(7)] * 8, rtol=1e-6)


def test_a_batch_of_one():
    x = example(2, 1, 3)
    np.testing.assert_array_equal(np.stack(compiled(x, np.array([3]))), 0.0)
    np.testing.assert_array_equal(jacobian(x, np.array([3])), 0.0)


def test_bfloat16_is_computed_in_float32_and_comes_back():
    half, weights = jnp.asarray(example(2, 2, 8, 5), jnp.bfloat16), positive_weights(2, 2, 8)
    wide = half.astype(jnp.float32)
    for narrow, full in (
        (compiled(half[0], LABELS), compiled(wide[0], LABELS)),
        (layerwise(half, LABELS, weights), layerwise(wide, LABELS, weights)),
    ):
        for ours, expected in zip(narrow, full, strict=True):
            assert ours.dtype == jnp.bfloat16
            assert bool(jnp.isfinite(ours).all())
            np.testing.assert_array_equal(ours, expected.astype(jnp.bfloat16))


def test_normalized_embeddings():
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    unit = jax.jit(normalize_embeddings)(x)
    np.testing.assert_allclose(unit, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(normalize_embeddings(jnp.zeros(3)), 0.0)
    slope_at_zero = jax.jacrev(normalize_embeddings)(jnp.zeros(3))
    np.testing.assert_allclose(slope_at_zero, 1e6 * np.eye(3), rtol=1e-5)
    half = normalize_embeddings(jnp.full((400,), 3.0, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, jnp.full((400,), 0.05, jnp.bfloat16))
    with jax.enable_x64(True):
        check_grads(jax.jit(normalize_embeddings), (x[0].astype(float),), order=1, modes=("rev",))


def on_eight_devices(function, arrays, specs, **options):
    """The compiled text, and terms with gradients to all floats, of eight devices and of one."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    placed = [jax.device_put(x, sharding) for x, sharding in zip(arrays, shardings, strict=True)]
    floating = tuple(i for i, x in enumerate(arrays) if np.issubdtype(x.dtype, np.floating))

    def both(*x):
        def total(*x):
            terms = function(*x, **options)
            return sum(w * term.mean() for w, term in zip((1, 2, 3, 4), terms, strict=True)), terms

        grads, terms = jax.grad(total, argnums=floating, has_aux=True)(*x)
        return terms, grads

    split = NamedSharding(mesh, PartitionSpec("data")), tuple(shardings[i] for i in floating)
    program = jax.jit(both, out_shardings=split).lower(*placed).compile()
    out = program(*placed)
    assert len(out[0].vcl.addressable_shards) == 8
    return program.as_text(), out, jax.jit(both)(*arrays)


@pytest.mark.parametrize("groups", [1, 8])
def test_eight_devices_equal_one_and_exchange_nothing_with_as_many_groups(groups):
    by_row, by_batch = PartitionSpec(None, "data"), PartitionSpec("data")
    labels = np.tile([0, 0, 1, 1], 8)
    cases = (
        (mutual_contrastive, (example(2, 32, 5), labels), (by_row, by_batch)),
        (
            layerwise_mutual_contrastive,
            (example(2, 2, 32, 5), labels, positive_weights(2, 2, 32)),
            (
                PartitionSpec(None, None, "data"),
                by_batch,
                PartitionSpec(None, None, None, None, "data"),
            ),
        ),
    )
    for function, arrays, specs in cases:
        text, many, one = on_eight_devices(function, arrays, specs, groups=groups)
        assert any(name in text for name in COLLECTIVES) == (groups == 1)
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "labels"), [((2, 3), (3,)), ((2, 4, 3), (3,)), ((2, 4, 3), (4, 1)), ((2, 1, 4, 3), (4,))]
)
def test_bad_shapes_are_quoted(x, labels):
    with pytest.raises(UserError) as caught:
        mutual_contrastive(jnp.zeros(x), jnp.zeros(labels, int))
    assert str(caught.value) == (
        f"embeddings have the shape {x} and labels {labels}; expected [n, b, d], [b]"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "labels", "weights"),
    [
        ((2, 4, 3), (4,), (2, 1, 2, 1, 4)),
        ((2, 1, 4, 3), (3,), (2, 1, 2, 1, 4)),
        ((2, 1, 4, 3), (4,), (2, 1, 2, 1)),
        ((2, 3, 4, 3), (4,), (2, 2, 2, 3, 4)),
    ],
)
def test_bad_shapes_with_stages_are_quoted(x, labels, weights):
    with pytest.raises(UserError) as caught:
        layerwise_mutual_contrastive(jnp.zeros(x), jnp.zeros(labels, int), jnp.zeros(weights))
    assert str(caught.value) == (
        f"embeddings have the shape {x}, labels {labels} and match_weights {weights}; "
        "expected [n, s, b, d], [b], [n, s, n, s, b]"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"soft_temperature": -1.0}, "soft_temperature is -1.0; expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; expected a number above 0"),
        ({"groups": 3}, "groups is 3; expected a divisor of the batch size, which is 4"),
        ({"groups": 0}, "groups is 0; expected a divisor of the batch size, which is 4"),
    ],
)
def test_bad_options_are_quoted(options, message):
    x, labels = jnp.ones((2, 1, 4, 3)), jnp.zeros(4, int)
    with pytest.raises(UserError) as caught:
        mutual_contrastive(x[:, 0], labels, **options)
    assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        layerwise_mutual_contrastive(x, labels, jnp.ones((2, 1, 2, 1, 4)), **options)
    assert str(caught.value) == message


@pytest.mark.usefixtures("unchecked")
def test_bad_norms_are_quoted():
    with pytest.raises(UserError, match=r"^embeddings have the shape \(\); expected \[..., d\]$"):
        normalize_embeddings(jnp.float32(1.0))
    with pytest.raises(UserError, match=r"^eps is 0; expected a number above 0$"):
        normalize_embeddings(jnp.ones(3), eps=0)
