"""The training step against NumPy, in micro-batches, and on eight devices against one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.protocols import LossTerm
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import (
    MeshOptions,
    batch_sharding,
    check_batch_size,
    make_mesh,
    put_batch,
    replicated,
)
from fgkd_jax.train.step import make_eval_step, make_train_step

RATE = 0.1


@dataclasses.dataclass(frozen=True)
class Linear:
    """A toy method: two terms with different counts and weights, and state that counts calls."""

    task: ClassVar[str] = "toy"
    accumulable: bool = True

    def frozen_parameters(self):
        return ()

    def init(self, key, batch):
        return {
            "params": {
                "w": jax.random.normal(key, (batch["x"].shape[1],)),
                "fixed": jnp.ones((batch["x"].shape[1],)),
            },
            "calls": {"count": jnp.zeros((), jnp.int32)},
        }

    def loss(self, variables, batch, key, *, train):
        params = variables["params"]
        error = batch["x"] @ (params["w"] * params["fixed"]) - batch["y"]
        keep = batch["mask"].astype(jnp.float32)
        terms = {
            "square": LossTerm(sum=error**2 * keep, count=keep),
            "cells": LossTerm(
                sum=jnp.abs(error)[:, None] * jnp.ones((1, 3)),
                count=jnp.broadcast_to(batch["cells"][:, None], (len(keep), 3)),
                weight=0.5,
                accumulable=self.accumulable,
            ),
        }
        state = {"calls": {"count": variables["calls"]["count"] + 1}}
        return terms, state, {"error": (jnp.abs(error) * keep, keep)}

    def predict(self, variables, batch):
        return {"y": batch["x"] @ variables["params"]["w"]}


def make_batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(size, 4)).astype(np.float32),
        "y": rng.normal(size=size).astype(np.float32),
        "mask": rng.random(size) < 0.7,
        "cells": rng.integers(0, 4, size).astype(np.float32),
    }


def make_state(method, optimizer, batch, mesh, **options):
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    key = jax.random.key(3)
    return initial_state(key, method, optimizer, spec, mesh=mesh, **options)


def oracle_loss(w, batch):
    error = batch["x"].astype(np.float64) @ w - batch["y"]
    square = (error[batch["mask"]] ** 2).sum() / batch["mask"].sum()
    cells = 3 * np.abs(error).sum() / (3 * batch["cells"].sum())
    return square + 0.5 * cells, square, cells


def oracle_gradient(w, batch, epsilon=1e-6):
    steps = np.eye(len(w)) * epsilon
    return np.array(
        [
            (oracle_loss(w + s, batch)[0] - oracle_loss(w - s, batch)[0]) / (2 * epsilon)
            for s in steps
        ]
    )


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshOptions(data=1))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_step_is_the_oracle_in_any_number_of_micro_batches(mesh, accumulate):
    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Linear(), optimizer, batch, mesh)
    step = jax.jit(make_train_step(Linear(), optimizer, accumulate=accumulate))
    new, metrics = step(state, put_batch(batch, mesh=mesh))

    w = np.asarray(state.params["w"], np.float64)
    total, square, cells = oracle_loss(w, batch)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/square"], square, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/cells"], cells, rtol=1e-6)
    np.testing.assert_allclose(
        new.params["w"], w - RATE * oracle_gradient(w, batch), rtol=1e-5, atol=1e-6
    )
    assert int(new.step) == 1
    assert int(new.model_state["calls"]["count"]) == accumulate
    assert metrics["example_finite"].shape == (16,)
    assert bool(metrics["finite"])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_non_finite_examples_are_found_by_position(mesh, accumulate):
    batch, optimizer = make_batch(), optax.sgd(RATE)
    batch["mask"][:] = True
    batch["x"][[3, 9]] = np.nan
    state = make_state(Linear(), optimizer, batch, mesh)
    step = jax.jit(make_train_step(Linear(), optimizer, accumulate=accumulate))
    _, metrics = step(state, put_batch(batch, mesh=mesh))
    assert np.flatnonzero(~np.asarray(metrics["example_finite"])).tolist() == [3, 9]
    assert not bool(metrics["finite"])


def test_term_that_couples_examples_refuses_accumulation(mesh):
    method, batch, optimizer = Linear(accumulable=False), make_batch(), optax.sgd(RATE)
    state = make_state(method, optimizer, batch, mesh)
    placed = put_batch(batch, mesh=mesh)
    with pytest.raises(UserError, match=r"'cells' couples .* train\.accumulate=1"):
        jax.eval_shape(make_train_step(method, optimizer, accumulate=2), state, placed)
    jax.eval_shape(make_train_step(method, optimizer), state, placed)


def test_counts_are_free_where_they_depend_on_the_batch_alone(mesh):
    """Two micro-batches are multiplied with the weights twice as often as one, no more."""
    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Linear(), optimizer, batch, mesh)
    placed = put_batch(batch, mesh=mesh)
    flops = [
        jax.jit(make_train_step(Linear(), optimizer, accumulate=accumulate))
        .lower(state, placed)
        .compile()
        .as_text()
        .count(" dot(")
        for accumulate in (1, 2)
    ]
    assert 0 < flops[1] <= 2 * flops[0]


def test_frozen_parameters_get_no_gradient(mesh):
    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Linear(), optimizer, batch, mesh)
    step = jax.jit(make_train_step(Linear(), optimizer, trainable={"w": True, "fixed": False}))
    new, metrics = step(state, put_batch(batch, mesh=mesh))
    np.testing.assert_array_equal(new.params["fixed"], state.params["fixed"])
    w = np.asarray(state.params["w"], np.float64)
    np.testing.assert_allclose(
        metrics["grad_norm"], np.linalg.norm(oracle_gradient(w, batch)), rtol=1e-5
    )


def test_average_follows_the_parameters(mesh):
    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Linear(), optimizer, batch, mesh, ema=True)
    new, _ = jax.jit(make_train_step(Linear(), optimizer, ema_decay=0.9))(
        state, put_batch(batch, mesh=mesh)
    )
    expected = 0.9 * np.asarray(state.params["w"]) + 0.1 * np.asarray(new.params["w"])
    np.testing.assert_allclose(new.ema["w"], expected, rtol=1e-6)
    assert new.variables(ema=True)["params"] is new.ema


def test_steps_draw_different_keys(mesh):
    """The key of a step is the base key folded with the step; the base key never changes."""
    seen = []

    class Noisy(Linear):
        def loss(self, variables, batch, key, *, train):
            terms, state, _ = super().loss(variables, batch, key, train=train)
            noise = jax.random.uniform(key)
            return terms, state, {"noise": (noise, jnp.ones(()))}

    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Noisy(), optimizer, batch, mesh)
    step = jax.jit(make_train_step(Noisy(), optimizer))
    for _ in range(3):
        state, metrics = step(state, put_batch(batch, mesh=mesh))
        seen.append(float(metrics["noise"]))
    base = jax.random.split(jax.random.key(3))[1]
    expected = [float(jax.random.uniform(jax.random.fold_in(base, i))) for i in range(3)]
    assert seen == expected
    assert len(set(seen)) == 3


def test_eight_devices_equal_one():
    """Loss, metrics, parameters and optimiser state of three steps, batch norm groups fixed."""
    from fgkd_jax.methods import Classifier

    method = Classifier(
        num_classes=5,
        backbone={"name": "resnet_narrow", "width": 4, "norm_groups": 8},
        brightness=0.2,
        dropout=0.2,
    )
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
            "label": rng.integers(0, 5, 16).astype(np.int32),
            "id": rng.integers(0, 1000, 16).astype(np.int32),
            "mask": np.ones(16, bool),
        }
        for _ in range(3)
    ]
    optimizer = optax.sgd(RATE, momentum=0.9)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        everywhere, split = replicated(mesh), batch_sharding(mesh)
        step = jax.jit(
            make_train_step(method, optimizer),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
        )
        state = make_state(method, optimizer, batches[0], mesh)
        logged = []
        for batch in batches:
            placed = put_batch(batch, mesh=mesh)
            assert len(placed["image"].addressable_shards) == devices
            np.testing.assert_array_equal(placed["image"], batch["image"])
            state, metrics = step(state, placed)
            logged.append(jax.device_get((metrics, state.opt_state)))
        saved = state.to_save()
        saved["key"] = jax.random.key_data(saved["key"])
        results.append(jax.device_get((logged, saved)))
    # With momentum from zero, the optimiser's state after the first step is the gradient.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


def test_eval_step_counts_with_the_averaged_parameters(mesh):
    class Sum:
        figures = ("sum",)

        def empty(self):
            return np.zeros((), np.float32)

        def update(self, counts, predictions, batch):
            return counts + jnp.sum(jnp.where(batch["mask"], predictions["y"], 0.0))

        def finalise(self, counts):
            return {"sum": float(counts)}

    batch, optimizer = make_batch(), optax.sgd(RATE)
    state = make_state(Linear(), optimizer, batch, mesh, ema=True)
    state = state.replace(ema={**state.ema, "w": state.ema["w"] * 2})
    for ema, factor in ((False, 1), (True, 2)):
        step = make_eval_step(Linear(), Sum(), ema=ema)
        total = step(state, Sum().empty(), put_batch(batch, mesh=mesh))
        expected = factor * (batch["x"] @ np.asarray(state.params["w"]))[batch["mask"]].sum()
        np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "accumulate", "message"),
    [
        (12, 1, "train.batch_size is 12; expected a multiple of 8 devices"),
        (8, 2, "train.batch_size is 8; expected a multiple of 8 devices x 2 micro-batches"),
        (0, 1, "train.batch_size is 0"),
    ],
)
def test_uneven_batches_are_refused(size, accumulate, message):
    with pytest.raises(UserError, match=message):
        check_batch_size(
            size, mesh=make_mesh(MeshOptions()), accumulate=accumulate, name="train.batch_size"
        )


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"mesh\.data is 9, but there are only 8 cpu devices"):
        make_mesh(MeshOptions(data=9))
    with pytest.raises(UserError, match=r"data is 0; expected -1"):
        MeshOptions(data=0)
