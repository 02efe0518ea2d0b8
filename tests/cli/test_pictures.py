"""Pictures of what was looked at: where the lines are, what is written."""

import cv2
import numpy as np
import pytest

from fgkd_jax.cli import pictures
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import FoundBoxes

IMAGE = np.full((64, 48, 3), 100, np.uint8)


def test_lines_are_drawn_where_rows_and_columns_are_sampled():
    # 64 x 48 is shown eleven times as large: pixel i covers 11 i to 11 i + 10.
    picture = pictures.sampling_grid(IMAGE, np.array([0.0, 10.0]), np.array([47.0]))
    assert picture.shape == (704, 528, 3)
    yellow = (picture == pictures.YELLOW).all(2)
    assert np.flatnonzero(yellow.all(1)).tolist() == [5, 115]
    assert np.flatnonzero(yellow.all(0)).tolist() == [522]


def test_not_more_lines_than_can_be_told_apart():
    rows = np.linspace(0, 63, 224)
    yellow = (pictures.sampling_grid(IMAGE, rows, rows[:1]) == pictures.YELLOW).all(2)
    assert 2 < yellow.all(1).sum() <= pictures.LINES


def test_attention_is_bright_where_it_is_large():
    attention = np.zeros((4, 4))
    attention[0, 3] = 5.0
    picture = pictures.attention_overlay(IMAGE, attention).astype(int).sum(2)
    assert picture[5, -5] > picture[5, 5] + 150
    assert picture[5, -5] > picture[-5, -5] + 150
    flat = pictures.attention_overlay(IMAGE, np.zeros((4, 4)))
    assert np.unique(flat.reshape(-1, 3), axis=0).shape == (1, 3)


def test_pictures_are_written_in_the_right_colours(tmp_path):
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    written = pictures.write(tmp_path / "new", "bird", {"structure": red})
    assert [path.name for path in written] == ["bird.structure.png"]
    read = cv2.cvtColor(cv2.imread(str(written[0])), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, red)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"picture .*file/bird.structure.png cannot be written"):
        pictures.write(tmp_path / "file", "bird", {"structure": red})


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 48), (704, 528)),
        ((1, 1), (512, 512)),
        ((600, 700), (600, 700)),
        ((30, 1000), (120, 4000)),
        ((1000, 30), (4000, 120)),
        ((1, 10_000), (1, 10_000)),
        ((30, 10_000), (30, 10_000)),
    ],
)
def test_long_images_are_enlarged_no_further_than_can_be_written(tmp_path, size, shown):
    image = np.full((*size, 3), 100, np.uint8)
    found = FoundBoxes(
        np.array([[0, 0, size[1], size[0]]], np.float32), np.array([0.9]), np.array([0])
    )
    for picture in (
        pictures.framed_objects(image, found, names=("bird",)),
        pictures.attention_overlay(image, np.ones((2, 2))),
    ):
        assert picture.shape == (*shown, 3)
        (path,) = pictures.write(tmp_path, "long", {"detections": picture})
        assert cv2.imread(str(path)).shape == picture.shape


def test_what_is_too_long_for_a_file_is_told(tmp_path):
    wide = np.zeros((1, 1_000_001, 3), np.uint8)
    match = r"wide.png of 1000001 x 1 pixels cannot be written as PNG"
    with pytest.raises(UserError, match=match):
        pictures.write_file(tmp_path / "new" / "wide.png", wide)
    with pytest.raises(UserError, match=r"none.png of 0 x 5 pixels cannot be written as PNG"):
        pictures.write_file(tmp_path / "new" / "none.png", np.zeros((5, 0, 3), np.uint8))
    assert not (tmp_path / "new").exists()


def test_images_of_one_name_do_not_replace_each_other():
    names = pictures.unique_names(["a/x.jpg", "b/x.jpg", "x-2.png", "y.png"])
    assert names == ["x", "x-2", "x-2-2", "y"]


def test_sampled_images_are_shown_as_they_are():
    explained = {
        "attention": np.ones((3, 3)),
        "structure": np.full((4, 4, 3), 99.6, np.float32),
        "detail": np.full((4, 4, 3), 300.0, np.float32),
        "sampled_rows": np.array([1.0]),
        "sampled_columns": np.array([1.0]),
    }
    drawn = pictures.draw(IMAGE, explained)
    assert set(drawn) == {"attention", "grid", "structure", "detail"}
    assert (drawn["structure"] == 100).all()
    assert (drawn["detail"] == 255).all()


def test_located_blocks_are_framed_and_the_rest_is_dark():
    boxes = np.array([[0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    picture = pictures.draw(IMAGE, {"located_box": boxes})["blocks"]
    assert picture.shape == (704, 528, 3)
    # Inside the first and the second, and outside of both.
    assert [picture[y, x].tolist() for y, x in ((150, 200), (600, 500), (600, 100))] == [
        [100] * 3,
        [100] * 3,
        [50] * 3,
    ]
    yellow = (picture == pictures.YELLOW).all(2)
    assert yellow[:176, 0].all()
    assert yellow[352:, 527].all()
    assert not yellow[300:340].any()
    nothing = pictures.located_blocks(IMAGE, boxes[2:])
    assert (nothing == 50).all()


def test_phrases_are_written_beside_the_blocks_of_their_stages():
    boxes = np.array([[0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0]])
    phrases = ({"red bird": 0.25, "black wings": 0.75}, {"red bird": 1.0, "black wings": 0.0})
    alone = pictures.draw(IMAGE, {"located_box": boxes})["blocks"]
    both = pictures.draw(IMAGE, {"located_box": boxes}, phrases)["blocks"]
    np.testing.assert_array_equal(both[:, : alone.shape[1]], alone)
    panel = both[:, alone.shape[1] :]
    assert panel.shape[0] == alone.shape[0]
    lit = panel.max(axis=(1, 2)) > 100
    written = [bool(lit[20 * row - 10 : 20 * row].any()) for row in range(1, 9)]
    # A heading and two phrases, an empty line, a heading and the one phrase that has a weight.
    assert written == [True, True, True, False, True, True, False, False]
    yellow = (panel == pictures.YELLOW).all(2).any(1)
    assert yellow[:20].any()
    assert not yellow[20:80].any()
    # The larger weight comes first, in whatever order they are given.
    swapped = ({"black wings": 0.75, "red bird": 0.25}, phrases[1])
    same = pictures.draw(IMAGE, {"located_box": boxes}, swapped)["blocks"]
    np.testing.assert_array_equal(both, same)
    nothing = pictures.beside_phrases(alone[:8], ({"a bird": 0.0},) * 3)
    assert nothing.shape[0] > 8
    assert pictures.beside_phrases(alone, ()).shape[0] == alone.shape[0]
