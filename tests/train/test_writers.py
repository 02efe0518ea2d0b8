"""The file of metrics through kills and full disks, the line of progress, the table."""

import importlib.util
import io
import json
import math
import os
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.train.writers import MetricsWriter, Progress, summary_table


def write(workdir, steps, *, resume_step=0, **metrics) -> None:
    with MetricsWriter(workdir, resume_step=resume_step, tensorboard=False) as writer:
        for step in steps:
            writer.write(step, metrics or {"loss": step / 7}, split="train")


def read(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run", resume_step=0, tensorboard=False) as writer:
        writer.write(10, {"loss": 0.25, "note": "x"}, split="train")
        assert read(tmp_path / "new" / "run") == [
            {"step": 10, "split": "train", "loss": 0.25, "note": "x"}
        ]
        writer.write(10, {"accuracy": 1.0}, split="validation")
        assert len(read(tmp_path / "new" / "run")) == 2
    writer.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.1),
        (1 / 3, 1 / 3),
        (5e-324, 5e-324),
        (np.float32(0.1), float(np.float32(0.1))),
        (jnp.float32(1e-8), float(np.float32(1e-8))),
        (jnp.bfloat16(0.1), float(jnp.bfloat16(0.1))),
        (jnp.int32(3), 3),
        (np.bool_(True), True),
        (2**60, 2**60),
        (None, None),
        (np.arange(3), [0, 1, 2]),
        ((0.5, jnp.inf), [0.5, "inf"]),
        (math.nan, "nan"),
        (np.float32(-np.inf), "-inf"),
        (jnp.asarray([1.0, jnp.nan]), [1.0, "nan"]),
    ],
)
def test_values_read_back_exactly_and_always_as_json(tmp_path, value, expected):
    write(tmp_path, [1], value=value)
    line = (tmp_path / "metrics.jsonl").read_text()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["value"] == expected
    assert type(found["value"]) is type(expected)


@pytest.mark.parametrize("tail", [b"", b'{"step": 6, "spl', b"\n", b"\x00\x00\x00", b'{"step": 3}'])
def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path, tail):
    write(tmp_path, [1, 2, 3, 4, 5])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    write(tmp_path, [4, 5], resume_step=3, again=True)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in read(tmp_path) if "again" in line] == [4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_are_dropped_by_one_replacement(tmp_path, monkeypatch):
    write(tmp_path, [1, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fgkd_jax.train.writers.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, [], resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    write(tmp_path, [], resume_step=1)
    assert [line["step"] for line in read(tmp_path)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_disabled_writer_touches_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", resume_step=0, enabled=False, tensorboard=True) as writer:
        writer.write(1, {"loss": 1.0}, split="train")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*file/metrics.jsonl: (Not a dir|File exists)"
    ):
        MetricsWriter(tmp_path / "file", resume_step=0, tensorboard=False)


def test_a_full_disk_is_told_in_one_line_and_leaves_whole_lines(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the permission to mount a tmpfs")
    try:
        with MetricsWriter(disk, resume_step=0, tensorboard=False) as writer:

            def fill() -> None:
                for step in range(10_000):
                    writer.write(step, {"loss": 1 / 3}, split="train")

            with pytest.raises(UserError) as caught:
                fill()
            assert str(caught.value) == (
                f"cannot write {disk}/metrics.jsonl: no space left on device"
            )
            steps = [line["step"] for line in read(disk)]
            assert steps == list(range(len(steps)))
            assert len(steps) > 100
            (disk / "metrics.jsonl").write_text("")
            writer.write(1, {}, split="train")  # goes on as soon as there is room
        assert read(disk) == [{"step": 1, "split": "train"}]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_tensorboard_files_are_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes TensorBoard files")
    with MetricsWriter(tmp_path, resume_step=0, tensorboard="auto") as writer:
        writer.write(1, {"loss": 0.5, "name": "x", "bad": math.nan}, split="train")
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"train/name" not in content


def test_tensorboard_that_is_missing_is_told_only_when_asked_for(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else found(name)
    )
    MetricsWriter(tmp_path, resume_step=0, tensorboard="auto").close()
    with pytest.raises(UserError, match="tensorboardX is not installed; expected `pip install"):
        MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# Progress.


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(stream: io.StringIO, clock: Clock, **options) -> Progress:
    settings = {"start_step": 0, "batch_size": 32, "interval": 10.0} | options
    return Progress(1000, stream=stream, clock=clock, **settings)


def test_speed_excludes_compilation_evaluation_and_steps_not_yet_known_to_be_done():
    clock = Clock()
    shown = progress(io.StringIO(), clock, start_step=100)
    clock.now += 60.0  # compilation
    shown.update(101)
    assert shown.images_per_second is None
    for step in range(102, 112):
        clock.now += 0.01  # dispatched, not done
        shown.update(step)
    assert shown.images_per_second is None
    clock.now += 0.9
    shown.update(111, loss=1.5)
    assert shown.images_per_second is None or shown.images_per_second > 0
    clock.now += 500.0  # evaluation
    shown.update(111)
    for step in range(112, 122):
        clock.now += 0.1
        shown.update(step, loss=1.0)
    assert shown.images_per_second == pytest.approx(20 * 32 / 1.1, rel=1e-6)
    assert shown.seconds_left == pytest.approx((1000 - 121) * 1.1 / 20, rel=1e-6)


def test_speed_is_that_of_the_window():
    clock = Clock()
    shown = progress(io.StringIO(), clock, window=4)
    for step in range(1, 20):
        clock.now += 10.0 if step < 10 else 0.5
        shown.update(step, loss=0.0)
    assert shown.images_per_second == pytest.approx(64.0)


def test_plain_lines_where_there_is_no_terminal():
    clock, stream = Clock(), io.StringIO()
    with progress(stream, clock) as shown:
        for step in range(1, 40):
            clock.now += 1.0
            shown.update(step, loss=1 / step)
        shown.log("resumed from step 0")
    assert stream.getvalue().splitlines() == [
        "step 1/1000: loss 1",
        "step 11/1000: loss 0.09091, 32 images/s, 16m29s left",
        "step 21/1000: loss 0.04762, 32 images/s, 16m19s left",
        "step 31/1000: loss 0.03226, 32 images/s, 16m09s left",
        "resumed from step 0",
        "step 39/1000: loss 0.02564, 32 images/s, 16m01s left",
    ]
    shown.close()


def test_a_bar_on_a_terminal():
    clock, stream = Clock(), Terminal()
    with progress(stream, clock, batch_size=128) as shown:
        for step in range(1, 1001):
            clock.now += 0.1
            shown.update(step, loss=0.125)
        shown.log("saved")
    text = stream.getvalue()
    assert "100%" in text
    assert "1000/1000, loss 0.125, 1,280 images/s, 0m00s left" in text
    assert "saved\n" in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_disabled_progress_says_nothing(stream):
    with progress(stream, Clock(), enabled=False) as shown:
        shown.update(1, loss=1.0)
        shown.log("x")
    assert stream.getvalue() == ""


def test_a_run_without_a_step_says_nothing():
    stream = io.StringIO()
    with progress(stream, Clock()):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0m00s"), (59.6, "1m00s"), (3599, "59m59s"), (36061, "10h01m")]
)
def test_time_left_in_words(seconds, text):
    clock, stream = Clock(), Terminal()
    with progress(stream, clock, batch_size=1) as shown:
        shown.update(1)
        clock.now += seconds / 998 * 1
        shown.update(2, loss=0.0)
        assert shown.seconds_left == pytest.approx(seconds)
    assert f"{text} left" in stream.getvalue()


# The table.


def test_the_table():
    rows = [
        {"run": "tasn", "seeds": 3, "accuracy": 0.81234, "note": None},
        {"run": "baseline", "seeds": 12, "accuracy": np.float32(0.75), "loss": 2.5e-7},
    ]
    assert summary_table(rows).splitlines() == [
        "run       seeds  accuracy  note       loss",
        "--------  -----  --------  ----  ---------",
        "tasn          3    0.8123",
        "baseline     12    0.7500        2.500e-07",
    ]
    assert summary_table([]) == ""
    assert summary_table([{"a": True, "b": math.nan}]).splitlines()[-1] == "True  nan"
