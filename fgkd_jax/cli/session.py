"""From an experiment to what the training loop needs: data, method, devices, weights."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from fgkd_jax.cli.batch_spec import batch_spec
from fgkd_jax.cli.described import chained, describe, described_sizes
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.cli.feature_cache import cached_feed
from fgkd_jax.cli.feeds import PipelineFeed
from fgkd_jax.cli.weights import VOCABULARY, say, weight_hashes, weights_overlay
from fgkd_jax.cli.workdir import CHECKPOINT_FOLDER, LEFT_OUT_FILE, read_json, write_json
from fgkd_jax.data.base import Dataset, labels_and_ids
from fgkd_jax.data.boxes import DetectionDataset, most_boxes
from fgkd_jax.data.captions import with_text
from fgkd_jax.data.class_groups import class_groups
from fgkd_jax.data.detection_pipeline import DetectionOptions
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.pipeline import divide_train
from fgkd_jax.data.registry import open_dataset
from fgkd_jax.data.word_vectors import with_word_vectors
from fgkd_jax.errors import UserError, nearest
from fgkd_jax.evaluation import EVALUATORS, calibrated
from fgkd_jax.protocols import IndexedMethod, Method, TextMethod
from fgkd_jax.train.checkpoint import Checkpointer
from fgkd_jax.train.loop import Feed, Run, Trainer
from fgkd_jax.train.processes import gather
from fgkd_jax.train.sharding import make_mesh
from fgkd_jax.train.state import TrainState


def use_platform(platform: str | None, *, cache: str | None = None) -> None:
    """Chooses the devices and the compilation cache; to be called before anything is computed.

    Args:
      platform: `cpu`, `gpu` or `tpu`; None for the best there is.
      cache: folder where compiled programs are kept from one run to the next; None for none.

    Raises:
      UserError: there is no such device.
    """
    if platform:
        jax.config.update("jax_platforms", "cuda" if platform == "gpu" else platform)
        if not _has_platform(platform):
            raise UserError(
                f"--device is {platform}, but JAX finds no such device here; "
                "the extras 'gpu' and 'tpu' of the package install what JAX needs for one"
            )
    if cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _has_platform(platform: str) -> bool:
    try:
        return jax.devices()[0].platform == platform
    except RuntimeError:
        return False


def method_for(experiment: Experiment, dataset: Dataset) -> Method:
    """Completes a method's options with what only the data set knows.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Returns:
      The method, with its numbers of classes and, where it counts them, of training examples, of
      attributes, and of dimensions of words.

    Raises:
      UserError: the method was given another number, needs more examples, or descriptions of
        classes that the data set does not have.
    """
    method: Any = experiment.method
    known = {"num_classes": dataset.info.num_classes, **described_sizes(method, dataset)}
    if isinstance(method, IndexedMethod):
        known["num_examples"] = dataset.info.splits["train"]
    if isinstance(method, TextMethod):
        if dataset.info.vocabulary is None or experiment.text is None:
            raise UserError(
                "the method reads phrases, but data.text is None; expected options of text"
            )
        known["vocabulary_size"] = len(dataset.info.vocabulary)
    for name, value in known.items():
        if getattr(method, name) not in (None, value):
            raise UserError(
                f"method.{name} is {getattr(method, name)}, but {dataset.info.name} has {value} "
                f"{_COUNTED[name]}"
            )
    return dataclasses.replace(method, **known)


_COUNTED = {
    "num_classes": "classes",
    "num_examples": "training examples",
    "num_attributes": "attributes",
    "word_size": "dimensions of words",
    "vocabulary_size": "words",
}


def open_run(experiment: Experiment, *, dataset: Dataset) -> Run:
    """Prepares a run.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Returns:
      What the training loop needs, with a feed of images.

    Raises:
      UserError: the data set has no such split, the evaluation no such figure, the method another
        number of classes, or a file of weights cannot be read or does not fit.
    """
    info = dataset.info
    for split in experiment.report.split.split("+"):
        if split not in info.splits:
            raise _no_such_split(dataset, split)
    method = method_for(experiment, dataset)
    train = experiment.train
    evaluator = EVALUATORS[method.task](
        dataset.info, experiment.extra_keys, getattr(method, "num_networks", 1)
    )
    if experiment.report.unseen_offset:
        evaluator = calibrated(evaluator, offset=experiment.report.unseen_offset)
    _check_meta(experiment, method)
    asked = (*experiment.report.figures, experiment.checkpoint.best_metric)
    for name in asked:
        if name not in evaluator.figures:
            hint = nearest(name, evaluator.figures)
            raise UserError(f"the evaluation of {method.task} has no figure '{name}'{hint}")

    hashes = weight_hashes(experiment)
    described = describe(method, dataset)
    spec = batch_spec(info, experiment.data, batch_size=train.batch_size)
    images = PipelineFeed(
        dataset=dataset,
        options=experiment.data,
        batch_size=train.batch_size,
        eval_batch_size=train.eval_batch_size,
        seed=experiment.seed,
    )
    return Run(
        method=method,
        evaluator=evaluator,
        feed=images,
        meta_feed=partial(images.train, split="meta") if experiment.meta_fraction else None,
        spec=spec,
        mesh=make_mesh(experiment.mesh),
        placement=experiment.mesh,
        train=train,
        optimizer=experiment.optim,
        seed=experiment.seed,
        overlay=chained(
            weights_overlay(experiment, method, spec) if hashes else None,
            described.overlay if described else None,
        ),
        constants=described.constants if described else _constants(method, dataset),
        validation="validation" if "validation" in dataset.info.splits else None,
        metadata={
            **_vocabulary_hash(experiment, dataset),
            **(
                {"backbone of the features": info.feature_backbone} if info.feature_backbone else {}
            ),
            "data fingerprint": info.fingerprint,
            **hashes,
            **(described.metadata if described else {}),
        },
    )


def _no_such_split(dataset: Dataset, split: str) -> UserError:
    """The error for a split to be reported that is not there, with what would mend it."""
    info = dataset.info
    files = dataset.split_files if isinstance(dataset, DetectionDataset) else {}
    if split not in files:
        return UserError(f"report.split is '{split}'{nearest(split, info.splits)}")
    other = ([one for one in info.splits if one != "train"] or ["train"])[0]
    return UserError(
        f"report.split is '{split}', but {info.name} has {' and '.join(info.splits)} alone; "
        f"expected {files[split]} in data.data_dir, or --config.report.split={other}"
    )


def _vocabulary_hash(experiment: Experiment, dataset: Dataset) -> dict[str, str]:
    """The hash by which a run knows its numbers of words again, where words are read."""
    vocabulary = dataset.info.vocabulary
    return {VOCABULARY: vocabulary.fingerprint} if experiment.text and vocabulary else {}


def _check_meta(experiment: Experiment, method: Method) -> None:
    """Raises where images are set apart for second steps that are never taken."""
    if experiment.meta_fraction and not getattr(method, "meta_every", 0):
        raise UserError(
            f"data.meta_fraction is {experiment.meta_fraction}; expected 0, as the method "
            "takes no second steps"
        )


def _constants(method: Method, dataset: Dataset) -> dict[str, Any] | None:
    """What a method keeps of the training examples; None where it keeps nothing."""
    if not isinstance(method, IndexedMethod):
        return None
    return method.constants(*labels_and_ids(dataset.source("train")))


def training_feed(
    trainer: Trainer, state: TrainState, experiment: Experiment, dataset: Dataset, *, workdir: str
) -> Feed:
    """Returns what the training loop reads: images, or precomputed features.

    Args:
      trainer: the run, with a feed of images.
      state: the state of step 0, whose frozen stages make the features.
      experiment: the experiment.
      dataset: its data set.
      workdir: the run's folder, where features are kept.

    Returns:
      A feed.
    """
    if not experiment.features.views:
        return trainer.run.feed
    folder = Path(workdir) / "features"
    return cached_feed(trainer.run, state, dataset, experiment, folder=folder)


@contextlib.contextmanager
def counting_left_out(feed: Feed, *, workdir: str) -> Iterator[Callable[[], dict[str, str]]]:
    """Keeps count, over every leg of a run, of the images that could not be read.

    Args:
      feed: the feed of images.
      workdir: the run's folder.

    Yields:
      A function that returns the reason by file name, of all legs so far and all processes; to be
      called by all of them.
    """
    path = Path(workdir) / LEFT_OUT_FILE

    def known() -> dict[str, str]:
        now = feed.corrupt if isinstance(feed, PipelineFeed) else {}
        return {**read_json(path), **now}

    def left_out() -> dict[str, str]:
        everyone = {name: why for one in gather(known()) for name, why in one.items()}
        if isinstance(feed, PipelineFeed):
            feed.corrupt.update(everyone)
        return everyone

    try:
        yield left_out
    finally:
        if jax.process_index() == 0 and known():
            write_json(path, known())


def open_data(experiment: Experiment) -> Dataset:
    """Opens an experiment's data set.

    Args:
      experiment: the experiment.

    Returns:
      The data set; drawn first where it is one that the project draws itself.

    Raises:
      UserError: it cannot be opened, or its images have boxes where the method needs labels, or
        labels where it needs boxes.
    """
    options = experiment.data
    dataset = open_dataset(options.dataset, data_dir=options.data_dir)
    _check_kind(dataset, with_boxes=isinstance(options, DetectionOptions))
    if isinstance(options, DetectionOptions):
        return dataset
    if options.text is not None:
        dataset = with_text(dataset, options.text)
    if options.word_vectors:
        dataset = with_word_vectors(dataset, options.word_vectors)
    return divide_train(dataset, options)


def _check_kind(dataset: Dataset, *, with_boxes: bool) -> None:
    """Raises where a method for scenes is given labelled images, or the other way round."""
    if with_boxes == isinstance(dataset, DetectionDataset):
        return
    name = dataset.info.name
    if with_boxes:
        raise UserError(
            f"data.dataset is '{name}', whose images have no boxes; expected a data set for "
            "detection, such as coco_json or voc_xml"
        )
    raise UserError(
        f"data.dataset is '{name}', scenes with boxes; expected images with one label each"
    )


def check_batches(experiment: Experiment, dataset: Dataset) -> None:
    """Raises before a run begins where its batches cannot be made.

    Args:
      experiment: the experiment.
      dataset: its data set.

    Raises:
      UserError: the training images cannot be grouped by class as the options ask, or an image to
        be evaluated has more boxes than the options leave room for.
    """
    options = experiment.data
    for split in ("validation", experiment.report.split):
        check_boxes(experiment, dataset, split=split)
    if isinstance(options, DataOptions) and options.images_per_class:
        for split in ("train", "meta") if options.meta_fraction else ("train",):
            class_groups(
                dataset.source(split),
                dataset.info,
                batch_size=experiment.train.batch_size,
                images_per_class=options.images_per_class,
                seed=experiment.seed,
            )


def check_boxes(experiment: Experiment, dataset: Dataset, *, split: str) -> None:
    """Raises where a split of scenes cannot be evaluated; without boxes there is nothing to check.

    Args:
      experiment: the experiment.
      dataset: its data set.
      split: to be evaluated; one that is not there is left to others.

    Raises:
      UserError: an image has more boxes than the options leave room for, or several splits are
        named.
    """
    options = experiment.data
    if not isinstance(options, DetectionOptions):
        return
    if "+" in split:
        raise UserError(
            f"the splits '{split}' are of scenes with boxes; expected one split, for they are "
            "evaluated one at a time"
        )
    most = most_boxes(dataset.source(split)) if split in dataset.info.splits else None
    if most is not None and most.number > options.max_boxes:
        raise UserError(
            f"image {most.name} of the split '{split}' has {most.number} boxes and data.max_boxes "
            f"is {options.max_boxes}; expected at least {most.number}, for an evaluation leaves "
            "none out"
        )


def open_checkpoints(
    experiment: Experiment, *, workdir: str, read_only: bool = False
) -> Checkpointer:
    """Opens the checkpoints of a run.

    Args:
      experiment: the experiment.
      workdir: its folder.
      read_only: whether to leave everything in the folder as it is.

    Returns:
      The checkpointer.
    """
    return Checkpointer(
        Path(workdir) / CHECKPOINT_FOLDER,
        experiment.checkpoint,
        read_only=read_only,
        log=say,
    )
