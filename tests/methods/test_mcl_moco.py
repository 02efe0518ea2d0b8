"""MCL on top of MoCo: its terms by hand, the released steps, what moves when, devices, mistakes."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.losses import moco_mutual_contrastive, normalize_embeddings
from fgkd_jax.methods import MCLMoCo
from fgkd_jax.methods.mcl_moco import second_view
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.optim import OptimOptions, make_optimizer
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.step import make_train_step

SLOTS = 20
TINY = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
        "width": 4, "norm_groups": 2}  # fmt: skip


def make_method(**options):
    base = {"num_classes": 3, "networks": (TINY, {**TINY, "width": 6}), "embedding_size": 8,
            "queue_size": SLOTS, "key_momentum": 0.9}  # fmt: skip
    return MCLMoCo(**{**base, **options})


def make_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "other_views": jnp.asarray(rng.integers(0, 256, (size, 1, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(np.arange(size) % 3, jnp.int32),
        "id": jnp.arange(size, dtype=jnp.int32),
        "mask": jnp.ones(size, bool),
    }


def run_loss(method, variables, batch, *, train):
    run = jax.jit(method.loss, static_argnames="train")
    return run(variables, batch, jax.random.key(1), train=train)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    """After a step or so: the averages and the pointer are not where they started."""
    made = jax.jit(make_method().init)(jax.random.key(0), batch)
    moved = jax.tree.map(lambda v: 0.9 * v + 0.01, made["keys"]["params"])
    queues = {**made["queues"], "pointer": jnp.int32(15)}
    return {**made, "keys": {**made["keys"], "params": moved}, "queues": queues}


def test_averages_start_as_the_networks_without_their_probes(batch):
    made = jax.jit(make_method().init)(jax.random.key(0), batch)
    kept = {name: tree for name, tree in made["params"].items() if "classifier" not in name}
    assert len(kept) == 4
    jax.tree.map(np.testing.assert_array_equal, made["keys"]["params"], kept)
    jax.tree.map(np.testing.assert_array_equal, made["keys"]["batch_stats"], made["batch_stats"])
    columns = made["queues"]["columns"]
    assert columns.shape == (2, 8, SLOTS)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=1), 1.0, atol=1e-6)
    assert set(made["params"]["projection0"]) == {"dense2"}
    layers = jax.eval_shape(make_method(mlp=True).init, jax.random.key(0), batch)
    assert set(layers["params"]["projection0"]) == {"dense1", "dense2"}


def test_first_the_averages_move_then_keys_then_the_queue(batch, variables):
    method = make_method(shuffle_keys=False, vcl_weight=0.5)
    terms, state, figures = run_loss(method, variables, batch, train=True)
    moved = jax.tree.map(
        lambda k, q: 0.9 * k + 0.1 * q,
        variables["keys"]["params"],
        {name: variables["params"][name] for name in variables["keys"]["params"]},
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, state["keys"]["params"], moved)
    images = method.images(batch, jax.random.key(0), train=False)
    others = method.images({"image": batch["other_views"][:, 0]}, jax.random.key(0), train=False)
    options = {"train": True, "mutable": ["batch_stats"], "method": "embed"}
    queries, new = method.network.apply(variables, images, **options)
    keys, new_keys = method.network.apply({**variables["keys"], "params": moved}, others, **options)
    jax.tree.map(close, state["batch_stats"], new["batch_stats"])
    jax.tree.map(close, state["keys"]["batch_stats"], new_keys["batch_stats"])
    columns = variables["queues"]["columns"]
    expected = moco_mutual_contrastive(queries, keys, columns)
    assert terms.keys() == {"probe", *expected._fields}
    assert float(terms["vcl"].weight) == 0.5
    assert float(terms["icl"].weight) == 1.0
    for name, value in expected._asdict().items():
        assert not terms[name].accumulable
        np.testing.assert_allclose(terms[name].sum, value, rtol=1e-3, atol=1e-3)
    assert int(state["queues"]["pointer"]) == (15 + 8) % SLOTS
    places = (15 + np.arange(8)) % SLOTS
    close(state["queues"]["columns"][:, :, places], jnp.swapaxes(keys, 1, 2))
    rest = np.setdiff1d(np.arange(SLOTS), places)
    np.testing.assert_array_equal(state["queues"]["columns"][:, :, rest], columns[:, :, rest])
    assert {"accuracy", "network1_accuracy"} <= figures.keys()


def test_nothing_moves_in_evaluation(batch, variables):
    _, state, _ = run_loss(make_method(), variables, batch, train=False)
    rest = {name: value for name, value in variables.items() if name != "params"}
    jax.tree.map(np.testing.assert_array_equal, state, rest)


def test_keys_are_shuffled_over_the_groups_and_back(batch, variables):
    """Shuffled, an image is normalised with others; with all of them in one group, as before."""
    one = tuple({**TINY, "width": width, "norm_groups": 1} for width in (4, 6))
    for networks, same in ((make_method().networks, False), (one, True)):
        queues = [
            run_loss(
                make_method(networks=networks, shuffle_keys=flag), variables, batch, train=True
            )
            for flag in (True, False)
        ]
        shuffled, plain = (state["queues"]["columns"] for _, state, _ in queues)
        assert np.allclose(shuffled, plain, atol=1e-4) == same


def test_no_gradient_from_labels_or_keys_reaches_the_networks(batch, variables):
    method = make_method()

    def total(params, average, *, of):
        state = {**variables, "params": params, "keys": {**variables["keys"], "params": average}}
        terms, *_ = method.loss(state, batch, jax.random.key(0), train=True)
        return sum(jnp.sum(terms[name].sum) for name in of)

    differentiate = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnames="of")
    average = variables["keys"]["params"]
    by_params, _ = differentiate(variables["params"], average, of=("probe",))
    for name, tree in by_params.items():
        for leaf in jax.tree.leaves(tree):
            assert bool(jnp.any(leaf != 0)) == name.startswith("classifier"), name
    by_params, by_average = differentiate(variables["params"], average, of=("vcl", "soft_icl"))
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(by_average))
    assert not jnp.any(by_params["classifier0"]["dense"]["kernel"])
    assert jnp.any(by_params["networks_0"]["stem"]["conv"]["kernel"])


def test_eight_devices_equal_one():
    networks = tuple({**TINY, "width": width} for width in (4, 6))
    method = make_method(networks=networks, brightness=0.2, queue_size=40)
    batch = {name: np.asarray(value) for name, value in make_batch(size=16).items()}
    optimizer = optax.sgd(0.03, momentum=0.9)
    step = make_train_step(method, optimizer)
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        everywhere = replicated(mesh)
        state = initial_state(jax.random.key(3), method, optimizer, spec, mesh=mesh)
        jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(everywhere, batch_sharding(mesh)),
            out_shardings=everywhere,
        )
        for _ in range(2):
            state, metrics = jitted(state, put_batch(batch, mesh=mesh))
        results.append(jax.device_get((state.params, state.model_state, metrics)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1, np.abs(b).max())),
        *results,
    )


class Encoder(nn.Module):
    """The encoder of the released vectors."""

    size: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(5, (3, 3), padding=1, use_bias=False, name="conv")(x)
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        return normalize_embeddings(nn.Dense(self.size, name="fc")(jnp.mean(x, axis=(1, 2))))


class Encoders(nn.Module):
    """Two of them, with logits of nothing."""

    size: int

    def setup(self):
        self.encoders = [Encoder(self.size) for _ in range(2)]

    def __call__(self, x, *, train):
        return jnp.zeros((2, len(x), 3)), self.embed(x, train=train)

    def embed(self, x, *, train):
        return jnp.stack([encoder(x, train=train) for encoder in self.encoders])


@dataclasses.dataclass(frozen=True)
class OnEncoders(MCLMoCo):
    """The method on the encoders of the released vectors."""

    @property
    def network(self) -> Any:
        return Encoders(self.embedding_size)

    def images(self, batch, key, *, train):
        return batch["image"]


def golden_encoders(golden, prefix):
    """Parameters and statistics of two released encoders."""
    params, stats = {}, {}
    for i in range(2):
        their = lambda name, i=i: jnp.asarray(golden[f"{prefix}_{i}.{name}"], jnp.float32)  # noqa: E731
        params[f"encoders_{i}"] = {
            "conv": {"kernel": their("conv.weight").transpose(2, 3, 1, 0)},
            "bn": {"scale": their("bn.weight"), "bias": their("bn.bias")},
            "fc": {"kernel": their("fc.weight").T, "bias": their("fc.bias")},
        }
        means = {"mean": their("bn.running_mean"), "var": their("bn.running_var")}
        stats[f"encoders_{i}"] = {"bn": means}
    return params, stats


def test_three_released_training_steps(shared):
    with np.load(shared / "golden" / "mcl" / "moco_m2_f64.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    meta = json.loads(str(golden["meta_json"]))
    method = OnEncoders(
        num_classes=3, embedding_size=meta["dim"], queue_size=meta["K"], temperature=meta["T"],
        soft_temperature=meta["kl_T"], key_momentum=meta["m"],
    )  # fmt: skip
    params, stats = golden_encoders(golden, "state0_encoder_q")
    key_params, key_stats = golden_encoders(golden, "state0_encoder_k")
    options = OptimOptions(
        name="sgd", learning_rate=meta["lr"], momentum=meta["sgd_momentum"], schedule="constant",
        weight_decay=meta["weight_decay"], decay_vectors=True,
    )  # fmt: skip
    optimizer = make_optimizer(options, params, total_steps=3)
    queues = {
        "columns": jnp.asarray(golden["state0_queue"], jnp.float32),
        "pointer": jnp.int32(golden["state0_queue_ptr"][0]),
    }
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key(0),
        params=params,
        model_state={
            "batch_stats": stats,
            "keys": {"params": key_params, "batch_stats": key_stats},
            "queues": queues,
        },
        opt_state=optimizer.init(params),
    )
    step = jax.jit(make_train_step(method, optimizer))
    for s in range(meta["nsteps"]):
        views = [
            jnp.asarray(golden[f"step{s}_im_{which}"].transpose(0, 2, 3, 1), jnp.float32)
            for which in "qk"
        ]
        batch = {
            "image": views[0],
            "other_views": views[1][:, None],
            "label": jnp.zeros(4, jnp.int32),
            "id": jnp.arange(4, dtype=jnp.int32),
            "mask": jnp.ones(4, bool),
        }
        state, metrics = step(state, batch)
        for name in ("vcl", "icl", "soft_vcl", "soft_icl"):
            expected = golden[f"step{s}_out_{name}"]
            np.testing.assert_allclose(metrics[f"loss/{name}"], expected, rtol=1e-3)
        contrast = metrics["loss"] - metrics["loss/probe"]
        np.testing.assert_allclose(contrast, golden[f"step{s}_out_total"], rtol=1e-3)
        model = state.model_state
        pairs = (
            (
                golden_encoders(golden, f"step{s}_after_encoder_q"),
                (state.params, model["batch_stats"]),
            ),
            (
                golden_encoders(golden, f"step{s}_after_encoder_k"),
                (model["keys"]["params"], model["keys"]["batch_stats"]),
            ),
        )
        for expected, ours in pairs:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected
            )
        after = golden[f"step{s}_after_queue"]
        np.testing.assert_allclose(model["queues"]["columns"], after, atol=1e-4)
        assert int(model["queues"]["pointer"]) == golden[f"step{s}_after_queue_ptr"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": (TINY,)}, "networks has 1 of them; expected at least two"),
        ({"temperature": -1.0}, "temperature is -1.0; expected a number above 0"),
        ({"queue_size": 0}, "queue_size is 0; expected at least 1"),
        ({"key_momentum": 2.0}, r"key_momentum is 2.0; expected it in \[0, 1\]"),
        ({"contrast_groups": 2}, "contrast_groups is 2; expected 1"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_bad_batches_are_told_in_one_line(batch):
    one_view = {name: value for name, value in batch.items() if name != "other_views"}
    with pytest.raises(UserError, match=r"data\.views is 1; expected at least 2"):
        second_view(one_view)
    with pytest.raises(UserError, match=r"data\.views is 1; expected at least 2"):
        jax.eval_shape(make_method().init, jax.random.key(0), one_view)
    with pytest.raises(UserError, match="queue_size is 7; expected at least the batch size, which"):
        jax.eval_shape(make_method(queue_size=7).init, jax.random.key(0), batch)
