"""Accuracy against NumPy, whatever the batches, the padding and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import ClassificationEvaluator, label_rank
from fgkd_jax.train.sharding import MeshOptions, make_mesh, put_batch

CLASSES = 7
GENUS = (0, 0, 0, 1, 1, 2, 2)


def oracle_rank(logits, label):
    """Sorts classes by falling logit, ties by index."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    return order.index(label)


def run(evaluator, logits, labels, mask, batch_size, mesh=None):
    counts = evaluator.empty()
    update = jax.jit(evaluator.update)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        pad = batch_size - len(labels[part])
        batch = {
            "logits": np.pad(logits[part], ((0, pad), (0, 0))),
            "label": np.pad(labels[part], (0, pad), constant_values=99),
            "mask": np.pad(mask[part], (0, pad)),
        }
        if mesh is not None:
            batch = put_batch(batch, mesh=mesh)
        counts = update(counts, {"logits": batch["logits"]}, batch)
    return evaluator.finalise(counts)


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_figures_are_the_oracle_for_any_batch_size(batch_size):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (23, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 23).astype(np.int32)
    mask = rng.random(23) < 0.8
    figures = run(
        ClassificationEvaluator(CLASSES, {"genus": GENUS}), logits, labels, mask, batch_size
    )
    ranks = np.array([oracle_rank(row, y) for row, y in zip(logits, labels, strict=True)])
    kept = np.flatnonzero(mask)
    per_class = [np.mean(ranks[kept][labels[kept] == c] == 0) for c in np.unique(labels[kept])]
    genus = np.array(GENUS)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert tuple(figures) == ClassificationEvaluator(CLASSES, {"genus": GENUS}).figures
    assert figures["examples"] == len(kept)
    assert figures["accuracy"] == np.mean(ranks[kept] == 0)
    assert figures["top5_accuracy"] == np.mean(ranks[kept] < 5)
    assert figures["mean_class_accuracy"] == pytest.approx(np.mean(per_class))
    assert figures["genus_accuracy"] == np.mean(
        genus[logits.argmax(1)][kept] == genus[labels][kept]
    )
    assert figures["loss"] == pytest.approx(-log_softmax[kept, labels[kept]].mean(), rel=1e-5)


def test_the_figures_of_a_class_are_of_its_own_examples():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 2, 1, 2]]
    batch = {"label": jnp.array([0, 1, 2, 1, 2]), "mask": jnp.array([1, 1, 1, 1, 0], bool)}
    evaluator = ClassificationEvaluator(4)
    logits = jnp.pad(logits, ((0, 0), (0, 1)))
    rows = evaluator.by_class(evaluator.update(evaluator.empty(), {"logits": logits}, batch))
    assert rows == [
        {"examples": 1, "accuracy": 1.0},
        {"examples": 2, "accuracy": 0.5},
        {"examples": 1, "accuracy": 1.0},
        {"examples": 0},
    ]


def test_eight_devices_count_the_same():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(30, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 30).astype(np.int32)
    mask = np.ones(30, bool)
    evaluator = ClassificationEvaluator(CLASSES, {"genus": GENUS})
    one = run(evaluator, logits, labels, mask, 16)
    eight = run(evaluator, logits, labels, mask, 16, make_mesh(MeshOptions(data=8)))
    assert one.pop("loss") == pytest.approx(eight.pop("loss"), abs=1e-6)
    assert one == eight


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-2, 2), min_size=4, max_size=4), st.integers(0, 3))
def test_rank_breaks_ties_as_argmax_does(row, label):
    rank = int(label_rank(jnp.array([row], jnp.float32), jnp.array([label]))[0])
    assert rank == oracle_rank(row, label)
    assert (rank == 0) == (int(jnp.argmax(jnp.array(row))) == label)


def test_nan_logits_are_never_right():
    logits = jnp.array([[jnp.nan, 1.0, 0.0], [0.0, jnp.nan, 2.0], [jnp.nan] * 3])
    assert label_rank(logits, jnp.array([0, 2, 0])).tolist() == [2, 1, 2]


def test_a_broken_network_scores_nothing():
    figures = run(
        ClassificationEvaluator(CLASSES, {"genus": GENUS}),
        np.full((4, CLASSES), np.nan, np.float32),
        np.zeros(4, np.int32),
        np.ones(4, bool),
        4,
    )
    assert figures["accuracy"] == figures["genus_accuracy"] == 0


def test_no_top5_without_more_than_five_classes():
    figures = run(
        ClassificationEvaluator(3),
        np.eye(3, dtype=np.float32),
        np.arange(3, dtype=np.int32),
        np.ones(3, bool),
        3,
    )
    assert "top5_accuracy" not in figures
    assert figures["accuracy"] == 1.0


def test_wrong_shapes_and_empty_splits_are_told():
    evaluator = ClassificationEvaluator(3)
    batch = {"label": np.zeros(2, np.int32), "mask": np.ones(2, bool)}
    with pytest.raises(UserError, match=r"logits have shape \(2, 4\); expected 3 classes"):
        evaluator.update(evaluator.empty(), {"logits": jnp.zeros((2, 4))}, batch)
    with pytest.raises(UserError, match="no example was evaluated"):
        evaluator.finalise(evaluator.empty())
    with pytest.raises(UserError, match="'genus' has 2 entries; expected one for each of 3"):
        ClassificationEvaluator(3, {"genus": (0, 1)})
