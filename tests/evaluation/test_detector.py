"""The evaluator of detectors: exact whatever the batches, in pixels of the original images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import (
    DetectionEvaluator,
    FoundBoxes,
    TrueBoxes,
    background_false_positives,
    coco_annotations,
    coco_detections,
    mean_precision,
    voc_precision,
)
from fgkd_jax.evaluation import detector as module
from fgkd_jax.protocols import CollectingEvaluator

NAMES = ("a", "b", "c")


def make_images(count=7, seed=0):
    """Objects and detections of images, in original pixels; some are found, some only nearly."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        n = int(rng.integers(0, 4))
        corner = rng.uniform(0, 30, (n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (n, 2))], axis=1)
        labels = rng.integers(0, len(NAMES), n)
        truth = TrueBoxes(boxes, labels, rng.random(n) < 0.2)
        moved = boxes + rng.normal(0, 1.5, (n, 4))
        extra = rng.uniform(0, 20, (2, 2))
        found = FoundBoxes(
            np.concatenate([moved, np.concatenate([extra, extra + 15], axis=1)]),
            rng.random(n + 2).astype(np.float32),
            np.append(labels, rng.integers(0, len(NAMES), 2)),
        )
        images.append((10 + i, (height, width), found, truth))
    return images


def make_batches(images, *, size, rows=8):
    """Batches of predictions and truth in pixels of resized images, the last one filled up."""
    batches = []
    for start in range(0, len(images), size):
        batch = {
            "id": np.full(size, -1, np.int32), "mask": np.zeros(size, bool),
            "valid_size": np.zeros((size, 2), np.int32),
            "original_size": np.zeros((size, 2), np.int32),
            "boxes": np.zeros((size, rows, 4), np.float32),
            "box_labels": np.zeros((size, rows), np.int32),
            "box_mask": np.zeros((size, rows), bool), "box_ignored": np.zeros((size, rows), bool),
        }  # fmt: skip
        predictions = {
            "boxes": np.zeros((size, rows, 4), np.float32),
            "scores": np.zeros((size, rows), np.float32),
            "labels": np.zeros((size, rows), np.int32), "valid": np.zeros((size, rows), bool),
        }  # fmt: skip
        for row, (number, original, found, truth) in enumerate(images[start : start + size]):
            valid = (original[0] // 2, original[1] // 3)
            scale = np.array([valid[1] / original[1], valid[0] / original[0]] * 2)
            g, n = len(truth.labels), len(found.labels)
            batch["id"][row], batch["mask"][row] = number, True
            batch["valid_size"][row], batch["original_size"][row] = valid, original
            batch["boxes"][row, :g] = truth.boxes * scale
            batch["box_labels"][row, :g] = truth.labels
            batch["box_mask"][row, :g], batch["box_ignored"][row, :g] = True, truth.ignored
            predictions["boxes"][row, :n] = found.boxes * scale
            predictions["scores"][row, :n] = found.scores
            predictions["labels"][row, :n] = found.labels
            predictions["valid"][row, :n] = True
        batches.append((predictions, batch))
    return batches


def count(evaluator, batches):
    update = jax.jit(evaluator.update)
    as_arrays = [jax.tree.map(jnp.asarray, one) for one in batches]
    return evaluator.collect(jax.device_get([update(evaluator.empty(), *one) for one in as_arrays]))


@pytest.fixture
def evaluator():
    return DetectionEvaluator(class_names=NAMES, confidence=0.5)


def test_boxes_are_in_pixels_of_the_original_images(evaluator):
    images = make_images()
    counts = count(evaluator, make_batches(images, size=3))
    assert isinstance(evaluator, CollectingEvaluator)
    assert counts.ids.tolist() == [one[0] for one in images]
    assert counts.sizes.tolist() == [list(one[1]) for one in images]
    for (_, _, found, truth), got, there in zip(images, counts.found, counts.truth, strict=True):
        for ours, expected in ((got, found), (there, truth)):
            np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=1e-5, atol=1e-4)
            for one, other in zip(ours[1:], expected[1:], strict=True):
                np.testing.assert_array_equal(one, other)


def test_figures_are_those_of_the_functions_whatever_the_batches(evaluator, monkeypatch):
    monkeypatch.setattr(module, "coco_is_installed", lambda: False)
    images = make_images(count=9)
    found, truth = [one[2] for one in images], [one[3] for one in images]
    sure = [FoundBoxes(*(x[one.scores >= 0.5] for x in one)) for one in found]
    area = mean_precision(voc_precision(found, truth, num_classes=3))
    points = mean_precision(voc_precision(found, truth, num_classes=3, eleven_points=True))
    expected = {
        "voc_AP50": area,
        "voc07_AP50": points,
        "background_false_positives": background_false_positives(sure, truth, num_classes=3),
        "examples": 9,
    }
    assert 0 < area < 1
    assert area != points
    assert 0 < expected["background_false_positives"] < 1
    turned = [images[i] for i in (4, 0, 8, 2, 6, 1, 3, 7, 5)]
    for order, size in ((images, 4), (images, 9), (turned, 2)):
        counts = count(evaluator, make_batches(order, size=size))
        assert counts.ids.tolist() == sorted(one[0] for one in images)
        figures = evaluator.finalise(counts)
        assert figures == pytest.approx(expected, rel=1e-6)
        assert set(figures) < set(evaluator.figures)


def test_the_figures_of_classes_have_those_of_all_as_their_mean(evaluator):
    pytest.importorskip("pycocotools", reason="the extra `detection` is not installed")
    counts = count(evaluator, make_batches(make_images(count=9), size=4))
    rows, figures = evaluator.by_class(counts), evaluator.finalise(counts)
    assert len(rows) == len(NAMES)
    assert sum(row["objects"] for row in rows) == sum((~t.ignored).sum() for t in counts.truth)
    for name in ("AP", "AP50", "voc_AP50"):
        values = [row[name] for row in rows]
        assert len(set(values)) > 1
        assert figures[name] == pytest.approx(np.mean(values))


def test_a_class_without_objects_has_no_figures(evaluator):
    images = [one for one in make_images() if not (one[3].labels == 1).any()]
    rows = evaluator.by_class(count(evaluator, make_batches(images, size=4)))
    assert rows[1] == {"objects": 0}
    assert "voc_AP50" in rows[0]


def test_without_the_tool_a_line_says_what_to_install(evaluator, monkeypatch, caplog):
    monkeypatch.setattr(module, "coco_is_installed", lambda: False)
    said = []
    monkeypatch.setattr(
        module.logging, "log_first_n", lambda level, text, n: said.append((text, n))
    )
    evaluator.finalise(count(evaluator, make_batches(make_images(), size=4)))
    assert said == [("COCO's figures are left out: they need pip install 'fgkd-jax[detection]'", 1)]


def test_the_objects_of_a_split_in_the_layout_of_coco(evaluator):
    counts = count(evaluator, make_batches(make_images(), size=4))
    content = coco_annotations(counts, class_names=NAMES)
    assert [one["id"] for one in content["categories"]] == [0, 1, 2]
    assert [one["id"] for one in content["images"]] == counts.ids.tolist()
    ids = [one["id"] for one in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))  # 0 would be none
    assert len(ids) == sum(len(one.labels) for one in counts.truth)
    crowds = sum(one["iscrowd"] for one in content["annotations"])
    assert crowds == sum(int(one.ignored.sum()) for one in counts.truth) > 0
    first = content["annotations"][0]
    assert first["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3])
    found = coco_detections(counts, category_ids=(5, 6, 9))
    assert {one["category_id"] for one in found} == {5, 6, 9}
    assert len(found) == sum(len(one.labels) for one in counts.found)


def test_perfect_detections_have_every_figure_at_its_best(evaluator):
    pytest.importorskip("pycocotools")
    images = [
        (i, size, FoundBoxes(there.boxes, np.ones(len(there.labels), np.float32), there.labels),
         there) for i, size, _, there in make_images(count=12)
    ]  # fmt: skip
    figures = evaluator.finalise(count(evaluator, make_batches(images, size=4)))
    assert figures["AP"] == pytest.approx(1.0)
    assert figures["AP50"] == figures["voc_AP50"] == pytest.approx(1.0)
    assert "background_false_positives" not in figures  # nothing is wrong
    assert "AP_large" not in figures  # there are none


def test_nothing_to_evaluate_is_told(evaluator):
    with pytest.raises(UserError, match="no example was evaluated"):
        evaluator.collect([])
