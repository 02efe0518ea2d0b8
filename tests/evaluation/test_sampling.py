"""Where sampled pixels went, against a loop over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import ClassificationEvaluator, SamplingEvaluator, share_inside
from fgkd_jax.evaluation.sampling import PART_SIDE

HEIGHT, WIDTH, SIDE = 40, 30, 20
SEPARATING = ((0,), (0,), (1, 2))


def make(seed=0, size=8):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 12, (size, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 15, (size, 2))], 1).astype(np.float32)
    parts = rng.uniform(0, 28, (size, 3, 3)).astype(np.float32)
    parts[..., 2] = rng.random((size, 3)) < 0.7
    batch = {
        "image": np.zeros((size, HEIGHT, WIDTH, 3), np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
        "mask": np.arange(size) < size - 2,
        "bbox": boxes,
        "parts": parts,
    }
    rows = np.sort(rng.uniform(-0.5, HEIGHT - 0.5, (size, SIDE)), 1).astype(np.float32)
    columns = np.sort(rng.uniform(-0.5, WIDTH - 0.5, (size, SIDE)), 1).astype(np.float32)
    logits = rng.normal(size=(size, 3)).astype(np.float32)
    return batch, {"logits": logits, "sampled_rows": rows, "sampled_columns": columns}


def make_evaluator(**options):
    base = {"with_boxes": True, "separating_parts": SEPARATING}
    return SamplingEvaluator(ClassificationEvaluator(num_classes=3), **{**base, **options})


def run(evaluator, batch, predictions):
    return evaluator.finalise(jax.jit(evaluator.update)(evaluator.empty(), predictions, batch))


def shares(rows, columns, box):
    """Shares of the sampled pixels and of the image, pixel by pixel and by area."""
    x0, y0, x1, y1 = box
    inside = sum(
        x0 <= c + 0.5 < x1 and y0 <= r + 0.5 < y1 for r in rows.tolist() for c in columns.tolist()
    )
    wide, high = min(x1, WIDTH) - max(x0, 0), min(y1, HEIGHT) - max(y0, 0)
    return inside / (len(rows) * len(columns)), max(wide, 0) * max(high, 0) / (HEIGHT * WIDTH)


def oracle(batch, predictions):
    sums = {"box": np.zeros(2), "part": np.zeros(2)}
    for i in np.flatnonzero(batch["mask"]):
        rows, columns = predictions["sampled_rows"][i], predictions["sampled_columns"][i]
        x0, y0, x1, y1 = batch["bbox"][i].tolist()
        sums["box"] += shares(rows, columns, (x0, y0, x1, y1))
        half = PART_SIDE / 2 * max(x1 - x0, y1 - y0)
        for part in SEPARATING[batch["label"][i]]:
            x, y, visible = batch["parts"][i, part].tolist()
            if visible:
                sums["part"] += shares(rows, columns, (x - half, y - half, x + half, y + half))
    return {f"{name}_gain": ours / even for name, (ours, even) in sums.items()}


def test_gains_are_those_of_a_loop():
    batch, predictions = make()
    figures = run(make_evaluator(), batch, predictions)
    for name, value in oracle(batch, predictions).items():
        assert figures[name] == pytest.approx(value, rel=1e-5)
    plain = ClassificationEvaluator(num_classes=3)
    same = plain.finalise(jax.jit(plain.update)(plain.empty(), predictions, batch))
    assert {name: figures[name] for name in same} == same


def test_uniform_sampling_gains_nothing():
    batch, predictions = make(size=64)
    for name, extent in (("sampled_rows", HEIGHT), ("sampled_columns", WIDTH)):
        even = (np.arange(400, dtype=np.float32) + 0.5) / 400 * extent - 0.5
        predictions[name] = np.tile(even, (64, 1))
    figures = run(make_evaluator(), batch, predictions)
    assert figures["box_gain"] == pytest.approx(1.0, abs=0.02)
    assert figures["part_gain"] == pytest.approx(1.0, abs=0.02)


def test_batches_add_up():
    batch, predictions = make()
    evaluator = make_evaluator()
    counts = evaluator.empty()
    for start in (0, 4):
        rows = slice(start, start + 4)
        counts = jax.jit(evaluator.update)(
            counts,
            {name: value[rows] for name, value in predictions.items()},
            {name: value[rows] for name, value in batch.items()},
        )
    assert evaluator.finalise(counts) == pytest.approx(run(evaluator, batch, predictions))


def test_what_the_data_do_not_have_is_not_reported():
    batch, predictions = make()
    assert "part_gain" not in make_evaluator(separating_parts=()).figures
    bare = make_evaluator(with_boxes=False)
    assert bare.figures == ClassificationEvaluator(num_classes=3).figures
    without = {name: value for name, value in batch.items() if name not in ("bbox", "parts")}
    assert set(run(bare, without, predictions)) == set(bare.figures)
    with pytest.raises(UserError, match="separating_parts has 2 entries; expected one for each"):
        make_evaluator(separating_parts=((0,), (1,)))


def test_a_part_that_is_never_seen_has_no_gain():
    batch, predictions = make()
    batch["parts"][..., 2] = 0
    assert np.isnan(run(make_evaluator(), batch, predictions)["part_gain"])


def test_a_box_holds_its_first_edge_and_not_its_last():
    grid = jnp.asarray([[-0.5, 0.5, 1.5, 2.5]])
    assert share_inside(grid, grid, jnp.asarray([[0.0, 0.0, 1.0, 3.0]])).tolist() == [3 / 16]
