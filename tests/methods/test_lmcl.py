"""L-MCL: its terms by hand, what the meta step moves and by how much, devices, a whole run."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import aggregated_task, cross_entropy, layerwise_mutual_contrastive
from fgkd_jax.methods import LMCL
from fgkd_jax.methods.lmcl import MATCH, VELOCITY
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.step import make_meta_step, make_train_step

CLASSES = 4
TINY = {"name": "cifar_resnet20", "stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 1),
        "width": 4}  # fmt: skip
OTHER = {**TINY, "width": 6}


def make_method(**options):
    base = {"num_classes": CLASSES, "networks": (TINY, OTHER), "embedding_size": 8,
            "match_size": 5, "meta_every": 2}  # fmt: skip
    return LMCL(**{**base, **options})


def make_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(np.arange(size) // 2 % CLASSES, jnp.int32),
        "id": jnp.arange(size, dtype=jnp.int32),
        "mask": jnp.ones(size, bool),
    }


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(make_method().init)(jax.random.key(0), batch)


METHOD = make_method()
DESCENT = make_method(meta_weight_decay=0.0, meta_momentum=0.5)
meta_step = jax.jit(DESCENT.meta_step)
loss = jax.jit(METHOD.loss, static_argnames="train")
predict = jax.jit(METHOD.predict)
contrastive = jax.jit(layerwise_mutual_contrastive)
entropy = jax.jit(cross_entropy)


@partial(jax.jit, static_argnames="train")
def apply(variables, batch, *, train=False):
    images = METHOD.images(batch, jax.random.key(0), train=False)
    return METHOD.network.apply(variables, images, train=train, mutable=["batch_stats"])[0]


def outputs_of(variables, batch):
    kept = {name: variables[name] for name in ("params", "batch_stats")}
    return jax.device_get(apply(kept, batch))


def run_meta(variables, batch, *, held=None, learning_rate=0.05):
    held = batch if held is None else held
    return meta_step(
        variables, batch, jax.random.key(2), meta_batch=held, learning_rate=learning_rate
    )


def test_the_terms_are_the_losses_of_what_the_stages_say(batch, variables):
    terms, state, figures = loss(variables, batch, jax.random.key(1), train=False)
    outputs = outputs_of(variables, batch)
    dense = variables[MATCH]
    projected = np.stack([
        [np.asarray(h) @ np.asarray(dense[f"dense{i}_{k}"]["kernel"])
         + np.asarray(dense[f"dense{i}_{k}"]["bias"]) for k, h in enumerate(stages)]
        for i, stages in enumerate(outputs.features)
    ])  # fmt: skip
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    weights = 1 / (1 + np.exp(-np.einsum("ikbd,jzbd->ikjzb", projected, projected)))
    contrast = contrastive(outputs.embeddings, batch["label"], weights.astype(np.float32))
    task = jax.jit(aggregated_task)(outputs.logits, outputs.aggregated, batch["label"])
    expected = {**task._asdict(), **contrast._asdict()}
    assert terms.keys() == expected.keys()
    given = {"vcl": 0.1, "icl": 0.1}
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name].sum, value, rtol=1e-4, atol=1e-5)
        assert float(terms[name].weight) == pytest.approx(given.get(name, 1.0))
        assert terms[name].accumulable == (name in task._fields)
    assert {name for name in figures if name.startswith("match/")} == {
        f"match/0.{k}-1.{z}" for k in range(2) for z in range(2)
    }
    np.testing.assert_allclose(figures["match/0.1-1.0"][0], weights[0, 1, 1, 0], rtol=1e-5)
    own = outputs.logits[:, -1]
    np.testing.assert_array_equal(
        figures["network1_accuracy"][0], own[1].argmax(-1) == batch["label"]
    )
    for name in (MATCH, VELOCITY):
        jax.tree.map(np.testing.assert_array_equal, state[name], variables[name])


def test_the_meta_network_gets_no_gradient_from_the_main_loss(batch, variables):
    def total(match):
        terms, *_ = METHOD.loss({**variables, MATCH: match}, batch, jax.random.key(1), train=False)
        return sum(jnp.sum(term.sum) for term in terms.values())

    grads = jax.jit(jax.grad(total))(variables[MATCH])
    assert max(np.abs(np.asarray(g)).max() for g in jax.tree.leaves(grads)) == 0.0


def test_branches_are_private_and_left_out_of_predictions(batch, variables):
    params = variables["params"]
    assert set(params["networks_0"]) == {"stem", "stage1", "stage2"}
    assert set(params["branches_0_0"]) == {"stage2"}
    predicted = predict(variables, batch)
    outputs = outputs_of(variables, batch)
    np.testing.assert_allclose(predicted["network_logits"], outputs.logits[:, -1], atol=1e-4)
    needed = {"networks_0", "networks_1", "classifier0_1", "classifier1_1"}
    without = {name: params[name] for name in needed}
    stripped = {"params": without, "batch_stats": variables["batch_stats"]}
    again = predict(stripped, batch)
    np.testing.assert_array_equal(again["network_logits"], predicted["network_logits"])
    # The mean of a stage's features goes through the branch, not past it.
    deeper = jax.tree.map(lambda leaf: np.asarray(leaf) * 2, params["branches_1_0"])
    changed = outputs_of({**variables, "params": {**params, "branches_1_0": deeper}}, batch)
    assert np.abs(changed.features[1][0] - outputs.features[1][0]).max() > 0.01
    np.testing.assert_array_equal(changed.features[1][1], outputs.features[1][1])


def test_the_meta_step_descends_what_the_networks_come_to(batch, variables):
    changed, metrics = jax.device_get(run_meta(variables, batch))
    assert changed.keys() == {MATCH, VELOCITY}
    # The first velocity is the gradient; Nesterov's first step is 1.5 of it.
    match = jax.device_get(variables[MATCH])
    steps = jax.tree.map(lambda a, b: a - b, match, changed[MATCH])
    jax.tree.map(
        lambda s, v: np.testing.assert_allclose(s, 0.05 * 1.5 * v, rtol=1e-2, atol=1e-7),
        steps,
        changed[VELOCITY],
    )
    norm = jax.jit(optax.tree.norm)(changed[VELOCITY])
    np.testing.assert_allclose(metrics["meta_grad_norm"], norm, rtol=1e-5)
    # Along the gradient, the loss after the inner steps falls as fast as the gradient says.
    size = 0.3 / float(norm)
    values = []
    for sign in (1.0, -1.0):
        moved = jax.tree.map(lambda p, g, s=sign: p + s * size * g, match, changed[VELOCITY])
        values.append(float(run_meta({**variables, MATCH: moved}, batch)[1]["meta_loss"]))
    slope = (values[0] - values[1]) / (2 * size)
    np.testing.assert_allclose(slope, float(norm) ** 2, rtol=0.2)
    assert values[1] < float(metrics["meta_loss"]) < values[0]


def test_held_out_examples_judge_and_do_not_teach(batch, variables):
    held = make_batch(seed=5)
    _, metrics = run_meta(variables, batch, held=held, learning_rate=0.0)
    kept = {name: variables[name] for name in ("params", "batch_stats")}
    outputs = jax.device_get(apply(kept, held, train=True))
    logits = outputs.logits.reshape(-1, *outputs.logits.shape[2:])
    expected = sum(float(np.mean(entropy(one, held["label"]))) for one in logits)
    np.testing.assert_allclose(metrics["meta_loss"], expected, rtol=1e-5)
    # What the steps are taken on shows as soon as they are taken.
    figures = [float(run_meta(variables, one, held=held)[1]["meta_loss"]) for one in (batch, held)]
    assert abs(figures[0] - figures[1]) > 1e-3


def test_without_a_meta_network_all_weights_are_one(batch):
    method = make_method(meta_every=0)
    made = jax.jit(method.init)(jax.random.key(0), batch)
    assert made.keys() == {"params", "batch_stats"}
    terms, _, figures = jax.jit(method.loss, static_argnames="train")(
        made, batch, jax.random.key(1), train=False
    )
    outputs = outputs_of(made, batch)
    ones = np.ones((2, 2, 2, 2, 8), np.float32)
    contrast = contrastive(outputs.embeddings, batch["label"], ones)
    np.testing.assert_allclose(terms["icl"].sum, contrast.icl, rtol=1e-4)
    assert not any(name.startswith("match/") for name in figures)


def test_eight_devices_equal_one():
    # One stage each: the second derivative of a network is long to compile, twice.
    flat = {**TINY, "stage_sizes": (1,), "strides": (1,), "dilations": (1,), "norm_groups": 8}
    method = make_method(networks=(flat, {**flat, "width": 6}), inner_steps=1)
    batch = {name: np.asarray(value) for name, value in make_batch(size=32).items()}
    optimizer = optax.sgd(0.1, momentum=0.9)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        everywhere = replicated(mesh)
        spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
        state = initial_state(jax.random.key(3), method, optimizer, spec, mesh=mesh)
        options = {
            "in_shardings": (everywhere, batch_sharding(mesh)),
            "out_shardings": everywhere,
        }
        placed = put_batch(batch, mesh=mesh)
        state, _ = jax.jit(make_train_step(method, optimizer), **options)(state, placed)
        options["in_shardings"] += (batch_sharding(mesh),)
        meta_step = jax.jit(make_meta_step(method, lambda step: 0.1), **options)
        state, metrics = meta_step(state, placed, placed)
        assert int(state.step) == 1
        results.append(jax.device_get((state.params, state.model_state, metrics)))

    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1.0, np.abs(b).max()))

    jax.tree.map(assert_close, *results)


def test_masked_examples_count_for_nothing(batch, variables):
    masked = {**batch, "mask": batch["mask"].at[6:].set(False)}
    terms, *_ = loss(variables, masked, jax.random.key(1), train=False)
    for term in terms.values():
        np.testing.assert_array_equal(term.sum[6:], 0.0)
    outputs = outputs_of(variables, batch)
    logits = outputs.logits.reshape(4, 8, -1)
    stages = sum(np.asarray(entropy(one, batch["label"])) for one in logits)
    np.testing.assert_allclose(terms["stages"].sum[:6], stages[:6], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": (TINY,)}, "networks has 1 of them; expected at least two"),
        ({"inner_steps": 0}, "inner_steps is 0; expected at least 1"),
        ({"meta_every": -1}, "meta_every is -1; expected at least 0"),
        ({"meta_momentum": 1.0}, r"meta_momentum is 1.0; expected it in \[0, 1\)"),
        ({"meta_weight_decay": -0.1}, "meta_weight_decay is -0.1; expected at least 0"),
        ({"stages": 3}, r"stages is 3; expected 0 \(all\) to 2"),
        ({"networks": (TINY, {"name": "resnet18"})}, r"networks have \[2, 4\] stages"),
        ({"branch_options": ({}, {"widht": 3})}, r"option 'widht'; did you mean 'width'"),
        ({"branch_options": ({},)}, "branch_options has 1 entries; expected one for each of 2"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_fewer_stages_of_networks_that_differ(batch):
    networks = (TINY, {"name": "resnet_narrow", "width": 4})
    method = make_method(networks=networks, stages=2)
    made = jax.jit(method.init)(jax.random.key(0), batch)
    assert set(made["params"]["branches_1_0"]) == {"stage4"}
    assert method.num_stages == 2
    assert dataclasses.replace(method, stages=1).num_stages == 1
