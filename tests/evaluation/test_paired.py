"""The paired bootstrap: against all resamples of a few images, SciPy, and what it must not say."""

import itertools

import numpy as np
import pytest
import scipy.stats

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import paired_bootstrap


def every_resample(values, groups):
    """Means over groups of every way to draw each group's images, all equally likely."""
    parts = []
    for group in sorted(set(groups)):
        inside = [v for v, g in zip(values, groups, strict=True) if g == group]
        parts.append([np.mean(d) for d in itertools.product(inside, repeat=len(inside))])
    return np.array([np.mean(means) for means in itertools.product(*parts)])


def test_against_all_resamples():
    first = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 1]], bool)
    second = np.array([[0, 1, 0, 0, 1, 1]], bool)
    groups = np.array([5, 5, 2, 2, 2, 5])
    exact = every_resample((first.mean(0) - second[0]).tolist(), groups.tolist())
    found = paired_bootstrap(first, second, groups=groups, resamples=200_000, confidence=0.8)
    assert found.not_above == pytest.approx(np.mean(exact <= 1e-12), abs=5e-3)
    assert found.low == pytest.approx(np.quantile(exact, 0.1), abs=1e-9)
    assert found.high == pytest.approx(np.quantile(exact, 0.9), abs=1e-9)
    # By hand, class 2 first; of the first, each image's share of its two runs.
    assert found.first == pytest.approx(((0 + 1 + 0.5) / 3 + (1 + 0.5 + 0.5) / 3) / 2)
    assert found.second == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found.difference == pytest.approx(found.first - found.second)


def test_without_groups_it_is_the_usual_one():
    rng = np.random.default_rng(0)
    first, second = rng.random((1, 300)) < 0.7, rng.random((1, 300)) < 0.6
    found = paired_bootstrap(first, second, resamples=20_000)
    usual = scipy.stats.bootstrap(
        (first[0].astype(float), second[0].astype(float)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.low == pytest.approx(usual.confidence_interval.low, abs=4e-3)
    assert found.high == pytest.approx(usual.confidence_interval.high, abs=4e-3)


def test_pairs_are_what_makes_it_sure():
    rng = np.random.default_rng(0)
    second = rng.random(400) < 0.5
    better = second.copy()
    better[np.flatnonzero(~second)[:12]] = True
    apart = rng.permutation(better)
    found = paired_bootstrap(better[None], second[None])
    assert found.separated
    assert found.low > 0
    assert found.not_above < 0.01
    loose = paired_bootstrap(apart[None], second[None])
    assert loose.difference == pytest.approx(found.difference)
    assert not loose.separated
    mirrored = paired_bootstrap(second[None], better[None])
    assert mirrored.separated
    assert mirrored.high < 0
    assert mirrored.not_above == 1


def test_the_same_predictions_are_never_above():
    right = np.random.default_rng(0).random((3, 50)) < 0.5
    found = paired_bootstrap(right, right[::-1], groups=np.arange(50) % 7)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.not_above == 1
    assert not found.separated


def test_rounding_separates_nothing():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 3, 12)) < 0.5
    first |= rng.random((3, 12)) < 0.3
    found = paired_bootstrap(first, second, resamples=500)
    assert 0 < found.low < 1e-12  # thirds that add up to a tie, but for rounding
    assert not found.separated
    assert paired_bootstrap(second, first, resamples=500).separated is False


def test_blocks_of_draws(monkeypatch):
    right = np.random.default_rng(0).random((2, 1, 40)) < 0.5
    monkeypatch.setattr("fgkd_jax.evaluation.paired._BLOCK", 64)
    assert paired_bootstrap(*right, resamples=7).low <= paired_bootstrap(*right, resamples=7).high


def test_mistakes_are_told():
    right = np.ones((1, 4), bool)
    for arguments, options, message in (
        ((right, right[:, :3]), {}, r"second has shape \(1, 3\); expected \(runs, images\)"),
        ((right[0], right), {}, r"first has shape \(4,\)"),
        ((right[:0], right), {}, r"first has shape \(0, 4\)"),
        (
            (right, right),
            {"groups": np.zeros(3, int)},
            r"groups have shape \(3,\); expected \(4,\)",
        ),
        ((right, right), {"resamples": 0}, "resamples is 0; expected at least 1"),
        ((right, right), {"confidence": 1.0}, "confidence is 1.0; expected a number between"),
    ):
        with pytest.raises(UserError, match=message):
            paired_bootstrap(*arguments, **options)
