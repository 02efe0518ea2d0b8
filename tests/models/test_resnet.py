"""ResNet: parity with a PyTorch network of torchvision's names, stages, options, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

CLASSES = 5


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train):
        return self.head(self.backbone(x, train=train)[-1], train=train)


def torch_resnet(torch, *, sizes, bottleneck, width):
    """A ResNet in PyTorch whose modules are called as torchvision calls them."""
    conv = functools.partial(torch.nn.Conv2d, bias=False)
    relu = torch.nn.functional.relu

    class Block(torch.nn.Module):
        def __init__(self, inputs, features, stride):
            super().__init__()
            outputs = features * (4 if bottleneck else 1)
            if bottleneck:
                shapes = [(inputs, features, 1, 1), (features, features, 3, stride)]
                shapes.append((features, outputs, 1, 1))
            else:
                shapes = [(inputs, features, 3, stride), (features, features, 3, 1)]
            self.depth = len(shapes)
            for n, (ci, co, size, step) in enumerate(shapes, start=1):
                setattr(self, f"conv{n}", conv(ci, co, size, stride=step, padding=size // 2))
                setattr(self, f"bn{n}", torch.nn.BatchNorm2d(co))
            self.downsample = None
            if stride > 1 or inputs != outputs:
                self.downsample = torch.nn.Sequential(
                    conv(inputs, outputs, 1, stride=stride), torch.nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = x
            for n in range(1, self.depth + 1):
                y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
                y = relu(y) if n < self.depth else y
            return relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, width, 7, stride=2, padding=3)
            self.bn1 = torch.nn.BatchNorm2d(width)
            inputs = width
            for stage, blocks in enumerate(sizes):
                features = width * 2**stage
                layers = []
                for block in range(blocks):
                    layers.append(Block(inputs, features, 2 if stage and not block else 1))
                    inputs = features * (4 if bottleneck else 1)
                setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layers))
            self.fc = torch.nn.Linear(inputs, CLASSES)

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for stage in range(len(sizes)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Network()


def perturb_norms(torch, network):
    """Norms away from their initial values, so that no mistake about them goes unseen."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():
                for tensor, low, high in (
                    (module.weight, 0.6, 1.2),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.uniform_(low, high, generator=generator)


NETWORKS = {
    "resnet18": ("resnet18", (2, 2, 2, 2), False, 8),
    "resnet50": ("resnet50", (3, 4, 6, 3), True, 4),
    "short bottlenecks": ("resnet50", (1, 2, 1, 1), True, 4),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Makes a PyTorch network and ours with its weights, read from its file."""
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

    @functools.cache
    def make(case):
        name, sizes, bottleneck, width = NETWORKS[case]
        torch.manual_seed(0)
        theirs = torch_resnet(torch, sizes=sizes, bottleneck=bottleneck, width=width)
        perturb_norms(torch, theirs)
        path = tmp_path_factory.mktemp("weights") / f"{case}.pth"
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, path)
        ours = Net(make_backbone(name, stage_sizes=sizes, width=width), LinearHead(CLASSES))
        shapes = jax.eval_shape(
            lambda: ours.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        )
        variables, report = load_pretrained(shapes, path)
        assert not report.kept
        assert all(name.endswith("num_batches_tracked") for name in report.unused)
        return torch, theirs, ours, variables

    return make


def batch(size=64, examples=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, size, size, 3)).astype(np.float32)
    return jnp.asarray(x), np.arange(examples) % CLASSES


@pytest.mark.parametrize("case", ["resnet18", "resnet50"])
@pytest.mark.parametrize("size", [64, 57])
def test_converted_weights_give_pytorchs_logits(converted, case, size):
    torch, theirs, ours, variables = converted(case)
    x, _ = batch(size)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(np.array(x.transpose(0, 3, 1, 2)))).numpy()
    out = jax.jit(functools.partial(ours.apply, train=False))(variables, x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("case", ["resnet18", "short bottlenecks"])
def test_two_training_steps_are_pytorchs(converted, case):
    torch, theirs, ours, variables = converted(case)
    x, label = batch()
    theirs.train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        logits = theirs(torch.tensor(np.array(x.transpose(0, 3, 1, 2))))
        torch.nn.functional.cross_entropy(logits, torch.tensor(label)).backward()
        optimizer.step()

    @jax.jit
    def step(variables):
        def loss(params):
            out, new = ours.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(out, label).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
        return {**new, "params": params}

    before = to_torch_state_dict(variables)
    after = to_torch_state_dict(step(step(variables)))
    expected = {
        name: value.detach().numpy()
        for name, value in theirs.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, atol=1e-4, err_msg=name)
        assert np.abs(before[name] - value).max() > 1e-4, name  # and it did move


PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_sizes_have_the_known_number_of_parameters(name):
    net = Net(make_backbone(name), LinearHead(1000))
    shapes = jax.eval_shape(
        lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]


TINY = {"stage_sizes": (1, 1, 1), "strides": (1, 2, 2), "dilations": (1, 1, 1), "width": 4}


@functools.cache
def tiny(**options):
    backbone = make_backbone("resnet18", **{**TINY, **options})
    x = batch(16, 2)[0]
    return backbone, x, jax.jit(functools.partial(backbone.init, train=False))(jax.random.key(0), x)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_the_stages_in_two_parts_are_the_whole_network(cut):
    backbone, x, variables = tiny()

    def whole(v, x):
        return backbone.apply(v, x, train=True, mutable=["batch_stats"])

    def parts(v, x):
        apply = functools.partial(backbone.apply, train=True, mutable=["batch_stats"])
        first, new = apply(v, x, stop=cut)
        second, newer = apply({**v, **new}, first[-1], start=cut)
        return (*first, *second), newer

    (out, new), (out_parts, new_parts) = jax.jit(whole)(variables, x), jax.jit(parts)(variables, x)
    assert len(out) == len(out_parts) == backbone.num_stages == 4
    for one, other in zip(out, out_parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    later = [f"stage{s}" for s in range(max(cut, 1), 4)]
    assert set(new_parts["batch_stats"]) >= set(later)
    for stage in later:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-5),
            new["batch_stats"][stage],
            new_parts["batch_stats"][stage],
        )


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 1), (-1, 2), (0, 5), (4, None)])
def test_stages_that_are_not_there_are_told(start, stop):
    backbone, x, variables = tiny()
    with pytest.raises(UserError, match=r"start=.*; expected 0 <= start < stop <= 4"):
        backbone.apply(variables, x, train=False, start=start, stop=stop)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_dilation_in_place_of_stride_keeps_the_values_at_every_other_position(bottleneck):
    sizes = {"stage_sizes": (1, 1, 2), "bottleneck": bottleneck}
    strided, x, variables = tiny(**sizes)
    dilated, *_ = tiny(**sizes, strides=(1, 2, 1), dilations=(1, 1, 2))
    x = jnp.concatenate([x, x[:, ::-1]], axis=1)
    sparse = strided.apply(variables, x, train=False)[-1]
    dense = dilated.apply(variables, x, train=False)[-1]
    assert dense.shape[1:3] == (4, 2)
    np.testing.assert_allclose(dense[:, ::2, ::2], sparse, atol=1e-5)


def test_recomputed_stages_have_the_same_names_values_and_gradients():
    plain, x, variables = tiny()
    again, _, same = tiny(remat=(0, 2))
    assert jax.tree.structure(variables) == jax.tree.structure(same)

    def loss(params, backbone):
        out, new = backbone.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(out[-1] ** 2), new

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, backbone=one), has_aux=True))(
            variables["params"]
        )
        for one in (plain, again)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)
    text = str(jax.make_jaxpr(jax.grad(lambda p: loss(p, again)[0]))(variables["params"]))
    assert "checkpoint" in text or "remat" in text


@pytest.mark.parametrize("remat", [(), (2,)])
def test_norms_are_frozen_by_their_place(remat):
    backbone, x, variables = tiny(frozen_norm=r"^stem|stage2/.*/norm1", remat=remat)
    _, new = backbone.apply(variables, x, train=True, mutable=["batch_stats"])
    changed = {
        "/".join(path[:-1])
        for path, value in flatten_dict(new["batch_stats"]).items()
        if not np.array_equal(value, flatten_dict(variables["batch_stats"])[path])
    }
    everything = {"/".join(path[:-1]) for path in flatten_dict(variables["batch_stats"])}
    assert everything - changed == {"stem/norm", "stage2/block0/norm1"}


def test_groups_reach_every_norm():
    backbone, x, variables = tiny(norm_groups=2)
    pairs = jnp.stack([x, 2 * x, x, 3 * x], axis=1).reshape(8, 16, 16, 3)
    apply = functools.partial(backbone.apply, variables, train=True, mutable=["batch_stats"])
    together = apply(pairs)[0][-1]
    single = tiny()[0]
    apart = [
        single.apply(variables, half, train=True, mutable=["batch_stats"])[0][-1]
        for half in (pairs[:4], pairs[4:])
    ]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    backbone, x, variables = tiny(dtype="bfloat16")
    exact = tiny()[0].apply(variables, x, train=False)[-1]
    out, new = backbone.apply(variables, x, train=True, mutable=["batch_stats"])
    assert {stage.dtype for stage in out} == {jnp.dtype(jnp.bfloat16)}
    leaves = jax.tree.leaves((variables, new))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    rounded = backbone.apply(variables, x, train=False)[-1].astype(jnp.float32)
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.03 * float(jnp.abs(exact).max()))


def test_a_zero_residual_starts_as_the_identity():
    backbone, x, variables = tiny(zero_init_residual=True, stage_sizes=(2, 1, 1))
    stem, first, *_ = backbone.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_array_equal(first, stem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_sizes": ()}, r"stage_sizes=\(\)"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\); expected 3 numbers"),
        ({"dilations": (1, 0, 1)}, "each at least 1"),
        ({"width": 0}, "width=0; expected at least 1"),
        ({"stem": "smal"}, "stem='smal'; did you mean 'small'"),
        ({"norm_groups": 0}, "norm_groups=0"),
        ({"frozen_norm": "("}, "frozen_norm='\\(' is not a regular expression"),
        ({"dtype": "int32"}, "dtype=int32; expected a floating type"),
        ({"dtype": "flaot32"}, "dtype=flaot32; expected a floating type"),
        ({"remat": (4,)}, r"remat=\(4,\); expected stages from 0 to 3"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("resnet18", **{**TINY, **options})
