"""`fgkd bench detect_step`: the parts of a detector's step, and that they add up to the whole."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.cli.batch_spec import scene_spec
from fgkd_jax.cli.benchmarks import base, detect_step, timing
from fgkd_jax.cli.benchmarks.shares import MEANING, REST, share_rows, shares
from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.cli.main import main
from fgkd_jax.errors import UserError
from fgkd_jax.train.state import TrainState

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4}  # fmt: skip
PLAIN = {"num_classes": 3, "backbone": TINY, "frozen_stages": 0, "pyramid_stages": (1, 2),
         "pyramid_features": 8, "brightness": 0.1}  # fmt: skip
REGIONS = {**PLAIN, "name": "faster_rcnn", "proposal_features": 8, "region_features": 16,
           "region_size": 3, "anchor_samples": 16, "region_samples": 8, "train_candidates": 30,
           "proposals": 10, "anchor_scale": 4.0}  # fmt: skip
DENSE = {**PLAIN, "name": "retinanet", "extra_levels": 1, "head_features": 8, "head_depth": 1}
TAUGHT = {"teacher": {"backbone": {**TINY, "width": 6}}}

HEADS = ("proposal head", "anchors sampled", "proposals", "regions sampled", "region head")
PYRAMIDS = ("backbone and pyramid", "teacher's backbone and pyramid")
PARTS = {
    "faster_rcnn": (PYRAMIDS[0], *HEADS, "losses"),
    "retinanet": (PYRAMIDS[0], "dense head", "anchors assigned", "losses"),
    "defeat_faster_rcnn": (
        *(*PYRAMIDS, *HEADS, "losses", "regions to compare", "teacher's region head"),
        *("region head again", "heads compared", "features compared"),
    ),
    "defeat_retinanet": (
        *(*PYRAMIDS, "dense head", "anchors assigned", "losses", "teacher's dense head"),
        *("heads compared", "features compared"),
    ),
}
METHODS = {
    "faster_rcnn": REGIONS,
    "retinanet": DENSE,
    "defeat_faster_rcnn": {**REGIONS, **TAUGHT, "name": "defeat_faster_rcnn"},
    "defeat_retinanet": {**DENSE, **TAUGHT, "name": "defeat_retinanet"},
}

CONFIG = '''
"""A tiny detector."""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(%r)
'''


def values(name, **train):
    return {
        "method": METHODS[name],
        "data": {"dataset": "coco_json", "buckets": ((32, 48),), "max_boxes": 4},
        "optim": {"name": "sgd", "learning_rate": 0.01, "ema_decay": 0.9, "clip_norm": 1.0},
        "train": {"steps": 10, "batch_size": 2, **train},
        "mesh": {"data": 1},
        "report": {"title": "tiny"},
    }


def test_shares_add_up_and_are_not_cut_off():
    whole = [10.0, 12.0, 11.0]
    found = shares(whole, {"a": [4.0, 5.0, 4.5], "b": [4.2, 4.9, 4.4], "c": [9.0, 9.0, 12.0]})
    assert [one.part for one in found] == ["a", "b", "c", REST]
    np.testing.assert_allclose([one.seconds for one in found], [4.5, -0.1, 4.6, 2.0])
    assert sum(one.seconds for one in found) == pytest.approx(11.0)
    assert sum(one.share for one in found) == pytest.approx(1.0)
    np.testing.assert_allclose([(one.min, one.max) for one in found],
                               [(4, 5), (-0.1, 0.2), (4.1, 7.6), (-1, 3)])  # fmt: skip
    assert [one.told for one in found] == [True, False, True, False]
    (row, *_) = share_rows("work", found[1:])
    assert row["case"] == "work"
    assert row["ms"] == pytest.approx(-100)
    assert (row["share"], row["told"]) == ("-0.9%", "no")
    assert shares([3.0], {"a": [4.0]})[1].told  # a rest below 0 that is no noise


@pytest.mark.parametrize("name", PARTS)
def test_a_step_has_these_parts(name):
    made = detect_step.measurable(parse_experiment(values(name)))
    assert tuple(made.prefixes()) == (*PARTS[name], "backward", "optimiser")


def test_scenes_are_those_of_detection():
    spec = scene_spec((32, 48), max_boxes=9, batch_size=3)
    batch = detect_step.random_scenes(spec, num_classes=3)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in spec.items()
    }
    assert batch["box_mask"].sum(axis=1).tolist() == [8, 8, 8]
    boxes = batch["boxes"][batch["box_mask"]]
    assert (boxes >= 0).all()
    assert (boxes <= [48, 32, 48, 32]).all()
    sides = (boxes[:, 2:] - boxes[:, :2]) / [48, 32]
    assert (sides > 0.049).all()
    assert (sides < 0.501).all()
    assert len(np.unique(boxes, axis=0)) == 24
    assert batch["box_labels"].max() == 2
    assert batch["valid_size"].tolist() == [[32, 48]] * 3
    few = detect_step.random_scenes(scene_spec((8, 8), max_boxes=2, batch_size=1), num_classes=1)
    assert few["box_mask"].all()


def assert_close(found, expected):
    def check(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    jax.tree.map(check, found, expected)


def test_what_is_cut_off_is_the_step_itself():
    made = detect_step.measurable(parse_experiment(values("retinanet")))
    first, batch, prefixes = made.initial_state(), made.scenes(), made.prefixes()
    held = jax.tree.map(jnp.copy, first)
    *_, (terms, _) = jax.jit(prefixes["losses"])(held, batch)
    (grads, *_), updated = jax.jit(prefixes["optimiser"])(held, batch)
    after, metrics = made.steps.train_step(first, batch)
    assert terms.keys() == {"classes", "boxes"}
    for name, term in terms.items():
        loss = float(jnp.sum(term.sum)) / max(1.0, float(jnp.sum(term.count)))
        assert loss == pytest.approx(float(metrics[f"loss/{name}"]), rel=1e-4)
    norm = np.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(grads)))
    assert norm == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)
    for name in ("params", "ema"):
        assert_close(updated[name], getattr(after, name))
    assert jax.tree.structure(updated["opt_state"]) == jax.tree.structure(after.opt_state)


def test_the_command_writes_what_every_part_takes(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG % (values("retinanet", batch_size=4),))
    command = ["bench", "detect_step", "--config", str(tmp_path / "tiny.py"), "--batch_size", "2"]
    out = tmp_path / "detect_step.json"
    assert main([*command, "--repeats", "3", "--seconds", "0.001", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert MEANING in printed
    assert REST in printed
    made = json.loads(out.read_text())
    (one,) = made["cases"]
    assert one["case"] == "tiny"
    assert (one["sizes"]["batch_size"], one["sizes"]["objects"]) == (2, 4)
    names = [*PARTS["retinanet"], "backward", "optimiser"]
    assert list(one["alternatives"]) == ["fgkd_jax", *names]
    assert [row["part"] for row in one["parts"]] == [*names, REST]
    assert "random weights" in one["notes"][0]
    check_parts(one)


def test_every_sample_begins_with_the_first_state():
    def step(state, batch):
        seen.append(float(state.params))
        return dataclasses.replace(state, params=state.params + batch["by"]), {}

    seen = []
    state = TrainState(jnp.int32(0), jax.random.key(0), jnp.float32(1), {}, ())
    whole = detect_step._whole(step, state, {"by": jnp.float32(2)})
    for calls in (1, 2, 2):
        whole.begin()
        whole.run(calls)
    assert seen == [1, 1, 3, 1, 3]


def check_parts(case):
    whole = case["alternatives"]["fgkd_jax"]
    parts = {row["part"]: row for row in case["parts"]}
    assert sum(row["seconds"] for row in parts.values()) == pytest.approx(whole["median"])
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1.0)
    ends = [name for name in case["alternatives"] if name != "fgkd_jax"]
    for before, name in itertools.pairwise(ends):
        difference = case["alternatives"][name]["median"] - case["alternatives"][before]["median"]
        assert parts[name]["seconds"] == pytest.approx(difference)


def test_the_committed_figures_add_up():
    for path in RESULTS.glob("detect_step_*.json"):
        made = json.loads(path.read_text())
        assert made["ratio"] == timing.RATIO
        for case in made["cases"]:
            check_parts(case)


def test_without_a_config_there_are_three(monkeypatch):
    taken = []

    def case(experiment, *, batch_size):
        taken.append((experiment.method, batch_size))

    monkeypatch.setattr(detect_step, "_case", case)
    assert list(detect_step.cases(base.Request(batch_size=2))) == [None] * 3
    assert [type(method).__name__ for method, _ in taken] == [
        "FasterRCNN",
        "DefeatFasterRCNN",
        "RetinaNet",
    ]
    assert all(method.num_classes == 3 and size == 2 for method, size in taken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"accumulate": 2, "batch_size": 4}}, "train.accumulate is 2; expected 1"),
        (
            {"method": {"name": "classifier"}, "data": {}},
            "the method's task is 'classification'; expected 'detection'",
        ),
        ({"mesh": {"data": 4}}, "train.batch_size is 2; expected a multiple of 4 devices"),
    ],
)
def test_what_cannot_be_measured_is_told(change, message):
    experiment = parse_experiment({**values("retinanet"), **change})
    with pytest.raises(UserError, match=message):
        detect_step.measurable(experiment)


def test_classes_are_taken_where_the_config_has_none():
    experiment = parse_experiment(values("retinanet"))
    method = dataclasses.replace(experiment.method, num_classes=None)
    made = detect_step.measurable(dataclasses.replace(experiment, method=method))
    assert made.experiment.method.num_classes == detect_step.CLASSES
