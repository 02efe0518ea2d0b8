"""`fgkd compare`, and the files of predictions that it reads."""

import json

import numpy as np
import pytest

from fgkd_jax.cli.main import main
from fgkd_jax.cli.predictions import Predictions, read_predictions, write_predictions
from fgkd_jax.errors import UserError


def scored(predicted, k=4):
    return np.eye(k)[predicted] + np.linspace(0, 0.1, k)


def write(path, predicted, *, seen=(True, True, True, True), order=None, labels=None):
    labels = np.arange(len(predicted)) % 4 if labels is None else labels
    order = np.arange(len(predicted)) if order is None else order
    ids = 100 + np.arange(len(predicted))
    scores = predicted if np.ndim(predicted) == 2 else scored(predicted)
    write_predictions(
        str(path), Predictions(ids[order], labels[order], scores[order], np.array(seen))
    )
    return str(path)


@pytest.fixture
def labels():
    return np.arange(40) % 4


def compare(capsys, *arguments):
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_images_are_paired_by_id(labels, tmp_path, capsys):
    wrong = np.where(np.arange(40) < 10, (labels + 1) % 4, labels)
    one = write(tmp_path / "a.npz", labels)
    other = write(tmp_path / "b.npz", wrong, order=np.random.default_rng(0).permutation(40))
    found = compare(capsys, one, other)
    assert found["first"] == {"mean": 1.0, "lowest": 1.0, "highest": 1.0, "runs": 1}
    assert found["second"]["mean"] == 0.75
    assert found["difference"] == 0.25
    assert 0.1 < found["low"] < 0.2
    assert 0.3 < found["high"] < 0.5
    assert found["separated"]
    assert (found["images"], found["classes"]) == (40, 4)


def test_several_runs_and_classes(labels, tmp_path, capsys):
    uneven = np.sort(labels)[8:]  # two images of class 0, ten of each other
    zeros = np.where(uneven == 0, 1, uneven)
    one = write(tmp_path / "a.npz", uneven, labels=uneven)
    two = write(tmp_path / "b.npz", zeros, labels=uneven)
    found = compare(capsys, f"{one},{two}", two, "--figure", "mean_class_accuracy")
    assert found["first"] == {"mean": 0.875, "lowest": 0.75, "highest": 1.0, "runs": 2}
    assert found["difference"] == pytest.approx(0.125)
    # All images of a class change together: no resample differs.
    assert found["low"] == pytest.approx(0.125)
    assert found["high"] == pytest.approx(0.125)
    assert main(["compare", f"{one},{two}", two]) == 0
    text = capsys.readouterr().out
    assert "accuracy of 32 images of 4 classes" in text
    assert "difference +3.1%, 95% interval [" in text
    assert "10000 resamples" in text


def test_unseen_classes_among_themselves(labels, tmp_path, capsys):
    seen = (True, True, False, False)
    scores = scored(labels)
    scores[:, 0] = 9  # among all classes nothing but class 0 is right
    scores[labels == 3, 3] = -np.inf
    scores[[2, 4]] = np.nan  # of classes 2 and 0
    one = write(tmp_path / "a.npz", scores, seen=seen)
    other = write(tmp_path / "b.npz", np.zeros((40, 4)), seen=seen)
    found = compare(capsys, one, other, "--figure", "zero_shot_accuracy")
    assert (found["images"], found["classes"]) == (20, 2)
    assert found["first"]["mean"] == pytest.approx((9 / 10 + 0) / 2)
    assert found["second"]["mean"] == pytest.approx(0.5)
    # A row that holds a NaN is right about nothing, class 0 included.
    assert compare(capsys, one, other)["first"]["mean"] == pytest.approx(9 / 40)


def test_mistakes_are_told(labels, tmp_path, capsys):
    one = write(tmp_path / "a.npz", labels)
    other = write(tmp_path / "b.npz", labels[:39])
    relabelled = write(tmp_path / "c.npz", labels, labels=np.roll(labels, 1))
    (tmp_path / "d.npz").write_bytes(b"PK no")
    np.savez(tmp_path / "e.npz", ids=labels)
    np.save(tmp_path / "g.npy", labels)
    twice = Predictions(np.zeros(2, int), np.zeros(2, int), np.zeros((2, 2)), np.ones(2, bool))
    write_predictions(str(tmp_path / "f.npz"), twice)
    for arguments, message in (
        ([one], "fgkd compare was given 1 arguments; expected FIRST SECOND"),
        ([one, other], "b.npz has 39 images of 4 classes, not those of"),
        ([one, relabelled], "c.npz has 40 images of 4 classes, not those of"),
        ([str(tmp_path / "f.npz"), str(tmp_path / "f.npz")], "expected each image once"),
        ([one, str(tmp_path / "none.npz")], "none.npz cannot be read: No such file"),
        ([one, str(tmp_path / "d.npz")], "d.npz is not a file of predictions"),
        ([one, str(tmp_path / "g.npy")], "g.npy is not a file of predictions"),
        ([one, str(tmp_path / "e.npz")], "e.npz has no labels; expected a file of --predictions"),
        ([one, one, "--figure", "zero_shot_accuracy"], "has no image of an unseen class"),
        ([one, one, "--confidence", "2"], "confidence is 2.0"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_nothing_is_overwritten(labels, tmp_path):
    path = write(tmp_path / "a.npz", labels)
    before = read_predictions(path)
    with pytest.raises(UserError, match=r"a\.npz exists already; expected a new file"):
        write(tmp_path / "a.npz", labels[::-1])
    np.testing.assert_array_equal(read_predictions(path).scores, before.scores)
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write(tmp_path / "no" / "a.npz", labels)
