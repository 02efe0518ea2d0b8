"""Matrices of stages: which figure goes where, what is drawn and written."""

import json

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.matrices import CELL, SCALE, draw_matrix, matrices, write_matrices
from fgkd_jax.errors import UserError

FIGURES = {
    "loss": 1.0,
    "match/0.0-1.0": 0.3,
    "match/0.0-1.1": 0.4,
    "match/0.1-1.0": 0.5,
    "match/0.1-1.1": 0.7,
    "match/0.0-1.2": 0.45,
    "match/1.0-2.0": 0.6,
    "match/odd": 3.0,
    "network0_accuracy": 0.2,
}


def test_a_figure_goes_where_its_name_says():
    found = matrices(FIGURES)
    assert list(found) == [("match", 0, 1), ("match", 1, 2)]
    expected = [[0.3, 0.4, 0.45], [0.5, 0.7, np.nan]]
    np.testing.assert_array_equal(found["match", 0, 1], expected)
    np.testing.assert_array_equal(found["match", 1, 2], [[0.6]])
    assert matrices({"loss": 1.0}) == {}


def corners(picture, shape):
    """The colour of each cell near its corner, where no letter is."""
    white = (picture == 255).all(2)
    bottom = np.flatnonzero(~white.all(1))[-1] + 3
    # The last column of cells ends where the lowest rows of pixels do.
    right = np.flatnonzero(~white[bottom - 8])[-1] + 3
    return [
        [picture[bottom - CELL * (shape[0] - k) + 4, right - CELL * (shape[1] - z) + 4].tolist()
         for z in range(shape[1])]
        for k in range(shape[0])
    ]  # fmt: skip


def test_cells_have_the_colours_of_their_values():
    values = np.array([[0.3, 0.6], [0.45, np.nan]])
    picture = draw_matrix(values, title="a", rows="b", columns="c", limits=(0.3, 0.6))
    assert picture.dtype == np.uint8
    found = corners(picture, values.shape)
    assert found[0] == [SCALE[0].tolist(), SCALE[-1].tolist()]
    assert found[1] == [[62, 145, 135], [200, 200, 200]]
    flat = draw_matrix(np.ones((1, 2)), title="", rows="", columns="", limits=(1.0, 1.0))
    assert corners(flat, (1, 2)) == [[[62, 145, 135]] * 2]


def test_a_long_name_fits_into_the_picture():
    long = draw_matrix(np.ones((1, 1)), title="x" * 60, rows="", columns="", limits=(0, 1))
    assert (long[:, -20:] == 255).all()


def write(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_last_training_line_is_drawn(tmp_path):
    early = {"step": 1, "split": "train", **FIGURES, "match/0.0-1.0": 0.9}
    late = {"step": 2, "split": "train", **FIGURES}
    write(tmp_path, early, late, {"step": 2, "split": "test", "accuracy": 1.0})
    written = write_matrices(str(tmp_path), networks=("narrow", "wide"))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "pictures/match.0-1.png",
        "pictures/match.1-2.png",
    ]
    read = cv2.cvtColor(cv2.imread(str(written[0])), cv2.COLOR_BGR2RGB)
    expected = draw_matrix(
        matrices(FIGURES)["match", 0, 1],
        title="match, step 2",
        rows="network 0, narrow",
        columns="network 1, wide",
        limits=(0.3, 0.7),
    )
    np.testing.assert_array_equal(read, expected)


def test_nothing_is_written_where_there_is_no_matrix(tmp_path):
    assert write_matrices(str(tmp_path)) == []
    write(tmp_path, {"step": 1, "split": "train", "loss": 1.0})
    assert write_matrices(str(tmp_path)) == []
    assert not (tmp_path / "pictures").exists()
    write(tmp_path, {"step": 1, "split": "train", **FIGURES})
    (tmp_path / "pictures").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_matrices(str(tmp_path))
