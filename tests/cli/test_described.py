"""Descriptions of classes on their way into a run: what is set, remembered, and refused."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

from fgkd_jax.cli import session
from fgkd_jax.cli.described import FINGERPRINT, chained, describe, described_sizes, replaced
from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.data.base import DatasetInfo, SplitSources
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS
from fgkd_jax.methods import MSDN, Classifier
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.loop import Trainer, fit

NAMES = ("auk", "bittern", "coot", "dunlin")
SEEN = np.array([True, False, True, True])
F, GRID = 6, (2, 2)
EXPERIMENT = {
    "method": {"name": "msdn"},
    "data": {"dataset": "image_folder", "image_size": 8},
    "optim": {"name": "rmsprop", "schedule": "constant", "learning_rate": 1e-3},
    "train": {"steps": 4, "batch_size": 8, "eval_batch_size": 8, "log_every": 1,
              "tensorboard": "off"},
    "mesh": {"data": 2},
    "report": {"figures": ("right",)},
    "checkpoint": {"best_metric": "right"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Features:
    """Examples of which labels and ids are known."""

    labels: np.ndarray
    ids: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        features = np.random.default_rng(index).normal(size=(*GRID, F)).astype(np.float16)
        return {"features": features, "label": self.labels[index], "id": self.ids[index]}


def described_classes(**changes):
    rng = np.random.default_rng(0)
    told = {
        "class_names": NAMES,
        "attributes": rng.uniform(size=(4, 3)).astype(np.float32),
        "seen": SEEN,
        "word_vectors": rng.normal(size=(3, 5)).astype(np.float32),
    }
    return ClassDescriptions(**{**told, **changes})


def make_dataset(descriptions=None, *, labels=(0, 2, 3, 2, 0, 3, 3, 2)):
    labels = np.array(labels)
    source = Features(labels, 100 + np.arange(len(labels)))
    info = DatasetInfo(
        name="marsh", class_names=NAMES, splits={"train": len(labels), "test": len(labels)},
        fingerprint="f", descriptions=descriptions or described_classes(),
    )  # fmt: skip
    return SplitSources(info, {"train": source, "test": source})


def without_descriptions():
    dataset = make_dataset()
    return SplitSources(dataclasses.replace(dataset.info, descriptions=None), dataset.sources)


def experiment_of(method):
    return dataclasses.replace(parse_experiment(EXPERIMENT), method=method)


def test_a_method_is_told_the_sizes_of_descriptions():
    method = session.method_for(experiment_of(MSDN()), make_dataset())
    assert (method.num_classes, method.num_attributes, method.word_size) == (4, 3, 5)
    plain = described_sizes(MSDN(), make_dataset(described_classes(word_vectors=None)))
    assert plain == {"num_attributes": 3}
    assert described_sizes(Classifier(), without_descriptions()) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_attributes": 4}, "method.num_attributes is 4, but marsh has 3 attributes"),
        ({"word_size": 300}, "method.word_size is 300, but marsh has 5 dimensions of words"),
        ({"num_classes": 3}, "method.num_classes is 3, but marsh has 4 classes"),
    ],
)
def test_other_sizes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        session.method_for(experiment_of(MSDN(**options)), make_dataset())


def test_constants_and_words_are_those_of_the_descriptions():
    told = described_classes()
    found = describe(MSDN(), make_dataset(told))
    np.testing.assert_array_equal(found.constants["seen"], SEEN)
    lengths = np.linalg.norm(told.attributes, axis=1, keepdims=True)
    np.testing.assert_allclose(found.constants["attributes"], told.attributes / lengths, rtol=1e-6)
    assert found.metadata == {FINGERPRINT: told.fingerprint}
    before = {"params": {"words": np.zeros((3, 5)), "other": np.zeros(2)}, "banks": 1}
    after = found.overlay(before)
    lengths = np.linalg.norm(told.word_vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(after["params"]["words"], told.word_vectors / lengths, rtol=1e-6)
    assert after["params"]["other"] is before["params"]["other"]
    assert after["banks"] == 1
    assert describe(Classifier(), without_descriptions()) is None


def test_a_data_set_that_describes_nothing_is_refused():
    for call in (describe, described_sizes):
        with pytest.raises(UserError, match="MSDN knows classes by their attributes, but marsh d"):
            call(MSDN(), without_descriptions())


def test_an_unseen_class_in_the_training_split_is_named():
    dataset = make_dataset(labels=(0, 2, 1, 2))
    with pytest.raises(UserError, match=r"id 102 is of class 'bittern', which is unseen"):
        describe(MSDN(), dataset)


def test_descriptions_of_other_classes_are_refused():
    exchanged = described_classes(class_names=("auk", "coot", "bittern", "dunlin"))
    with pytest.raises(UserError, match="class 1 is 'coot' in the descriptions and 'bittern' in m"):
        describe(MSDN(), make_dataset(exchanged))
    three = described_classes(
        class_names=NAMES[:3], attributes=np.ones((3, 3), np.float32), seen=SEEN[:3]
    )
    with pytest.raises(UserError, match="3 classes are described; expected the 4 of marsh"):
        describe(MSDN(), make_dataset(three))


def test_words_that_are_missing_are_told_before_anything_is_computed():
    dataset = make_dataset(described_classes(word_vectors=None))
    with pytest.raises(UserError, match="have no word vectors"):
        describe(MSDN(), dataset)
    method = session.method_for(experiment_of(MSDN(word_vectors="one_hot")), dataset)
    assert describe(method, dataset) is not None


def test_arrays_replace_their_like_alone():
    tree = {"a": {"b": np.zeros(2)}, "c": np.zeros(1)}
    assert replaced(tree, {"a": {"b": np.ones(2)}})["a"]["b"].tolist() == [1, 1]
    assert tree["a"]["b"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"b of shape \(3,\) replaces what is \(2,\)"):
        replaced(tree, {"a": {"b": np.ones(3)}})
    with pytest.raises(ValueError, match=r"d of shape \(3,\) replaces what is missing"):
        replaced(tree, {"d": np.ones(3)})


def test_overlays_follow_one_another():
    assert chained(None, None) is None
    both = chained(lambda v: {**v, "a": 1, "b": 1}, None, lambda v: {**v, "b": 2})
    assert both({"c": 0}) == {"a": 1, "b": 2, "c": 0}


# A run of the loop on features, without a pipeline.


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Counts what is right."""

    figures: ClassVar[tuple[str, ...]] = ("right",)

    def empty(self):
        return np.zeros(2, np.float32)

    def update(self, counts, predictions, batch):
        right = (predictions["scores"].argmax(axis=1) == batch["label"]) * batch["mask"]
        return counts + jax.numpy.stack([right.sum(), batch["mask"].sum()]).astype(np.float32)

    def finalise(self, counts):
        return {"right": float(counts[0] / counts[1])}


class Batches:
    """The whole split, again and again, in an order that depends on the step."""

    def __init__(self, source, start):
        self.source, self.step = source, start

    def __iter__(self):
        return self

    def __next__(self):
        order = np.random.default_rng(self.step).permutation(len(self.source))
        self.step += 1
        rows = [self.source[int(i)] for i in order]
        return {
            "features": np.stack([row["features"] for row in rows]),
            "label": np.array([row["label"] for row in rows], np.int32),
            "id": np.array([row["id"] for row in rows], np.int32),
            "mask": np.ones(len(rows), bool),
        }

    def close(self):
        pass


@dataclasses.dataclass(frozen=True)
class Feed:
    dataset: SplitSources

    def train(self, start_step):
        return Batches(self.dataset.source("train"), start_step)

    def evaluation(self, split):
        return Batches(self.dataset.source(split), 0)


def run_to(steps, workdir, dataset, monkeypatch):
    """Trains to a step as `fgkd train` does, from the newest checkpoint on."""
    experiment = parse_experiment(EXPERIMENT)
    monkeypatch.setattr(
        session,
        "EVALUATORS",
        {**EVALUATORS, experiment.method.task: lambda info, extra_keys, networks: Evaluator()},
    )
    spec = {
        "features": jax.ShapeDtypeStruct((8, *GRID, F), np.float16),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
        "id": jax.ShapeDtypeStruct((8,), np.int32),
        "mask": jax.ShapeDtypeStruct((8,), np.bool_),
    }
    run = dataclasses.replace(
        session.open_run(experiment, dataset=dataset),
        feed=Feed(dataset),
        spec=spec,
        train=dataclasses.replace(experiment.train, steps=steps),
    )
    trainer = Trainer(run)
    with Checkpointer(workdir / "checkpoints", CheckpointOptions(every_steps=2)) as checkpointer:
        state, start = fit(
            trainer, trainer.initial_state(), checkpointer, workdir=str(workdir), log=str
        )
    return jax.device_get((state.params, state.opt_state)), start, trainer


def test_a_run_on_features_resumes_bit_for_bit_and_knows_its_descriptions(tmp_path, monkeypatch):
    dataset = make_dataset()
    whole, start, trainer = run_to(4, tmp_path / "whole", dataset, monkeypatch)
    assert start == 0
    words = trainer.initial_state().params["words"]
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1.0, rtol=1e-6)
    assert np.abs(np.asarray(words) - whole[0]["words"]).max() > 1e-4
    run_to(2, tmp_path / "parts", dataset, monkeypatch)
    resumed, start, _ = run_to(4, tmp_path / "parts", dataset, monkeypatch)
    assert start == 2
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    # The same images, but one attribute of one class has changed.
    attributes = described_classes().attributes.copy()
    attributes[1, 2] += 0.01
    changed = make_dataset(described_classes(attributes=attributes))
    with pytest.raises(UserError, match=f"made with another {FINGERPRINT}: {'.' * 16} there"):
        run_to(6, tmp_path / "parts", changed, monkeypatch)
