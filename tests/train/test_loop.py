"""The training loop names the examples whose loss is not finite."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import NonFiniteError
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
