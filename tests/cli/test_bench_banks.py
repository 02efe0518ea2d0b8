"""The benchmarked step of methods that need more than a batch of images."""

import math

import pytest

from fgkd_jax.cli.benchmarks import step
from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.train.sharding import put_batch

NET = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
       "width": 4}  # fmt: skip


@pytest.mark.parametrize("name", ["mcl_bank", "mcl_moco"])
def test_one_step_on_random_images_is_finite(name):
    own = {"mcl_bank": {"num_negatives": 20}, "mcl_moco": {"queue_size": 20}}[name]
    views = 2 if name == "mcl_moco" else 1
    experiment = parse_experiment(
        {
            "method": {"name": name, "networks": (NET, NET), "embedding_size": 4, **own},
            "data": {"image_size": 8, "views": views},
            "mesh": {"data": 1},
        }
    )
    trainer = step.make_trainer(step.prepared(experiment, batch_size=8))
    batch = put_batch(next(trainer.run.feed.train(0)), mesh=trainer.run.mesh)
    _, metrics = trainer.train_step(trainer.initial_state(), batch)
    assert math.isfinite(metrics["loss"])
    assert float(metrics["loss/soft_icl"]) > 0
