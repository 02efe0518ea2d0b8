"""`fgkd bench detect`: what is compared computes the same."""

import json

import numpy as np
import pytest

from fgkd_jax.cli.benchmarks import base, detect
from fgkd_jax.cli.main import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(detect, "IMAGE_SIZE", (128, 192))
    monkeypatch.setattr(detect, "CHANNELS", 3)
    monkeypatch.setattr(detect, "BOXES", 150)
    monkeypatch.setattr(detect, "REGIONS", 12)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


def test_torch_keeps_the_same_boxes(torch):
    boxes = detect.random_boxes(150, least=16.0, most=90.0)
    scores = np.random.default_rng(0).uniform(size=150).astype(np.float32)
    kept = detect.our_nms(boxes, scores)()
    found = detect.their_nms(boxes, scores)().numpy()
    assert 10 < len(found) < 150
    np.testing.assert_array_equal(kept.indices[kept.valid], found)


@pytest.mark.parametrize("ratio", [2, 0])
def test_torch_reads_the_same_regions(torch, ratio):
    pyramid = detect.random_pyramid()
    options = {"ratio": ratio, "with_gradient": False}
    [ours], [theirs] = (f(pyramid, **options)() for f in (detect.our_regions, detect.their_regions))
    assert ours.shape == (1, 12, 7, 7, 3)
    np.testing.assert_allclose(ours[0].transpose(0, 3, 1, 2), theirs.numpy(), atol=2e-5)
    options["with_gradient"] = True
    ours, theirs = (f(pyramid, **options)() for f in (detect.our_regions, detect.their_regions))
    np.testing.assert_allclose(ours[0], theirs[0].numpy(), rtol=1e-4)
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(one.transpose(0, 3, 1, 2), other.numpy(), atol=1e-4)


def test_the_cases_tell_their_sizes():
    first, *others = detect.cases(base.Request())
    assert [one.name for one in first.alternatives] == ["fgkd_jax"]
    assert first.sizes["boxes"] == 150
    assert [case.sizes["ratio"] for case in others] == [2, 2, 0]
    assert others[1].name == "RoIAlign, 2 samples per bin, with gradients"


def test_the_command_writes_its_figures(torch, tmp_path, capsys):
    out = tmp_path / "detect.json"
    command = ["bench", "detect", "--against", "torch", "--repeats", "2", "--seconds", "0.001"]
    assert main([*command, "--output", str(out)]) == 0
    assert "suppression of 150 boxes" in capsys.readouterr().out
    cases = json.loads(out.read_text())["cases"]
    assert len(cases) == 4
    assert all(set(case["alternatives"]) == {"fgkd_jax", "torch"} for case in cases)
