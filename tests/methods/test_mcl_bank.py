"""MCL on memory banks: its terms by hand, the released steps, devices, resumed rows, mistakes."""

import dataclasses
import json
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.losses import bank_mutual_contrastive
from fgkd_jax.methods import MCLBank
from fgkd_jax.methods.banks import BankOptions
from fgkd_jax.models.heads import ProjectionHead
from fgkd_jax.train.init import initial_state, state_sharding
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.step import make_train_step

CLASSES, SIZE = 4, 24
TINY = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
        "width": 4}  # fmt: skip
IDS = 100 + 3 * np.arange(SIZE)
LABELS = np.append(np.arange(SIZE - 1) % 3, 3)  # the last class has one example


def make_method(**options):
    base = {"num_classes": CLASSES, "networks": (TINY, {**TINY, "width": 6}), "embedding_size": 8,
            "num_examples": SIZE, "num_positives": 3, "num_negatives": 10}  # fmt: skip
    return MCLBank(**{**base, **options})


def make_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(SIZE - 1)[:size]
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(LABELS[chosen], jnp.int32),
        "id": jnp.asarray(IDS[chosen], jnp.int32),
        "mask": jnp.ones(size, bool),
    }


def with_index(method, variables):
    index = method.constants(LABELS, IDS)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        index,
        dict(variables["constants"]),
    )
    return {**variables, "constants": jax.tree.map(jnp.asarray, index)}


METHOD = make_method()
loss = jax.jit(METHOD.loss, static_argnames="train")


def run_loss(variables, batch, *, train):
    return loss(variables, batch, jax.random.key(1), train=train)


@partial(jax.jit, static_argnames="train")
def embed(variables, batch, *, train):
    images = METHOD.images(batch, jax.random.key(0), train=False)
    (_, embeddings), _ = METHOD.network.apply(
        variables, images, train=train, mutable=["batch_stats"]
    )
    return embeddings


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    method = make_method()
    return with_index(method, jax.jit(method.init)(jax.random.key(0), batch))


def test_the_terms_are_those_of_gathered_rows(batch, variables):
    terms, state, figures = run_loss(variables, batch, train=False)
    embeddings = embed(variables, batch, train=False)
    _, draw_key = jax.random.split(jax.random.key(1))
    candidates = np.asarray(jax.jit(METHOD.candidates)(variables, batch, draw_key))
    by_row, labels = np.sort(LABELS), np.asarray(batch["label"])[:, None]
    assert (by_row[candidates[:, :3]] == labels).all()
    assert (by_row[candidates[:, 3:]] != labels).all()
    gathered = np.asarray(variables["banks"]["rows"])[:, candidates]
    contrast = jax.jit(partial(bank_mutual_contrastive, num_positives=3))
    expected = contrast(embeddings, gathered)
    for name, weight in METHOD.contrast_weights.items():
        assert float(terms[name].weight) == pytest.approx(weight)
        assert terms[name].accumulable
        np.testing.assert_allclose(terms[name].sum, getattr(expected, name), rtol=1e-4, atol=1e-4)
    assert terms.keys() == {"cross_entropy", *METHOD.contrast_weights}
    assert "with_positive" not in figures
    jax.tree.map(np.testing.assert_array_equal, state["banks"], variables["banks"])


def test_own_rows_move_towards_embeddings_and_no_others(batch, variables):
    masked = {**batch, "mask": batch["mask"].at[2].set(False)}
    slower = jax.jit(partial(make_method(bank_momentum=0.25).loss, train=True))
    _, state, _ = slower(variables, masked, jax.random.key(1))
    old, new = (np.asarray(one["banks"]["rows"]) for one in (variables, state))
    embeddings = embed(variables, batch, train=True)
    rows = {id_: row for row, (_, id_) in enumerate(sorted(zip(LABELS, IDS, strict=True)))}
    own = np.array([rows[int(id_)] for id_ in np.delete(batch["id"], 2)])
    moved = 0.25 * old[:, own] + 0.75 * np.delete(embeddings, 2, axis=1)
    moved /= np.linalg.norm(moved, axis=-1, keepdims=True)
    np.testing.assert_allclose(new[:, own], moved, atol=1e-5)
    others = np.setdiff1d(np.arange(SIZE), own)
    np.testing.assert_array_equal(new[:, others], old[:, others])


def test_rows_start_with_length_one_unless_as_released(batch, variables):
    lengths = np.linalg.norm(variables["banks"]["rows"], axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    made = jax.jit(make_method(unit_rows=False, num_examples=4000).init)(jax.random.key(0), batch)
    rows = np.asarray(made["banks"]["rows"])
    bound = 1 / np.sqrt(8 / 3)
    assert bound * 0.99 < np.abs(rows).max() <= bound
    assert np.linalg.norm(rows, axis=-1).std() > 0.1
    np.testing.assert_allclose((rows**2).sum(-1).mean(), 1.0, atol=0.02)


def test_an_id_without_a_row_is_no_quiet_mistake(batch, variables):
    unknown = {**batch, "id": batch["id"].at[1].set(101)}
    terms, state, _ = run_loss(variables, unknown, train=True)
    assert np.isnan(terms["icl"].sum).tolist() == [False, True] + [False] * 6
    assert np.isfinite(state["banks"]["rows"]).all()
    left_out = {**unknown, "mask": batch["mask"].at[1].set(False)}
    terms, *_ = run_loss(variables, left_out, train=True)
    assert all(np.isfinite(term.sum).all() and term.sum[1] == 0 for term in terms.values())


def test_an_anchor_alone_in_its_class_has_no_vcl(batch, variables):
    alone = {
        **batch,
        "id": batch["id"].at[3].set(int(IDS[-1])),
        "label": batch["label"].at[3].set(3),
    }
    terms, *_ = run_loss(variables, alone, train=False)
    vcl = np.asarray(terms["vcl"].sum)
    assert vcl[3] == 0
    assert (np.delete(vcl, 3) > 0).all()
    assert all(np.isfinite(term.sum).all() for term in terms.values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_equal_one(accumulate):
    networks = tuple({**TINY, "width": width, "norm_groups": 2} for width in (4, 6))
    size, dims, b = 480, 16, 32
    method = make_method(
        networks=networks, brightness=0.2, dropout=0.1, num_examples=size, embedding_size=dims
    )
    constants = method.constants(np.arange(size) % 3, 7 * np.arange(size))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(size)[:b]
    batch = {
        "image": rng.integers(0, 256, (b, 8, 8, 3), np.uint8),
        "label": (chosen % 3).astype(np.int32),
        "id": (7 * chosen).astype(np.int32),
        "mask": np.arange(b) % 5 > 0,
    }
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(method, optimizer, accumulate=accumulate)
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    results = []
    for options in (MeshOptions(data=1), MeshOptions(), MeshOptions(split_state=True)):
        mesh, shares = make_mesh(options), 8 if options.split_state else 1
        state = initial_state(
            jax.random.key(3), method, optimizer, spec, mesh=mesh, constants=constants,
            placement=options,
        )  # fmt: skip
        placed = state_sharding(method, state.variables(), mesh=mesh, placement=options)
        jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(placed, batch_sharding(mesh)),
            out_shardings=(placed, replicated(mesh)),
        )
        compiled = jitted.lower(state, put_batch(batch, mesh=mesh)).compile()
        for _ in range(2):
            state, metrics = compiled(state, put_batch(batch, mesh=mesh))
        rows = state.model_state["banks"]["rows"]
        assert rows.addressable_shards[0].data.shape == (2, size, dims // shares)
        results.append(jax.device_get((state.params, state.model_state, metrics)))
    for result in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-6 * max(1, np.abs(b).max())
            ),
            result,
            results[0],
        )
    # No device is ever sent the bank of another.
    gathered = re.findall(r"= f32\[([\d,]*)\][^=]* all-gather\(", compiled.as_text())
    assert gathered
    assert not [shape for shape in gathered if str(size) in shape.split(",")], gathered


def test_a_bank_that_the_devices_do_not_divide_is_on_each_of_them(batch, variables):
    mesh = make_mesh(MeshOptions(data=3))
    options = MeshOptions(data=3, split_state=True)
    placed = state_sharding(make_method(), variables, mesh=mesh, placement=options)
    assert placed.model_state["banks"]["rows"] == placed.params == replicated(mesh)


class Projections(nn.Module):
    """The heads alone: what comes in are pooled features of both networks, one behind the other."""

    features: int

    @nn.compact
    def __call__(self, x, *, train):
        del train
        parts = jnp.split(x, 2, axis=1)
        heads = [ProjectionHead(self.features, name=f"projection{i}") for i in range(2)]
        logits = jnp.zeros((2, len(x), 4), x.dtype)
        return logits, jnp.stack([head(part) for head, part in zip(heads, parts, strict=True)])


@dataclasses.dataclass(frozen=True)
class OnFeatures(MCLBank):
    """The method on features, with candidates that are given by their ids."""

    @property
    def network(self) -> Any:
        return Projections(self.embedding_size)

    def images(self, batch, key, *, train):
        return batch["image"]

    def candidates(self, variables, batch, key):
        index = variables["constants"]
        return index["rows"][jnp.searchsorted(index["ids"], batch["candidates"])]


def test_two_consecutive_released_steps(shared):
    with np.load(shared / "golden" / "mcl" / "imagenet_m2_f64.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    meta = json.loads(str(golden["meta_json"]))
    labels, ids = golden["in_item_class"], np.arange(meta["n_data"])
    method = OnFeatures(
        num_classes=int(labels.max()) + 1,
        embedding_size=meta["feat_dim"],
        num_examples=meta["n_data"],
        num_positives=1 + meta["pos_k"],
        num_negatives=meta["neg_k"],
        temperature=meta["tau"],
        soft_temperature=meta["kd_T"],
        bank_momentum=meta["nce_m"],
    )
    with jax.enable_x64(True):
        params = {}
        for i in range(2):
            dense = {n: f"param_{i}.proj_head.{k}" for n, k in (("dense1", 0), ("dense2", 2))}
            params[f"projection{i}"] = {
                name: {"kernel": golden[f"{their}.weight"].T, "bias": golden[f"{their}.bias"]}
                for name, their in dense.items()
            }
        by_row = np.lexsort((ids, labels))
        banks = np.stack([golden[f"memory_before_step0_{i}"] for i in range(2)])
        variables = jax.tree.map(jnp.asarray, {
            "params": params,
            "banks": {"rows": banks[:, by_row]},
            "constants": method.constants(labels, ids),
        })  # fmt: skip

        def total(params, variables, batch):
            terms, state, _ = method.loss(
                {**variables, "params": params}, batch, jax.random.key(0), train=True
            )
            means = {name: jnp.mean(term.sum) for name, term in terms.items()}
            del terms["cross_entropy"]
            return sum(term.weight * means[name] for name, term in terms.items()), (means, state)

        differentiate = jax.jit(jax.value_and_grad(total, has_aux=True))
        for s in range(meta["nsteps"]):
            chosen = np.concatenate([golden[f"step{s}_{k}_idx"] for k in ("pos", "neg")], axis=1)
            batch = {
                "image": np.concatenate([golden[f"step{s}_in_rep_{i}"] for i in range(2)], axis=1),
                "label": labels[chosen[:, 0]].astype(np.int32),
                "id": chosen[:, 0].astype(np.int32),
                "mask": np.ones(len(chosen), bool),
                "candidates": chosen.astype(np.int32),
            }
            (value, (means, state)), grads = differentiate(variables["params"], variables, batch)
            np.testing.assert_allclose(value, golden[f"step{s}_out_mcl_total"], rtol=1e-9)
            for name in ("vcl", "icl", "soft_vcl", "soft_icl"):
                np.testing.assert_allclose(means[name], golden[f"step{s}_out_{name}"], rtol=1e-9)
            for i in range(2):
                expected = golden[f"step{s}_grad_mcl_total__embed_list.{i}.proj_head.0.weight"]
                kernel = grads[f"projection{i}"]["dense1"]["kernel"]
                limit = 1e-9 * np.abs(expected).max()
                np.testing.assert_allclose(kernel.T, expected, rtol=0, atol=limit)
                after = np.asarray(state["banks"]["rows"][i])
                np.testing.assert_allclose(
                    after, golden[f"step{s}_memory_after_{i}"][by_row], atol=1e-9
                )
            variables = {**variables, "banks": state["banks"]}


def test_the_bytes_of_one_gather_at_the_papers_size(batch, variables):
    method = MCLBank(num_examples=1_281_167, num_classes=1000)
    assert method.gather_bytes(256) == 2 * 256 * 8194 * 128 * 4 == 2_148_007_936
    assert method.bank_bytes == 2 * 1_281_167 * 128 * 4 == 1_311_915_008
    assert "2,148,007,936 bytes" in BankOptions.__doc__
    assert "1,311,915,008 bytes" in BankOptions.__doc__
    # What is counted is what is gathered.
    small = make_method()
    traced = jax.make_jaxpr(lambda v: small.loss(v, batch, jax.random.key(0), train=False))(
        variables
    )
    sizes = [4 * int(np.prod(shape)) for shape in _gathered(traced.jaxpr) if shape[-1:] == (8,)]
    assert sizes == [small.gather_bytes(8)]


def _gathered(jaxpr):
    """Shapes of everything gathered from arrays of floats, in inner functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "gather" and equation.outvars[0].aval.dtype == np.float32:
            yield equation.outvars[0].aval.shape
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _gathered(inner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": (TINY,)}, "networks has 1 of them; expected at least two"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"num_negatives": 24}, "num_negatives is 24; expected fewer than the bank has rows"),
        ({"num_negatives": 0}, "num_negatives is 0; expected at least 1"),
        ({"num_positives": 0}, "num_positives is 0; expected at least 1"),
        ({"bank_momentum": 1.5}, r"bank_momentum is 1.5; expected it in \[0, 1\]"),
        ({"contrast_groups": 2}, "contrast_groups is 2; expected 1"),
        (dict.fromkeys(("vcl_weight", "icl_weight", "soft_vcl_weight", "soft_icl_weight"), 0.0),
         "all weights of the contrast are 0"),
    ],
)  # fmt: skip
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_method(**options)
    assert "\n" not in str(caught.value)


def test_more_negatives_than_other_rows_are_refused():
    # 24 examples, 8 of them in the largest class.
    make_method(num_negatives=16).constants(LABELS, IDS)
    with pytest.raises(UserError, match="num_negatives is 17; expected at most 16, the rows of"):
        make_method(num_negatives=17).constants(LABELS, IDS)
