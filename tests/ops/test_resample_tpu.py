"""What the TPU compiler makes of the resample: needs libtpu, and no TPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampler_tpu.py"
BUDGET = 1.15
"""Most bytes that may be accessed, over those of images and result."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the extra `tpu` is not installed")
    out = tmp_path_factory.mktemp("tpu") / "rows.json"
    # A process of its own: the compiler is to be loaded where nothing else runs.
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["rows"]


def test_bfloat16_products_read_the_image_once_on_every_chip(rows):
    fast = [row for row in rows if row["products"] == "bfloat16" and row["image"] != "bfloat16"]
    assert len({row["topology"] for row in fast}) == 5
    assert len(fast) == 10
    for row in fast:
        assert row["bytes_accessed"] <= BUDGET * row["input_and_output"], row


def test_bytes_cost_less_than_floats(rows):
    cost = {
        (row["topology"], row["image"]): row["bytes_accessed"]
        for row in rows
        if row["products"] == "bfloat16"
    }
    for topology in {topology for topology, _ in cost}:
        assert cost[topology, "uint8"] < 0.5 * cost[topology, "float32"]
