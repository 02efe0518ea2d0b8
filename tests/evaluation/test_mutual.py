"""Several networks: means of what each alone would be given, and their ensemble."""

import jax
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS, ClassificationEvaluator, MutualEvaluator

CLASSES = 6
GENUS = (0, 0, 1, 1, 2, 2)


def make(networks=2):
    return MutualEvaluator(ClassificationEvaluator(CLASSES, {"genus": GENUS}), networks)


def drawn(networks=2, size=20, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(networks, size, CLASSES)).astype(np.float32) * 3
    labels = rng.integers(0, CLASSES, size).astype(np.int32)
    return logits, labels, rng.random(size) < 0.7


def run(evaluator, logits, labels, mask, batch_size=8):
    counts, update = evaluator.empty(), jax.jit(evaluator.update)
    key = "network_logits" if logits.ndim == 3 else "logits"
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        batch = {"label": labels[part], "mask": mask[part]}
        counts = update(counts, {key: logits[..., part, :]}, batch)
    return evaluator.finalise(counts)


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_figures_are_means_of_those_of_single_networks(networks):
    logits, labels, mask = drawn(networks)
    figures = run(make(networks), logits, labels, mask)
    assert set(figures) == set(make(networks).figures)
    alone = [run(make().classification, one, labels, mask) for one in logits]
    for name in alone[0]:
        assert figures[name] == pytest.approx(np.mean([one[name] for one in alone]), rel=1e-6)
    for i, one in enumerate(alone):
        assert figures[f"network{i}_accuracy"] == one["accuracy"]
    p = np.exp(logits.astype(np.float64))
    p = (p / p.sum(-1, keepdims=True)).mean(0)
    assert figures["ensemble_accuracy"] == np.mean(p.argmax(1)[mask] == labels[mask])
    assert figures["examples"] == mask.sum()


def test_networks_that_disagree_are_not_mistaken_for_each_other():
    labels, mask = np.zeros(4, np.int32), np.ones(4, bool)
    right, wrong = np.eye(CLASSES, dtype=np.float32)[[0, 1]] * np.float32([[9], [1]])
    logits = np.stack([np.tile(right, (4, 1)), np.tile(wrong, (4, 1))])
    figures = run(make(), logits, labels, mask)
    assert (figures["network0_accuracy"], figures["network1_accuracy"]) == (1.0, 0.0)
    assert figures["accuracy"] == 0.5
    assert figures["ensemble_accuracy"] == 1.0  # the first is surer


def test_mistakes_are_told():
    with pytest.raises(UserError, match="networks is 0; expected at least 1"):
        make(0)
    logits, labels, mask = drawn(3)
    with pytest.raises(UserError, match=r"shape \(3, 8, 6\); expected 2 networks"):
        run(make(2), logits, labels, mask)


def test_the_task_is_known():
    info = type("Info", (), {"num_classes": CLASSES, "groupings": {"genus": GENUS}})
    assert EVALUATORS["mutual_classification"](info, (), 4) == make(4)
