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
from fgkd_jax.models.backbones import feature_shapes, make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

CLASSES = 5


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train):
        return self.head(self.backbone(x, train=train)[-1], train=train)


def torch_resnet(torch, *, sizes, bottleneck, width, small=False, zero_pad=False):
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
            if zero_pad:  # written out on NCHW: zero maps before and behind the given ones
                self.zeros, self.stride = (outputs - inputs) // 2, stride
                self.downsample = self.pad
            elif stride > 1 or inputs != outputs:
                self.downsample = torch.nn.Sequential(
                    conv(inputs, outputs, 1, stride=stride), torch.nn.BatchNorm2d(outputs)
                )

        def pad(self, x):
            x = x[..., :: self.stride, :: self.stride]
            zeros = torch.zeros(len(x), self.zeros, *x.shape[2:])
            return torch.cat([zeros, x, zeros], dim=1)

        def forward(self, x):
            y = x
            for n in range(1, self.depth + 1):
                y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
                y = relu(y) if n < self.depth else y
            return relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            stem = {"kernel_size": 3, "padding": 1} if small else {"kernel_size": 7, "padding": 3}
            self.conv1 = conv(3, width, stride=1 if small else 2, **stem)
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
            x = relu(self.bn1(self.conv1(x)))
            x = x if small else torch.nn.functional.max_pool2d(x, 3, 2, 1)
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


NETWORKS = {  # backbone, sizes, bottleneck, width, more of the torch network's options
    "resnet18": ("resnet18", (2, 2, 2, 2), False, 8, {}),
    "resnet50": ("resnet50", (3, 4, 6, 3), True, 4, {}),
    "short bottlenecks": ("resnet50", (1, 2, 1, 1), True, 4, {}),
    "cifar bottlenecks": ("cifar_resnet110", (2, 1, 2), True, 4, {"small": True}),
    "zero_pad": ("cifar_resnet20", (1, 2, 1), False, 4, {"small": True, "zero_pad": True}),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Makes a PyTorch network and ours with its weights, read from its file."""
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

    @functools.cache
    def make(case):
        name, sizes, bottleneck, width, more = NETWORKS[case]
        torch.manual_seed(0)
        theirs = torch_resnet(torch, sizes=sizes, bottleneck=bottleneck, width=width, **more)
        perturb_norms(torch, theirs)
        path = tmp_path_factory.mktemp("weights") / f"{case}.pth"
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, path)
        options = {"shortcut": "zero_pad"} if "zero_pad" in more else {}
        backbone = make_backbone(name, stage_sizes=sizes, width=width, **options)
        ours = Net(backbone, LinearHead(CLASSES))
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


@pytest.mark.parametrize(("case", "size"), [("resnet18", 57), ("resnet50", 64), ("zero_pad", 17)])
def test_converted_weights_give_pytorchs_logits(converted, case, size):
    torch, theirs, ours, variables = converted(case)
    x, _ = batch(size)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(np.array(x.transpose(0, 3, 1, 2)))).numpy()
    out = jax.jit(functools.partial(ours.apply, train=False))(variables, x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "size"),
    [("resnet18", 64), ("short bottlenecks", 64), ("cifar bottlenecks", 15), ("zero_pad", 16)],
)
def test_two_training_steps_are_pytorchs(converted, case, size):
    torch, theirs, ours, variables = converted(case)
    x, label = batch(size)
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


# Of the networks for CIFAR-10, in millions: the paper's table 6, whose shortcuts hold none.
MILLIONS = {
    "cifar_resnet20": 0.27,
    "cifar_resnet32": 0.46,
    "cifar_resnet56": 0.85,
}


def count(net, size=32):
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=True))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", MILLIONS)
def test_the_networks_for_cifar_have_the_published_number_of_parameters(name):
    plain = Net(make_backbone(name, shortcut="zero_pad"), LinearHead(10))
    assert round(count(plain) / 1e6, 2) == MILLIONS[name]
    # Two projections: 16 to 32 and 32 to 64 channels, each with a norm.
    projected = Net(make_backbone(name), LinearHead(10))
    assert count(projected) - count(plain) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_the_paper_has_a_cifar_network_of_110_layers_with_basic_blocks_too():
    basic = make_backbone(
        "cifar_resnet110", stage_sizes=(18, 18, 18), bottleneck=False, shortcut="zero_pad"
    )
    assert round(count(Net(basic, LinearHead(10))) / 1e6, 1) == 1.7


def test_the_networks_for_cifar_have_their_shapes():
    for name, widths in (("cifar_resnet32", (16, 32, 64)), ("cifar_resnet110", (64, 128, 256))):
        first, second, third = widths
        assert feature_shapes(make_backbone(name), (32, 32)) == (
            *((32, 32, 16), (32, 32, first)),
            *((16, 16, second), (8, 8, third)),
        )


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_sizes_have_the_known_number_of_parameters(name):
    assert count(Net(make_backbone(name), LinearHead(1000)), size=64) == PARAMETERS[name]


TINY = {"stage_sizes": (1, 1, 1), "strides": (1, 2, 2), "dilations": (1, 1, 1), "width": 4}


@functools.cache
def tiny(**options):
    """A small network, images and variables of any values: initialisers take long to compile."""
    backbone = make_backbone("resnet18", **{**TINY, **options})
    x = batch(16, 2)[0]
    shapes = jax.eval_shape(functools.partial(backbone.init, train=False), jax.random.key(0), x)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 0.4, s.shape), s.dtype), shapes)
    params = jax.tree.map(lambda p: p - 0.25 if p.ndim > 1 else p, variables["params"])
    return backbone, x, {**variables, "params": params}


@functools.cache
def runner(backbone, *, train, **stages):
    """The network compiled; in training it returns the new statistics too."""
    mutable = ["batch_stats"] if train else False
    return jax.jit(functools.partial(backbone.apply, train=train, mutable=mutable, **stages))


def assert_close(one, other, atol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), one, other)


@pytest.mark.parametrize("cut", [1, 2])
def test_the_stages_in_two_parts_are_the_whole_network(cut):
    backbone, x, variables = tiny()
    out, new = runner(backbone, train=True)(variables, x)
    first, new_first = runner(backbone, train=True, stop=cut)(variables, x)
    last, new_last = runner(backbone, train=True, start=cut)(variables, first[-1])
    assert (len(first), len(last)) == (cut, backbone.num_stages - cut)
    assert_close((*first, *last), out)
    for index, stage in enumerate(("stem", "stage1", "stage2", "stage3")):
        part = new_first if index < cut else new_last
        assert_close(part["batch_stats"][stage], new["batch_stats"][stage])


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
    sparse = runner(strided, train=False)(variables, x)[-1]
    dense = runner(dilated, train=False)(variables, x)[-1]
    assert dense.shape[1:3] == (4, 2)
    np.testing.assert_allclose(dense[:, ::2, ::2], sparse, rtol=1e-4, atol=1e-5)


def test_recomputed_stages_have_the_same_names_values_and_gradients():
    plain, x, variables = tiny()
    again, _, same = tiny(remat=(0, 2))
    assert jax.tree.structure(variables) == jax.tree.structure(same)

    def loss(params, backbone):
        out, new = backbone.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(out[-1] ** 2), new

    functions = [
        jax.value_and_grad(functools.partial(loss, backbone=one), has_aux=True)
        for one in (plain, again)
    ]
    assert_close(*(jax.jit(function)(variables["params"]) for function in functions), atol=1e-3)
    marks = [str(jax.make_jaxpr(f)(variables["params"])).count("remat") for f in functions]
    assert marks[0] == 0 < marks[1]


@pytest.mark.parametrize("remat", [(), (2,)])
def test_norms_are_frozen_by_their_place(remat):
    backbone, x, variables = tiny(frozen_norm=r"^stem|stage2/.*/norm1", remat=remat)
    before = flatten_dict(variables["batch_stats"], sep="/")
    after = flatten_dict(runner(backbone, train=True)(variables, x)[1]["batch_stats"], sep="/")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    frozen = ("stem/norm", "stage2/block0/norm1")
    assert same == {f"{place}/{name}" for place in frozen for name in ("mean", "var")}


def test_groups_reach_every_norm():
    backbone, x, variables = tiny(norm_groups=2)
    pairs = jnp.concatenate([x, 2 * x])
    together = runner(backbone, train=True)(variables, pairs)[0]
    single = runner(tiny()[0], train=True)
    apart = [single(variables, half)[0] for half in (x, 2 * x)]
    for stage, halves in zip(together, zip(*apart, strict=True), strict=True):
        assert_close(stage, np.concatenate(halves), atol=1e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    backbone, x, variables = tiny(dtype="bfloat16")
    out, new = runner(backbone, train=True)(variables, x)
    assert {stage.dtype for stage in out} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    fresh = jax.eval_shape(lambda: backbone.init(jax.random.key(0), x, train=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}
    exact = runner(tiny()[0], train=True)(variables, x)[0][-1]
    rounded = out[-1].astype(jnp.float32)
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.15 * float(jnp.abs(exact).max()))


def test_a_zero_residual_starts_as_the_identity():
    backbone, x, _ = tiny(zero_init_residual=True, stage_sizes=(2,), strides=(1,), dilations=(1,))
    stages, variables = jax.jit(functools.partial(backbone.init_with_output, train=False))(
        jax.random.key(0), x
    )
    np.testing.assert_array_equal(*stages)
    block = variables["params"]["stage1"]["block1"]
    np.testing.assert_array_equal(block["norm2"]["scale"], 0.0)
    np.testing.assert_array_equal(block["norm1"]["scale"], 1.0)
    # He's initialiser: variance 2 / outgoing connections, over 432 draws.
    kernel = variables["params"]["stage1"]["block0"]["conv1"]["kernel"]
    assert 0.7 < float(kernel.std()) / (2 / (9 * 4)) ** 0.5 < 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "8"}, "width='8'; expected int"),
        ({"stage_sizes": (1, 2.0, 1)}, r"\(1, 2.0, 1\); expected tuple of int"),
        ({"stage_sizes": ()}, r"stage_sizes=\(\)"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\); expected 3 numbers"),
        ({"dilations": (1, 0, 1)}, "each at least 1"),
        ({"width": 0}, "width=0; expected at least 1"),
        ({"stem": "smal"}, "stem='smal'; did you mean 'small'"),
        ({"shortcut": "zero"}, "shortcut='zero'; did you mean 'zero_pad'"),
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
