"""One process of a small run; `test_distributed` starts several of these, and is none itself."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.errors import Preempted, UserError, told
from fgkd_jax.evaluation import ClassificationEvaluator
from fgkd_jax.protocols import LossTerm
from fgkd_jax.train import distributed
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.loop import Run, Trainer, TrainOptions, fit
from fgkd_jax.train.optim import OptimOptions
from fgkd_jax.train.places import ProcessOptions
from fgkd_jax.train.processes import check_same, check_shared, gather
from fgkd_jax.train.sharding import MeshOptions, make_mesh

SIZE, FEATURES, CLASSES = 8, 5, 3


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier with dropout, so that the losses depend on the key too."""

    task: ClassVar[str] = "toy"

    def frozen_parameters(self):
        return ()

    def init(self, key, batch):
        return {"params": {"w": 0.1 * jax.random.normal(key, (FEATURES, CLASSES))}}

    def loss(self, variables, batch, key, *, train):
        kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
        logits = (batch["x"] * kept) @ variables["params"]["w"]
        chosen = jnp.take_along_axis(logits, batch["label"][:, None], axis=1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=1) - chosen
        return {"nats": LossTerm(sum=losses, count=jnp.ones_like(losses))}, {}, {}

    def predict(self, variables, batch):
        return {"logits": batch["x"] @ variables["params"]["w"]}


class Batches:
    """This process's rows of batches that depend on the step alone."""

    def __init__(self, step, before):
        self.step, self.before = step, before

    def __iter__(self):
        return self

    def __next__(self):
        self.before(self.step + 1)
        rng = np.random.default_rng(self.step)
        rows = SIZE // jax.process_count()
        mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        x = rng.normal(size=(SIZE, FEATURES)).astype(np.float32)[mine]
        label = rng.integers(0, CLASSES, SIZE).astype(np.int32)[mine]
        self.step += 1
        return {"x": x, "label": label, "id": np.arange(SIZE, dtype=np.int32)[mine]}

    def close(self):
        pass


@dataclasses.dataclass(frozen=True)
class Feed:
    before: object = lambda step: None

    def train(self, start_step):
        return Batches(start_step, self.before)

    def evaluation(self, split):
        raise AssertionError("there is no validation split")


def train(workdir, *, steps, before=lambda step: None, after_step=lambda step: False):
    """Trains on four devices; returns the parameters."""
    spec = {
        "x": jax.ShapeDtypeStruct((SIZE, FEATURES), np.float32),
        "label": jax.ShapeDtypeStruct((SIZE,), np.int32),
    }
    run = Run(
        method=Linear(),
        evaluator=ClassificationEvaluator(num_classes=CLASSES),
        feed=Feed(before),
        spec=spec,
        mesh=make_mesh(MeshOptions(data=4)),
        train=TrainOptions(
            steps=steps, batch_size=SIZE, eval_batch_size=SIZE, log_every=1, tensorboard="off"
        ),
        optimizer=OptimOptions(name="sgd", learning_rate=0.1, momentum=0.9),
    )
    trainer = Trainer(run)
    options = CheckpointOptions(every_steps=1000)
    with Checkpointer(os.path.join(workdir, "checkpoints"), options) as checkpointer:
        state, _ = fit(
            trainer,
            trainer.initial_state(),
            checkpointer,
            workdir=str(workdir),
            log=lambda line: None,
            after_step=after_step,
        )
    return jax.device_get(state.params["w"])


def fails(step):
    if step == 3 and jax.process_index() == 1:
        print(json.dumps(["raised", time.monotonic()]), flush=True)
        raise RuntimeError("the disk of this host is on fire")


def vanishes(rank):
    """A host that goes without a word."""

    def before(step):
        if step == 3 and jax.process_index() == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def is_preempted(step):
    time.sleep(0.05)
    if step == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def hangs(step):
    if step == 3 and jax.process_index() == 1:
        time.sleep(600)


def refusals(rank, workdir):
    """What is said, on every process, of what differs between them; the run may go on after it."""
    checks = (
        lambda: check_same({"steps": 5, "seed": rank}, what="config"),
        lambda: check_same({"name": "birds", "fingerprint": f"f{rank}"}, what="data set"),
        lambda: check_shared(os.path.join(workdir, str(rank)), wait=0.3),
        lambda: check_same({"steps": 5}, what="config"),
        lambda: check_shared(os.path.join(workdir, "new"), wait=0.3),
    )
    for check in checks:
        try:
            check()
        except UserError as error:
            yield str(error)


def stopped_before_the_first_step(job, workdir):
    """Rank 0 is asked to stop while it waits in compiled code for rank 1, which does not come."""
    pids = gather({"pid": os.getpid()})
    if job.rank == 1:
        time.sleep(1)
        os.kill(pids[0]["pid"], signal.SIGTERM)
        time.sleep(600)
    gather({})


def stopped_after_the_last_step(job, workdir):
    train(workdir, steps=2, after_step=job.after_step)
    job.steps_are_over()
    if job.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)


def fails_while_the_other_waits_for_the_end(job, workdir):
    if job.rank == 1:
        time.sleep(2)
        raise RuntimeError("the disk of this host is on fire")


def is_told_to_stop_while_it_fails(job, workdir):
    """As a scheduler does: a rank that is told of the failure may have ended before this one."""
    if job.rank == 0:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise UserError("workdir is not one")
    gather({})


def stopped_with_the_last_step(job, workdir):
    train(workdir, steps=2, after_step=job.after_step)
    if job.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    job.steps_are_over()


def never_begins(job, workdir):
    if job.rank == 1:
        time.sleep(600)
    gather({})


AROUND = {
    "stopped before": stopped_before_the_first_step,
    "stopped after": stopped_after_the_last_step,
    "stopped between": stopped_with_the_last_step,
    "told while failing": is_told_to_stop_while_it_fails,
    "fail late": fails_while_the_other_waits_for_the_end,
    "never begin": never_begins,
}
"""What happens before the first step and after the last."""


def work(job, what, workdir):
    if what in AROUND:
        AROUND[what](job, workdir)
        return
    if what == "train":
        sys.stdout.write(json.dumps(["refused", job.rank, *refusals(job.rank, workdir)]) + "\n")
    steps, before = TASKS[what]
    train(workdir, steps=steps, before=before, after_step=job.after_step)


TASKS = {
    "train": (2, lambda step: None),
    "fail": (5, fails),
    "preempt": (200, is_preempted),
    "hang": (5, hangs),
    "vanish 0": (5, vanishes(0)),
    "vanish 1": (5, vanishes(1)),
}


def main(coordinator, rank, what, workdir):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    limits = {"hang": {"step_timeout": 2.0}, "never begin": {"start_timeout": 2.0}}
    options = ProcessOptions(coordinator, 2, int(rank), timeout=60, **limits.get(what, {}))
    try:
        with distributed.job(options) as job:
            work(job, what, workdir)
    except Preempted as error:
        os.kill(os.getpid(), signal.SIGTERM)  # as from a scheduler that sees another rank's end
        line, status = told(error)
        print(json.dumps(line))
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
