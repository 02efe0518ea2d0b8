"""The training loop: examples whose loss is not finite are named, second steps are called."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import NonFiniteError, Preempted, UserError
from fgkd_jax.evaluation import ClassificationEvaluator
from fgkd_jax.protocols import LossTerm
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.loop import Run, Trainer, TrainOptions, fit
from fgkd_jax.train.optim import OptimOptions
from fgkd_jax.train.sharding import MeshOptions, make_mesh

SIZE = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """w x, with a loss per example."""

    task: ClassVar[str] = "toy"

    def frozen_parameters(self):
        return ()

    def init(self, key, batch):
        return {"params": {"w": jnp.ones(())}}

    def loss(self, variables, batch, key, *, train):
        losses = jnp.square(variables["params"]["w"] * batch["x"] - 1.0)
        return {"square": LossTerm(sum=losses, count=jnp.ones_like(losses))}, {}, {}

    def predict(self, variables, batch):
        return {"logits": batch["x"]}


class Batches:
    """Examples 10, 11, ... with one value that is not finite in the third batch."""

    def __init__(self, step):
        self.step = step

    def __iter__(self):
        return self

    def __next__(self):
        x = np.arange(SIZE, dtype=np.float32)
        if self.step == 2:
            x[1] = np.inf
        ids = np.arange(SIZE, dtype=np.int32) + 10 * (self.step + 1)
        self.step += 1
        return {"x": x, "id": ids}

    def close(self):
        pass


class Feed:
    def train(self, start_step):
        return Batches(start_step)

    def evaluation(self, split):
        raise AssertionError("there is no validation split")


def test_the_examples_are_named_and_the_checkpoint_before_is_kept(tmp_path):
    spec = {"x": jax.ShapeDtypeStruct((SIZE,), np.float32)}
    run = Run(
        method=Line(),
        evaluator=ClassificationEvaluator(num_classes=2),
        feed=Feed(),
        spec=spec,
        mesh=make_mesh(MeshOptions(data=2)),
        train=TrainOptions(
            steps=5, batch_size=SIZE, eval_batch_size=SIZE, log_every=5, tensorboard="off"
        ),
        optimizer=OptimOptions(name="sgd", learning_rate=0.01),
    )
    trainer = Trainer(run)
    with Checkpointer(tmp_path / "checkpoints", CheckpointOptions(every_steps=2)) as checkpointer:
        with pytest.raises(NonFiniteError) as caught:
            fit(
                trainer,
                trainer.initial_state(),
                checkpointer,
                workdir=str(tmp_path),
                log=lambda line: None,
            )
        checkpointer.wait()
        assert checkpointer.steps() == (2,)
    message = str(caught.value)
    assert message.startswith("step 3: loss ")
    assert "the loss of examples [31];" in message


class Sometimes(ClassificationEvaluator):
    """Has a figure for which there may be nothing to measure."""

    @property
    def figures(self):
        return (*super().figures, "rare")


@pytest.mark.parametrize("name", ["rare", "rear"])
def test_what_had_nothing_to_measure_is_never_the_best(tmp_path, monkeypatch, name):
    run = Run(
        method=Line(),
        evaluator=Sometimes(num_classes=2),
        feed=Feed(),
        spec={"x": jax.ShapeDtypeStruct((SIZE,), np.float32)},
        mesh=make_mesh(MeshOptions(data=2)),
        train=TrainOptions(
            steps=2, batch_size=SIZE, eval_batch_size=SIZE, log_every=1, tensorboard="off",
            eval_every=1,
        ),
        optimizer=OptimOptions(name="sgd", learning_rate=0.01),
        validation="validation",
    )  # fmt: skip
    trainer = Trainer(run)
    found = iter([{"accuracy": 0.5}, {"accuracy": 0.5, "rare": 0.1}])
    monkeypatch.setattr(trainer, "evaluate", lambda state, split, **_: next(found))
    options = CheckpointOptions(every_steps=2, best_metric=name)
    with Checkpointer(tmp_path / "checkpoints", options) as checkpointer:
        initial = trainer.initial_state()
        arguments = {"workdir": str(tmp_path), "log": lambda line: None}
        if name == "rear":  # a figure that the evaluator never has
            with pytest.raises(UserError, match="best_metric 'rear' is not measured"):
                fit(trainer, initial, checkpointer, **arguments)
            return
        fit(trainer, initial, checkpointer, **arguments)
    assert [one.name for one in (tmp_path / "checkpoints" / "best").glob("[0-9]*")] == ["2"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert ["rare" in one for one in rows if one["split"] == "validation"] == [False, True]


@dataclasses.dataclass(frozen=True)
class Counting(Line):
    """Counts its second steps, and sees which parameters they come after."""

    meta_every: int = 2
    breaks_at: int = -1

    def init(self, key, batch):
        return {**super().init(key, batch), "seen": {"calls": jnp.zeros(()), "w": jnp.zeros(())}}

    def loss(self, variables, batch, key, *, train):
        terms, _, figures = super().loss(variables, {"x": jnp.minimum(batch["x"], 3.0)}, key,
                                         train=train)  # fmt: skip
        return terms, {"seen": variables["seen"]}, figures

    def meta_step(self, variables, batch, key, *, meta_batch, learning_rate):
        calls = variables["seen"]["calls"] + 1
        loss = jnp.where(calls == self.breaks_at, jnp.nan, calls)
        seen = {"calls": calls, "w": variables["params"]["w"]}
        figures = {"meta_loss": loss, "rate": jnp.asarray(learning_rate)}
        for name, one in (("from", batch), ("judged", meta_batch)):
            figures[name] = one["id"][0].astype(jnp.float32)
        return {"seen": seen}, figures


def run_counting(
    tmp_path, *, every_steps=9, feed=None, meta_feed=None, validation=None, hooks=None, **options
):
    run = Run(
        meta_feed=meta_feed,
        method=Counting(**options),
        evaluator=ClassificationEvaluator(num_classes=2),
        feed=feed or Feed(),
        spec={"x": jax.ShapeDtypeStruct((SIZE,), np.float32)},
        mesh=make_mesh(MeshOptions(data=2)),
        train=TrainOptions(
            steps=4,
            batch_size=SIZE,
            eval_batch_size=SIZE,
            log_every=1,
            eval_every=2,
            tensorboard="off",
        ),
        optimizer=OptimOptions(name="sgd", learning_rate=0.01, schedule="linear"),
        validation=validation,
    )
    trainer = Trainer(run)
    with Checkpointer(
        tmp_path / "checkpoints", CheckpointOptions(every_steps=every_steps)
    ) as checkpointer:
        state, _ = fit(
            trainer,
            trainer.initial_state(),
            checkpointer,
            workdir=str(tmp_path),
            log=lambda line: None,
            **(hooks or {}),
        )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return state, [json.loads(line) for line in lines]


class EvaluatedFeed(Feed):
    """Two batches of an evaluation."""

    def evaluation(self, split):
        for _ in range(2):
            yield {
                "x": np.eye(SIZE, 2, dtype=np.float32),
                "label": np.zeros(SIZE, np.int32),
                "mask": np.ones(SIZE, bool),
            }


def test_every_batch_of_an_evaluation_is_told(tmp_path):
    """So that a watchdog over steps does not take a long evaluation for a step that hangs."""
    told = []
    run_counting(
        tmp_path,
        feed=EvaluatedFeed(),
        validation="validation",
        hooks={"after_step": told.append, "after_batch": lambda: told.append("batch")},
    )
    assert told == [1, 2, "batch", "batch", 3, 4, "batch", "batch"]


def stops_amid(step):
    """Asks to stop behind the first batch of the evaluation of a step."""
    begun = []
    return {"after_step": begun.append, "after_batch": lambda: begun[-1] == step}


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("amid", [False, True])
def test_an_evaluation_that_is_left_for_a_stop_is_made_when_the_run_goes_on(tmp_path, amid, step):
    evaluated = {"feed": EvaluatedFeed(), "validation": "validation"}

    def kept(folder):
        best = (folder / "checkpoints" / "best").glob("[0-9]*")
        return {one.name: json.loads((one / "metadata.json").read_text()) for one in best}

    def splits(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [(one["step"], one["split"]) for one in map(json.loads, lines)]

    _, expected = run_counting(tmp_path / "whole", **evaluated)
    told = splits(tmp_path / "whole")
    before = told[: told.index((step, "validation"))]
    stopped = tmp_path / "stopped"
    hooks = stops_amid(step) if amid else {"after_step": lambda one: one == step}
    for asked in (hooks, {"after_batch": lambda: True}):  # once more, in what was left
        with pytest.raises(Preempted, match=f"^asked to stop; step {step} of 4 is saved$"):
            run_counting(stopped, hooks=asked, **evaluated)
        assert splits(stopped) == before
    for _ in range(2):  # and again after the end
        _, lines = run_counting(stopped, **evaluated)
        assert lines == expected
        assert kept(stopped) == kept(tmp_path / "whole")


def test_second_steps_follow_every_so_many_steps(tmp_path):
    state, lines = run_counting(tmp_path)
    met = [line for line in lines if line["split"] == "meta"]
    assert [line["step"] for line in met] == [1, 3]
    assert [line["meta_loss"] for line in met] == [1.0, 2.0]
    assert [line["rate"] for line in met] == pytest.approx([0.01, 0.005])
    assert [line["judged"] for line in met] == [line["from"] for line in met]
    assert float(state.model_state["seen"]["calls"]) == 2.0
    # The last one came after step 3 and before step 4.
    assert float(state.model_state["seen"]["w"]) != float(state.params["w"])
    assert int(state.step) == 4


def test_second_steps_are_judged_by_batches_of_their_own_also_after_a_stop(tmp_path):
    def meta_feed(start):
        return Batches(100 + start)

    class Stopping(Batches):
        def __next__(self):
            if self.step == 1:
                raise KeyboardInterrupt
            return super().__next__()

    class StoppingFeed(Feed):
        def train(self, start_step):
            return Stopping(start_step) if start_step == 0 else Batches(start_step)

    options = {"every_steps": 1, "meta_feed": meta_feed, "feed": StoppingFeed()}
    with pytest.raises(KeyboardInterrupt):
        run_counting(tmp_path, **options)
    _, lines = run_counting(tmp_path, **options)
    met = [line for line in lines if line["split"] == "meta"]
    assert [line["from"] for line in met] == [10, 30]
    assert [line["judged"] for line in met] == [1010, 1020]


def test_none_follow_where_none_are_wanted(tmp_path):
    state, lines = run_counting(tmp_path, meta_every=0)
    assert {line["split"] for line in lines} == {"train"}
    assert float(state.model_state["seen"]["calls"]) == 0.0


def test_a_second_step_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="step 3: meta_loss is nan; the run stops"):
        run_counting(tmp_path, breaks_at=2)
