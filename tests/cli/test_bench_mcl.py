"""`fgkd bench mcl`: what is compared computes the same, and the memory is that of the compiler."""

import json

import numpy as np
import pytest

from fgkd_jax.cli.benchmarks import base, mcl
from fgkd_jax.cli.main import main


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mcl, "DIMENSIONS", 5)
    monkeypatch.setattr(mcl, "STAGES", 2)
    monkeypatch.setattr(mcl, "MEMORY_SIZES", ((2, 1), (2, 2)))


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.mark.parametrize(("networks", "stages"), [(2, 2), (3, 1)])
def test_torch_computes_the_same(torch, small, networks, stages):
    arrays = mcl.random_arrays(networks=networks, stages=stages, batch_size=6)
    assert sorted(np.bincount(arrays.labels)) == [2, 2, 2]
    found = mcl.ours(arrays)()
    theirs = [one.numpy() for one in mcl.theirs(arrays)()]
    assert [one.shape for one in found] == [(), arrays.embeddings.shape, arrays.match_weights.shape]
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_more_stages_take_more_memory(small):
    one, two = (mcl.temporary_memory(networks=2, stages=s, batch_size=16) for s in (1, 2))
    assert 0 < one < two


def test_the_case_tells_sizes_and_memory(small):
    [case] = mcl.cases(base.Request(batch_size=8))
    assert [one.name for one in case.alternatives] == ["fgkd_jax"]
    assert case.sizes["temporary_bytes"].keys() == {"2 x 1", "2 x 2"}
    assert "2 x 2" in case.notes[0]


def test_the_command_writes_its_figures(torch, small, tmp_path, capsys):
    out = tmp_path / "mcl.json"
    command = ["bench", "mcl", "--against", "torch", "--batch_size", "8", "--repeats", "2"]
    assert main([*command, "--seconds", "0.001", "--output", str(out)]) == 0
    assert "layer-wise contrast" in capsys.readouterr().out
    [case] = json.loads(out.read_text())["cases"]
    assert set(case["alternatives"]) == {"fgkd_jax", "torch"}
