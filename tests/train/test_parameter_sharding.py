"""Parameters that devices share: where they go, and that results are those of whole ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from fgkd_jax.errors import UserError
from fgkd_jax.methods import Classifier
from fgkd_jax.protocols import LossTerm
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
from fgkd_jax.train.init import initial_state, state_sharding
from fgkd_jax.train.optim import OptimOptions
from fgkd_jax.train.parameter_sharding import parameter_sharding, sharding_like
from fgkd_jax.train.sharding import MeshOptions, ShardRule, make_mesh, put_batch, replicated
from fgkd_jax.train.state import abstract_like
from fgkd_jax.train.steps import training_steps

METHOD = Classifier(
    num_classes=5,
    backbone={
        "name": "resnet_narrow",
        "width": 8,
        "norm_groups": 8,
        "stage_sizes": (1, 1),
        "strides": (1, 2),
        "dilations": (1, 1),
    },
    brightness=0.2,
    dropout=0.2,
)
RECIPES = {
    "momentum": OptimOptions(learning_rate=0.1, momentum=0.9, weight_decay=1e-3, clip_norm=1.0),
    # An epsilon of weight: Adam divides a gradient that is rounding alone by its own size.
    "average": OptimOptions(name="adamw", learning_rate=0.01, epsilon=1e-2, ema_decay=0.9),
}


def batches(count=3, size=16):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
            "label": rng.integers(0, 5, size).astype(np.int32),
            "id": rng.integers(0, 1000, size).astype(np.int32),
            "mask": np.ones(size, bool),
        }
        for _ in range(count)
    ]


class Prepared:
    """The steps of a method on a mesh, and its first state."""

    def __init__(self, placement, recipe, *, method=METHOD, batch=None, accumulate=1, overlay=None):
        self.mesh = make_mesh(placement)
        spec = batches(1)[0] if batch is None else batch
        shared = {"mesh": self.mesh, "placement": placement}
        self.steps = training_steps(
            method, spec, optimizer=recipe, total_steps=10, accumulate=accumulate, **shared
        )
        self.state = initial_state(
            jax.random.key(3),
            method,
            self.steps.optimizer,
            spec,
            ema=recipe.ema_decay > 0,
            overlay=overlay,
            **shared,
        )

    def train(self, some):
        logged = []
        for batch in some:
            self.state, metrics = self.steps.train_step(
                self.state, put_batch(batch, mesh=self.mesh)
            )
            logged.append(jax.device_get(metrics))
        return logged


def on_host(tree):
    keys = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf,
        tree,
    )  # fmt: skip
    return jax.device_get(keys)


def assert_close(one, other, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other
    )


def shared_leaves(tree):
    """How many arrays are divided, and the share of all numbers that one device holds."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    divided = sum(not leaf.sharding.is_fully_replicated for leaf in leaves)
    return divided, held / sum(leaf.size for leaf in leaves)


@pytest.fixture(scope="module", params=RECIPES)
def whole(request):
    """Three steps with whole parameters on eight devices."""
    run = Prepared(MeshOptions(), RECIPES[request.param])
    logged = run.train(batches())
    return RECIPES[request.param], logged, on_host(run.state.to_save())


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (1, 8)])
def test_three_steps_equal_those_of_whole_parameters(whole, data, fsdp):
    recipe, expected, saved = whole
    run = Prepared(MeshOptions(data=data, fsdp=fsdp, whole_below=0), recipe)
    logged = run.train(batches())
    for name in ("params", "opt_state", *(["ema"] if recipe.ema_decay else [])):
        divided, held = shared_leaves(getattr(run.state, name))
        assert divided > 5, name
        assert held < 1.4 / fsdp, name
    assert_close(logged, expected)
    assert_close(on_host(run.state.to_save()), saved)


def test_a_checkpoint_of_one_sharding_continues_under_another(tmp_path):
    recipe = RECIPES["average"]
    first = Prepared(MeshOptions(fsdp=8, whole_below=0), recipe)
    first.train(batches()[:2])
    with Checkpointer(tmp_path / "run", CheckpointOptions()) as checkpointer:
        checkpointer.save(2, first.state.to_save())
    expected = on_host(first.state.to_save())
    logged = first.train(batches()[2:])
    for placement in (MeshOptions(data=2, fsdp=2, whole_below=0), MeshOptions()):
        run = Prepared(placement, recipe)
        with Checkpointer(tmp_path / "run", CheckpointOptions(), read_only=True) as checkpointer:
            saved, step = checkpointer.restore_last(abstract_like(run.state.to_save()))
        assert step == 2
        before = jax.tree.map(lambda leaf: leaf.sharding, run.state.to_save())
        assert jax.tree.map(lambda leaf: leaf.sharding, saved) == before
        jax.tree.map(np.testing.assert_array_equal, on_host(saved), expected)
    run.state = run.state.with_saved(saved)
    assert_close(run.train(batches()[2:]), logged)
    assert_close(on_host(run.state.to_save()), on_host(first.state.to_save()))


@dataclasses.dataclass(frozen=True)
class Twofold:
    """A linear map, and a second step that leaves the sum of its weights in the model state."""

    task = "classification"
    meta_every: int = 1

    def frozen_parameters(self):
        return ()

    def init(self, key, batch):
        w = jax.random.normal(key, (batch["x"].shape[-1], 8))
        return {"params": {"w": w}, "sums": {"w": jnp.zeros((8,))}}

    def loss(self, variables, batch, key, *, train):
        error = batch["x"] @ variables["params"]["w"]
        per_example = jnp.sum(jnp.square(error), axis=-1)
        term = LossTerm(per_example, jnp.ones(len(per_example)))
        return {"square": term}, {"sums": variables["sums"]}, {}

    def predict(self, variables, batch):
        return {"logits": batch["x"] @ variables["params"]["w"]}

    def meta_step(self, variables, batch, key, *, meta_batch, learning_rate):
        sums = jnp.sum(variables["params"]["w"], axis=0)
        return {"sums": {"w": sums}}, {"sum": jnp.sum(sums)}


LINEAR = OptimOptions(learning_rate=0.01, momentum=0.9)


def vectors(seed=0):
    drawn = np.random.default_rng(seed).normal(size=(16, 16))
    return {"x": drawn.astype(np.float32), "mask": np.ones(16, bool)}


def linear(fsdp, **options):
    placement = MeshOptions(fsdp=fsdp, whole_below=0)
    return Prepared(placement, LINEAR, method=Twofold(), batch=vectors(), **options)


def test_micro_batches_sum_the_same_gradient():
    results = []
    for fsdp in (1, 4):
        run = linear(fsdp, accumulate=2)
        results.append((run.train([vectors(), vectors(1)]), on_host(run.state.to_save())))
    assert not run.state.params["w"].sharding.is_fully_replicated
    assert_close(*results)


def test_pretrained_arrays_are_divided_as_random_ones_are():
    def overlay(variables):
        return {**variables, "params": jax.tree.map(np.ones_like, variables["params"])}

    given, drawn, whole = linear(8, overlay=overlay), linear(8), linear(1)
    assert shared_leaves(given.state.params) == shared_leaves(drawn.state.params) == (1, 1 / 8)
    assert (np.asarray(given.state.params["w"]) == 1).all()
    np.testing.assert_array_equal(drawn.state.params["w"], whole.state.params["w"])


def test_the_second_step_sees_whole_parameters_and_leaves_them_divided():
    results = []
    for fsdp in (1, 8):
        run = linear(fsdp)
        placed = put_batch(vectors(), mesh=run.mesh)
        run.state, _ = run.steps.train_step(run.state, placed)
        run.state, metrics = run.steps.meta_step(run.state, placed, placed)
        assert run.state.params["w"].sharding.is_fully_replicated == (fsdp == 1)
        results.append(on_host((metrics, run.state.to_save())))
    assert_close(*results)
    assert results[0][1]["model_state"]["sums"]["w"].any()


PARAMS = {
    "head": {"kernel": np.zeros((6, 32)), "bias": np.zeros(32)},
    "square": np.zeros((3, 3, 16, 16)),
    "odd": np.zeros((5, 7)),
    "scalar": np.zeros(()),
}


def specs(options):
    found = parameter_sharding(PARAMS, options, mesh=make_mesh(options))
    return jax.tree.map(lambda sharding: sharding.spec, found)


def test_the_longest_axis_that_divides_is_divided():
    spec = PartitionSpec
    assert specs(MeshOptions(fsdp=4, whole_below=0)) == {
        "head": {"kernel": spec(None, "fsdp"), "bias": spec("fsdp")},
        "square": spec(None, None, None, "fsdp"),
        "odd": spec(),
        "scalar": spec(),
    }
    assert specs(MeshOptions(fsdp=4, whole_below=33))["head"]["bias"] == spec()
    assert specs(MeshOptions(fsdp=4, whole_below=32))["head"]["bias"] == spec("fsdp")
    one = MeshOptions(fsdp=1)
    assert parameter_sharding(PARAMS, one, mesh=make_mesh(one)) == replicated(make_mesh(one))


def test_rules_come_before_shapes_and_the_first_holds():
    rules = (ShardRule("^head/kernel$", 0), ShardRule("head"), ShardRule("kernel", 1))
    found = specs(MeshOptions(fsdp=2, whole_below=10**9, rules=rules))
    assert found["head"] == {"kernel": PartitionSpec("fsdp"), "bias": PartitionSpec()}
    assert found["square"] == PartitionSpec()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ShardRule("heads"), r"mesh\.rules: pattern 'heads' matches no parameter"),
        (
            ShardRule("odd", 0),
            r"'odd' divides axis 0 of odd, whose shape is \(5, 7\)",
        ),
        (ShardRule("scalar", 0), r"divides axis 0 of scalar, whose shape is \(\)"),
        (ShardRule("square", -1), r"divides axis -1 of square"),
    ],
)
def test_rules_that_cannot_be_meant_are_told(rule, message):
    with pytest.raises(UserError, match=message):
        specs(MeshOptions(fsdp=4, rules=(rule,)))


def test_what_an_optimizer_keeps_lies_beside_its_parameter():
    options = MeshOptions(fsdp=4, whole_below=0)
    mesh = make_mesh(options)
    shardings = parameter_sharding(PARAMS, options, mesh=mesh)
    state = {
        "count": np.zeros(()),
        "mu": PARAMS,
        "nested": ({"nu": {"head": {"bias": np.zeros(32)}}},),
        "row": {"head": {"kernel": np.zeros(32)}},  # of another shape: the parameter's sum
    }
    found = sharding_like(state, PARAMS, shardings, mesh=mesh)
    assert found["mu"] == shardings
    assert found["nested"][0]["nu"]["head"]["bias"] == shardings["head"]["bias"]
    assert found["count"] == found["row"]["head"]["kernel"] == replicated(mesh)


def test_without_an_optimizer_only_parameters_are_divided():
    options = MeshOptions(fsdp=2, whole_below=0)
    mesh = make_mesh(options)
    placed = state_sharding(METHOD, {"params": PARAMS}, mesh=mesh, placement=options)
    assert placed.opt_state == replicated(mesh)
    assert placed.params["square"].spec == placed.ema["square"].spec != PartitionSpec()
    update = optax.sgd(0.1, momentum=0.9)
    placed = state_sharding(
        METHOD, {"params": PARAMS}, mesh=mesh, placement=options, optimizer=update
    )
    assert placed.opt_state[0].trace == placed.params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp": 3}, r"mesh\.fsdp is 3; expected a divisor of the 8 cpu devices"),
        ({"fsdp": 16}, r"mesh\.fsdp is 16; expected a divisor of the 8 cpu devices"),
        ({"data": 4, "fsdp": 4}, r"mesh\.data x mesh\.fsdp is 4 x 4, but there are only 8 cpu"),
        ({"fsdp": 0}, "fsdp is 0; expected at least 1"),
        ({"whole_below": -1}, "whole_below is -1; expected at least 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        make_mesh(MeshOptions(**options))
    assert "\n" not in str(error.value)


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"rules: pattern '\(' is no regular expression"):
        ShardRule("(")


def test_devices_that_share_are_neighbours_and_each_has_examples_of_its_own():
    mesh = make_mesh(MeshOptions(fsdp=2))
    assert [[device.id for device in row] for row in mesh.devices[:2]] == [[0, 1], [2, 3]]
    placed = put_batch({"x": np.arange(8)}, mesh=mesh)["x"]
    assert [int(shard.data[0]) for shard in placed.addressable_shards] == list(range(8))
