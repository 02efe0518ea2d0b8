"""Losses of zero-shot recognition: NumPy, the authors' figures, invariants, broken input."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    attribute_cross_entropy,
    attribute_ranking,
    calibration_bias,
    self_calibration,
    self_calibration_per_example,
    semantic_distillation,
    semantic_distillation_as_printed,
)

SEEN = np.array([True, False, True, True, False, True])
LABELS = np.array([0, 2, 5, 3])
GOLDEN = ("cub_small_f64", "sun_small_f64", "awa2_small_f64", "init_state_f64", "cub_small_f32")


def example(*shape: int, seed: int = 0, dtype=np.float32):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape).astype(dtype)


def probabilities(scores):
    powers = np.exp(np.asarray(scores, np.float64))
    return powers / powers.sum()


def cross_entropy_oracle(scores, labels, bias, classes):
    kept = np.flatnonzero(classes)
    return [
        -np.log(probabilities((row - bias)[kept])[list(kept).index(label)])
        for row, label in zip(np.asarray(scores, np.float64), labels, strict=True)
    ]


def ranking_oracle(scores, labels, margin, classes):
    found = []
    for row, label in zip(scores, labels, strict=True):
        hinges = [max(0.0, margin - row[label] + row[c]) for c in np.flatnonzero(classes)]
        found.append(sum(hinges) / len(hinges))
    return found


def calibration_oracle(scores, unseen, rows):
    masses = [sum(probabilities(scores[i])[np.flatnonzero(unseen)]) for i in rows]
    return -np.log(sum(masses) / len(masses))


def distillation_oracle(a, b):
    found = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        p, q = probabilities(x), probabilities(y)
        m = (p + q) / 2
        mixed = sum(0.5 * (u * np.log(u / w) + v * np.log(v / w))
                    for u, v, w in zip(p, q, m, strict=True))  # fmt: skip
        length = np.linalg.norm(x - y)
        found.append(mixed + (np.linalg.norm(x - y, 3) ** 3 / length if length else 0.0))
    return found


def printed_oracle(a, b):
    found = []
    for x, y in zip(a, b, strict=True):
        p, q = probabilities(x), probabilities(y)
        both = sum(p * np.log(p / q)) + sum(q * np.log(q / p))
        found.append(np.linalg.norm(p - q) ** 2 + both / 2)
    return found


BIAS = np.where(SEEN, -1.5, 1.5).astype(np.float32)
PAIRS = [
    (semantic_distillation, distillation_oracle),
    (semantic_distillation_as_printed, printed_oracle),
]
OWN, BETA = jnp.asarray(LABELS), jnp.asarray(BIAS)
IS_SEEN, UNSEEN = jnp.asarray(SEEN), jnp.asarray(~SEEN)

# Against NumPy.


@pytest.mark.parametrize("classes", [None, SEEN])
def test_cross_entropy_equals_its_oracle(classes):
    scores = example(4, 6)
    found = jax.jit(attribute_cross_entropy)(scores, LABELS, BIAS, classes=classes)
    expected = cross_entropy_oracle(scores, LABELS, BIAS, np.ones(6) if classes is None else SEEN)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("margin", [1.0, 2.5])
@pytest.mark.parametrize("classes", [None, SEEN])
def test_ranking_equals_its_oracle(margin, classes):
    scores = example(4, 6, seed=1)
    loss = jax.jit(attribute_ranking, static_argnames="margin")
    found = loss(scores, LABELS, margin=margin, classes=classes)
    expected = ranking_oracle(scores, LABELS, margin, np.ones(6) if classes is None else SEEN)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3], [2]])
def test_calibration_equals_its_oracle(rows):
    scores = example(4, 6, seed=2)
    where = np.isin(np.arange(4), rows)
    poisoned = np.where(where[:, None], scores, np.nan)
    found = jax.jit(self_calibration)(poisoned, ~SEEN, where=where)
    np.testing.assert_allclose(found, calibration_oracle(scores, ~SEEN, rows), rtol=1e-5)
    if len(rows) == 4:
        np.testing.assert_allclose(jax.jit(self_calibration)(scores, ~SEEN), found, rtol=1e-6)


def test_calibration_per_example_equals_its_oracle():
    scores = example(4, 6, seed=3)
    found = jax.jit(self_calibration_per_example)(scores, ~SEEN)
    expected = [-sum(np.log(probabilities(row)[~SEEN])) for row in scores]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("loss", "oracle"), PAIRS)
def test_distillation_equals_its_oracle(loss, oracle):
    a, b = example(5, 7), example(5, 7, seed=4)
    np.testing.assert_allclose(jax.jit(loss)(a, b), oracle(a, b), rtol=1e-5)


def test_the_bias_is_positive_on_unseen_classes():
    np.testing.assert_array_equal(calibration_bias(jnp.asarray(SEEN), strength=1.5), BIAS)
    np.testing.assert_array_equal(calibration_bias(jnp.asarray(SEEN), strength=0.0), 0 * BIAS)


# Against the released code.


def golden_of(shared, name):
    with np.load(shared / "golden" / "msdn" / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def released_losses(golden, tv, vt):
    """Every loss of the released code by its name there, from both sub-nets' scores."""
    bias = jnp.asarray(golden["param_mask_bias"][0] * golden["param_bias"], tv.dtype)
    labels, unseen = jnp.asarray(golden["in_labels"]), np.zeros(len(bias), bool)
    unseen[golden["in_unseenclass"]] = True
    meta = json.loads(str(golden["meta_json"]))
    found = {}
    for name, scores in (("tv", tv), ("vt", vt)):
        found[f"loss_CE_{name}"] = jnp.mean(attribute_cross_entropy(scores, labels, bias))
        found[f"loss_cal_{name}"] = self_calibration(scores, jnp.asarray(unseen))
    found["distill"] = jnp.mean(semantic_distillation(tv, vt))
    found["total"] = meta["lambda_distill"] * found["distill"] + sum(
        found[f"loss_CE_{name}"] + meta["lambda_cal"] * found[f"loss_cal_{name}"]
        for name in ("tv", "vt")
    )
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_and_gradients_are_the_released_ones(shared, name):
    golden = golden_of(shared, name)
    with jax.enable_x64(name.endswith("f64")):
        scores = [jnp.asarray(golden[f"out_S_pp_{net}"]) for net in ("tv", "vt")]
        rtol = 1e-11 if name.endswith("f64") else 1e-5
        losses = partial(released_losses, golden)
        found = jax.jit(losses)(*scores)
        slopes = jax.jit(jax.jacrev(losses, argnums=(0, 1)))(*scores)
        for key, value in found.items():
            np.testing.assert_allclose(value, golden[f"out_{key}"], rtol=rtol)
            for net, grad in zip(("tv", "vt"), slopes[key], strict=True):
                expected = golden[f"grad_{key}__S_pp_{net}"]
                limit = 10 * rtol * max(1e-3, np.abs(expected).max())
                np.testing.assert_allclose(grad, expected, rtol=0, atol=limit)


def test_distillation_of_equal_rows_is_finite_where_the_released_code_is_not(shared):
    golden = golden_of(shared, "distill_scores")
    with jax.enable_x64(True):
        a, b, equal = (jnp.asarray(golden[n]) for n in ("S_pp_tv", "S_pp_vt", "S_pp_vt_equal_row"))

        def mean(a, b):
            return jnp.mean(semantic_distillation(a, b))

        slope = jax.jit(jax.value_and_grad(mean, (0, 1)))
        value, slopes = slope(a, b)
        np.testing.assert_allclose(value, golden["distill"], rtol=1e-12)
        for grad, key in zip(slopes, ("grad_tv", "grad_vt"), strict=True):
            np.testing.assert_allclose(grad, golden[key], rtol=0, atol=1e-13)
        same = np.asarray(jnp.all(a == equal, axis=1))
        assert same.sum() == 1
        assert np.isnan(golden["distill_equal_row"])
        found = np.asarray(jax.jit(semantic_distillation)(a, equal))
        np.testing.assert_allclose(found[same], 0.0, atol=1e-15)
        grads = np.asarray(slope(a, equal)[1][0])
        np.testing.assert_allclose(grads[same], 0.0, atol=1e-15)
        # The other rows of the released gradient are good.
        theirs = golden["grad_tv_equal_row"]
        good = np.isfinite(theirs).all(axis=1)
        np.testing.assert_allclose(grads[good], theirs[good], rtol=0, atol=1e-13)


# Gradients, transformations, invariants.


ON_SCORES = {
    "cross-entropy": lambda s: attribute_cross_entropy(s, OWN, BETA),
    "seen": lambda s: attribute_cross_entropy(s, OWN, BETA, classes=IS_SEEN),
    "ranking": lambda s: attribute_ranking(s, OWN),
    "calibration": lambda s: self_calibration(s, UNSEEN),
    "masked": lambda s: self_calibration(s, UNSEEN, where=jnp.array([True, False, True, True])),
    "per example": lambda s: self_calibration_per_example(s, UNSEEN),
}


ALL_ON_SCORES = jax.jit(lambda s: {name: loss(s) for name, loss in ON_SCORES.items()})
COMPILED = {loss: jax.jit(loss) for loss, _ in PAIRS}


@pytest.mark.parametrize("loss", ON_SCORES.values(), ids=ON_SCORES)
def test_gradients_on_scores(loss):
    with jax.enable_x64(True):
        check_grads(jax.jit(loss), (example(4, 6, dtype=np.float64),), order=2, modes=("rev",))


@pytest.mark.parametrize("loss", [pair[0] for pair in PAIRS])
def test_gradients_reach_both_sides(loss):
    with jax.enable_x64(True):
        a, b = example(3, 5, dtype=np.float64), example(3, 5, seed=6, dtype=np.float64)
        check_grads(jax.jit(loss), (a, b), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("loss", [pair[0] for pair in PAIRS])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_distillation_is_symmetric_and_not_negative(loss, seed, scale):
    rng = np.random.default_rng(seed)
    a, b = (jnp.asarray(rng.normal(scale=scale, size=(3, 6)).astype(np.float32)) for _ in range(2))
    loss = COMPILED[loss]
    found = np.asarray(loss(a, b))
    assert (found >= -1e-6).all()
    np.testing.assert_allclose(found, loss(b, a), rtol=1e-5, atol=1e-7)
    order = rng.permutation(6)
    np.testing.assert_allclose(found, loss(a[:, order], b[:, order]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [pair[0] for pair in PAIRS])
def test_distillation_under_vmap(loss):
    a, b = jnp.asarray(example(2, 3, 6)), jnp.asarray(example(2, 3, 6, seed=8))
    batched = jax.jit(jax.vmap(loss))(a, b)
    np.testing.assert_allclose(batched[1], loss(a[1], b[1]), rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), shift=st.floats(-50.0, 50.0))
def test_what_a_common_shift_and_the_bias_change(seed, shift):
    scores = jnp.asarray(np.random.default_rng(seed).normal(size=(4, 6)).astype(np.float32))
    moved = scores + jnp.float32(shift)
    before, after = ALL_ON_SCORES(scores), ALL_ON_SCORES(moved)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=1e-4)
    biased = ALL_ON_SCORES(scores + BETA[None])["cross-entropy"]
    plain = cross_entropy_oracle(scores, LABELS, 0 * BIAS, np.ones(6))
    np.testing.assert_allclose(biased, plain, rtol=1e-4, atol=1e-5)
    higher = scores + jnp.where(UNSEEN, 1.0, 0.0)[None]
    for name in ("calibration", "masked"):
        assert float(ALL_ON_SCORES(higher)[name]) < float(before[name])


# Zeros, ties, extremes, dtypes.

slope_of_distillation = jax.jit(
    jax.value_and_grad(lambda a, b: jnp.sum(semantic_distillation(a, b)), (0, 1))
)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-18, 1e12])
def test_distillation_and_its_gradient_are_finite_at_any_scale(scale):
    a = jnp.asarray(example(3, 5)) * jnp.float32(scale)
    value, grads = slope_of_distillation(a, np.zeros((3, 5), np.float32))
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)
    if scale == 0.0:
        assert all((np.asarray(grad) == 0).all() for grad in grads)


def test_one_class_that_differs_is_no_tie():
    d = jnp.array([[3.0, 0.0, 0.0]])
    one = jax.jit(jax.grad(lambda d: jnp.sum(semantic_distillation(d, 0 * d))))(d)
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda d: semantic_distillation(d, 0 * d)), (np.asarray(d, np.float64),), 1
        )
    assert np.isfinite(one).all()


def test_extreme_scores_stay_finite():
    scores = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    unseen = jnp.array([False, True, False])
    found = jax.jit(self_calibration)(scores, unseen)
    np.testing.assert_allclose(found, np.log(2), rtol=1e-5)
    value, grads = jax.jit(jax.value_and_grad(self_calibration))(scores[:1], unseen)
    np.testing.assert_allclose(value, 2e4, rtol=1e-5)
    np.testing.assert_allclose(grads, [[1.0, -1.0, 0.0]], atol=1e-5)


def test_calibration_without_an_example_or_without_an_unseen_class():
    scores, none = jnp.asarray(example(4, 6)), jnp.zeros(4, bool)
    value, grad = jax.jit(jax.value_and_grad(self_calibration))(scores, UNSEEN, where=none)
    assert value == 0
    np.testing.assert_array_equal(grad, 0 * scores)
    assert jax.jit(self_calibration)(scores, np.zeros(6, bool)) == jnp.inf
    per_example = jax.jit(self_calibration_per_example)(scores, np.zeros(6, bool))
    np.testing.assert_array_equal(per_example, 0.0)


def test_labels_outside_are_no_quiet_mistake():
    scores = jnp.asarray(example(4, 6))
    ranking, entropy = jax.jit(attribute_ranking), jax.jit(attribute_cross_entropy)
    for label in (-1, 6):
        labels = OWN.at[1].set(label)
        for found in (ranking(scores, labels), entropy(scores, labels, BETA)):
            assert np.isnan(found).tolist() == [False, True, False, False]
    unseen = entropy(scores, np.array([0, 1, 2, 3]), BETA, classes=IS_SEEN)
    assert np.isinf(unseen).tolist() == [False, True, False, False]


def test_the_label_itself_adds_the_margin_and_ties_count():
    found = attribute_ranking(jnp.zeros((1, 4)), jnp.array([2]), margin=2.0)
    np.testing.assert_allclose(found, [2.0])


def test_bfloat16_is_computed_in_float32():
    scores = jnp.asarray(example(4, 6), jnp.bfloat16)
    other = jnp.asarray(example(4, 6, seed=9), jnp.bfloat16)
    halves, wholes = (ALL_ON_SCORES(x).values() for x in (scores, scores.astype(jnp.float32)))
    pairs = list(zip(halves, wholes, strict=True))
    pairs += [
        (loss(scores, other), loss(scores.astype(jnp.float32), other.astype(jnp.float32)))
        for loss in COMPILED.values()
    ]
    for half, full in pairs:
        assert half.dtype == jnp.bfloat16
        np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))


# Messages.


@pytest.fixture
def unchecked():
    """Without the check of annotations, which would catch the mistakes first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: semantic_distillation(s, s[:2]), r"\(4, 6\) and scores_b \(2, 6\)"),
        (lambda s: semantic_distillation_as_printed(s[0], s[0]), r"shape \(6,\)"),
        (lambda s: self_calibration(s, jnp.ones(5, bool)), r"unseen \(5,\); expected \(6,\)"),
        (
            lambda s: self_calibration(s, jnp.ones(6, bool), where=jnp.ones(3, bool)),
            r"where \(3,\); expected \(4,\)",
        ),
        (lambda s: self_calibration_per_example(s[0], jnp.ones(6, bool)), r"shape \(6,\)"),
        (lambda s: attribute_ranking(s, jnp.zeros(3, int)), r"labels \(3,\); expected \(4,\)"),
        (lambda s: attribute_ranking(s, OWN, margin=0.0), "margin is 0.0; expected a number"),
        (lambda s: attribute_cross_entropy(s, OWN, jnp.zeros(4)), r"bias \(4,\)"),
        (
            lambda s: attribute_cross_entropy(s, OWN, BETA, classes=jnp.ones(2, bool)),
            r"classes \(2,\); expected \(6,\)",
        ),
        (lambda s: calibration_bias(s > 0), r"seen has the shape \(4, 6\); expected \[k\]"),
        (lambda s: calibration_bias(s[0] > 0, strength=-1.0), "strength is -1.0; expected"),
    ],
)
def test_a_wrong_argument_is_told(unchecked, call, message):
    with pytest.raises(UserError, match=message):
        call(jnp.asarray(example(4, 6)))
