"""Trains every method for two steps, as one of several processes or alone on as many devices.

`test_processes` starts these; what each method came to is written by process 0.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgkd_jax.cli import session
from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.train import distributed
from fgkd_jax.train.loop import Trainer, fit
from fgkd_jax.train.places import ProcessOptions

# Statistics over the whole batch: they go through all processes.
NET = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
       "dilations": (1,)}  # fmt: skip
CIFAR = {"name": "cifar_resnet20", "width": 4, "stage_sizes": (1,), "strides": (1,),
         "dilations": (1,)}  # fmt: skip
MUTUAL = {"networks": (CIFAR, {**CIFAR, "width": 6}), "brightness": 0.1}
SIZES = {"stage_features": 4, "local_features": 4, "word_features": 3, "phrase_features": 4}
BOXES = {
    "backbone": {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2),
                 "stage_sizes": (1, 1), "dilations": (1, 1), "width": 4},
    "frozen_stages": 1, "pyramid_stages": (1, 2), "pyramid_features": 8, "max_detections": 5,
}  # fmt: skip
PMA = {"backbone": NET, **SIZES}

RETINA = {**BOXES, "extra_levels": 0, "head_features": 8, "head_depth": 1, "anchor_octaves": 1,
          "candidates": 20}  # fmt: skip
REGIONS = {**BOXES, "proposal_features": 8, "region_features": 8, "region_size": 2,
           "anchor_samples": 8, "region_samples": 8, "train_candidates": 10, "candidates": 10,
           "proposals": 5}  # fmt: skip
METHODS = {
    "classifier": {"backbone": NET, "dropout": 0.1, "brightness": 0.1},
    "kd": {"backbone": CIFAR, "teacher": {**CIFAR, "width": 6}},
    "afd": {**MUTUAL, "discriminator_features": 4},
    "mcl": {**MUTUAL, "embedding_size": 4, "dropout": 0.1, "mutual_learning_weight": 0.5},
    "mcl_bank": {**MUTUAL, "embedding_size": 4, "num_negatives": 6, "num_positives": 3},
    "mcl_moco": {**MUTUAL, "embedding_size": 4, "queue_size": 16, "key_momentum": 0.9},
    "lmcl": {**MUTUAL, "embedding_size": 4, "meta_every": 2, "inner_steps": 1, "match_size": 3},
    "lmcl_bank": {**MUTUAL, "embedding_size": 4, "meta_every": 2, "inner_steps": 1,
                  "match_size": 3, "num_negatives": 6, "num_positives": 3},
    "tasn": {"backbone": NET, "attention_backbone": NET, "attention_size": 8, "out_size": 8},
    "pma": {**PMA, "text_dropout": 0.2},
    "pma_vision": {"backbone": NET, "stage_features": 4, "local_features": 4},
    "pma_text": {"word_features": 3, "phrase_features": 4},
    "pma_student": {"backbone": NET, "teacher": PMA},
    "msdn": {},
    "retinanet": RETINA,
    "faster_rcnn": REGIONS,
    "defeat_retinanet": {**RETINA, "teacher": {"pyramid_features": 12}},
    "defeat_faster_rcnn": {**REGIONS, "teacher": {"pyramid_features": 12}},
}  # fmt: skip
"""Tiny options by name of the method."""

READS_TEXT = ("pma", "pma_text", "pma_student")
DETECTS = ("retinanet", "faster_rcnn", "defeat_retinanet", "defeat_faster_rcnn")
BY_CLASS = ("mcl", "mcl_bank", "mcl_moco", "lmcl", "lmcl_bank")
SHARED = ":shared"
"""Behind a method's name: all devices share its parameters; it stops and resumes after a step."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Region features that depend on the index alone."""

    labels: np.ndarray
    ids: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        features = np.random.default_rng(index).normal(size=(2, 2, 6)).astype(np.float16)
        example = {"label": self.labels[index], "id": self.ids[index]}
        return {"features": features, "name": str(index), **example}


def described_features():
    """Sixteen examples of four classes, three of which are seen."""
    rng = np.random.default_rng(0)
    names = ("auk", "bittern", "coot", "dunlin")
    told = ClassDescriptions(
        class_names=names,
        attributes=rng.uniform(size=(4, 3)).astype(np.float32),
        seen=np.array([True, False, True, True]),
        word_vectors=rng.normal(size=(3, 5)).astype(np.float32),
    )
    source = Features(np.array([0, 2, 3, 3] * 4), np.arange(16))
    info = DatasetInfo(
        "marsh", names, {"train": 16, "test": 16}, fingerprint="f", descriptions=told,
        feature_shape=(2, 2, 6),
    )  # fmt: skip
    return SplitSources(info, {"train": source, "test": source})


def data_options(name, folder):
    if name in DETECTS:
        return {"dataset": "coco_json", "data_dir": str(folder / "scenes"),
                "buckets": ((24, 32),), "max_boxes": 3}  # fmt: skip
    if name == "msdn":
        return {"dataset": "features"}
    text = {"captions_dir": str(folder / "photographs"), "max_phrases": 3, "max_words": 3}
    return {
        "dataset": "image_folder", "data_dir": str(folder / "photographs"), "image_size": 8,
        "train_geometry": "resize", "eval_geometry": "resize",
        "text": text if name in READS_TEXT else None,
        "images_per_class": 2 if name in BY_CLASS else 0,
        "views": 2 if name == "mcl_moco" else 1,
    }  # fmt: skip


def experiment_of(case, folder, steps):
    name, shared, _ = case.partition(SHARED)
    mesh = {"data": 1, "fsdp": 4, "whole_below": 16} if shared else {"data": 4}
    figures = {"msdn": "harmonic_mean", **dict.fromkeys(DETECTS, "voc_AP50")}
    chosen = figures.get(name, "accuracy")
    return parse_experiment(
        {
            "method": {"name": name, **METHODS[name]},
            "data": data_options(name, folder),
            "optim": {"name": "sgd", "momentum": 0.9, "schedule": "constant",
                      "learning_rate": 0.005 if name in BY_CLASS else 0.05},
            "train": {"steps": steps, "batch_size": 8, "eval_batch_size": 8, "log_every": 1,
                      "tensorboard": "off"},
            "mesh": mesh,
            "checkpoint": {"every_steps": 1, "best_metric": chosen},
            "report": {"split": "test", "figures": (chosen,)},
        }
    )  # fmt: skip


def whole(tree):
    """Arrays by path, each whole, on every process."""
    leaves = jax.tree_util.tree_leaves_with_path(
        multihost_utils.process_allgather(tree, tiled=True)
    )
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def train(case, folder, workdir, *, steps):
    experiment = experiment_of(case, folder, steps)
    dataset = described_features() if "msdn" in case else session.open_data(experiment)
    # A teacher keeps its first parameters: files of weights have tests of their own.
    trainer = Trainer(session.open_run(experiment, dataset=dataset))
    with session.open_checkpoints(experiment, workdir=str(workdir)) as checkpoints:
        state, start = fit(
            trainer,
            trainer.initial_state(),
            checkpoints,
            workdir=str(workdir),
            log=lambda line: None,
        )
    return state, start


def main(arguments):
    """The launcher says through the environment how many processes there are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--runs", help="folder within it; the number of processes by default")
    parser.add_argument("--from_step", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args(arguments)
    count = int(os.environ.get("JAX_NUM_PROCESSES", "1"))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // count)
    with distributed.job(ProcessOptions(timeout=120)):
        for case in options.cases:
            started = time.monotonic()
            workdir, first = options.folder / (options.runs or str(count)) / case, options.from_step
            if SHARED in case and not first:
                first = 1
                train(case, options.folder, workdir, steps=first)
            state, start = train(case, options.folder, workdir, steps=options.steps)
            assert start == first
            kept = {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params)}
            assert kept == ({False, True} if SHARED in case else {True})
            saved = {**state.to_save(), "key": jax.random.key_data(state.key)}
            values = whole({**saved, **state.constants})
            if jax.process_index() == 0:
                np.savez(workdir / "state.npz", **values)
                print(f"{case}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
