"""MSDN: the released steps, its terms by hand, ablations, devices, resumed steps, mistakes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.cli.zero_shot_recipes import released_optimizer
from fgkd_jax.errors import UserError
from fgkd_jax.losses import (
    attribute_cross_entropy,
    attribute_ranking,
    self_calibration,
    self_calibration_per_example,
    semantic_distillation,
    semantic_distillation_as_printed,
)
from fgkd_jax.methods import MSDN
from fgkd_jax.methods.msdn import SUBNETS
from fgkd_jax.methods.msdn_presets import ABLATIONS, PRESETS, RELEASED, msdn_preset
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.optim import OptimOptions, ParamRule, make_optimizer, trainable_mask
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.state import abstract_like
from fgkd_jax.train.step import make_train_step

K, A, V, F, GRID = 6, 5, 4, 8, (2, 3)
SEEN = np.array([True, True, False, True, False, True])


def make_method(**options):
    return MSDN(**{"num_classes": K, "num_attributes": A, "word_size": V, **options})


def make_batch(size=8, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "features": np.abs(rng.normal(size=(size, *GRID, F))).astype(dtype),
        "label": rng.choice(np.flatnonzero(SEEN), size).astype(np.int32),
        "id": np.arange(size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }


def descriptions(method, seed=5):
    rng = np.random.default_rng(seed)
    return method.describe(
        rng.uniform(size=(K, A)).astype(np.float32),
        SEEN,
        rng.normal(size=(A, V)).astype(np.float32),
        class_names=tuple("abcdef"),
    )


def make_variables(method, batch, *, random=True):
    """Of a data set; with `random` all matrices are drawn, so that no map is zero."""
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    told = descriptions(method)
    params = {**variables["params"], **told["params"]}
    if random:
        rng = np.random.default_rng(3)
        params = {
            name: rng.normal(size=value.shape).astype(np.float32) if name != "words" else value
            for name, value in params.items()
        }
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        {"params": params, "constants": told["constants"]},
        {name: dict(variables[name]) for name in ("params", "constants")},
    )
    whole = {**variables, "params": params, "constants": told["constants"]}
    return jax.tree.map(jnp.asarray, whole)


def run_loss(method, variables, batch):
    run = jax.jit(method.loss, static_argnames="train")
    return run(variables, jax.tree.map(jnp.asarray, batch), jax.random.key(1), train=True)


def scores_of(method, variables, batch):
    """Of each sub-net, without the bias."""
    outputs = method.network.apply(
        {"params": variables["params"]},
        jnp.asarray(batch["features"]),
        variables["constants"]["attributes"],
        train=False,
    )
    return {name: one.scores for name, one in outputs.items()}


# The released code.


def golden_of(shared, name):
    with np.load(shared / "golden" / "msdn" / f"{name}.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    return golden, json.loads(str(golden["meta_json"]))


def released_variables(golden, prefix):
    params = {"words": golden[f"{prefix}V"], "region_score": golden[f"{prefix}W_1"],
              "region_attention": golden[f"{prefix}W_2"],
              "attribute_score": golden[f"{prefix}W_1_1"].T,
              "attribute_attention": golden[f"{prefix}W_2_1"]}  # fmt: skip
    seen = np.ones(len(golden[f"{prefix}att"]), bool)
    seen[golden["in_unseenclass"]] = False
    constants = {"attributes": golden[f"{prefix}att"], "seen": seen}
    return jax.tree.map(jnp.asarray, {"params": params, "constants": constants})


def released_batch(features, labels):
    return {
        "features": jnp.asarray(features.transpose(0, 2, 3, 1)),
        "label": jnp.asarray(labels, jnp.int32),
        "id": jnp.arange(len(labels), dtype=jnp.int32),
        "mask": jnp.ones(len(labels), bool),
    }


@pytest.mark.parametrize("name", ["cub_small_f64", "sun_small_f64", "awa2_small_f64"])
def test_the_loss_and_its_gradients_are_the_released_ones(shared, name):
    golden, meta = golden_of(shared, name)
    dataset = name.split("_")[0]
    method = MSDN(word_size=golden["param_V"].shape[1], **msdn_preset("reference", dataset=dataset))
    assert method.calibration_weight == meta["lambda_cal"]
    assert method.distillation_weight == meta["lambda_distill"]
    assert method.normalize_words == meta["options"]["normalize_V"]
    with jax.enable_x64(True):
        variables = released_variables(golden, "param_")
        batch = released_batch(golden["in_features"], golden["in_labels"])

        def total(params):
            terms, *_ = method.loss(
                {**variables, "params": params}, batch, jax.random.key(0), train=True
            )
            means = {name: jnp.sum(t.sum) / jnp.sum(t.count) for name, t in terms.items()}
            return sum(terms[name].weight * mean for name, mean in means.items()), means

        (value, means), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(
            variables["params"]
        )
        np.testing.assert_allclose(value, golden["out_total"], rtol=1e-11)
        for subnet, theirs in zip(SUBNETS, ("tv", "vt"), strict=True):
            for ours, kind in (("cross_entropy", "CE"), ("calibration", "cal")):
                expected = golden[f"out_loss_{kind}_{theirs}"]
                np.testing.assert_allclose(means[f"{subnet}_{ours}"], expected, rtol=1e-11)
        np.testing.assert_allclose(means["distillation"], golden["out_distill"], rtol=1e-11)
        for ours, theirs in (("words", "V"), ("region_score", "W_1"), ("region_attention", "W_2"),
                             ("attribute_attention", "W_2_1")):  # fmt: skip
            expected = golden[f"grad_total__{theirs}"]
            np.testing.assert_allclose(grads[ours], expected, rtol=0, atol=1e-11)
        np.testing.assert_allclose(
            grads["attribute_score"].T, golden["grad_total__W_1_1"], rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("name", ["cub_small_f64", "init_state_f64", "awa2_small_f64"])
def test_descriptions_become_what_the_released_code_starts_from(shared, name):
    golden, _ = golden_of(shared, name)
    found = MSDN(clip_attributes=name.startswith("awa2")).describe(
        golden["in_att_raw"],
        np.isin(np.arange(len(golden["in_att_raw"])), golden["in_seenclass"]),
        golden["in_w2v_raw"],
        class_names=(),
    )
    np.testing.assert_allclose(found["constants"]["attributes"], golden["param_att"], atol=1e-15)
    np.testing.assert_allclose(found["params"]["words"], golden["param_V"], atol=1e-15)
    bias = np.where(found["constants"]["seen"], -1, 1)
    np.testing.assert_array_equal(bias, golden["param_mask_bias"][0])


def test_four_consecutive_released_steps(shared):
    golden, meta = golden_of(shared, "train_steps_cub_f64")
    method = MSDN(word_size=golden["param0_V"].shape[1], **msdn_preset("reference"))
    with jax.enable_x64(True):
        variables = released_variables(golden, "param0_")
        params = variables["params"]
        options = OptimOptions(**released_optimizer())
        optimizer = make_optimizer(options, params, total_steps=meta["nsteps"])
        opt_state = optimizer.init(params)

        def total(params, batch):
            terms, *_ = method.loss(
                {**variables, "params": params}, batch, jax.random.key(0), train=True
            )
            parts = [t.weight * jnp.sum(t.sum) / jnp.sum(t.count) for t in terms.values()]
            return sum(parts)

        @jax.jit
        def step(params, opt_state, batch):
            value, grads = jax.value_and_grad(total)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return value, optax.apply_updates(params, updates), opt_state

        for n in range(meta["nsteps"]):
            batch = released_batch(golden[f"step{n}_features"], golden[f"step{n}_labels"])
            value, params, opt_state = step(params, opt_state, batch)
            np.testing.assert_allclose(value, golden[f"step{n}_loss"], rtol=1e-12)
            after = released_variables(
                {**golden, **{f"now_{name}": golden[f"step{n}_after_{name}"]
                              for name in ("V", "W_1", "W_2", "W_1_1", "W_2_1")},
                 "now_att": golden["param0_att"]},
                "now_",
            )["params"]  # fmt: skip
            for name, expected in after.items():
                np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-13)
        # What the released code never uses, its optimiser does not move either.
        np.testing.assert_array_equal(golden["step3_after_W_3"], golden["param0_W_3"])


@pytest.mark.parametrize("name", ["cub", "sun"])
def test_predictions_are_the_released_ones(shared, name):
    golden, meta = golden_of(shared, f"eval_{name}")
    method = MSDN(word_size=golden["param_V"].shape[1], **msdn_preset("reference", dataset=name))
    assert list(method.fusion) == meta["coef_tv_vt"]
    variables = released_variables(golden, "param_")
    for group in ("seen", "unseen"):
        batch = released_batch(golden[f"test_{group}_features"], golden[f"test_{group}_labels"])
        found = jax.jit(method.predict)(variables, batch)
        for i, net in enumerate(("tv", "vt")):
            np.testing.assert_allclose(
                found["subnet_scores"][i], golden[f"S_pp_{net}_{group}"], rtol=2e-6, atol=5e-6
            )
        predicted = np.argmax(found["scores"], axis=1)
        np.testing.assert_array_equal(predicted, golden[f"pred_gzsl_{group}"])
        if group == "unseen":
            unseen = np.sort(golden["in_unseenclass"])
            restricted = np.argmax(np.asarray(found["scores"])[:, unseen], axis=1)
            np.testing.assert_array_equal(restricted, golden["pred_zsl_restricted"])


# Terms.


def test_the_terms_are_those_of_the_scores():
    batch = make_batch()
    batch["mask"][5] = False
    method = make_method(bias=1.5, calibration_weight=0.3, distillation_weight=0.2)
    variables = make_variables(method, batch)
    terms, state, figures = run_loss(method, variables, batch)
    assert state == {}
    bias = jnp.where(jnp.asarray(SEEN), -1.5, 1.5)
    plain = scores_of(method, variables, batch)
    scores = {name: one + bias[None] for name, one in plain.items()}
    labels, kept = jnp.asarray(batch["label"]), jnp.asarray(batch["mask"])
    expected = {"distillation": semantic_distillation(*scores.values())}
    for name, one in scores.items():
        expected[f"{name}_cross_entropy"] = attribute_cross_entropy(one, labels, bias)
        value = self_calibration(one, jnp.asarray(~SEEN), where=kept)
        term = terms[f"{name}_calibration"]
        np.testing.assert_allclose(term.sum, value, rtol=1e-5)
        assert (float(term.count), term.accumulable) == (1.0, False)
        assert float(term.weight) == pytest.approx(0.3)
    for name, loss in expected.items():
        np.testing.assert_allclose(terms[name].sum, np.where(kept, loss, 0.0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(terms[name].count, batch["mask"])
        assert float(terms[name].weight) == pytest.approx(0.2 if name == "distillation" else 1.0)
        assert terms[name].accumulable
    assert terms.keys() == expected.keys() | {f"{name}_calibration" for name in SUBNETS}
    fused = np.asarray(0.9 * scores["text_to_image"] + 0.1 * scores["image_to_text"])
    taken = np.argmax(np.where(SEEN, fused, -np.inf), axis=1) == batch["label"]
    np.testing.assert_array_equal(figures["accuracy"][0], taken * batch["mask"])
    unseen = ~SEEN[np.argmax(fused, axis=1)]
    assert unseen.sum() > 0
    np.testing.assert_array_equal(figures["unseen_share"][0], unseen * batch["mask"])


def test_the_printed_forms_are_options():
    batch = make_batch()
    method = make_method(**PRESETS["paper"], label_loss="cross_entropy")
    assert (method.swap_axes, method.relate_regions) == (True, True)
    variables = make_variables(method, batch)
    terms, *_ = run_loss(method, variables, batch)
    bias = jnp.where(jnp.asarray(SEEN), -1.0, 1.0)
    scores = {n: one + bias[None] for n, one in scores_of(method, variables, batch).items()}
    labels = jnp.asarray(batch["label"])
    for name, one in scores.items():
        np.testing.assert_allclose(
            terms[f"{name}_cross_entropy"].sum,
            attribute_cross_entropy(one, labels, bias, classes=jnp.asarray(SEEN)),
            rtol=1e-4,
        )
        np.testing.assert_allclose(
            terms[f"{name}_calibration"].sum,
            self_calibration_per_example(one, jnp.asarray(~SEEN)),
            rtol=1e-4,
        )
    apart = semantic_distillation_as_printed(*scores.values())
    np.testing.assert_allclose(terms["distillation"].sum, apart, rtol=1e-3, atol=1e-6)
    assert all(term.accumulable for term in terms.values())


@pytest.mark.parametrize("classes", ["all", "seen"])
def test_the_ranking_keeps_the_bias(classes):
    batch = make_batch()
    method = make_method(label_loss="ranking", label_classes=classes, calibration_weight=0.0)
    variables = make_variables(method, batch)
    terms, *_ = run_loss(method, variables, batch)
    assert terms.keys() == {"text_to_image_ranking", "image_to_text_ranking", "distillation"}
    over = jnp.asarray(SEEN) if classes == "seen" else None
    for name, one in scores_of(method, variables, batch).items():
        biased = one + jnp.where(jnp.asarray(SEEN), -1.0, 1.0)[None]
        expected = attribute_ranking(biased, jnp.asarray(batch["label"]), classes=over)
        np.testing.assert_allclose(terms[f"{name}_ranking"].sum, expected, rtol=1e-4)


def test_without_bias_scores_are_plain():
    batch = make_batch()
    method = make_method(bias=0.0)
    variables = make_variables(method, batch)
    found = method.predict(variables, jax.tree.map(jnp.asarray, batch))
    plain = scores_of(method, variables, batch)
    np.testing.assert_allclose(found["subnet_scores"], jnp.stack(list(plain.values())), rtol=1e-6)


# Sub-nets, and what is predicted.


@pytest.mark.parametrize("ablation", list(ABLATIONS))
def test_ablations_leave_out_what_they_say(ablation):
    batch = make_batch()
    method = make_method(**ABLATIONS[ablation])
    variables = make_variables(method, batch)
    terms, *_ = run_loss(method, variables, batch)
    kept = SUBNETS if ablation in ("both", "undistilled") else (ablation,)
    expected = {f"{name}_{part}" for name in kept for part in ("cross_entropy", "calibration")}
    assert terms.keys() == expected | ({"distillation"} if ablation == "both" else set())
    found = jax.jit(method.predict)(variables, batch)
    scores = found["subnet_scores"]
    assert scores.shape == (len(kept), 8, K)
    fused = scores[0] if len(kept) == 1 else 0.9 * scores[0] + 0.1 * scores[1]
    np.testing.assert_allclose(found["scores"], fused, rtol=1e-5, atol=1e-6)
    assert found["scores"].dtype == jnp.float32
    assert found["attributes"].shape == (8, A)
    assert found["attention"].shape == (8, A, *GRID)
    np.testing.assert_allclose(jnp.sum(found["attention"], axis=(2, 3)), 1.0, rtol=1e-5)


def test_attention_is_where_the_attribute_is():
    batch = make_batch(dtype=np.float16)
    method = make_method()
    variables = make_variables(method, batch)
    # The first attribute attends along the first channel alone.
    params = dict(variables["params"])
    params["words"] = jnp.eye(A, V)
    params["region_attention"] = jnp.zeros((V, F)).at[0, 0].set(50.0)
    batch["features"][:] = 0.1
    batch["features"][0, 1, 2, 0] = 3.0
    found = jax.jit(method.predict)({**variables, "params": params}, batch)
    assert found["attention"][0, 0, 1, 2] > 0.99
    np.testing.assert_allclose(found["attention"][0, 4], 1 / 6, rtol=1e-5)


def test_the_order_of_the_sub_nets_is_of_no_account():
    batch = make_batch()
    variables = make_variables(make_method(), batch)
    one, other = (
        jax.jit(make_method(subnets=names).predict)(variables, batch)
        for names in (SUBNETS, SUBNETS[::-1])
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Training.


def test_steps_learn_on_released_settings_and_words_move():
    method = make_method(**msdn_preset("reference"))
    batch = make_batch(size=24)
    state, step, _ = started(method, batch, devices=1, learning_rate=1e-3)
    start = jax.device_get(state.params)
    losses = []
    for _ in range(40):
        state, metrics = step(state, put_batch(batch, mesh=make_mesh(MeshOptions(data=1))))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert bool(metrics["finite"])
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), start, jax.device_get(state.params)
    )
    assert min(moved.values()) > 1e-4, moved


def started(method, batch, *, devices, learning_rate=1e-4):
    """State of step 0 and compiled step on so many devices, with the released optimiser."""
    mesh = make_mesh(MeshOptions(data=devices))
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    params = jax.eval_shape(method.init, jax.random.key(0), spec)["params"]
    options = OptimOptions(**{**released_optimizer(), "learning_rate": learning_rate})
    optimizer = make_optimizer(options, params, total_steps=100)
    told = descriptions(method)

    def overlay(variables):
        return {**variables, "params": {**variables["params"], **told["params"]}}

    state = initial_state(
        jax.random.key(3), method, optimizer, spec, mesh=mesh, overlay=overlay,
        constants=told["constants"],
    )  # fmt: skip
    step = jax.jit(
        make_train_step(method, optimizer),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    return state, step, mesh


@pytest.mark.parametrize("preset", list(PRESETS))
def test_eight_devices_equal_one(preset):
    method = make_method(**msdn_preset(preset))
    batch = make_batch(size=32)
    batch["mask"][::5] = False

    def total(params, constants, batch):
        terms, *_ = method.loss(
            {"params": params, **constants}, batch, jax.random.key(0), train=True
        )
        return sum(t.weight * jnp.sum(t.sum) / jnp.sum(t.count) for t in terms.values())

    results = []
    for devices in (1, 8):
        state, step, mesh = started(method, batch, devices=devices)
        placed = put_batch(batch, mesh=mesh)
        assert len(placed["features"].addressable_shards) == devices
        for _ in range(2):
            state, metrics = step(state, placed)
        shardings = (replicated(mesh), replicated(mesh), batch_sharding(mesh))
        slope = jax.jit(jax.value_and_grad(total), in_shardings=shardings)
        loss_and_gradients = slope(state.params, state.constants, placed)
        results.append(jax.device_get((state.params, metrics, loss_and_gradients)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1, np.abs(b).max())),
        *results,
    )


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    method = make_method(**msdn_preset("reference"))
    batches = [make_batch(seed=seed) for seed in range(4)]
    state, step, mesh = started(method, batches[0], devices=1)
    for n, batch in enumerate(batches):
        state, _ = step(state, put_batch(batch, mesh=mesh))
        if n == 1:
            with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
                checkpointer.save(2, state.to_save())
                checkpointer.wait()
    fresh, step, mesh = started(method, batches[0], devices=1)
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        saved, at = checkpointer.restore_last(abstract_like(fresh.to_save()))
    assert at == 2
    fresh = fresh.with_saved(saved)
    for batch in batches[at:]:
        fresh, _ = step(fresh, put_batch(batch, mesh=mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(_raw(a), _raw(b)),
        fresh.to_save(),
        state.to_save(),
    )


def _raw(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_an_example_that_does_not_count_does_no_harm(preset):
    method = make_method(**msdn_preset(preset))
    batch = make_batch()
    variables = make_variables(method, batch)
    kept = {name: value[1:] for name, value in batch.items()}
    # As a pipeline fills a batch up: of no features, and of a class that may be an unseen one.
    batch["features"][0], batch["label"][0], batch["mask"][0] = 0.0, 2, False

    def total(params, batch):
        terms, *_ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(0), train=True
        )
        return sum(t.weight * jnp.sum(t.sum) / jnp.sum(t.count) for t in terms.values())

    slope = jax.jit(jax.value_and_grad(total))
    expected, found = (
        slope(variables["params"], jax.tree.map(jnp.asarray, one)) for one in (kept, batch)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_the_log_of_a_batch_mean_is_not_accumulated():
    batch = make_batch()
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    for options, refused in (({}, True), ({"calibration": "example"}, False)):
        method = make_method(**options)
        mesh = make_mesh(MeshOptions(data=1))
        state = initial_state(jax.random.key(0), method, optax.sgd(0.1), spec, mesh=mesh)
        step = make_train_step(method, optax.sgd(0.1), accumulate=2)
        if refused:
            with pytest.raises(UserError, match="calibration' couples the examples of a batch"):
                jax.eval_shape(step, state, batch)
        else:
            jax.eval_shape(step, state, batch)


def test_words_that_are_not_trained_stay():
    batch = make_batch()
    params = make_variables(make_method(), batch)["params"]
    patterns = make_method(train_words=False).frozen_parameters()
    rules = tuple(ParamRule(pattern, frozen=True) for pattern in patterns)
    mask = trainable_mask(OptimOptions(rules=rules), params)
    assert mask == {name: name != "words" for name in params}
    assert make_method().frozen_parameters() == ()


def test_the_convolution_has_batch_statistics():
    batch = make_batch()
    method = make_method(conv=True)
    variables = make_variables(method, batch, random=False)
    _, state, _ = run_loss(method, variables, batch)
    before = variables["batch_stats"]["norm"]["mean"]
    assert (np.asarray(state["batch_stats"]["norm"]["mean"]) != np.asarray(before)).any()
    assert jax.jit(method.predict)(variables, batch)["attention"].shape == (8, A, 1, 2)


# Presets and descriptions.


def test_presets_are_options():
    for dataset in RELEASED:
        for preset in PRESETS:
            for ablation in ABLATIONS:
                MSDN(**msdn_preset(preset, dataset=dataset, ablation=ablation))
    assert MSDN(**msdn_preset("reference")) == MSDN()
    assert MSDN(**msdn_preset("reference", dataset="awa2")).fusion == (1.0, 0.0)
    with pytest.raises(UserError, match="MSDN has no preset 'papr'; did you mean 'paper'"):
        msdn_preset("papr")
    with pytest.raises(UserError, match="MSDN has no data set 'apy'"):
        msdn_preset("paper", dataset="apy")
    with pytest.raises(UserError, match="MSDN has no ablation 'none'"):
        msdn_preset("paper", ablation="none")


def test_without_word_vectors_each_attribute_is_an_axis():
    attributes, names = np.ones((K, A), np.float32), "abcdef"
    method = MSDN(word_vectors="one_hot", num_attributes=A, num_classes=K)
    told = method.describe(attributes, SEEN, None, class_names=names)
    np.testing.assert_array_equal(told["params"]["words"], np.eye(A))
    shapes = jax.eval_shape(method.init, jax.random.key(0), make_batch())
    assert shapes["params"]["words"].shape == (A, A)
    assert shapes["params"]["region_score"].shape == (A, F)
    given = method.describe(attributes, SEEN, np.ones((A, V), np.float32), class_names=names)
    np.testing.assert_array_equal(given["params"]["words"], np.eye(A))
    with pytest.raises(UserError, match="no word vectors; expected some with the data set, or"):
        MSDN().describe(attributes, SEEN, None, class_names=names)


def test_negative_attributes_count_where_they_are_not_clipped():
    attributes = np.array([[3.0, -4.0], [0.0, 2.0]], np.float32)
    words, seen = np.ones((2, 3), np.float32), np.array([True, False])
    for clip, expected in ((False, [0.6, -0.8]), (True, [1.0, 0.0])):
        told = MSDN(clip_attributes=clip).describe(attributes, seen, words, class_names="ab")
        np.testing.assert_allclose(told["constants"]["attributes"][0], expected, rtol=1e-6)
        assert told["constants"]["attributes"].dtype == np.float32


def test_centred_classes_are_told_by_what_they_differ_in_from_the_seen_ones():
    attributes = np.array([[3.0, 1.0], [1.0, 1.0], [5.0, 5.0]], np.float32)
    words, seen = np.ones((2, 3), np.float32), np.array([True, True, False])
    method = MSDN(centre_attributes=True)
    told = method.describe(attributes, seen, words, class_names="abc")
    # The mean of the seen ones is (2, 1); the unseen one counts for nothing in it.
    expected = [[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]]
    np.testing.assert_allclose(told["constants"]["attributes"], expected, rtol=1e-6)
    with pytest.raises(UserError, match="class 'c' has just the mean attributes"):
        method.describe(np.array([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), seen, words,
                        class_names="abc")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seen": np.zeros(K, bool)}, "none of 6 classes is seen; expected at least one"),
        ({"seen": np.ones(K, bool)}, "none of 6 classes is unseen; expected at least one"),
        ({"attributes": np.eye(K, A, dtype=np.float32)}, "class 'f' has no attribute other than 0"),
        ({"word_vectors": np.eye(A, V, dtype=np.float32)}, "vector of attribute 4 is zero"),
    ],
)
def test_descriptions_that_lack_something_are_refused(changes, message):
    told = {"attributes": np.ones((K, A), np.float32), "seen": SEEN,
            "word_vectors": np.ones((A, V), np.float32), **changes}  # fmt: skip
    with pytest.raises(UserError, match=message):
        MSDN().describe(*told.values(), class_names="abcdef")


def test_a_class_without_a_positive_attribute_is_refused_where_others_are_clipped():
    attributes = np.ones((K, A), np.float32)
    attributes[2] = -1
    words = np.ones((A, V), np.float32)
    MSDN().describe(attributes, SEEN, words, class_names="abcdef")
    with pytest.raises(UserError, match="class 'c' has no attribute above 0"):
        MSDN(clip_attributes=True).describe(attributes, SEEN, words, class_names="abcdef")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subnets": ("text_to_text",)}, "subnets has 'text_to_text'"),
        ({"subnets": ()}, r"subnets is \(\); expected one of"),
        ({"subnets": ("image_to_text",) * 2}, "subnets is .*; expected one of"),
        ({"bias": -1.0}, "bias is -1.0; expected a number of at least 0"),
        ({"calibration_weight": float("nan")}, "calibration_weight is nan; expected a number"),
        ({"distillation_weight": -0.1}, "distillation_weight is -0.1"),
        ({"fusion": (0.0, 0.0)}, r"fusion is \(0.0, 0.0\); expected weights"),
        ({"fusion": (1.5, -0.5)}, r"fusion is \(1.5, -0.5\); expected weights"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_a_method_is_its_options():
    assert dataclasses.replace(make_method(), bias=0.5) != make_method()
