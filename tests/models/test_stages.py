"""What holds for every backbone: its options, its parts, and branches made of its later stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from fgkd_jax.models.backbones import make_backbone

# A small form of one network of each family, and what its stages are called.
NETWORKS = {
    "cifar_resnet20": ({"stage_sizes": (2, 1, 2), "width": 4}, "stem stage1 stage2 stage3"),
    "wrn_16_2": ({"stage_sizes": (2, 1, 2), "width": 4}, "stem stage1 stage2 stage3"),
    "cifar_shufflenet_v2_x1_0": (
        {"stage_sizes": (2, 1, 2), "channels": (4, 8, 12), "last_channels": 20},
        "stem stage1 stage2 stage3",
    ),
    "cifar_hcgnet_a1": (
        {"stage_sizes": (1, 1, 1), "growth": (4, 8, 4)},
        "stem stage1 stage2 stage3",
    ),
    "vgg16_bn": ({"stage_sizes": (1, 2, 1), "width": 2}, "stage0 stage1 stage2"),
    "mobilenet_v2": ({"width": 0.1}, "stage0 stage1 stage2 stage3 stage4 last"),
}


class Branched(nn.Module):
    """A trunk, and branches behind one of its stages."""

    trunk: nn.Module
    branches: tuple[nn.Module, ...]
    start: int
    whole: bool = True

    def __call__(self, x, *, train):
        stop = None if self.whole else self.start
        stages = self.trunk(x, train=train, stop=stop)
        below = stages[self.start - 1]
        return stages, tuple(b(below, train=train, start=self.start) for b in self.branches)


def images(batch=4, size=32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(batch, size, size, 3)), jnp.float32)


@functools.cache
def shapes_of(net):
    return jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), images())


def drawn(net, seed=0):
    """Variables of any values: initialisers take long to compile."""
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda s: rng.uniform(0.1, 0.4, s.shape).astype(s.dtype), shapes_of(net)
    )
    params = jax.tree.map(lambda p: p - p.dtype.type(0.25 * (p.ndim > 1)), variables["params"])
    return {**variables, "params": params}


@functools.cache
def runner(net, *, train):
    mutable = ["batch_stats"] if train else False
    return jax.jit(functools.partial(net.apply, train=train, mutable=mutable))


def run(net, variables, *, train, x=None):
    return runner(net, train=train)(variables, images() if x is None else x)


def assert_same(one, other):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def make(name, *, whole=True):
    """The network with two branches before its last two stages, and the names of all stages."""
    options, stages = NETWORKS[name]
    backbone = make_backbone(name, **options)
    start = backbone.num_stages - 2
    branches = (backbone.clone(), make_backbone(name, **options))
    return Branched(backbone, branches, start, whole), stages.split()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_part_holds_the_variables_of_its_stages_alone(name, whole):
    net, stages = make(name, whole=whole)
    own = stages if whole else stages[:-2]
    expected = {"trunk": own, "branches_0": stages[-2:], "branches_1": stages[-2:]}
    shapes = shapes_of(net)
    assert {part: set(tree) for part, tree in shapes["params"].items()} == {
        part: set(names) for part, names in expected.items()
    }
    for part, tree in shapes["batch_stats"].items():  # a stem may have no norm
        assert set(expected[part]) - {"stem"} <= set(tree) <= set(expected[part])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_with_the_trunks_weights_is_the_trunk(name):
    net, names = make(name)
    variables = drawn(net)
    later = names[-2:]
    for tree in variables.values():
        tree["branches_0"] = {stage: tree["trunk"][stage] for stage in later}
    (stages, (copy, other)), new = run(net, variables, train=True)
    assert_same(copy, stages[-2:])
    difference = np.asarray(other[-1]) - np.asarray(copy[-1])
    assert np.abs(difference).max() > 1e-3  # the other has weights of its own
    for tree in new.values():
        assert_same(tree["branches_0"], {stage: tree["trunk"][stage] for stage in later})


def test_branches_start_apart_and_are_trained_apart():
    net, _ = make("cifar_resnet20")
    params = jax.jit(functools.partial(net.init, train=False))(jax.random.key(0), images())
    place = ("stage3", "block0", "conv1", "kernel")
    kernels = [
        functools.reduce(lambda tree, key: tree[key], place, params["params"][part])
        for part in ("trunk", "branches_0", "branches_1")
    ]
    assert not any(np.array_equal(kernels[a], kernels[b]) for a, b in ((0, 1), (0, 2), (1, 2)))

    def loss(params, variables):
        (_, (first, _)), _ = net.apply(
            {**variables, "params": params}, images(), train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(first[-1]))

    variables = drawn(net)
    grads = flatten_dict(jax.jit(jax.grad(loss))(variables["params"], variables), sep="/")
    moved = {
        "/".join(name.split("/")[:2]) for name, grad in grads.items() if np.asarray(grad).any()
    }
    assert moved == {"trunk/stem", "trunk/stage1", "branches_0/stage2", "branches_0/stage3"}


def test_a_branch_may_be_shallower_than_its_network():
    deep = make_backbone("resnet18", stage_sizes=(3, 2, 3, 2), width=4)
    shallow = make_backbone("resnet18", stage_sizes=(1, 1, 1, 1), width=4)
    net = Branched(deep, (shallow,), start=2)
    variables = drawn(net)
    branch = variables["params"]["branches_0"]
    assert {stage: set(blocks) for stage, blocks in branch.items()} == {
        f"stage{index}": {"block0"} for index in (2, 3, 4)
    }
    stages, ((*_, last),) = run(net, variables, train=False)
    assert last.shape == stages[-1].shape


# Options of every backbone. MobileNetV2, whose layers take long to compile, is left out

SHORT = [name for name in NETWORKS if name != "mobilenet_v2"]


def small(name, **options):
    return make_backbone(name, **NETWORKS[name][0], **options)


@pytest.mark.parametrize("name", SHORT)
def test_groups_reach_every_norm(name):
    variables = drawn(small(name))
    once = np.asarray(images())
    inputs = once, 2 * once
    together, new = run(small(name, norm_groups=2), variables, train=True, x=np.concatenate(inputs))
    halves = [run(small(name), variables, train=True, x=x) for x in inputs]
    for index, stage in enumerate(together):
        assert_same(stage, np.concatenate([outputs[index] for outputs, _ in halves]))
    statistics = jax.device_get([statistics for _, statistics in halves])
    means = jax.tree.map(lambda *two: sum(two) / 2, *statistics)
    assert_same(new, means)


@pytest.mark.parametrize("name", SHORT)
def test_frozen_norms_keep_their_statistics(name):
    variables = drawn(small(name))
    outputs, new = run(small(name, frozen_norm="norm"), variables, train=True)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    assert_same(outputs, run(small(name), variables, train=False))


@pytest.mark.parametrize("name", SHORT)
def test_bfloat16_computes_in_bfloat16_with_float32_variables(name):
    backbone = small(name, dtype="bfloat16")
    variables = drawn(small(name))
    assert jax.tree.map(jnp.shape, shapes_of(backbone)) == jax.tree.map(jnp.shape, variables)
    outputs, new = jax.eval_shape(runner(backbone, train=True), variables, images())
    assert {stage.dtype for stage in outputs} == {jnp.dtype(jnp.bfloat16)}
    for leaf in (*jax.tree.leaves(new), *jax.tree.leaves(shapes_of(backbone))):
        assert leaf.dtype == jnp.float32
    exact = run(small(name), variables, train=False)[-1]
    rounded = run(backbone, variables, train=False)[-1].astype(jnp.float32)
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(np.asarray(exact)).max())


@pytest.mark.parametrize("name", SHORT)
def test_every_stage_may_be_recomputed(name):
    plain = small(name)
    again = small(name, remat=tuple(range(plain.num_stages)))
    variables = drawn(plain)
    assert jax.tree.structure(shapes_of(again)) == jax.tree.structure(variables)
    assert_same(run(again, variables, train=False), run(plain, variables, train=False))
    marks = str(jax.make_jaxpr(functools.partial(again.apply, train=False))(variables, images()))
    assert marks.count("remat") >= plain.num_stages
