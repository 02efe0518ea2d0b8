"""Average precision of the reference, by hand, and what counts as background."""

import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import FoundBoxes, TrueBoxes, mean_precision, voc_precision
from fgkd_jax.evaluation.detection import background_false_positives


def found_of(*rows):
    """Rows of (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return FoundBoxes(table[:, :4], table[:, 4], table[:, 5].astype(int))


def truth_of(*rows):
    """Rows of (x1, y1, x2, y2, label, ignored)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return TrueBoxes(table[:, :4], table[:, 4].astype(int), table[:, 5] > 0)


def images_of(golden):
    found, truth = [], []
    for image in range(int(golden["num_images"])):
        dets = [golden[f"det_i{image}_c{c}"] for c in range(int(golden["num_classes"]))]
        labels = np.repeat(np.arange(len(dets)), [len(d) for d in dets])
        table = np.concatenate(dets)
        found.append(FoundBoxes(table[:, :4], table[:, 4], labels))
        boxes = np.concatenate([golden[f"gt_i{image}"], golden[f"gtign_i{image}"]])
        labels = np.concatenate([golden[f"lab_i{image}"], golden[f"labign_i{image}"]])
        ignored = np.arange(len(boxes)) >= len(golden[f"gt_i{image}"])
        truth.append(TrueBoxes(boxes, labels, ignored))
    return found, truth


@pytest.mark.parametrize(("mode", "eleven"), [("voc07", True), ("area", False)])
def test_the_reference_measures_the_same(shared, mode, eleven):
    golden = np.load(shared / "golden" / "detection" / "voc_eval.npz")
    classes = voc_precision(
        *images_of(golden), num_classes=int(golden["num_classes"]), eleven_points=eleven
    )
    np.testing.assert_allclose(mean_precision(classes), golden[f"{mode}_map"], rtol=1e-6)
    for label, one in enumerate(classes):
        np.testing.assert_allclose(one.average_precision, golden[f"{mode}_ap"][label], rtol=1e-6)
        assert one.objects == golden[f"{mode}_num_gts"][label]
        for name, values in (("recall", one.recall), ("precision", one.precision)):
            np.testing.assert_allclose(values, golden[f"{mode}_{name}_c{label}"], rtol=1e-6)


BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


def test_by_hand():
    # Right, a duplicate of it, right: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    found = [found_of((*BOX, 0.9, 0), (*BOX, 0.8, 0), (*FAR, 0.7, 0))]
    truth = [truth_of((*BOX, 0, 0), (*FAR, 0, 0), (20, 20, 30, 30, 0, 0))]
    [one] = voc_precision(found, truth, num_classes=1)
    np.testing.assert_allclose(one.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(one.recall, [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(one.average_precision, 1 / 3 + 2 / 9)
    [one] = voc_precision(found, truth, num_classes=1, eleven_points=True)
    np.testing.assert_allclose(one.average_precision, (4 * 1 + 3 * 2 / 3) / 11)


def test_ignored_objects_are_neither_right_nor_wrong():
    found = [found_of((*BOX, 0.9, 0), (*BOX, 0.8, 0), (*FAR, 0.7, 0))]
    truth = [truth_of((*BOX, 0, 1), (*FAR, 0, 0))]
    [one] = voc_precision(found, truth, num_classes=1)
    assert one.objects == 1
    np.testing.assert_array_equal(one.recall, [0, 0, 1])
    np.testing.assert_array_equal(one.precision, [0, 0, 1])


def test_classes_do_not_mix_and_empty_ones_do_not_count():
    found = [found_of((*BOX, 0.9, 1)), found_of()]
    truth = [truth_of((*BOX, 0, 0)), truth_of((*BOX, 1, 0))]
    classes = voc_precision(found, truth, num_classes=3)
    assert [one.average_precision for one in classes] == [0.0, 0.0, 0.0]
    assert [one.objects for one in classes] == [1, 1, 0]
    assert mean_precision(classes) == 0.0
    assert mean_precision(classes[2:]) == 0.0
    right = voc_precision([found_of((*BOX, 0.9, 1))], truth[1:], num_classes=3)
    assert mean_precision(right) == 1.0


def test_false_positives_on_background():
    found = [
        found_of(
            (*BOX, 0.9, 0),  # right
            (*BOX, 0.8, 0),  # a duplicate
            (5, 0, 15, 10, 0.7, 1),  # of another class
            (*FAR, 0.6, 0),  # background
        )
    ]
    share = background_false_positives(found, [truth_of((*BOX, 0, 0))], num_classes=2)
    np.testing.assert_allclose(share, 1 / 3)
    assert background_false_positives(found, [truth_of()], num_classes=2) == 1.0


def test_without_false_positives_there_is_no_share_of_them():
    for found in (found_of(), found_of((*BOX, 0.9, 0))):
        assert background_false_positives([found], [truth_of((*BOX, 0, 0))], num_classes=2) is None


CROWD = (0, 0, 200, 200)


def test_what_lies_in_a_crowd_is_no_false_positive():
    """Though it overlaps the whole crowd by little, and whatever its class."""
    crowd = truth_of((*CROWD, 0, 1))
    inside, beside = (20, 20, 60, 60), (300, 0, 310, 10)
    for label in (0, 1):
        found = found_of((*inside, 0.9, label))
        assert background_false_positives([found], [crowd], num_classes=2) is None
        found = found_of((*inside, 0.9, label), (*beside, 0.8, label))
        assert background_false_positives([found], [crowd], num_classes=2) == 1.0
    # A crowd that has to be found is an object like any other.
    found = found_of((*inside, 0.9, 0))
    assert background_false_positives([found], [truth_of((*CROWD, 0, 0))], num_classes=2) == 1.0


@pytest.mark.parametrize(
    ("inside", "share"),
    # Of ten columns so many lie in the crowd; beside it there is one more, on background.
    [(0, 1.0), (0.5, 1.0), (1, 1 / 2), (4.5, 1 / 2), (5, 1.0), (10, 1.0)],
)
def test_a_detection_across_the_border_of_a_crowd(inside, share):
    left = CROWD[2] - inside
    found = found_of((left, 0, left + 10, 10, 0.9, 0), (400, 0, 410, 10, 0.8, 0))
    result = background_false_positives([found], [truth_of((*CROWD, 0, 1))], num_classes=1)
    np.testing.assert_allclose(result, share)


def test_boxes_without_area_are_in_no_crowd():
    found = found_of((20, 20, 20, 60, 0.9, 0))
    assert background_false_positives([found], [truth_of((*CROWD, 0, 1))], num_classes=1) == 1.0


def test_mistakes_are_told():
    for arguments, message in (
        (([found_of()], []), "detections of 1 images, objects of 0"),
        (([found_of((*BOX, 1, 2))], [truth_of()]), "labels from 2 to 2"),
        (([found_of()], [truth_of((*BOX, -1, 0))]), "labels from -1 to -1"),
        (([found_of()._replace(scores=np.zeros(2))], [truth_of()]), "image 0: detections"),
    ):
        with pytest.raises(UserError, match=message):
            voc_precision(*arguments, num_classes=2)
