"""Ridge to attributes: against the normal equations, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import REGULARISERS, fit_ridges


def drawn(seed=0, n=40, f=7, k=6, a=5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)  # the last two classes are never seen
    attributes = rng.normal(size=(k, a))
    features = attributes[labels] @ rng.normal(size=(a, f)) + rng.normal(size=(n, f)) + 3
    return features.astype(np.float32), labels, attributes


def solved(features, labels, attributes, r):
    """The least-squares problem with sqrt(r) more rows, one per feature."""
    unit = attributes / np.linalg.norm(attributes, axis=1)[:, None]
    mean = features.astype(np.float64).mean(0)
    x = features - mean
    rows = np.concatenate([x, np.sqrt(r) * np.eye(x.shape[1])])
    target = np.concatenate([unit[labels], np.zeros((x.shape[1], unit.shape[1]))])
    weights, *_ = np.linalg.lstsq(rows, target, rcond=None)
    return mean, weights, unit


@pytest.mark.parametrize("f", [7, 60])
@pytest.mark.parametrize("centre", [False, True])
def test_it_solves_the_least_squares_problem(f, centre):
    features, labels, attributes = drawn(f=f)
    for r, found in zip(
        (0.1, 1.0, 1e3),
        fit_ridges(
            features, labels, attributes=attributes, regularisers=(0.1, 1.0, 1e3), centre=centre
        ),
        strict=True,
    ):
        mean, weights, unit = solved(features, labels, attributes, r)
        np.testing.assert_allclose(found.weights, weights, atol=1e-8)
        predicted = (features - mean) @ weights
        classes = unit - unit.mean(0) if centre else unit
        cosine = [
            [p @ c / np.linalg.norm(p) / np.linalg.norm(c) for c in classes] for p in predicted
        ]
        np.testing.assert_allclose(found.scores(features), cosine, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_shifted_features_and_longer_attributes_change_nothing(seed, factor, shift):
    features, labels, attributes = drawn(seed)
    features = features.astype(np.float64)
    (one,) = fit_ridges(features, labels, attributes=attributes, regularisers=[3.0])
    (other,) = fit_ridges(
        features + shift, labels, attributes=factor * attributes, regularisers=[3.0]
    )
    np.testing.assert_allclose(other.scores(features + shift), one.scores(features), atol=1e-7)


def test_a_class_never_seen_is_recognised():
    rng = np.random.default_rng(1)
    attributes = rng.normal(size=(40, 8))
    mix = rng.normal(size=(8, 30))
    labels = np.repeat(np.arange(30), 10)
    features = attributes[labels] @ mix + 0.1 * rng.normal(size=(300, 30))
    (found,) = fit_ridges(features, labels, attributes=attributes, regularisers=[1.0])
    unseen = np.arange(30, 40)
    scores = found.scores(attributes[unseen] @ mix)[:, unseen]
    assert (scores.argmax(1) == np.arange(10)).mean() >= 0.9


def test_constant_features_and_classes_without_attributes():
    features, labels, attributes = drawn()
    attributes[5] = 0
    (found,) = fit_ridges(
        np.ones_like(features), labels, attributes=attributes, regularisers=[1.0], centre=False
    )
    assert not found.scores(np.ones_like(features)).any()
    (found,) = fit_ridges(features, labels, attributes=attributes, regularisers=[1.0], centre=False)
    assert not found.scores(features)[:, 5].any()


def test_mistakes_are_told():
    features, labels, attributes = drawn()

    def fit(x=features, y=labels, a=attributes, r=(1.0,)):
        return fit_ridges(x, y, attributes=a, regularisers=r)

    with pytest.raises(UserError, match=r"shape \(40, 7\) and labels \(39,\)"):
        fit(y=labels[1:])
    with pytest.raises(UserError, match="with n of at least 1"):
        fit(x=features[:0], y=labels[:0])
    with pytest.raises(UserError, match=r"shape \(3, 5\); expected \[k, a\] with k above label 3"):
        fit(a=attributes[:3])
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"the regulariser is .*; expected more than 0"):
            fit(r=(wrong,))
    assert sorted(REGULARISERS) == list(REGULARISERS)
    assert (REGULARISERS[0], REGULARISERS[-1]) == (0.1, 1e6)
