"""COCO's figures through its own tool, against an average precision written down in NumPy."""

import json
import sys

import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import FoundBoxes, coco_precision, to_coco
from fgkd_jax.evaluation.coco import FIGURES
from fgkd_jax.evaluation.detection import overlaps


@pytest.fixture
def tool():
    pytest.importorskip("pycocotools", reason="the extra `detection` is not installed")


def world(seed=0, images=6):
    """Annotations and detections that are near them, among others that are not."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(images):
        for _ in range(rng.integers(1, 5)):
            corner, side = rng.uniform(0, 200, 2), rng.uniform(40, 90, 2)
            box = [float(x) for x in (*corner, *side)]
            category = int(rng.integers(1, 3)) * 10
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
            for shift in rng.choice([0.0, 5.0, 15.0, 60.0], 2, replace=False):
                found.append(
                    {
                        "image_id": image,
                        "category_id": category,
                        "bbox": [box[0] + float(shift), *box[1:]],
                        "score": float(rng.uniform()),
                    }
                )
    annotations = {
        "images": [{"id": image, "width": 300, "height": 300} for image in range(images)],
        "annotations": objects,
        "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
    }
    return annotations, found


def corners(row):
    x, y, width, height = row["bbox"]
    return [x, y, x + width, y + height]


def average_precision(annotations, found, category, threshold):
    """Each detection, the surest first, takes the free object it overlaps most."""
    objects = [one for one in annotations["annotations"] if one["category_id"] == category]
    free = {one["id"] for one in objects}
    right = []
    dets = [one for one in found if one["category_id"] == category]
    for det in sorted(dets, key=lambda one: -one["score"]):
        rivals = [o for o in objects if o["image_id"] == det["image_id"] and o["id"] in free]
        ious = [overlaps(np.array([corners(det)]), np.array([corners(o)]))[0, 0] for o in rivals]
        hit = bool(ious) and max(ious) >= threshold
        if hit:
            free.discard(rivals[int(np.argmax(ious))]["id"])
        right.append(hit)
    hits = np.cumsum(right)
    recall, precision = hits / len(objects), hits / np.arange(1, len(hits) + 1)
    at = np.linspace(0, 1, 101)
    return np.mean([precision[recall >= point].max(initial=0.0) for point in at])


def test_the_figures_are_those_written_down(tool):
    annotations, found = world()
    result = coco_precision(annotations, found)
    assert tuple(result.figures) == FIGURES
    thresholds = np.linspace(0.5, 0.95, 10)
    expected = np.array(
        [[average_precision(annotations, found, c, t) for c in (10, 20)] for t in thresholds]
    )
    np.testing.assert_allclose(result.figures["AP50"], expected[0].mean(), atol=1e-9)
    np.testing.assert_allclose(result.figures["AP75"], expected[5].mean(), atol=1e-9)
    np.testing.assert_allclose(result.figures["AP"], expected.mean(), atol=1e-9)
    assert 0.1 < result.figures["AP"] < 0.9
    assert result.figures["AP_small"] == -1.0
    assert result.precision.shape == (10, 101, 2, 4, 3)
    assert result.recall.shape == (10, 2, 4, 3)


def test_the_expected_figures_of_the_reference(tool, shared):
    folder = shared / "golden" / "detection"
    if not (folder / "coco_eval_expected.npz").is_file():
        pytest.skip(
            "needs the shared data golden/detection/coco_eval_expected.npz, which this copy lacks"
        )
    expected = np.load(folder / "coco_eval_expected.npz")
    result = coco_precision(
        json.loads((folder / "coco_gt.json").read_text()),
        json.loads((folder / "coco_dets.json").read_text()),
    )
    np.testing.assert_allclose(list(result.figures.values()), expected["stats"], atol=1e-5)
    np.testing.assert_allclose(result.precision, expected["precision"], atol=1e-5)
    np.testing.assert_allclose(result.recall, expected["recall"], atol=1e-5)


def test_nothing_found_is_zero_and_nothing_is_printed_or_changed(tool, capsys):
    annotations, _ = world()
    before = json.dumps(annotations)
    result = coco_precision(annotations, [])
    assert result.figures["AP"] == result.figures["AR_100"] == 0.0
    assert json.dumps(annotations) == before
    assert capsys.readouterr().out == ""


def test_real_annotations_found_exactly(tool, shared):
    path = shared / "data" / "coco128" / "instances_val2017.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    annotations = json.loads(path.read_text())
    found = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for one in annotations["annotations"]
    ]
    assert coco_precision(annotations, found).figures["AP"] > 0.99


def test_results_in_coco_s_layout():
    found = FoundBoxes(
        np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([1])
    )
    rows = to_coco(found, image_id=7, category_ids=(3, 9))
    assert json.loads(json.dumps(rows)) == [
        {"image_id": 7, "category_id": 9, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]
    with pytest.raises(UserError, match="image 7: labels from 1 to 1"):
        to_coco(found, image_id=7, category_ids=(3,))


def test_mistakes_are_told(tool):
    annotations, found = world()
    for change, message in (
        ({"image_id": 99}, "detection 0 has image_id 99"),
        ({"category_id": 3}, "detection 0 has category_id 3"),
    ):
        with pytest.raises(UserError, match=message):
            coco_precision(annotations, [found[0] | change])
    with pytest.raises(UserError, match="have no 'images'"):
        coco_precision({}, [])


def test_a_missing_tool_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"pip install 'fgkd-jax\[detection\]'"):
        coco_precision({}, [])
