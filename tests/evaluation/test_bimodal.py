"""What a text is worth, and whether located blocks hold parts: counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.evaluation import EVALUATORS, BlockEvaluator, ClassificationEvaluator, holds_point
from fgkd_jax.evaluation.bimodal import cell_of


class Info:
    num_classes = 3
    groupings = {"genus": (0, 0, 1)}  # noqa: RUF012
    separating_parts = ()


def one_hot(classes):
    return jnp.eye(3)[jnp.asarray(classes)]


def make_batch(labels, mask=None, parts=None):
    n = len(labels)
    batch = {
        "image": jnp.zeros((n, 10, 20, 3), jnp.uint8),
        "label": jnp.asarray(labels, jnp.int32),
        "mask": jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
    }
    return batch if parts is None else {**batch, "parts": jnp.asarray(parts, jnp.float32)}


def evaluate(evaluator, predictions, batch):
    counts = jax.jit(evaluator.update)(evaluator.empty(), predictions, batch)
    return evaluator.finalise(counts)


def test_accuracies_with_each_text():
    evaluator = EVALUATORS["bimodal"](Info(), (), 1)
    predictions = {
        "logits": one_hot([0, 1, 2, 0]),
        "logits_without_text": one_hot([0, 0, 2, 0]),
        "logits_with_other_text": one_hot([1, 2, 1, 0]),
    }
    batch = make_batch([0, 1, 2, 0], mask=[True, True, True, False])
    figures = evaluate(evaluator, predictions, batch)
    assert set(figures) == set(evaluator.figures)
    assert figures["accuracy"] == 1.0
    assert figures["accuracy_without_text"] == pytest.approx(2 / 3)
    assert figures["accuracy_with_other_text"] == 0.0
    assert figures["examples"] == 3


def test_a_network_without_a_text_is_as_good_with_any():
    evaluator = EVALUATORS["bimodal"](Info(), (), 1)
    figures = evaluate(evaluator, {"logits": one_hot([0, 2])}, make_batch([0, 1]))
    assert figures["accuracy_without_text"] == figures["accuracy_with_other_text"] == 0.5
    assert "accuracy_without_text" not in EVALUATORS["block_classification"](Info(), (), 1).figures


def test_nan_without_a_text_is_not_right():
    evaluator = EVALUATORS["bimodal"](Info(), (), 1)
    broken = {"logits": one_hot([0]), "logits_without_text": jnp.full((1, 3), jnp.nan)}
    assert evaluate(evaluator, broken, make_batch([0]))["accuracy_without_text"] == 0.0


def test_which_boxes_hold_a_point():
    boxes = jnp.array([[[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0, 0, 0]]], jnp.float32)
    points = jnp.array([[[0.5, 0.1], [0.2, 0.2]]], jnp.float32)
    held = holds_point(boxes, points, jnp.array([[True, False]]))
    np.testing.assert_array_equal(held, [[False, True, False]])
    held = holds_point(boxes, points, jnp.array([[True, True]]))
    np.testing.assert_array_equal(held, [[True, True, False]])


def test_blocks_are_judged_by_the_parts_they_hold():
    """Two blocks: of the first image one holds a part, of the second none, the third is padding."""
    blocks = jnp.broadcast_to(jnp.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], jnp.float32), (3, 2, 4))
    located = jnp.stack([blocks[:, 0], blocks[:, 1], jnp.zeros((3, 4))], axis=1)
    parts = [[[15, 5, 1], [2, 2, 0]], [[2, 2, 0], [3, 3, 0]], [[15, 5, 1], [2, 2, 1]]]
    batch = make_batch([0, 1, 2], mask=[True, True, False], parts=parts)
    evaluator = EVALUATORS["block_classification"](Info(), ("parts",), 1)
    assert "block_gain" in evaluator.figures
    first = {"logits": one_hot([0, 1, 2]), "block_boxes": blocks, "located_box": located}
    # Three stages, the last without a block: one hit of the two located, where chance has one.
    assert evaluate(evaluator, first, batch)["block_gain"] == 1.0
    good = {**first, "located_box": located[:, 1:2]}
    assert evaluate(evaluator, good, batch)["block_gain"] == 2.0
    bad = {**first, "located_box": located[:, :1]}
    assert evaluate(evaluator, bad, batch)["block_gain"] == 0.0
    nothing = {**first, "located_box": located[:, 2:]}
    assert np.isnan(evaluate(evaluator, nothing, batch)["block_gain"])


def test_blocks_at_one_place_are_judged_by_what_is_there_in_other_images():
    """Four blocks, of 20 x 10 pixels; parts are left of the middle in all images but one."""
    corners = [[x, y, x + 0.5, y + 0.5] for y in (0, 0.5) for x in (0, 0.5)]
    boxes = jnp.broadcast_to(jnp.array(corners, jnp.float32), (5, 4, 4))
    parts = [[[2, 2, 1]], [[3, 3, 1]], [[2, 7, 1]], [[12, 8, 1]], [[2, 2, 1]]]
    batch = make_batch([0] * 5, mask=[True] * 4 + [False], parts=parts)
    evaluator = EVALUATORS["block_classification"](Info(), ("parts",), 1)

    def gains(located):
        chosen = jnp.take_along_axis(boxes, jnp.array(located)[:, None, None], axis=1)
        predictions = {"logits": one_hot([0] * 5), "block_boxes": boxes, "located_box": chosen}
        figures = evaluate(evaluator, predictions, batch)
        return figures["block_gain"], figures["place_gain"]

    # Always the first block: twice as good as chance, and no better than the place is.
    assert gains([0, 0, 0, 0, 0]) == (2.0, 1.0)
    # Where the part is: 4 hits, and places hold it in (2 * 2 + 1 + 1) / 4 of them.
    assert gains([0, 0, 2, 3, 0]) == (4.0, pytest.approx(4 / 1.5))
    # The same places in images in which they hold nothing: of 6 / 4 expected there is none.
    assert gains([2, 3, 0, 0, 3]) == (0.0, 0.0)
    assert np.isnan(gains([1, 1, 1, 1, 0])[1])


def test_blocks_have_cells_of_their_own():
    for columns in (1, 2, 7, 32):
        rows = columns // 2 + 1
        left, top = np.meshgrid(np.arange(columns) / columns, np.arange(rows) / rows)
        corners = [left, top, left + 1 / columns, top + 1 / rows]
        boxes = np.stack([c.reshape(-1) for c in corners], axis=-1).astype(np.float32)
        cells = np.asarray(cell_of(jnp.asarray(boxes[None])))[0]
        assert len(set(cells.tolist())) == len(cells)
        assert cells.min() >= 0
        assert cells.max() < 32 * 32
        assert (np.diff(cells) > 0).all()


def test_counts_do_not_depend_on_the_batches():
    rng = np.random.default_rng(0)
    evaluator = BlockEvaluator(ClassificationEvaluator(num_classes=3), True, True)
    batch = make_batch(rng.integers(0, 3, 8), parts=rng.uniform(0, 10, (8, 5, 3)))
    boxes = np.concatenate([rng.uniform(0, 0.3, (8, 4, 2)), np.ones((8, 4, 2))], -1)
    boxes = boxes.astype(np.float32)
    predictions = {
        "logits": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        "logits_without_text": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        "located_box": jnp.asarray(boxes[:, :2]),
        "block_boxes": jnp.asarray(boxes),
    }
    whole = evaluate(evaluator, predictions, batch)
    counts = evaluator.empty()
    for part in (slice(0, 3), slice(3, 8)):
        one, two = (jax.tree.map(lambda a, p=part: a[p], tree) for tree in (predictions, batch))
        counts = evaluator.update(counts, one, two)
    for name, value in evaluator.finalise(counts).items():
        assert value == pytest.approx(whole[name], rel=1e-5), name
