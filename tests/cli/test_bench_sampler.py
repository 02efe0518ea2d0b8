"""`fgkd bench sampler`: what is compared computes the same."""

import json

import jax
import numpy as np
import pytest

from fgkd_jax.cli.benchmarks import base, sampler
from fgkd_jax.cli.main import main

GRADIENTS = {"none": 1, "image": 2, "positions": 3}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sampler, "SIDE", 12)
    monkeypatch.setattr(sampler, "OUT", 7)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.mark.parametrize(
    ("dtype", "gradients"),
    [("uint8", "none"), ("float32", "none"), ("float32", "image"), ("float32", "positions")],
)
def test_torch_computes_the_same(torch, small, dtype, gradients):
    arrays = sampler.random_arrays(dtype, batch_size=2)
    assert (np.diff(arrays.rows) >= 0).all()
    found = sampler.ours(arrays, gradients=gradients)()
    theirs = [one.numpy() for one in sampler.theirs(arrays, gradients=gradients)()]
    assert len(found) == len(theirs) == GRADIENTS[gradients]
    for one, other in zip(found, theirs, strict=True):
        if other.ndim == 4:
            other = other.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)


def test_other_lowerings_compute_the_same(small):
    arrays = sampler.random_arrays("uint8", batch_size=2)
    expected = sampler.ours(arrays, gradients="none")()[0]
    for _, lowering in sampler.OTHER_LOWERINGS.values():
        out = sampler.ours(arrays, gradients="none", lowering=lowering)()[0]
        np.testing.assert_allclose(out, expected, atol=1e-3)


def test_the_copy_moves_as_many_bytes(small):
    arrays = sampler.random_arrays("float32", batch_size=2)
    out = jax.block_until_ready(sampler.copy(arrays)())[0]
    assert 2 * out.nbytes == arrays.image.nbytes + arrays.cotangent.nbytes


def test_every_case_begins_with_ours(small):
    made = list(sampler.cases(base.Request(against=("copy",), batch_size=2)))
    names = [[one.name for one in case.alternatives] for case in made]
    assert names == [["fgkd_jax", "products", "copy"]] * 2 + [["fgkd_jax"]] * 2
    assert [case.images for case in made] == [2] * 4


def test_the_command_writes_its_figures(torch, small, tmp_path, capsys):
    out = tmp_path / "sampler.json"
    command = ["bench", "sampler", "--against", "torch,copy", "--batch_size", "2", "--repeats", "2"]
    assert main([*command, "--seconds", "0.001", "--output", str(out)]) == 0
    assert "with gradient to the positions" in capsys.readouterr().out
    cases = json.loads(out.read_text())["cases"]
    assert set(cases[0]["alternatives"]) == {"fgkd_jax", "products", "torch", "copy"}
