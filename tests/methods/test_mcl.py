"""MCL: its terms against the losses by hand, the released training steps, devices, mistakes."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    cross_entropy,
    ensemble_distillation,
    mutual_contrastive,
    mutual_learning,
)
from fgkd_jax.methods import MCL
from fgkd_jax.methods.mcl import PRESETS
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.optim import OptimOptions, make_optimizer
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.state import TrainState
from fgkd_jax.train.step import make_train_step

CLASSES = 4
TINY = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
        "width": 4}  # fmt: skip
OTHER = {"name": "resnet_narrow", "width": 6, "stage_sizes": (1,), "strides": (2,),
         "dilations": (1,), "zero_init_residual": False}  # fmt: skip


def make_method(**options):
    base = {"num_classes": CLASSES, "networks": (TINY, OTHER), "embedding_size": 8}
    return MCL(**{**base, **options})


def make_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(np.arange(size) // 2 % CLASSES, jnp.int32),
        "id": jnp.arange(size, dtype=jnp.int32),
        "mask": jnp.ones(size, bool),
    }


def run_loss(method, variables, batch, *, train=False):
    run = jax.jit(method.loss, static_argnames="train")
    return run(variables, batch, jax.random.key(1), train=train)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(make_method().init)(jax.random.key(0), batch)


def test_the_terms_are_the_losses_of_what_the_networks_say(batch, variables):
    method = make_method(mutual_learning_weight=0.7, ensemble_weight=0.3, icl_weight=0.2)
    terms, state, figures = run_loss(method, variables, batch)
    images = method.images(batch, jax.random.key(0), train=False)
    logits, embeddings = method.network.apply(variables, images, train=False)
    contrast = mutual_contrastive(embeddings, batch["label"])
    expected = {
        "cross_entropy": (1.0, sum(cross_entropy(one, batch["label"]) for one in logits)),
        "mutual_learning": (0.7, mutual_learning(logits)),
        "ensemble": (0.3, ensemble_distillation(logits, temperature=3.0)),
        "vcl": (0.1, contrast.vcl),
        "icl": (0.2, contrast.icl),
        "soft_vcl": (1.0, contrast.soft_vcl),
        "soft_icl": (1.0, contrast.soft_icl),
    }
    assert terms.keys() == expected.keys()
    for name, (weight, loss) in expected.items():
        np.testing.assert_allclose(terms[name].sum, loss, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(terms[name].count, 1.0)
        assert float(terms[name].weight) == pytest.approx(weight)
        assert terms[name].accumulable == (name in ("cross_entropy", "mutual_learning", "ensemble"))
    for i, one in enumerate(logits):
        right, _ = figures[f"network{i}_accuracy"]
        np.testing.assert_array_equal(right, one.argmax(-1) == batch["label"])
    np.testing.assert_array_equal(figures["with_positive"][0], 1.0)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_weight_of_zero_leaves_the_term_out(batch, variables, preset):
    terms, _, figures = run_loss(make_method(**PRESETS[preset]), variables, batch)
    further = {"independent": set(), "dml": {"mutual_learning"}, "ensemble": {"ensemble"},
               "mcl": {"vcl", "icl", "soft_vcl", "soft_icl"}}  # fmt: skip
    assert terms.keys() - {"cross_entropy"} == further[preset]
    assert ("with_positive" in figures) == (preset == "mcl")


def test_networks_are_independent_but_for_what_they_say(batch, variables):
    method = make_method(**PRESETS["independent"])

    def first(params):
        terms, *_ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(0), train=False
        )
        return jnp.sum(terms["cross_entropy"].sum)

    grads = jax.jit(jax.grad(first))(variables["params"])
    single = make_method().network.clone(networks=make_method().network.networks[:1])

    def alone(params):
        logits, _ = single.apply(
            {**variables, "params": params},
            method.images(batch, jax.random.key(0), train=False),
            train=False,
        )
        return jnp.sum(cross_entropy(logits[0], batch["label"]))

    mine = {k: v for k, v in variables["params"].items() if k.endswith("0")}
    for name, tree in jax.jit(jax.grad(alone))(mine).items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads[name], tree
        )


def test_masked_examples_count_for_nothing_and_are_nobodys_positive(batch, variables):
    masked = {**batch, "mask": batch["mask"].at[1].set(False)}
    terms, _, figures = run_loss(make_method(), variables, masked)
    for term in terms.values():
        assert float(term.sum[1]) == 0.0
        np.testing.assert_array_equal(term.count, masked["mask"])
    # Example 0 has lost its only positive.
    assert float(terms["vcl"].sum[0]) == float(terms["icl"].sum[0]) == 0.0
    assert float(terms["vcl"].sum[2]) > 0.0
    np.testing.assert_array_equal(figures["with_positive"][0], [0, 0, 1, 1, 1, 1, 1, 1])


def test_batches_without_positives_are_finite(batch, variables):
    alone = {**make_batch(size=4), "label": jnp.arange(4)}
    terms, *_ = run_loss(make_method(), variables, alone)
    assert float(jnp.abs(terms["vcl"].sum).max()) == 0.0
    assert all(bool(jnp.all(jnp.isfinite(term.sum))) for term in terms.values())


def test_prediction_is_the_mean_of_probabilities(batch, variables):
    predicted = jax.jit(make_method().predict)(variables, batch)
    p = jax.nn.softmax(predicted["network_logits"]).mean(0)
    np.testing.assert_allclose(predicted["probabilities"], p, atol=1e-6)
    np.testing.assert_allclose(predicted["logits"], jnp.log(p), atol=1e-5)
    logits, _ = make_method().network.apply(
        variables, make_method().images(batch, jax.random.key(0), train=False), train=False
    )
    np.testing.assert_allclose(predicted["network_logits"], logits, atol=1e-4)


def test_a_shared_trunk_is_held_once(batch):
    method = make_method(networks=(TINY, TINY, TINY), shared_stages=1)
    made = jax.jit(method.init)(jax.random.key(0), batch)["params"]
    assert set(made["networks_0"]) == {"stem", "stage1"}
    assert set(made["networks_1"]) == set(made["networks_2"]) == {"stage1"}
    kernels = [made[f"networks_{i}"]["stage1"]["block0"]["conv1"]["kernel"] for i in range(3)]
    assert float(jnp.abs(kernels[1] - kernels[2]).max()) > 0.01
    separate = jax.jit(make_method(networks=(TINY, TINY)).init)(jax.random.key(0), batch)
    assert "stem" in separate["params"]["networks_1"]


@pytest.mark.parametrize("groups", [1, 8])
def test_eight_devices_equal_one(groups):
    networks = tuple({**one, "norm_groups": 8} for one in (TINY, OTHER))
    method = make_method(networks=networks, contrast_groups=groups, brightness=0.2)
    batch = {name: np.asarray(value) for name, value in make_batch(size=32).items()}
    step = make_train_step(method, optax.sgd(0.1, momentum=0.9))
    results, texts = [], []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        everywhere = replicated(mesh)
        spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
        state = initial_state(
            jax.random.key(3), method, optax.sgd(0.1, momentum=0.9), spec, mesh=mesh
        )
        shardings = {"in_shardings": (everywhere, batch_sharding(mesh))}
        jitted = jax.jit(step, **shardings, out_shardings=everywhere)
        compiled = jitted.lower(state, put_batch(batch, mesh=mesh)).compile()
        texts.append(compiled.as_text())
        new, metrics = compiled(state, put_batch(batch, mesh=mesh))
        results.append(jax.device_get((new.params, new.model_state, new.opt_state, metrics)))

    def assert_close(a, b):
        # The temperature multiplies what the order of a sum makes of the last digit, to 3e-6 on
        # some processors. Contrast in other groups is off by 0.8.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))

    jax.tree.map(assert_close, *results)
    # Contrast over the global batch gathers embeddings; contrast within devices gathers nothing
    # but flags to be logged.
    gathered = re.findall(r"= (\w+)\[[^=]* all-gather\(", texts[1])
    assert ("f32" in gathered) == (groups == 1), gathered
    assert "pred" in gathered


def golden_training(shared):
    with np.load(shared / "golden" / "mcl" / "train_m2_f32.npz") as archive:
        return {name: archive[name] for name in archive.files}


def torch_arrays(arrays, kind, i):
    """The arrays of one network under torchvision's names, and those of its projection."""
    prefix = f"net{kind}_module_list.{i}."
    backbone = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    prefix = f"embed{kind}_{i}.proj_head."
    head = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return backbone, head


def test_three_released_training_steps(shared, tmp_path):
    arrays = golden_training(shared)
    meta = json.loads(str(arrays["meta_json"]))
    small = {"name": "cifar_resnet20", "stage_sizes": (1, 1, 1)}
    method = MCL(
        num_classes=6,
        networks=(small, small),
        embedding_size=8,
        temperature=meta["tau"],
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1 / 255,) * 3,
    )
    steps = [
        {
            "image": jnp.asarray(arrays[f"step{s}_x"].transpose(0, 2, 3, 1)),
            "label": jnp.asarray(arrays[f"step{s}_labels"], jnp.int32),
            "id": jnp.arange(8, dtype=jnp.int32),
            "mask": jnp.ones(8, bool),
        }
        for s in range(meta["nsteps"])
    ]
    variables = jax.eval_shape(method.init, jax.random.key(0), steps[0])
    for i in range(2):
        backbone, head = torch_arrays(arrays, "0", i)
        np.savez(tmp_path / f"{i}.npz", **backbone)
        variables, _ = load_pretrained(
            variables, tmp_path / f"{i}.npz", backbone=f"networks_{i}", head=f"classifier{i}"
        )
        variables["params"][f"projection{i}"] = {
            f"dense{n}": {
                "kernel": jnp.asarray(head[f"{index}.weight"].T),
                "bias": jnp.asarray(head[f"{index}.bias"]),
            }
            for n, index in ((1, 0), (2, 2))
        }
    options = OptimOptions(
        name="sgd", learning_rate=meta["lr"], momentum=0.9, nesterov=True, schedule="constant",
        weight_decay=meta["weight_decay"], decay_vectors=True, warmup_steps=0,
    )  # fmt: skip
    optimizer = make_optimizer(options, variables["params"], total_steps=3)
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key(0),
        params=variables["params"],
        model_state={"batch_stats": variables["batch_stats"]},
        opt_state=optimizer.init(variables["params"]),
    )
    step = jax.jit(make_train_step(method, optimizer))
    for s, batch in enumerate(steps):
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], arrays[f"step{s}_out_loss"], rtol=1e-4)
        for ours, theirs in (("cross_entropy", "loss_cls"), ("vcl", "vcl"), ("icl", "icl"),
                             ("soft_vcl", "soft_vcl"), ("soft_icl", "soft_icl")):  # fmt: skip
            expected = arrays[f"step{s}_out_{theirs}"]
            np.testing.assert_allclose(metrics[f"loss/{ours}"], expected, rtol=1e-3, atol=1e-5)
    for i in range(2):
        backbone, head = torch_arrays(arrays, "_final", i)
        final = to_torch_state_dict(
            {"params": state.params, **state.model_state},
            backbone=f"networks_{i}",
            head=f"classifier{i}",
        )
        for name, value in final.items():
            expected = backbone.get(name, backbone.get(name.replace("fc.", "classifier.")))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4 * scale, err_msg=name)
        dense = state.params[f"projection{i}"]
        np.testing.assert_allclose(dense["dense1"]["kernel"].T, head["0.weight"], atol=1e-5)
        np.testing.assert_allclose(dense["dense2"]["bias"], head["2.bias"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": (TINY,)}, "networks has 1 of them; expected at least two"),
        ({"networks": (TINY, {"name": "resnet31"})}, "backbone 'resnet31'"),
        ({"networks": (TINY, {"width": 3})}, r"networks\[1\] is .*; expected a key 'name'"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"soft_temperature": -1.0}, "soft_temperature is -1.0; expected a number above 0"),
        ({"shared_stages": 2}, "shared_stages is 2; expected 0 to 1"),
        ({"contrast_groups": 0}, "contrast_groups is 0; expected at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected it in \[0, 1\)"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_groups_that_do_not_divide_the_batch_are_told(batch, variables):
    with pytest.raises(UserError, match="groups is 3; expected a divisor of the batch size"):
        run_loss(make_method(contrast_groups=3), variables, batch)


def test_a_method_is_its_options():
    method = make_method()
    assert dataclasses.replace(method, temperature=0.2) != method
    assert method.frozen_parameters() == ()
    assert method.num_networks == 2
