"""TASN: its loss against NumPy and the golden gradients, what is trained by what, its sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import cross_entropy, soft_target_cross_entropy
from fgkd_jax.methods import TASN
from fgkd_jax.methods.tasn import PRESETS, tasn_preset
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.step import make_train_step

TINY = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
        "dilations": (1,), "zero_init_residual": False}  # fmt: skip
CLASSES = 5
TERMS = {"attention": 1.0, "part": 0.5, "master": 0.5, "part_auxiliary": 0.5,
         "master_auxiliary": 0.5, "distillation": 1.0}  # fmt: skip


def make_method(**options):
    base = {"num_classes": CLASSES, "backbone": TINY, "attention_backbone": TINY,
            "attention_size": 8, "out_size": 8}  # fmt: skip
    return TASN(**{**base, **options})


def make_batch(size=6, side=24, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, side, side, 3), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
        "id": jnp.arange(10, 10 + size, dtype=jnp.int32),
        "mask": jnp.asarray(np.arange(size) < size - 1),
        "bbox": jnp.asarray([[6.0, 12.0, 12.0, 21.0]] * size),
    }


METHOD = make_method()
predict = jax.jit(METHOD.predict)
loss = jax.jit(METHOD.loss, static_argnames="train")


def run_predict(method, variables, batch):
    return jax.jit(method.predict)(variables, batch)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(make_method().init)(jax.random.key(0), batch)


@jax.jit
def logits_of(variables, batch, key):
    """All logits in evaluation mode, put together from the network's own parts."""
    network = METHOD.network
    explained = METHOD.explain(variables, batch, jax.random.split(key, 4)[0])
    small = METHOD.normalize(METHOD._shrink(batch["image"]))
    views = [METHOD.normalize(explained[name]) for name in ("detail", "structure")]
    attention, _ = network.apply(variables, small, train=False, method="attend")
    pair = jnp.stack(views, axis=1)
    rest = network.apply(variables, pair, train=False, method="classify_views")
    return {"attention": attention, **rest}


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1))[:, None]


def test_the_terms_are_those_of_the_paper(batch, variables):
    terms, state, figures = loss(variables, batch, jax.random.key(3), train=False)
    logits = logits_of(variables, batch, jax.random.key(3))
    mask, label = np.asarray(batch["mask"]), np.asarray(batch["label"])
    expected = {
        name: -log_softmax(value)[np.arange(len(label)), label] for name, value in logits.items()
    }
    teacher = np.exp(log_softmax(np.asarray(logits["part"]) / 10))
    expected["distillation"] = -(teacher * log_softmax(np.asarray(logits["master"]) / 10)).sum(1)
    assert {name: float(term.weight) for name, term in terms.items()} == TERMS
    for name, term in terms.items():
        np.testing.assert_allclose(term.sum, expected[name] * mask, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(term.count, mask)
    right, count = figures["accuracy"]
    chosen = np.asarray(logits["master"]).argmax(1)
    np.testing.assert_array_equal(right, (chosen == label) & mask)
    np.testing.assert_array_equal(count, mask)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("case", ["l0", "l1"])
def test_the_weighted_gradients_are_the_released_ones(shared, case):
    golden = np.load(shared / "golden" / "tasn" / "losses_mxnet.npz")
    part, master, both = (golden[f"{case}_{name}"] for name in ("fc1_part", "fc2_master", "fc_aux"))
    labels = jnp.asarray(golden[f"{case}_label"], jnp.int32)
    weights = make_method()._weights

    def total(part, master, both):
        n = len(part)
        logits = {"part": part, "master": master, "part_auxiliary": both[:n],
                  "master_auxiliary": both[n:]}  # fmt: skip
        losses = {name: cross_entropy(value, labels) for name, value in logits.items()}
        losses["distillation"] = soft_target_cross_entropy(master, part, temperature=10.0)
        return sum(weights[name] * jnp.sum(value) for name, value in losses.items())

    grads = jax.jit(jax.grad(total, (0, 1, 2)))(part, master, both)
    for name, grad in zip(("fc1", "fc2", "fc"), grads, strict=True):
        np.testing.assert_allclose(grad, golden[f"{case}_all_grad_{name}"], atol=1e-5)


def norms_of(method):
    """Takes norms of the gradients of one term, chosen when called."""

    def total(params, variables, batch, chosen):
        terms, _, _ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(1), train=False
        )
        return sum(chosen[name] * jnp.sum(term.sum) for name, term in terms.items())

    @jax.jit
    def norms(variables, batch, chosen):
        grads = jax.grad(total)(variables["params"], variables, batch, chosen)
        return {name: optax.tree.norm(tree) for name, tree in grads.items()}

    def run(variables, batch, only):
        chosen = {name: np.float32(name == only) for name in TERMS}
        return {name: float(norm) for name, norm in norms(variables, batch, chosen).items()}

    return run


plain_norms = norms_of(METHOD)


@pytest.mark.parametrize("teacher_gradient", [False, True])
def test_distillation_moves_the_part_only_if_asked(batch, variables, teacher_gradient):
    of_term = norms_of(make_method(teacher_gradient=True)) if teacher_gradient else plain_norms
    size = of_term(variables, batch, "distillation")
    assert (size["part_classifier"] > 0) == teacher_gradient
    assert size["master_classifier"] > 0
    assert size["backbone"] > 0
    assert size["auxiliary_classifier"] == 0


def test_attention_is_trained_by_its_own_loss_alone(batch, variables):
    for only in TERMS:
        size = plain_norms(variables, batch, only)
        trained = {name for name, value in size.items() if value > 0}
        own = {"attention_backbone", "attention_head", "attention_classifier"}
        assert (trained == own) if only == "attention" else not trained & own


def test_an_example_depends_on_its_id_and_not_on_its_place(batch, variables):
    order = np.asarray([3, 1, 4, 0, 5, 2])
    turned = {name: np.asarray(value)[order] for name, value in batch.items()}
    terms, other = (
        jax.device_get(loss(variables, one, jax.random.key(5), train=False)[0])
        for one in (batch, turned)
    )
    for name in TERMS:
        np.testing.assert_allclose(other[name].sum, terms[name].sum[order], rtol=1e-5, atol=1e-5)


def test_prediction_is_the_master_on_the_structure_image(batch, variables):
    predicted = predict(variables, batch)
    logits = logits_of(variables, batch, jax.random.key(0))
    np.testing.assert_allclose(predicted["logits"], logits["master"], rtol=1e-4, atol=1e-5)
    assert predicted["structure"].shape == (6, 8, 8, 3)
    assert predicted["sampled_rows"].shape == predicted["sampled_columns"].shape == (6, 8)


def test_colour_jitter_changes_training_alone(batch, variables):
    coloured = jax.jit(make_method(brightness=0.9).loss, static_argnames="train")
    for train in (True, False):
        ours, theirs = (
            run(variables, batch, jax.random.key(0), train=train)[0] for run in (coloured, loss)
        )
        assert np.allclose(ours["master"].sum, theirs["master"].sum) == (not train)


def test_uniform_sampling_is_a_plain_resize(batch, variables):
    structure = run_predict(make_method(sampling="uniform"), variables, batch)["structure"]
    image = batch["image"].astype(jnp.float32)
    plain = jax.image.resize(image, structure.shape, "linear", antialias=False)
    np.testing.assert_allclose(structure, plain, atol=1e-2)


def test_the_box_gets_the_pixels(batch, variables):
    # The box covers a quarter of the columns and three eighths of the rows.
    predicted = run_predict(make_method(sampling="box", out_size=48), variables, batch)
    rows, columns = (
        np.asarray(predicted[name]) + 0.5 for name in ("sampled_rows", "sampled_columns")
    )
    assert np.mean((columns > 6) & (columns < 12)) > 0.95
    assert np.mean((rows > 12) & (rows < 21)) > 0.95
    without = {name: value for name, value in batch.items() if name != "bbox"}
    with pytest.raises(UserError, match="needs the boxes"):
        make_method(sampling="box").predict(variables, without)


def test_the_attention_net_may_end_early(batch, variables):
    early = make_method(attention_stages=1)
    made = jax.jit(early.init)(jax.random.key(0), batch)
    assert set(made["params"]["attention_backbone"]) == {"stem"}
    assert set(made["params"]["backbone"]) == {"stem", "stage1"}
    # The stem keeps 8 x 8 cells, the stage after it halves them.
    for run, values, cells in ((jax.jit(early.predict), made, 8), (predict, variables, 4)):
        assert run(values, batch)["attention"].shape[1:] == (cells, cells)


def test_presets(batch):
    with pytest.raises(UserError, match="no preset 'referense'; did you mean 'reference'"):
        tasn_preset("referense")
    for name in PRESETS:
        method = make_method(**tasn_preset(name))
        made = jax.jit(method.init)(jax.random.key(0), batch)
        positions = np.asarray(run_predict(method, made, batch)["sampled_rows"])
        assert (np.diff(positions) >= 0).all()
        # The released grid begins at the centre of the first pixel, ours anywhere.
        assert (positions[:, 0] == 0).all() == (name == "reference")
    tall = {**batch, "image": batch["image"][:, :20]}
    with pytest.raises(UserError, match=r"got an image of \(20, 24\); expected a square one"):
        make_method(grid="reference").predict(made, tall)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"max_density": 0.5}, "max_density is 0.5; expected at least 1"),
        ({"out_size": 0}, "out_size is 0; expected at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected it in \[0, 1\)"),
        ({"sampling": "unifrom"}, "sampling is 'unifrom'; did you mean 'uniform'"),
        ({"grid": "dense"}, "grid is 'dense'; expected one of half_pixel, reference"),
        ({"attention_stages": 3}, r"attention_stages is 3; expected 0 \(all\) to 2"),
        ({"attention_backbone": {"width": 3}}, "attention_backbone is .*; expected a key 'name'"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_attention_that_is_not_finite_makes_the_loss_of_its_example_nan(batch, variables):
    images = batch["image"].astype(jnp.float32).at[2].set(jnp.nan)
    broken = {**batch, "image": images}
    terms, _, _ = loss(variables, broken, jax.random.key(0), train=False)
    bad = ~np.isfinite(np.asarray(terms["distillation"].sum))
    assert bad.tolist() == [False, False, True, False, False, False]
    # What is sampled stays a picture all the same.
    predicted = predict(variables, broken)
    assert np.isfinite(predicted["sampled_rows"]).all()


@pytest.mark.parametrize("collectives", [("all-to-all", "collective-permute")])
def test_eight_devices_equal_one_and_exchange_no_examples(collectives):
    groups = {**TINY, "norm_groups": 8}
    method = make_method(backbone=groups, attention_backbone=groups, brightness=0.2)
    batch = {name: np.asarray(value) for name, value in make_batch(size=16).items()}
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(method, optimizer)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
        everywhere = replicated(mesh)
        state = initial_state(jax.random.key(3), method, optimizer, spec, mesh=mesh)
        compiled = (
            jax.jit(
                step,
                in_shardings=(everywhere, batch_sharding(mesh)),
                out_shardings=everywhere,
            )
            .lower(state, put_batch(batch, mesh=mesh))
            .compile()
        )
        text = compiled.as_text()
        assert ("all-reduce" in text) == (devices == 8)
        for name in collectives:
            assert name not in text
        new, metrics = compiled(state, put_batch(batch, mesh=mesh))
        results.append(jax.device_get((new.params, new.model_state, new.opt_state, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


def test_a_method_is_its_options():
    method = make_method()
    assert dataclasses.replace(method, out_size=9) != method
    assert method.frozen_parameters() == ()
