"""L-MCL on memory banks: its terms by hand, released steps, the meta step, devices, mistakes."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.losses import layerwise_bank_mutual_contrastive
from fgkd_jax.methods import LMCLBank
from fgkd_jax.methods.lmcl import MATCH, VELOCITY
from fgkd_jax.methods.lmcl_network import StageOutputs
from fgkd_jax.models.heads import ProjectionHead
from fgkd_jax.train.init import initial_state, state_sharding
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.step import make_meta_step, make_train_step

CLASSES, SIZE = 3, 24
TINY = {"name": "cifar_resnet20", "stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 1),
        "width": 4}  # fmt: skip
IDS = 100 + 3 * np.arange(SIZE)
LABELS = np.arange(SIZE) % CLASSES


def make_method(**options):
    base = {"num_classes": CLASSES, "networks": (TINY, {**TINY, "width": 6}), "embedding_size": 8,
            "num_examples": SIZE, "num_positives": 3, "num_negatives": 10,
            "match_size": 5, "meta_every": 2}  # fmt: skip
    return LMCLBank(**{**base, **options})


def make_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(SIZE)[:size]
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(LABELS[chosen], jnp.int32),
        "id": jnp.asarray(IDS[chosen], jnp.int32),
        "mask": jnp.ones(size, bool),
    }


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    method = make_method()
    made = jax.jit(method.init)(jax.random.key(0), batch)
    index = method.constants(LABELS, IDS)
    return {**made, "constants": jax.tree.map(jnp.asarray, index)}


METHOD = make_method()
loss = jax.jit(METHOD.loss, static_argnames="train")
meta_step = jax.jit(METHOD.meta_step)


def outputs_of(variables, batch, *, train):
    kept = {name: variables[name] for name in ("params", "batch_stats")}

    @jax.jit
    def run(kept, batch):
        images = METHOD.images(batch, jax.random.key(0), train=False)
        return METHOD.network.apply(kept, images, train=train, mutable=["batch_stats"])[0]

    return run(kept, batch)


def test_the_terms_are_those_of_gathered_rows(batch, variables):
    terms, state, figures = loss(variables, batch, jax.random.key(1), train=False)
    outputs = outputs_of(variables, batch, train=False)
    _, draw_key = jax.random.split(jax.random.key(1))
    candidates = np.asarray(jax.jit(METHOD.candidates)(variables, batch, draw_key))
    rows = np.asarray(variables["banks"]["rows"])[:, candidates]
    weights = jax.jit(METHOD._match_weights)(variables[MATCH], outputs)
    contrast = jax.jit(partial(layerwise_bank_mutual_contrastive, num_positives=3))
    expected = contrast(outputs.embeddings, rows, weights)
    for name, weight in METHOD.contrast_weights.items():
        assert float(terms[name].weight) == pytest.approx(weight)
        assert terms[name].accumulable
        np.testing.assert_allclose(terms[name].sum, getattr(expected, name), rtol=1e-4, atol=1e-4)
    assert (METHOD.vcl_weight, METHOD.icl_weight, METHOD.temperature) == (0.01, 0.01, 0.07)
    assert "with_positive" not in figures
    assert set(state) == {"batch_stats", "banks", MATCH, VELOCITY}
    jax.tree.map(np.testing.assert_array_equal, state["banks"], variables["banks"])


def test_own_rows_move_towards_the_embeddings_of_last_stages(batch, variables):
    _, state, _ = loss(variables, batch, jax.random.key(1), train=True)
    old, new = (np.asarray(one["banks"]["rows"]) for one in (variables, state))
    embeddings = np.asarray(outputs_of(variables, batch, train=True).embeddings)[:, -1]
    rows = {id_: row for row, (_, id_) in enumerate(sorted(zip(LABELS, IDS, strict=True)))}
    own = np.array([rows[int(id_)] for id_ in batch["id"]])
    moved = 0.5 * old[:, own] + 0.5 * embeddings
    moved /= np.linalg.norm(moved, axis=-1, keepdims=True)
    np.testing.assert_allclose(new[:, own], moved, atol=1e-5)
    others = np.setdiff1d(np.arange(SIZE), own)
    np.testing.assert_array_equal(new[:, others], old[:, others])


def test_the_meta_step_contrasts_with_the_banks_and_leaves_them(batch, variables):
    def step(variables, held=batch):
        return meta_step(variables, batch, jax.random.key(2), meta_batch=held, learning_rate=0.05)

    changed, metrics = step(variables)
    assert changed.keys() == {MATCH, VELOCITY}
    assert np.isfinite(metrics["meta_loss"])
    assert float(metrics["meta_grad_norm"]) > 0
    # The rows matter, and what judges needs none.
    other = {"rows": -variables["banks"]["rows"]}
    assert float(step({**variables, "banks": other})[1]["meta_loss"]) != metrics["meta_loss"]
    without_row = make_batch(seed=5)
    without_row["id"] = without_row["id"] + 1
    _, metrics = step(variables, without_row)
    assert np.isfinite(metrics["meta_loss"])
    assert np.isfinite(metrics["meta_grad_norm"])


class Projections(nn.Module):
    """The heads alone: what comes in are pooled features of two stages of both networks."""

    features: int
    sizes: tuple[int, int]

    @nn.compact
    def __call__(self, x, *, train):
        del train
        first, second = self.sizes
        parts = jnp.split(x, (first, 2 * first, 2 * first + second), axis=1)
        embeddings = jnp.stack([
            ProjectionHead(self.features, name=f"projection{at // 2}_{at % 2}")(part)
            for at, part in enumerate(parts)
        ]).reshape(2, 2, len(x), -1)  # fmt: skip
        logits = jnp.zeros((2, 2, len(x), 4), x.dtype)
        stages = tuple((parts[i], parts[i + 1]) for i in (0, 2))
        return StageOutputs(stages, logits, embeddings, logits[:, 0])


@dataclasses.dataclass(frozen=True)
class OnFeatures(LMCLBank):
    """The method on features, with candidates and match weights that are given."""

    sizes: tuple[int, int] = (1, 1)

    @property
    def network(self) -> Any:
        return Projections(self.embedding_size, self.sizes)

    def images(self, batch, key, *, train):
        return batch["image"]

    def candidates(self, variables, batch, key):
        index = variables["constants"]
        return index["rows"][jnp.searchsorted(index["ids"], batch["candidates"])]

    def _match_weights(self, match, outputs):
        return match["weights"]


def released(shared):
    with np.load(shared / "golden" / "lmcl" / "imagenet_n2_l2_f64.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    meta = json.loads(str(golden["meta_json"]))
    weights = {"alpha": "vcl", "beta": "icl", "gamma": "soft_vcl", "lam": "soft_icl"}
    method = OnFeatures(
        num_classes=int(golden["in_item_class"].max()) + 1,
        embedding_size=meta["feat_dim"],
        num_examples=meta["n_data"],
        num_positives=1 + meta["pos_k"],
        num_negatives=meta["neg_k"],
        temperature=meta["tau"],
        soft_temperature=meta["kd_T"],
        bank_momentum=meta["nce_m"],
        sizes=tuple(meta["rep_dim"]),
        reference_intra=True,
        **{f"{ours}_weight": meta["weights"][theirs] for theirs, ours in weights.items()},
    )
    return golden, meta, method


def test_two_consecutive_released_steps(shared):
    golden, meta, method = released(shared)
    labels, ids = golden["in_item_class"], np.arange(meta["n_data"])
    by_row = np.lexsort((ids, labels))
    dense = {"dense1": "proj_head.0", "dense2": "proj_head.2"}
    params = {
        f"projection{i}_{k}": {
            name: {
                "kernel": golden[f"param_{i}.{k}.{their}.weight"].T,
                "bias": golden[f"param_{i}.{k}.{their}.bias"],
            }
            for name, their in dense.items()
        }
        for i in range(2)
        for k in range(2)
    }
    banks = np.stack([golden[f"memory_before_step0_{i}"] for i in range(2)])

    def total(params, variables, batch):
        terms, state, _ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(0), train=True
        )
        kept = {name: terms[name] for name in method.contrast_weights}
        means = {name: jnp.mean(term.sum) for name, term in kept.items()}
        return sum(kept[name].weight * mean for name, mean in means.items()), (means, state)

    with jax.enable_x64(True):
        constants = jax.tree.map(jnp.asarray, method.constants(labels, ids))
        rows = jnp.asarray(banks[:, by_row])
        params = jax.tree.map(jnp.asarray, params)
        differentiate = jax.jit(jax.value_and_grad(total, has_aux=True))
        for s in range(meta["nsteps"]):
            chosen = np.concatenate([golden[f"step{s}_{k}_idx"] for k in ("pos", "neg")], axis=1)
            parts = [golden[f"step{s}_in_rep_{i}_{k}"] for i in range(2) for k in range(2)]
            batch = {
                "image": np.concatenate(parts, axis=1),
                "label": labels[chosen[:, 0]].astype(np.int32),
                "id": chosen[:, 0].astype(np.int32),
                "mask": np.ones(len(chosen), bool),
                "candidates": chosen.astype(np.int32),
            }
            match = np.zeros((2, 2, 2, 2, len(chosen)))
            i, j, k, z = golden["weight_order_ijkz"].T
            match[i, k, j, z] = golden[f"step{s}_weights"]
            variables = {MATCH: {"weights": match}, "banks": {"rows": rows}, "constants": constants}
            (value, (means, state)), grads = differentiate(params, variables, batch)
            np.testing.assert_allclose(value, golden[f"step{s}_out_mcl_total"], rtol=1e-9)
            for name, mean in means.items():
                np.testing.assert_allclose(mean, golden[f"step{s}_out_{name}"], rtol=1e-9)
            for name, grad in grads.items():
                their = name.removeprefix("projection").replace("_", ".")
                expected = golden[f"step{s}_grad_mcl_total__embed_list.{their}.proj_head.0.weight"]
                found = np.asarray(grad["dense1"]["kernel"]).T
                limit = 1e-9 * np.abs(expected).max()
                np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
            rows = state["banks"]["rows"]
            after = np.stack([golden[f"step{s}_memory_after_{i}"] for i in range(2)])
            np.testing.assert_allclose(rows, after[:, by_row], atol=1e-9)


def test_eight_devices_equal_one():
    # One stage each: the second derivative of a network is long to compile, twice.
    flat = {**TINY, "stage_sizes": (1,), "strides": (1,), "dilations": (1,), "norm_groups": 2}
    size, dims, b = 480, 16, 32
    method = make_method(
        networks=(flat, {**flat, "width": 6}), inner_steps=1, num_examples=size,
        embedding_size=dims,
    )  # fmt: skip
    constants = method.constants(np.arange(size) % CLASSES, 7 * np.arange(size))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(size)[:b]
    batch = {
        "image": rng.integers(0, 256, (b, 8, 8, 3), np.uint8),
        "label": (chosen % CLASSES).astype(np.int32),
        "id": (7 * chosen).astype(np.int32),
        "mask": np.arange(b) % 5 > 0,
    }
    optimizer = optax.sgd(0.1, momentum=0.9)
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    results = []
    for options in (MeshOptions(data=1), MeshOptions(), MeshOptions(split_state=True)):
        mesh, shares = make_mesh(options), 8 if options.split_state else 1
        state = initial_state(
            jax.random.key(3), method, optimizer, spec, mesh=mesh, constants=constants,
            placement=options,
        )  # fmt: skip
        placed = state_sharding(method, state.variables(), mesh=mesh, placement=options)
        split, everywhere = batch_sharding(mesh), replicated(mesh)
        step = jax.jit(
            make_train_step(method, optimizer),
            in_shardings=(placed, split),
            out_shardings=(placed, everywhere),
        )
        meta = jax.jit(
            make_meta_step(method, lambda step: 0.1),
            in_shardings=(placed, split, split),
            out_shardings=(placed, everywhere),
        )
        put = put_batch(batch, mesh=mesh)
        state, _ = step(state, put)
        state, metrics = meta(state, put, put)
        rows = state.model_state["banks"]["rows"]
        assert rows.addressable_shards[0].data.shape == (2, size, dims // shares)
        results.append(jax.device_get((state.params, state.model_state, metrics)))
    for result in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=3e-6 * max(1, np.abs(b).max())
            ),
            result,
            results[0],
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 24}, "num_negatives is 24; expected fewer than the bank has rows"),
        ({"contrast_groups": 2}, "contrast_groups is 2; expected 1"),
        ({"stages": 3}, r"stages is 3; expected 0 \(all\) to 2"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)
