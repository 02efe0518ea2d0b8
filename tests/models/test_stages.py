"""Branches: parts of backbones, with parameters of their own, behind the stages of another."""

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


def images(batch=4):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)


def drawn(net, seed=0):
    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), images())
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 0.4, s.shape), s.dtype), shapes)
    params = jax.tree.map(lambda p: p - 0.25 if p.ndim > 1 else p, variables["params"])
    return {**variables, "params": params}


def run(net, variables, *, train):
    mutable = ["batch_stats"] if train else False
    return jax.jit(functools.partial(net.apply, train=train, mutable=mutable))(variables, images())


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
    for collection, tree in drawn(net).items():
        assert tree.keys() == {"trunk", "branches_0", "branches_1"}, collection
        assert set(tree["trunk"]) == set(stages if whole else stages[:-2])
        for branch in ("branches_0", "branches_1"):
            assert set(tree[branch]) == set(stages[-2:])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_branch_with_the_trunks_weights_is_the_trunk(name, train):
    net, names = make(name)
    variables = drawn(net)
    later = names[-2:]
    for tree in variables.values():
        tree["branches_0"] = {stage: tree["trunk"][stage] for stage in later}
    result = run(net, variables, train=train)
    (stages, (copy, other)), new = result if train else (result, {})
    assert_same(copy, stages[-2:])
    assert float(jnp.abs(other[-1] - copy[-1]).max()) > 1e-3  # which has weights of its own
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
    moved = {"/".join(name.split("/")[:2]) for name, grad in grads.items() if jnp.any(grad != 0)}
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
