"""AFD: its terms by hand, who learns from whom, and what each term moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import cross_entropy, knowledge_distillation
from fgkd_jax.methods import AFD
from fgkd_jax.models.discriminator import FeatureDiscriminator
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import MeshOptions, batch_sharding, make_mesh, put_batch, replicated
from fgkd_jax.train.step import make_train_step

CLASSES = 4
TINY = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
        "width": 4}  # fmt: skip
OTHER = {"name": "resnet_narrow", "width": 6, "stage_sizes": (1,), "strides": (2,),
         "dilations": (1,), "zero_init_residual": False}  # fmt: skip
THREE = (TINY, OTHER, {**TINY, "width": 6})


def make_method(**options):
    base = {"num_classes": CLASSES, "networks": (TINY, TINY), "discriminator_features": 8}
    return AFD(**{**base, **options})


def make_batch(size=6):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3), np.uint8)),
        "label": jnp.arange(size, dtype=jnp.int32) % CLASSES,
        "id": jnp.arange(size, dtype=jnp.int32),
        "mask": jnp.ones(size, bool),
    }


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(make_method(networks=THREE).init)(jax.random.key(0), batch)


def scores(params, i, maps):
    module = FeatureDiscriminator(8)
    return np.asarray(module.apply({"params": params[f"discriminator{i}"]}, maps))


def test_the_terms_are_those_of_a_circle_of_networks(batch, variables):
    method = make_method(networks=THREE, imitation_weight=0.2, discrimination_weight=0.3,
                         distill_weight=0.4, logit_temperature=2.0)  # fmt: skip
    masked = {**batch, "mask": batch["mask"].at[5].set(False)}
    terms, state, figures = method.loss(variables, masked, jax.random.key(1), train=False)
    images = method.images(batch, jax.random.key(0), train=False)
    logits, maps = method.network.apply(variables, images, train=False)
    assert {one.shape[-1] for one in maps} == {4}
    params = variables["params"]
    expected = dict.fromkeys(("cross_entropy", "distillation", "imitation", "discrimination"), 0.0)
    for i, peer in ((0, 2), (1, 0), (2, 1)):
        own, other = scores(params, i, maps[i]), scores(params, i, maps[peer])
        expected["cross_entropy"] += cross_entropy(logits[i], batch["label"])
        expected["distillation"] += knowledge_distillation(logits[i], logits[peer], temperature=2.0)
        expected["imitation"] += (1 - own) ** 2
        expected["discrimination"] += (1 - other) ** 2 + own**2
    weights = {"cross_entropy": 1.0, "distillation": 0.4, "imitation": 0.2, "discrimination": 0.3}
    assert terms.keys() == expected.keys()
    for name, loss in expected.items():
        np.testing.assert_allclose(terms[name].sum[:5], loss[:5], rtol=1e-4, atol=1e-6)
        assert float(terms[name].sum[5]) == 0.0
        assert float(terms[name].weight) == pytest.approx(weights[name])
        assert terms[name].accumulable
    assert state.keys() == {"batch_stats"}
    own = np.mean([scores(params, i, maps[i]) for i in range(3)], axis=0)
    np.testing.assert_allclose(figures["own_score"][0][:5], own[:5], rtol=1e-4)
    assert figures.keys() >= {"accuracy", "network2_accuracy", "peer_score"}


@pytest.fixture(scope="module")
def moved(batch, variables):
    """By term, the modules whose parameters it has a gradient to."""
    method = make_method(networks=THREE)

    def loss(params, name):
        terms, *_ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(1), train=False
        )
        return jnp.sum(terms[name].sum)

    def modules(name):
        grads = jax.jit(jax.grad(lambda params: loss(params, name)))(variables["params"])
        largest = {
            module: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
            for module, tree in grads.items()
        }
        return {module for module, value in largest.items() if value > 0}

    return {name: modules(name) for name in ("imitation", "discrimination", "distillation")}


def test_networks_and_discriminators_descend_their_own_losses(moved):
    networks = {f"networks_{i}" for i in range(3)}
    # The first network's maps have the common channels as they are.
    assert moved["imitation"] == networks | {"adapter1", "adapter2"}
    assert moved["discrimination"] == {f"discriminator{i}" for i in range(3)}
    assert moved["distillation"] == networks | {f"classifier{i}" for i in range(3)}


def test_a_network_is_moved_by_its_own_imitation_alone(batch, variables):
    method = make_method(networks=THREE)

    def first(params):
        logits, maps = method.network.apply(
            {**variables, "params": params},
            method.images(batch, jax.random.key(0), train=False),
            train=False,
        )
        del logits
        module = FeatureDiscriminator(8)
        score = module.apply({"params": variables["params"]["discriminator1"]}, maps[1])
        return jnp.sum((1 - score) ** 2)

    def whole(params):
        terms, *_ = method.loss(
            {**variables, "params": params}, batch, jax.random.key(1), train=False
        )
        return jnp.sum(terms["imitation"].sum)

    mine, all_of_it = (
        jax.jit(jax.grad(one))(variables["params"])["networks_1"] for one in (first, whole)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), mine, all_of_it
    )


def test_discriminators_learn_to_tell_networks_that_stand_still(batch):
    method = make_method(distill_weight=0.0, imitation_weight=0.0)
    variables = jax.jit(method.init)(jax.random.key(0), batch)

    def loss(discriminators):
        params = {**variables["params"], **discriminators}
        terms, _, figures = method.loss(
            {**variables, "params": params}, batch, jax.random.key(1), train=False
        )
        return jnp.mean(terms["discrimination"].sum), figures

    found = {k: v for k, v in variables["params"].items() if k.startswith("discriminator")}
    optimizer = optax.adam(0.01)
    state = optimizer.init(found)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    values = []
    for _ in range(60):
        (value, figures), grads = step(found)
        updates, state = optimizer.update(grads, state)
        found = optax.apply_updates(found, updates)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
    means = {name: float(jnp.mean(figures[name][0])) for name in ("own_score", "peer_score")}
    assert means["own_score"] < 0.4 < 0.6 < means["peer_score"]


def test_equal_channels_need_no_adapter(batch):
    shapes = jax.eval_shape(make_method().init, jax.random.key(0), batch)["params"]
    assert not any(name.startswith("adapter") for name in shapes)
    shapes = jax.eval_shape(make_method(map_channels=5).init, jax.random.key(0), batch)["params"]
    assert {"adapter0", "adapter1"} <= shapes.keys()
    assert shapes["adapter1"]["conv"]["kernel"].shape == (1, 1, 4, 5)
    assert shapes["discriminator1"]["conv1"]["kernel"].shape == (3, 3, 5, 8)


def test_eight_devices_equal_one():
    networks = tuple({**one, "norm_groups": 8} for one in (TINY, OTHER))
    method = make_method(networks=networks, brightness=0.2)
    batch = {name: np.asarray(value) for name, value in make_batch(size=16).items()}
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    step = make_train_step(method, optax.sgd(0.1))
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        everywhere = replicated(mesh)
        state = initial_state(jax.random.key(3), method, optax.sgd(0.1), spec, mesh=mesh)
        jitted = jax.jit(step, in_shardings=(everywhere, batch_sharding(mesh)))
        new, metrics = jitted(state, put_batch(batch, mesh=mesh))
        results.append(jax.device_get((new.params, new.model_state, metrics)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1, np.abs(b).max())),
        *results,
    )


def test_every_network_ships_without_its_discriminator(batch, variables):
    method = make_method(networks=THREE)
    expected = jax.jit(method.predict)(variables, batch)["network_logits"]
    for i in range(3):
        exported = method.export(variables, network=i)
        assert exported.variables["params"].keys() == {"backbone", "head"}
        alone = jax.jit(exported.method.predict)(exported.variables, batch)["logits"]
        np.testing.assert_allclose(alone, expected[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": (TINY,)}, "networks has 1 of them; expected at least two"),
        ({"map_channels": -1}, "map_channels is -1; expected at least 0"),
        ({"discriminator_features": 0}, "discriminator_features is 0; expected at least 1"),
        ({"logit_temperature": 0.0}, "logit_temperature is 0.0; expected a number above 0"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_a_method_is_its_options():
    assert dataclasses.replace(make_method(), imitation_weight=0.5) != make_method()
