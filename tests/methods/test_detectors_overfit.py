"""Both detectors learn a few photographs by heart: everything between pixels and AP must fit.

Photographs with a box of which a side is less than 64 of their 512 pixels are left out: at a size
of 128 that is less than 16 pixels, half a side of RetinaNet's smallest anchors, which are 8 pixels
apart. What is shown is that the parts fit together, not how small a thing is found.
"""

import json
import os
from collections import defaultdict

import jax
import pytest

from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.cli.session import open_data, open_run
from fgkd_jax.evaluation.coco import coco_is_installed
from fgkd_jax.train.loop import Trainer
from fgkd_jax.train.sharding import put_batch

SIDE, IMAGES, STEPS = 128, 8, 60
LEAST_SIDE = 64  # of the boxes, in pixels of the photographs, see above
NARROW = {
    "backbone": {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2, 2, 2)},
    "frozen_stages": 0, "pyramid_features": 32,
}  # fmt: skip
METHODS = {
    "dense": {"name": "retinanet", **NARROW, "head_features": 32, "head_depth": 1},
    "regions": {
        "name": "faster_rcnn", **NARROW, "proposal_features": 32, "region_features": 128,
        "region_samples": 64, "anchor_samples": 64, "train_candidates": 100, "candidates": 100,
        "proposals": 64,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def few(shared, tmp_path_factory):
    """The first photographs of `coco128` without small boxes."""
    source = shared / "data" / "coco128"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    content = json.loads((source / "instances_train2017.json").read_text())
    boxes = defaultdict(list)
    for one in content["annotations"]:
        boxes[one["image_id"]].append(one)

    def is_plain(image):
        found = boxes[image["id"]]
        return found and min(min(one["bbox"][2:]) for one in found) >= LEAST_SIDE

    content["images"] = [image for image in content["images"] if is_plain(image)][:IMAGES]
    content["annotations"] = [one for image in content["images"] for one in boxes[image["id"]]]
    root = tmp_path_factory.mktemp("few")
    (root / "instances_train2017.json").write_text(json.dumps(content))
    os.symlink(source / "images", root / "images")
    return str(root)


@pytest.mark.parametrize("kind", METHODS)
def test_it_learns_eight_photographs_by_heart(few, kind):
    experiment = parse_experiment(
        {
            "method": METHODS[kind],
            "data": {
                "dataset": "coco_json", "data_dir": few, "buckets": ((SIDE, SIDE),),
                "max_boxes": 8, "flip_probability": 0.0,
            },
            "optim": {
                "name": "adam", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 10,
                "clip_norm": 10.0,
            },
            "train": {"steps": STEPS, "batch_size": IMAGES, "eval_batch_size": IMAGES},
            "mesh": {"data": 1},
            "report": {"split": "train", "figures": ("voc_AP50",)},
            "checkpoint": {"best_metric": "voc_AP50"},
        }
    )  # fmt: skip
    trainer = Trainer(open_run(experiment, dataset=open_data(experiment)))
    state = trainer.initial_state()
    batches = trainer.run.feed.train(0)
    batch = put_batch(next(batches), mesh=trainer.run.mesh)
    batches.close()
    # All images are in every batch, and nothing is drawn: one batch is all there is.
    assert sorted(jax.device_get(batch["id"]).tolist()) == sorted(
        example["id"] for example in map(trainer.run.feed.dataset.source("train").__getitem__,
                                         range(IMAGES))
    )  # fmt: skip
    for _ in range(STEPS):
        state, _ = trainer.train_step(state, batch)
    figures = trainer.evaluate(state, "train")
    assert figures["examples"] == IMAGES
    for name in ("AP50", "voc_AP50") if coco_is_installed() else ("voc_AP50",):
        assert figures[name] > 0.9, name
