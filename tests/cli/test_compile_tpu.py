"""`fgkd compile` with the compiler for TPUs, which needs no TPU."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from fgkd_jax.cli.compilation.chips import CHIPS, GIB
from fgkd_jax.cli.compilation.known_sizes import SIZES_OF
from fgkd_jax.cli.compilation.topology import open_slice
from fgkd_jax.errors import UserError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compile_v5e_2x2.json"
TINY = ("--config.data.image_size=32", "--config.method.backbone.width=4")

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `tpu` is not installed"
)


@needs_compiler
@pytest.mark.parametrize("chip", list(CHIPS))
def test_the_slices_of_every_chip_are_described(chip):
    for shape in CHIPS[chip].topologies:
        found = open_slice(f"{chip}:{shape}")
        assert found.chip == CHIPS[chip]
        assert found.chips == math.prod(map(int, shape.split("x")))
        assert found.devices_per_chip == (2 if chip in ("v4", "tpu7x") else 1)


@needs_compiler
@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:1x1"])
def test_the_tpu_compiler_names_the_shape_that_it_refuses(name):
    with pytest.raises(UserError, match=f"topology is '{name}', which the compiler refuses"):
        open_slice(name)


def compiled(name, output, *overrides):
    """Compiles in a process of its own: the compiler is to be loaded where nothing else runs."""
    command = ["compile", "--config", name, "--topology", "v5e:2x2", *overrides]
    if name in SIZES_OF:
        command += ["--sizes_of", SIZES_OF[name]]
    done = subprocess.run(
        [sys.executable, "-m", "fgkd_jax.cli.main", *command, "--output", str(output)],
        capture_output=True,
        text=True,
    )
    return done, json.loads(output.read_text())


@needs_compiler
def test_what_does_not_fit_a_chip_is_told_and_fails(tmp_path):
    large = (*TINY, f"--config.train.batch_size={2**22}")
    done, made = compiled("classify_birds", tmp_path / "step.json", *large)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "DOES NOT FIT" in done.stdout
    assert made["fits"] is False
    assert made["steps"]["train"]["memory"]["total"] > 16 * GIB


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(
    "name", ["classify_birds", "mcl_birds", "msdn_awa2", "pma_birds", "tasn_birds"]
)
def test_small_configs_are_compiled_as_they_are(name, tmp_path):
    """To what the table holds, where the compiler is the one that made it."""
    done, made = compiled(name, tmp_path / "step.json")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(RESULTS.read_text())["configs"]
    assert made["steps"].keys() == results[name]["steps"].keys()
    assert made["batch_size"] == results[name]["batch_size"]
    same = made["versions"]["libtpu"] == results[name]["versions"]["libtpu"]
    for step, found in made["steps"].items():
        row = results[name]["steps"][step]
        assert found["fits"] is True
        for figure in ("flops", "bytes_accessed") if same else ():
            assert found[figure] == pytest.approx(row[figure], rel=0.05)
        if same:
            assert found["memory"]["total"] == pytest.approx(row["memory"]["total"], rel=0.05)
            assert found["collectives"].keys() == row["collectives"].keys()


@needs_compiler
def test_a_step_is_compiled_for_a_slice(tmp_path):
    done, made = compiled(
        "classify_birds", tmp_path / "step.json", *TINY, "--config.train.batch_size=8"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert made["topology"]["chips"] == made["topology"]["devices"] == 4
    assert made["fits"] is True
    step = made["steps"]["train"]
    assert step["memory"]["capacity"] == 16 * GIB
    assert step["collectives"]["all-reduce"]["count"] > 0
    assert 0 < step["estimate"]["interconnect_share"] < 1
