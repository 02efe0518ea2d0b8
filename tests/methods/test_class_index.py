"""The rows of training examples, and draws among them by class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.methods.class_index import class_index, draw_candidates, rows_of

LABELS = np.array([2, 0, 2, 1, 0, 2, 2, 0, 2, 4, 2])
IDS = np.array([7, 90, 3, 41, 12, 60, 15, 2, 8, 33, 70])
ROWS = {id_: row for row, (_, id_) in enumerate(sorted(zip(LABELS, IDS, strict=True)))}
BY_ROW = np.sort(LABELS)


def index(labels=LABELS, ids=IDS, classes=5):
    return {
        name: jnp.asarray(value)
        for name, value in class_index(labels, ids, num_classes=classes).items()
    }


def draw(seed, labels, rows, **options):
    base = {"num_positives": 3, "num_negatives": 5}
    run = jax.jit(draw_candidates, static_argnames=("num_positives", "num_negatives", "own_again"))
    arrays = jnp.asarray(rows, jnp.int32), jnp.asarray(labels, jnp.int32)
    return np.asarray(run(jax.random.key(seed), index(), *arrays, **{**base, **options}))


def test_rows_are_by_class_then_id_without_gaps():
    found = rows_of(index(), jnp.asarray(IDS, jnp.int32))
    np.testing.assert_array_equal(found, [ROWS[id_] for id_ in IDS.tolist()])
    assert sorted(found.tolist()) == list(range(len(IDS)))
    np.testing.assert_array_equal(index()["starts"], np.searchsorted(BY_ROW, range(6)))
    unknown = rows_of(index(), jnp.asarray([-1, 0, 1, 9, 89, 91, 2**31 - 1], jnp.int32))
    np.testing.assert_array_equal(unknown, len(IDS))


def test_the_order_of_the_examples_is_of_no_account():
    order = np.random.default_rng(0).permutation(len(IDS))
    jax.tree.map(np.testing.assert_array_equal, index(LABELS[order], IDS[order]), index())


@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_the_own_row_others_of_the_class_and_other_classes(seed):
    rows = np.arange(len(IDS))
    drawn = draw(seed, BY_ROW, rows)
    assert drawn.shape == (len(IDS), 8)
    np.testing.assert_array_equal(drawn[:, 0], rows)
    for label, row, line in zip(BY_ROW, rows, drawn, strict=True):
        others = line[1:3]
        assert (BY_ROW[others] == label).all()
        size = int((label == BY_ROW).sum())
        if size == 1:
            assert others.tolist() == [row, row]
        else:
            assert row not in others
            assert len(set(others)) == min(2, size - 1)
        assert (BY_ROW[line[3:]] != label).all()
        assert len(set(line[3:].tolist())) == 5
    assert (draw(seed + 10, BY_ROW, rows) != drawn).any()


def test_every_other_row_is_as_likely():
    repeats, row = 6000, ROWS[15]
    drawn = draw(0, np.full(repeats, 2), np.full(repeats, row))
    counts = np.bincount(drawn[:, 1:].ravel(), minlength=len(IDS))
    positive = (BY_ROW == 2) & (np.arange(len(IDS)) != row)
    expected = np.where(positive, 2 / 5, np.where(BY_ROW == 2, 0.0, 1.0)) * repeats
    np.testing.assert_allclose(counts, expected, atol=6 * np.sqrt(repeats) / 2)
    # 3 of 5 other rows leave room for chance.
    drawn = draw(1, np.full(repeats, 2), np.full(repeats, row), num_negatives=3)
    counts = np.bincount(drawn[:, 3:].ravel(), minlength=len(IDS))
    np.testing.assert_allclose(counts[BY_ROW != 2], 0.6 * repeats, atol=6 * np.sqrt(repeats) / 2)


def test_the_own_row_comes_again_only_if_it_may():
    rows = np.full(500, ROWS[15])
    for again in (False, True):
        drawn = draw(0, np.full(500, 2), rows, own_again=again, num_positives=2)
        assert (drawn[:, 1] == rows).any() == again
        assert (BY_ROW[drawn[:, 1]] == 2).all()


def test_large_ranges_do_not_overflow():
    """ImageNet's size: the product of candidates and rows does not fit into 32 bits."""
    size, classes = 1_281_167, 1000
    starts = np.linspace(0, size, classes + 1).astype(np.int32)
    big = {"ids": jnp.arange(size), "rows": jnp.arange(size), "starts": jnp.asarray(starts)}
    rows = jnp.asarray([5, 700_000, size - 1], jnp.int32)
    labels = np.searchsorted(starts, rows, side="right") - 1
    drawn = draw_candidates(
        jax.random.key(0),
        big,
        rows,
        jnp.asarray(labels, jnp.int32),
        num_positives=2,
        num_negatives=8192,
    )
    drawn = np.asarray(drawn)
    assert drawn.min() >= 0
    assert drawn.max() < size
    of = np.searchsorted(starts, drawn, side="right") - 1
    assert (of[:, :2] == labels[:, None]).all()
    assert (of[:, 2:] != labels[:, None]).all()
    for line in drawn:
        assert len(set(line.tolist())) == 8194
        # Spread over the classes by their size: 8 to 9 each, give or take one at either end.
        assert np.bincount(np.searchsorted(starts, line[2:], side="right") - 1).max() <= 10


def test_bad_examples_are_told_in_one_line():
    with pytest.raises(UserError, match=r"id 33 has label 4; expected 0 to 3"):
        index(classes=4)
    with pytest.raises(UserError, match="several training examples have the id 7; expected"):
        index(ids=np.where(IDS == 3, 7, IDS))
