"""Captions that cannot be read, as `fgkd data check` and `fgkd train` tell of them."""

import cv2
import numpy as np
import pytest

from fgkd_jax.cli.main import main
from fgkd_jax.data.captions import WHERE

CLASSES = ("heron", "wren")
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"name": "pma_text", "word_features": 2, "phrase_features": 2},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize",
                 "text": {"captions_dir": %r}},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "train": {"steps": 1, "batch_size": 8, "eval_batch_size": 8, "tensorboard": "off"},
        "checkpoint": {"every_steps": 1},
    })
"""


@pytest.fixture
def captioned(tmp_path):
    """Two classes of images with two captions each; the folder of their captions."""
    for name in CLASSES:
        for split, count in (("train", 2), ("validation", 1), ("test", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / "text_c10" / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = np.full((9, 9, 3), 40 * i, np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f"{split}{i}.png"), image)
                file = tmp_path / "text_c10" / name / f"{split}{i}.txt"
                file.write_text(f"a {name} with {split} feathers\na small {name}\n")
    (tmp_path / "config.py").write_text(CONFIG % (str(tmp_path), str(tmp_path)))
    return tmp_path / "text_c10"


def check(captioned, capsys, *, captions_dir=None):
    """What `fgkd data check` prints, and its exit status."""
    command = ["data", "check", "image_folder", "--data_dir", str(captioned.parent)]
    status = main([*command, "--captions_dir", str(captions_dir or captioned)])
    return capsys.readouterr().out.splitlines(), status


def refused(captioned, capsys):
    """The one line in which `fgkd train` refuses to start."""
    root = captioned.parent
    run = root / "run"
    assert main(["train", "--config", str(root / "config.py"), "--workdir", str(run)]) == 2
    assert not run.exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "captions" in line]) == 1, lines
    return lines[-1]


def test_sound_captions_are_counted(captioned, capsys):
    lines, status = check(captioned, capsys, captions_dir=captioned.parent)
    assert status == 0, lines
    told = dict(line.split("  ", 1) for line in lines)
    assert told["captions in"].strip() == str(captioned.parent)
    assert told["images with captions"].strip() == "8"
    assert told["captions of an image"].strip() == "2"
    assert told["words of training"].strip() == "5"  # feathers, heron, small, train, wren
    assert told["problems"].strip() == "none"
    file = captioned / "wren" / "test0.txt"
    file.write_text(file.read_text() + "a third one\n")
    lines, status = check(captioned, capsys)
    assert status == 0
    assert any(line.split("  ")[0] == "captions of an image" and "2 to 3" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; expected one sentence a line"),
        (b"\n \t\n", "is empty; expected one sentence a line"),
        (
            "a caf\u00e9-brown wren".encode("latin-1"),
            "byte 5 is 0xe9, which is not UTF-8; expected",
        ),
        ("a wren".encode("utf-16"), "byte 0 is 0xff, which is not UTF-8; expected captions in"),
    ],
)
def test_a_file_that_holds_no_captions_is_one_line(captioned, capsys, content, expected):
    file = captioned / "wren" / "train1.txt"
    file.write_bytes(content)
    lines, status = check(captioned, capsys)
    assert status == 1
    assert [line for line in lines if "- captions" in line] == lines[-1:]
    assert f"  - captions {file}: {expected}" in lines[-1]
    assert any(line.startswith("images with captions") and line.endswith(" 7") for line in lines)
    assert f"captions {file}: {expected}" in refused(captioned, capsys)


def test_a_class_without_captions_is_named_before_its_images(captioned, capsys):
    for file in (captioned / "wren").iterdir():
        file.unlink()
    (captioned / "wren").rmdir()
    lines, status = check(captioned, capsys)
    assert status == 1
    problems = [line for line in lines if line.startswith("  - ")]
    assert problems == [
        f"  - class 'wren': none of its 4 images has captions in {captioned}; {WHERE}"
    ]
    line = refused(captioned, capsys)
    assert line.endswith(f"class 'wren': none of its 4 images has captions in {captioned}; {WHERE}")


def test_captions_in_another_layout_are_one_problem(captioned, capsys):
    (captioned / "train").mkdir()
    for folder in CLASSES:
        (captioned / folder).rename(captioned / "train" / folder)
    lines, status = check(captioned, capsys)
    assert status == 1
    problems = [line for line in lines if line.startswith("  - ")]
    assert problems == [f"  - captions {captioned}: there are none; {WHERE}"]
    assert problems[0][4:] in refused(captioned, capsys)


def test_captions_without_a_phrase_are_told(captioned, capsys):
    for file in captioned.glob("*/*.txt"):
        file.write_text("and the of\n")
    lines, status = check(captioned, capsys)
    assert status == 1
    told = "the captions of train have no noun phrase, by data.text.chunker 'rules'; expected"
    assert lines[-1].startswith(f"  - {told} English sentences such as")
    count = sum(1 for _ in captioned.glob("*/*.txt"))
    assert any(line.split() == ["images", "without", "a", "phrase", str(count)] for line in lines)
    assert told in refused(captioned, capsys)


def test_a_missing_folder_is_one_line(captioned, capsys):
    lines, status = check(captioned, capsys, captions_dir=captioned.parent / "nowhere")
    assert status == 1
    assert "there is no folder of captions " in lines[-1]
    assert "nowhere; expected <captions_dir>/<class>/<image>.txt" in lines[-1]


def test_captions_of_a_data_set_that_cannot_be_opened_are_not_read(captioned, capsys):
    root = captioned.parent
    (root / "train").rename(root / "training")
    lines, status = check(captioned, capsys)
    assert status == 1
    assert f"  - captions in {captioned}: not read, for the data set is not" in lines
    assert len(lines) > 3


def test_a_data_set_that_is_drawn_has_no_folder_of_captions(captioned, capsys):
    status = main(["data", "build", "image_folder", "--captions_dir", str(captioned)])
    assert status == 2
    assert "--captions_dir is an option of fgkd data check; expected none with build" in (
        capsys.readouterr().err
    )
