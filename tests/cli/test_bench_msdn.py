"""`fgkd bench msdn`: what is compared takes the same steps."""

import json

import jax
import numpy as np
import pytest

from fgkd_jax.cli.benchmarks import base, msdn
from fgkd_jax.cli.main import main
from fgkd_jax.cli.zero_shot_recipes import RELEASED_RUNS

SMALL = msdn.Sizes(batch_size=6, attributes=5, classes=8, side=2, channels=16, word_size=7)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(msdn, "SIZES", SMALL)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.mark.parametrize("name", list(msdn.AGAINST))
def test_torch_takes_the_same_steps(torch, name):
    arrays = msdn.random_arrays(SMALL)
    assert (~arrays.constants["seen"]).sum() == 2
    assert arrays.constants["seen"][arrays.batch["label"]].all()
    rng = np.random.default_rng(1)
    params = {
        key: rng.standard_normal(value.shape, np.float32) for key, value in arrays.params.items()
    }
    arrays = arrays._replace(params=params)
    our_step, their_step = msdn.ours(arrays, SMALL), msdn.theirs(arrays, msdn.AGAINST[name])
    for _ in range(3):
        (loss, found), (their_loss, theirs) = our_step(), their_step()
        np.testing.assert_allclose(loss, their_loss.numpy(), rtol=1e-5)
        for key, value in jax.device_get(found).items():
            moved = np.abs(value - params[key])
            assert moved.max() > 5e-5
            # The square root of a mean of squares near zero turns rounding into whole steps.
            difference = np.abs(value - theirs[key].detach().numpy())
            assert np.quantile(difference, 0.95) < 2e-6


def test_the_step_starts_as_released():
    params = msdn.random_arrays(SMALL).params
    np.testing.assert_allclose(np.linalg.norm(params["words"], axis=1), 1.0, rtol=1e-6)
    assert params["region_score"].std() > 0.5
    for name in ("region_attention", "attribute_score", "attribute_attention"):
        assert not params[name].any()
    assert msdn.SIZES[:1] == (50,)
    assert msdn.SIZES.batch_size == RELEASED_RUNS["cub"].batch_size


def test_the_case_tells_its_sizes(small):
    [case] = msdn.cases(base.Request(batch_size=3))
    assert [one.name for one in case.alternatives] == ["fgkd_jax"]
    assert case.sizes == {**SMALL._asdict(), "batch_size": 3}
    assert case.images == 3


def test_the_command_writes_its_figures(torch, small, tmp_path, capsys):
    out = tmp_path / "msdn.json"
    against = ",".join(msdn.AGAINST)
    command = ["bench", "msdn", "--against", against, "--repeats", "2", "--seconds", "0.001"]
    assert main([*command, "--output", str(out)]) == 0
    assert "training step of 6 on features" in capsys.readouterr().out
    [case] = json.loads(out.read_text())["cases"]
    assert set(case["alternatives"]) == {"fgkd_jax", *msdn.AGAINST}
