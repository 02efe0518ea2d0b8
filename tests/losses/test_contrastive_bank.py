"""Mutual contrast against banks and queues: loops in NumPy, the authors' own code, invariants."""

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
    bank_mutual_contrastive,
    enqueue,
    layerwise_bank_mutual_contrastive,
    moco_mutual_contrastive,
    normalize_embeddings,
    update_bank,
)

OPTIONS = ("num_positives", "temperature", "soft_temperature", "reference_intra")
TEMPERATURES = {"temperature": 0.3, "soft_temperature": 2.0}
bank_loss = jax.jit(bank_mutual_contrastive, static_argnames=OPTIONS[:3])
layerwise = jax.jit(layerwise_bank_mutual_contrastive, static_argnames=OPTIONS)
moco_loss = jax.jit(moco_mutual_contrastive, static_argnames=OPTIONS[1:3])
update = jax.jit(update_bank, static_argnames="momentum")
enqueued = jax.jit(enqueue)


def means(terms):
    return jnp.stack([term.mean() for term in terms])


def jacobian_of(function, argnums):
    return jax.jit(
        jax.jacrev(lambda *x, **options: means(function(*x, **options)), argnums),
        static_argnames=OPTIONS,
    )


bank_jacobian = jacobian_of(bank_mutual_contrastive, (0, 1))
layerwise_jacobian = jacobian_of(layerwise_bank_mutual_contrastive, (0, 1, 2))
moco_jacobian = jacobian_of(moco_mutual_contrastive, (0, 1, 2))


def example(*shape, seed=0, dtype=np.float32):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def positive_weights(n, s, b, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).uniform(0.2, 0.9, (n, s, n, s, b)).astype(dtype)


def bank_matrix(rows, anchors, temperature):
    return [[np.dot(y, x) / temperature for y in ys] for ys, x in zip(rows, anchors, strict=True)]


def contrast(logits, positives):
    """Of every row, the first columns being positives; 0 where there are none."""
    return np.array(
        [
            np.mean([-np.log(np.exp(v) / np.exp(row).sum()) for v in row[:positives] or [0.0]])
            * (positives > 0)
            for row in logits
        ]
    )


def divergence(student, teacher, t):
    values = []
    for s, q in zip(student, teacher, strict=True):
        p, q = (np.exp(np.array(v) / t) / np.exp(np.array(v) / t).sum() for v in (s, q))
        values.append(t**2 * sum(b * np.log(b / a) for a, b in zip(p, q, strict=True)))
    return np.array(values)


def oracle(x, rows, positives, temperature=0.07, soft_temperature=3.0, teacher=None):
    """`teacher` stands in for `x` where no gradient is to flow."""
    y, t = x if teacher is None else teacher, soft_temperature
    vcl, icl, soft_vcl, soft_icl = np.zeros((4, x.shape[1]))
    for a in range(len(x)):
        own = bank_matrix(rows[a][:, 1:], x[a], temperature)
        vcl += contrast(own, positives - 1)
        for c in range(len(x)):
            if c != a:
                logits = bank_matrix(rows[a], x[c], temperature)
                icl += contrast(logits, positives)
                soft_icl += divergence(logits, bank_matrix(rows[c], y[a], temperature), t)
                soft_vcl += divergence(own, bank_matrix(rows[c][:, 1:], y[c], temperature), t)
    return np.stack([vcl, icl, soft_vcl, soft_icl])


def layerwise_oracle(
    x,
    rows,
    weights,
    positives,
    temperature=0.07,
    soft_temperature=3.0,
    released=False,
    teacher=None,
):
    y, t = x if teacher is None else teacher, soft_temperature
    total = np.zeros((4, x.shape[2]))
    for i, k, j, z in np.ndindex(weights.shape[:4]):
        if i != j:
            other = i if released else j

            def parts(v, i=i, k=k, j=j, z=z, other=other):
                return (
                    bank_matrix(rows[i], v[j, z], temperature),
                    bank_matrix(rows[j], v[i, k], temperature),
                    bank_matrix(rows[i][:, 1:], v[i, k], temperature),
                    bank_matrix(rows[other][:, 1:], v[j, z], temperature),
                )

            ab, ba, aa, bb = parts(x)
            tab, tba, taa, tbb = parts(y)
            total += weights[i, k, j, z] * np.stack(
                [
                    contrast(aa, positives - 1) + contrast(bb, positives - 1),
                    contrast(ab, positives) + contrast(ba, positives),
                    divergence(aa, tbb, t) + divergence(bb, taa, t),
                    divergence(ab, tba, t) + divergence(ba, tab, t),
                ]
            )
    return total


def moco_oracle(q, keys, queues, temperature=0.07, soft_temperature=3.0, teacher=None):
    y, t = q if teacher is None else teacher, soft_temperature

    def logits(v, c):
        rows = np.concatenate(
            [keys[c][:, None], np.repeat(queues[c].T[None], keys.shape[1], axis=0)], axis=1
        )
        return bank_matrix(rows, v, temperature)

    vcl, icl, soft_vcl, soft_icl = np.zeros((4, q.shape[1]))
    for a in range(len(q)):
        vcl += contrast(logits(q[a], a), 1)
        for c in range(len(q)):
            if c != a:
                icl += contrast(logits(q[a], c), 1)
                soft_vcl += divergence(logits(q[a], a), logits(y[c], c), t)
                soft_icl += divergence(logits(q[a], c), logits(y[c], a), t)
    return np.stack([vcl, icl, soft_vcl, soft_icl])


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
    return golden, about


def assert_values(terms, golden, prefix, tolerance):
    for name, term in terms._asdict().items():
        assert_close(np.asarray(term).mean(), golden[f"{prefix}out_{name}"], tolerance, name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_released_code_gives_the_same(shared, dtype):
    golden, about = read(shared / "golden" / "mcl" / "imagenet_m2_f64.npz", "imagenet")
    nets = range(about["number_net"])
    bank = np.stack([golden[f"memory_before_step0_{a}"] for a in nets]).astype(dtype)
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    options = {
        "num_positives": 1 + about["pos_k"],
        "temperature": about["tau"],
        "soft_temperature": float(about["kd_T"]),
    }
    for step in range(about["nsteps"]):
        name = f"step{step}_"
        x = np.stack([golden[f"{name}mid_emb_{a}"] for a in nets]).astype(dtype)
        own = golden[f"{name}pos_idx"][:, 0]
        columns = np.concatenate([golden[f"{name}pos_idx"], golden[f"{name}neg_idx"]], axis=1)
        with jax.enable_x64(dtype == np.float64):
            rows = np.asarray(bank)[:, columns]
            terms = bank_loss(x, rows, **options)
            by_x, by_rows = map(np.asarray, bank_jacobian(x, rows, **options))
            bank = np.asarray(update(bank, x, own, momentum=about["nce_m"]))
        assert_values(terms, golden, name, tolerance)
        for loss, gradient in zip(MutualContrastive._fields, by_x, strict=True):
            expected = np.stack([golden[f"{name}grad_{loss}__emb_{a}"] for a in nets])
            assert_close(gradient, expected, tolerance, loss)
        assert not by_rows.any()
        after = np.stack([golden[f"{name}memory_after_{a}"] for a in nets])
        np.testing.assert_allclose(bank, after, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_released_layerwise_code_gives_the_same(shared, dtype):
    golden, about = read(shared / "golden" / "lmcl" / "imagenet_n2_l2_f64.npz", "imagenet")
    n, s = about["N"], about["L"]
    bank = np.stack([golden[f"memory_before_step0_{i}"] for i in range(n)]).astype(dtype)
    i, j, k, z = golden["weight_order_ijkz"].T
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    options = {
        "num_positives": 1 + about["pos_k"],
        "temperature": about["tau"],
        "soft_temperature": float(about["kd_T"]),
        "reference_intra": True,
    }
    for step in range(about["nsteps"]):
        name = f"step{step}_"
        x = np.stack([[golden[f"{name}mid_emb_{a}_{c}"] for c in range(s)] for a in range(n)])
        x, own = x.astype(dtype), golden[f"{name}pos_idx"][:, 0]
        columns = np.concatenate([golden[f"{name}pos_idx"], golden[f"{name}neg_idx"]], axis=1)
        weights = np.zeros((n, s, n, s, len(own)), dtype)
        weights[i, k, j, z] = golden[f"{name}weights"]
        with jax.enable_x64(dtype == np.float64):
            rows = np.asarray(bank)[:, columns]
            terms = layerwise(x, rows, weights, **options)
            found = layerwise_jacobian(x, rows, weights, **options)
            by_x, by_rows, by_weights = map(np.asarray, found)
            bank = np.asarray(update(bank, x[:, -1], own, momentum=about["nce_m"]))
        assert_values(terms, golden, name, tolerance)
        for index, loss in enumerate(MutualContrastive._fields):
            expected = np.stack(
                [[golden[f"{name}grad_{loss}__emb_{a}_{c}"] for c in range(s)] for a in range(n)]
            )
            assert_close(by_x[index], expected, tolerance, loss)
            expected = golden[f"{name}grad_{loss}__weights"]
            assert_close(by_weights[index][i, k, j, z], expected, tolerance, f"{loss} by weights")
        assert not by_rows.any()
        after = np.stack([golden[f"{name}memory_after_{a}"] for a in range(n)])
        np.testing.assert_allclose(bank, after, rtol=0, atol=tolerance)


def encode(parameters, images):
    """The small encoder of the files: convolution, batch norm over the batch, ReLU, mean, fc."""
    x = jax.lax.conv_general_dilated(images, parameters["conv.weight"], (1, 1), "SAME")
    mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    scale, shift = (parameters[f"bn.{name}"][None, :, None, None] for name in ("weight", "bias"))
    x = jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift).mean(axis=(2, 3))
    return normalize_embeddings(x @ parameters["fc.weight"].T + parameters["fc.bias"][None])


def test_the_released_code_on_moco_gives_the_same(shared):
    golden, about = read(shared / "golden" / "mcl" / "moco_m2_f64.npz", "moco")
    nets = range(about["number_net"])
    names = ("conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias")

    def parameters(prefix):
        return [{name: golden[f"{prefix}_{a}.{name}"] for name in names} for a in nets]

    queues, pointer = golden["state0_queue"], golden["state0_queue_ptr"][0]
    options = {"temperature": about["T"], "soft_temperature": float(about["kl_T"])}

    @jax.jit
    def terms_and_gradients(students, keys, images, queues):
        def total(students):
            queries = jnp.stack([encode(p, images) for p in students])
            terms = moco_mutual_contrastive(queries, keys, queues, **options)
            return means(terms).sum(), terms

        return jax.grad(total, has_aux=True)(students)

    for step in range(about["nsteps"]):
        before = "state0_" if step == 0 else f"step{step - 1}_after_"
        name = f"step{step}_"
        with jax.enable_x64(True):
            teachers = parameters(f"{name}after_encoder_k")  # they move before the keys are made
            keys = jnp.stack([encode(p, golden[f"{name}im_k"]) for p in teachers])
            gradients, terms = terms_and_gradients(
                parameters(f"{before}encoder_q"), keys, golden[f"{name}im_q"], queues
            )
            queues, pointer = enqueued(queues, pointer, keys)
            queues, pointer = np.asarray(queues), np.asarray(pointer)
        assert_values(terms, golden, name, 1e-9)
        for a in nets:
            for each in names:
                expected = golden[f"{name}grad__encoder_q_{a}.{each}"]
                assert_close(gradients[a][each], expected, 1e-9, each)
        np.testing.assert_allclose(queues, golden[f"{name}after_queue"], rtol=0, atol=1e-12)
        assert (pointer == golden[f"{name}after_queue_ptr"]).all()


def test_by_hand():
    # Candidates: itself, one positive, one negative, for an anchor (1, 0).
    rows = np.array([[[[1, 0], [0, 1], [-1, 0]]], [[[0, 1], [1, 0], [0, 1]]]], np.float32)
    x = np.array([[[1, 0]], [[1, 0]]], np.float32)
    terms = bank_loss(x, rows, num_positives=2, temperature=1.0, soft_temperature=1.0)
    # Within: rows (0, -1) and (1, 0), a softmax each of (e, 1); the positive is first.
    np.testing.assert_allclose(terms.vcl, [2 * np.log(1 + 1 / np.e)], rtol=1e-6)
    np.testing.assert_allclose(terms.soft_vcl, [0.0], atol=1e-6)
    # Between: rows (1, 0, -1) with mean 1/2 over positives, and (0, 1, 0) likewise.
    logs = np.log(np.e + 1 + 1 / np.e) + np.log(np.e + 2) - 1
    np.testing.assert_allclose(terms.icl, [logs], rtol=1e-6)
    # A queue of zeros, keys equal to the queries: 1/T against k zeros.
    terms = moco_loss(x, x, np.zeros((2, 2, 3), np.float32), temperature=0.5)
    np.testing.assert_allclose(terms.vcl, [2 * np.log(1 + 3 * np.exp(-2))], rtol=1e-6)


@pytest.mark.parametrize("positives", [1, 3])
def test_they_equal_the_loops(positives):
    x, rows = example(3, 4, 5), 0.5 * example(3, 4, 6, 5, seed=1)
    options = {"num_positives": positives} | TEMPERATURES
    expected = oracle(x, rows, positives, **TEMPERATURES)
    np.testing.assert_allclose(np.stack(bank_loss(x, rows, **options)), expected, rtol=1e-4)
    x, weights = example(3, 2, 4, 5), positive_weights(3, 2, 4)
    for released in (False, True):
        terms = layerwise(x, rows, weights, reference_intra=released, **options)
        expected = layerwise_oracle(x, rows, weights, positives, released=released, **TEMPERATURES)
        np.testing.assert_allclose(np.stack(terms), expected, rtol=1e-4)


def test_moco_equals_the_loops():
    q, keys = example(3, 4, 5), example(3, 4, 5, seed=1)
    queues = np.swapaxes(example(3, 7, 5, seed=2), 1, 2)
    terms = moco_loss(q, keys, queues, **TEMPERATURES)
    expected = moco_oracle(q, keys, queues, **TEMPERATURES)
    np.testing.assert_allclose(np.stack(terms), expected, rtol=1e-4)


def test_gradients_are_those_of_the_loops_with_fixed_teachers():
    x, stages, rows = (example(*s, 5, dtype=float) for s in ((2, 4), (2, 2, 4), (2, 4, 6)))
    weights = positive_weights(2, 2, 4, dtype=float)
    queues = np.swapaxes(example(2, 7, 5, seed=2, dtype=float), 1, 2)
    options = {"num_positives": 2} | TEMPERATURES
    pairs = []
    with jax.enable_x64(True):
        pairs += [
            (
                bank_jacobian(x, rows, **options),
                lambda v: oracle(v, rows, 2, **TEMPERATURES, teacher=x),
            ),
            (
                moco_jacobian(x, x[::-1], queues, **TEMPERATURES),
                lambda v: moco_oracle(v, x[::-1], queues, **TEMPERATURES, teacher=x),
            ),
        ]
        pairs += [
            (
                layerwise_jacobian(stages, rows, weights, reference_intra=released, **options),
                lambda v, released=released: layerwise_oracle(
                    v, rows, weights, 2, **TEMPERATURES, released=released, teacher=stages
                ),
            )
            for released in (False, True)
        ]
    for (by_x, *others), function in pairs:
        point = x if by_x.ndim == 4 else stages
        step = example(*point.shape, seed=3, dtype=float)
        expected = slope(lambda v, function=function: function(v).mean(axis=1), point, step)
        found = (np.asarray(by_x) * step).reshape(4, -1).sum(axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for constant in others if by_x.ndim == 4 else others[:1]:
            np.testing.assert_array_equal(constant, 0.0)  # banks, keys and queues


def test_gradients_of_the_contrasts_numerically():
    x, rows = example(2, 2, 2, 3, dtype=float), example(2, 2, 4, 3, seed=1, dtype=float)
    weights, queues = positive_weights(2, 2, 2, dtype=float), np.swapaxes(rows[:, 0], 1, 2)
    with jax.enable_x64(True):
        for function, arrays in (
            (lambda q: moco_loss(q, x[:, 1], queues, temperature=0.5)[:2], (x[:, 0],)),
            (
                lambda x, w: layerwise(x, rows, w, num_positives=2, temperature=0.5)[:2],
                (x, weights),
            ),
        ):
            check_grads(function, arrays, order=1, modes=("rev",))


def test_no_gradient_reaches_a_teacher():
    """As in the batch: the slope of `soft_vcl` by one network has no other network in it."""
    rows = jnp.asarray(example(2, 4, 6, 5, seed=1))
    queues = jnp.swapaxes(rows[:, 0], 1, 2)
    for function in (
        lambda x: bank_mutual_contrastive(x, rows, num_positives=2).soft_vcl.sum(),
        lambda x: moco_mutual_contrastive(x, jnp.flip(x, 0), queues).soft_vcl.sum(),
    ):
        by_first = jax.grad(lambda a, c, function=function: function(jnp.stack([a, c])))
        mixed = jax.jit(jax.jacrev(by_first, argnums=1))(*example(2, 4, 5))
        np.testing.assert_array_equal(mixed, 0.0)


def test_the_banks_of_the_released_layerwise_code_differ_in_two_terms():
    x, rows = example(2, 2, 4, 5), example(2, 4, 6, 5, seed=1)
    weights = positive_weights(2, 2, 4)
    ours, released = (
        layerwise(x, rows, weights, num_positives=2, reference_intra=flag) for flag in (False, True)
    )
    for name in ("icl", "soft_icl"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(released, name))
    for name in ("vcl", "soft_vcl"):
        assert np.abs(getattr(ours, name) - getattr(released, name)).max() > 1e-2
    same = np.stack([rows[0]] * 2)  # one bank for both networks
    ours, released = (
        layerwise(x, same, weights, num_positives=2, reference_intra=flag) for flag in (False, True)
    )
    np.testing.assert_allclose(np.stack(ours), np.stack(released), rtol=1e-5)


def test_one_stage_with_halved_weights_is_the_form_without_stages():
    x, rows = example(3, 4, 5), example(3, 4, 6, 5, seed=1)
    plain = bank_loss(x, rows, num_positives=2)
    weights = np.full((3, 1, 3, 1, 4), 0.5, np.float32)
    staged = layerwise(x[:, None], rows, weights, num_positives=2)
    np.testing.assert_allclose(staged.vcl, 2 * plain.vcl, rtol=1e-5)  # one for each partner
    for name in ("icl", "soft_vcl", "soft_icl"):
        np.testing.assert_allclose(getattr(staged, name), getattr(plain, name), rtol=1e-4)


def test_entries_of_a_network_with_itself_are_ignored():
    x, rows, weights = example(2, 2, 4, 5), example(2, 4, 6, 5), positive_weights(2, 2, 4)
    broken = weights.copy()
    broken[np.arange(2), :, np.arange(2)] = np.nan
    for flag in (False, True):
        options = {"num_positives": 2, "reference_intra": flag}
        terms = np.stack(layerwise(x, rows, weights, **options))
        np.testing.assert_array_equal(np.stack(layerwise(x, rows, broken, **options)), terms)
        by_x, _, by_weights = layerwise_jacobian(x, rows, broken, **options)
        assert np.isfinite(by_x).all()
        for i in range(2):
            np.testing.assert_array_equal(by_weights[:, i, :, i], 0.0)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    networks=st.permutations(range(3)),
    order=st.permutations(range(4)),
    negatives=st.permutations(range(2, 6)),
)
def test_orders_do_not_matter(seed, networks, order, negatives):
    columns = [0, 1, *negatives]
    x, rows = example(3, 2, 4, 5, seed=seed), example(3, 4, 6, 5, seed=seed + 1)
    weights, queues = positive_weights(3, 2, 4, seed), np.swapaxes(rows[:, 0], 1, 2)
    moved_rows = rows[networks][:, order][:, :, columns]
    moved_x, moved_queues = x[networks][:, :, order], queues[networks][..., ::-1]
    moved_weights = weights[networks][:, :, networks][..., order]
    for terms, moved in (
        (
            bank_loss(x[:, 0], rows, num_positives=2),
            bank_loss(moved_x[:, 0], moved_rows, num_positives=2),
        ),
        (
            layerwise(x, rows, weights, num_positives=2),
            layerwise(moved_x, moved_rows, moved_weights, num_positives=2),
        ),
        (
            moco_loss(x[:, 0], x[:, 1], queues),
            moco_loss(moved_x[:, 0], moved_x[:, 1], moved_queues),
        ),
    ):
        expected = np.stack(terms)[:, order]
        np.testing.assert_allclose(np.stack(moved), expected, rtol=1e-4, atol=1e-4)


def test_under_vmap():
    x, rows = example(2, 2, 2, 4, 5), example(2, 2, 4, 6, 5, seed=1)
    weights = np.stack([positive_weights(2, 2, 4, seed) for seed in (0, 1)])
    for function, arrays in (
        (lambda *a: bank_mutual_contrastive(*a, num_positives=2), (x[:, :, 0], rows)),
        (
            lambda *a: layerwise_bank_mutual_contrastive(*a, num_positives=2),
            (x, rows, weights),
        ),
        (moco_mutual_contrastive, (x[:, :, 0], x[:, :, 1], np.swapaxes(rows[:, :, 0], 2, 3))),
        (update_bank, (rows[:, :, 0], x[:, :, 0], np.array([[0, 5, 5, 2], [1, 1, 1, 3]]))),
    ):
        one = jax.jit(function)
        expected = [np.stack(one(*each)) for each in zip(*arrays, strict=True)]
        mapped = np.stack(jax.jit(jax.vmap(function))(*arrays))
        mapped = mapped if mapped.shape[0] == 2 else np.swapaxes(mapped, 0, 1)
        np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)


ONES = np.full((2, 4, 5), 5**-0.5, np.float32)


@pytest.mark.parametrize("x", [example(2, 4, 5), np.zeros_like(ONES), ONES])
def test_extremes_are_finite(x):
    rows, queues = x[:, :, None].repeat(6, axis=2), np.swapaxes(x, 1, 2)
    options = {"num_positives": 1, "temperature": 1e-4}
    terms, gradients = bank_loss(x, rows, **options), bank_jacobian(x, rows, **options)
    assert np.isfinite(np.stack(terms)).all()
    assert np.isfinite(gradients[0]).all()
    # Own rows are the only positives: nothing to contrast within a network.
    np.testing.assert_array_equal(terms.vcl, 0.0)
    np.testing.assert_array_equal(gradients[0][0], 0.0)
    options = {"temperature": 1e-4}
    assert np.isfinite(np.stack(moco_loss(x, x, queues, **options))).all()
    assert np.isfinite(moco_jacobian(x, x, queues, **options)[0]).all()


def test_bfloat16_is_computed_in_float32_and_comes_back():
    half = jnp.asarray(example(2, 2, 4, 5), jnp.bfloat16)
    wide = half.astype(jnp.float32)
    rows, weights = example(2, 4, 6, 5, seed=1), positive_weights(2, 2, 4)
    queues = np.swapaxes(rows[:, 0], 1, 2)
    for narrow, full in (
        [bank_loss(x[:, 0], rows, num_positives=2) for x in (half, wide)],
        [layerwise(x, rows, weights, num_positives=2) for x in (half, wide)],
        [moco_loss(x[:, 0], x[:, 1], queues) for x in (half, wide)],
    ):
        for ours, expected in zip(narrow, full, strict=True):
            assert ours.dtype == jnp.bfloat16
            np.testing.assert_array_equal(ours, expected.astype(jnp.bfloat16))
    bank = jnp.asarray(rows[:, 0], jnp.bfloat16)
    assert update(bank, half[:, 0], np.arange(4)).dtype == jnp.bfloat16
    assert enqueued(queues, np.int32(0), half[:, 0])[0].dtype == jnp.float32


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    indices=st.lists(st.sampled_from([-3, -1, 0, 1, 2, 3, 8, 9, 12]), min_size=6, max_size=6),
    momentum=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_last_example_of_a_row_counts(seed, indices, momentum):
    bank, x = 0.5 * example(2, 9, 5, seed=seed), example(2, 6, 5, seed=seed + 1)
    expected = bank.astype(float)
    for i, row in enumerate(indices):
        if 0 <= row < 9:
            new = momentum * bank[:, row].astype(float) + (1 - momentum) * x[:, i]
            expected[:, row] = new / np.linalg.norm(new, axis=-1, keepdims=True)
    ours = update(bank, x, np.array(indices), momentum=momentum)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    untouched = [row for row in range(9) if row not in indices]
    np.testing.assert_array_equal(ours[:, untouched], bank[:, untouched])


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 6))
def test_the_queue_is_a_ring(start):
    queues, pointer = np.zeros((2, 1, 7), np.float32), np.int32(start)
    ring = np.zeros(7)
    for step in range(4):
        keys = np.float32(4 * step + 1 + np.arange(4))[None, :, None] * np.ones((2, 1, 1), "f")
        for i in range(4):
            ring[(start + 4 * step + i) % 7] = 4 * step + 1 + i
        queues, pointer = enqueued(queues, pointer, keys)
    np.testing.assert_array_equal(queues, ring[None, None].repeat(2, axis=0))
    assert int(pointer) == (start + 16) % 7


def test_no_gradient_passes_banks_and_queues():
    bank, x = example(2, 9, 5), example(2, 4, 5, seed=1)
    by_both = jax.grad(lambda a, c: update(a, c, np.arange(4)).sum(), (0, 1))(bank, x)
    queues = np.swapaxes(bank, 1, 2)
    by_both += jax.grad(lambda a, c: enqueued(a, np.int32(2), c)[0].sum(), (0, 1))(queues, x)
    for gradient in by_both:
        np.testing.assert_array_equal(gradient, 0.0)
    assert np.isfinite(update(np.zeros_like(bank), np.zeros_like(x), np.arange(4))).all()


def test_eight_devices_need_no_collective_and_equal_one():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x, rows = example(2, 2, 16, 5), example(2, 16, 6, 5, seed=1)
    queues = np.swapaxes(rows[:, 0], 1, 2)
    second, third, last = (PartitionSpec(*(None,) * i, "data") for i in (1, 2, 4))
    for function, arrays, specs in (
        (lambda *a: bank_loss(*a, num_positives=2), (x[:, 0], rows), (second, second)),
        (
            lambda *a: layerwise(*a, num_positives=2),
            (x, rows, positive_weights(2, 2, 16)),
            (third, second, last),
        ),
        (moco_loss, (x[:, 0], x[:, 1], queues), (second, second, PartitionSpec())),
    ):
        placed = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(arrays, specs, strict=True)
        ]
        program = jax.jit(function, out_shardings=split).lower(*placed).compile()
        text = program.as_text()
        assert not any(name in text for name in ("all-", "collective-permute", "reduce-scatter"))
        expected = np.stack(function(*arrays))
        np.testing.assert_allclose(np.stack(program(*placed)), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture
def unchecked():
    """Without the shape checks that tests add, as users call it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "rows"),
    [
        ((2, 3), (2, 4, 6, 3)),
        ((2, 4, 3), (2, 4, 6)),
        ((2, 4, 3), (2, 3, 6, 3)),
        ((2, 4, 3), (2, 4, 1, 3)),
    ],
)
def test_bad_shapes_are_quoted(x, rows):
    with pytest.raises(UserError) as caught:
        bank_mutual_contrastive(jnp.zeros(x), jnp.zeros(rows), num_positives=1)
    assert str(caught.value) == (
        f"embeddings have the shape {x} and candidates {rows}; "
        "expected [n, b, d], [n, b, m, d] with m at least 2"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "rows", "weights"),
    [
        ((2, 4, 3), (2, 4, 6, 3), (2, 1, 2, 1, 4)),
        ((2, 1, 4, 3), (2, 4, 6, 3), (2, 1, 2, 1)),
        ((2, 1, 4, 3), (2, 4, 1, 3), (2, 1, 2, 1, 4)),
        ((2, 1, 4, 3), (2, 4, 6, 2), (2, 1, 2, 1, 4)),
    ],
)
def test_bad_shapes_with_stages_are_quoted(x, rows, weights):
    with pytest.raises(UserError) as caught:
        layerwise_bank_mutual_contrastive(
            jnp.zeros(x), jnp.zeros(rows), jnp.zeros(weights), num_positives=1
        )
    assert str(caught.value) == (
        f"embeddings have the shape {x}, candidates {rows} and match_weights {weights}; "
        "expected [n, s, b, d], [n, b, m, d] with m at least 2, [n, s, n, s, b]"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("q", "keys", "queues"),
    [((2, 3), (2, 3), (2, 3, 7)), ((2, 4, 3), (2, 3, 3), (2, 3, 7)), ((2, 4, 3),) * 3],
)
def test_bad_shapes_of_queues_are_quoted(q, keys, queues):
    with pytest.raises(UserError) as caught:
        moco_mutual_contrastive(jnp.zeros(q), jnp.zeros(keys), jnp.zeros(queues))
    assert str(caught.value) == (
        f"queries have the shape {q}, keys {keys} and queues {queues}; "
        "expected [n, b, d], [n, b, d], [n, d, k]"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("bank", "x", "indices"),
    [((9, 5), (2, 4, 5), (4,)), ((2, 9, 5), (2, 4, 3), (4,)), ((2, 9, 5), (2, 4, 5), (4, 1))],
)
def test_bad_shapes_of_an_update_are_quoted(bank, x, indices):
    with pytest.raises(UserError) as caught:
        update_bank(jnp.zeros(bank), jnp.zeros(x), jnp.zeros(indices, int))
    assert str(caught.value) == (
        f"bank has the shape {bank}, embeddings {x} and indices {indices}; "
        "expected [n, size, d], [n, b, d], [b]"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("queues", "pointer", "keys"),
    [((2, 5, 3), (), (2, 4, 5)), ((2, 5, 7), (2,), (2, 4, 5)), ((2, 5, 7), (), (2, 5, 4))],
)
def test_bad_shapes_of_keys_are_quoted(queues, pointer, keys):
    with pytest.raises(UserError) as caught:
        enqueue(jnp.zeros(queues), jnp.zeros(pointer, int), jnp.zeros(keys))
    assert str(caught.value) == (
        f"queues have the shape {queues}, pointer {pointer} and keys {keys}; "
        "expected [n, d, k], [], [n, b, d] with b at most k"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_positives": 0}, "num_positives is 0; expected from 1 to 6 candidates"),
        ({"num_positives": 7}, "num_positives is 7; expected from 1 to 6 candidates"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"soft_temperature": -1.0}, "soft_temperature is -1.0; expected a number above 0"),
    ],
)
def test_bad_options_are_quoted(options, message):
    x, rows, weights = jnp.ones((2, 1, 4, 3)), jnp.ones((2, 4, 6, 3)), jnp.ones((2, 1, 2, 1, 4))
    with pytest.raises(UserError) as caught:
        bank_mutual_contrastive(x[:, 0], rows, **{"num_positives": 2} | options)
    assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        layerwise_bank_mutual_contrastive(x, rows, weights, **{"num_positives": 2} | options)
    assert str(caught.value) == message
    if "num_positives" not in options:
        with pytest.raises(UserError) as caught:
            moco_mutual_contrastive(x[:, 0], x[:, 0], jnp.ones((2, 3, 5)), **options)
        assert str(caught.value) == message


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_a_bad_momentum_is_quoted(momentum):
    with pytest.raises(UserError) as caught:
        update_bank(jnp.ones((1, 2, 3)), jnp.ones((1, 1, 3)), jnp.zeros(1, int), momentum=momentum)
    assert str(caught.value) == f"momentum is {momentum}; expected a number in [0, 1]"
