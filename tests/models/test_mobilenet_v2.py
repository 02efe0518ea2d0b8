"""MobileNetV2: the published reference, parity with PyTorch, stages, and norms put back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import feature_shapes, make_backbone
from fgkd_jax.models.folding import merge_statistics, unfold_batch_norm
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.models.mobilenet_v2 import round_channels
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

FOLDED = {"norm": "folded", "padding": "same"}
LAYOUT = [  # expansion, channels, blocks, stride, as the paper's table 2 has them
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train=False):
        stages = self.backbone(x, train=train)
        return stages, self.head(stages[-1], train=train)


def make(classes=7, **options):
    return Net(make_backbone("mobilenet_v2", **options), LinearHead(classes))


def shapes_of(net, size=32):
    image = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), image))


@functools.cache
def narrow(**options):
    """A narrow network, images, and variables of any values."""
    net = make(width=0.1, **options)
    rng = np.random.default_rng(0)

    def draw(path, shape):
        low, high = (0.5, 1.5) if path[-1] in ("var", "scale") else (-0.4, 0.4)
        if path[0] == "constants":
            return jnp.asarray([-0.3, 0.6])
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    tree = {key: draw(key, leaf) for key, leaf in flatten_dict(shapes_of(net)).items()}
    x = jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32)
    return net, x, functools.reduce(_nest, tree.items(), {})


def _nest(tree, item):
    *path, last = item[0]
    place = tree
    for name in path:
        place = place.setdefault(name, {})
    place[last] = item[1]
    return tree


@functools.cache
def runner(net, **options):
    return jax.jit(functools.partial(net.apply, **options))


@pytest.fixture(scope="module")
def published(shared):
    """The ImageNet weights and the reference outputs that came with them."""
    folder = shared / "data" / "mobilenet_v2"
    if not (folder / "imagenet.npz").is_file():
        pytest.skip(f"needs the weights {folder / 'imagenet.npz'}")
    with np.load(folder / "imagenet_reference.npz") as reference:
        expected = {name: reference[name] for name in reference.files}
    signal = np.sin(np.float32(0.001) * np.arange(3 * 224 * 224, dtype=np.float32))
    x = jnp.asarray(signal.reshape(1, 3, 224, 224).transpose(0, 2, 3, 1))
    return folder / "imagenet.npz", x, expected


@pytest.mark.parametrize(("clamps", "tolerance"), [(True, 1e-3), (False, 4e-2)])
def test_the_published_weights_give_their_reference_outputs(published, clamps, tolerance):
    path, x, expected = published
    net = make(classes=1001, activation_clamps=clamps, **FOLDED)
    variables, report = load_pretrained(shapes_of(net), path)
    assert not report.kept
    assert len(report.unused) == (1 if clamps else 63)
    stages, logits = runner(net)(variables, x)
    outputs = {
        "f320": stages[4].transpose(0, 3, 1, 2),
        "pooled1280": stages[5].mean(axis=(1, 2)),
        "logits": logits,
    }
    errors = {name: np.abs(outputs[name] - value).max() for name, value in expected.items()}
    assert max(errors.values()) < tolerance
    if not clamps:  # so that the clamps are known to matter
        assert min(errors.values()) > 1e-3


def torch_mobilenet(torch, *, width, classes):
    """MobileNetV2 in PyTorch whose modules are called as torchvision calls them."""

    def layer(ci, co, size=3, stride=1, groups=1):
        return torch.nn.Sequential(
            torch.nn.Conv2d(ci, co, size, stride, size // 2, groups=groups, bias=False),
            torch.nn.BatchNorm2d(co),
            torch.nn.ReLU6(),
        )

    class Block(torch.nn.Module):
        def __init__(self, ci, co, stride, expansion):
            super().__init__()
            inner = ci * expansion
            layers = [layer(ci, inner, 1)] if expansion > 1 else []
            layers.append(layer(inner, inner, 3, stride, inner))
            layers += [torch.nn.Conv2d(inner, co, 1, bias=False), torch.nn.BatchNorm2d(co)]
            self.conv = torch.nn.Sequential(*layers)
            self.residual = stride == 1 and ci == co

        def forward(self, x):
            return x + self.conv(x) if self.residual else self.conv(x)

    channels = round_channels(32 * width)
    features = [layer(3, channels, 3, 2)]
    for expansion, out, blocks, stride in LAYOUT:
        for block in range(blocks):
            co = round_channels(out * width)
            features.append(Block(channels, co, stride if block == 0 else 1, expansion))
            channels = co
    features.append(layer(channels, 1280, 1))
    network = torch.nn.Module()
    network.features = torch.nn.Sequential(*features)
    network.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1280, classes))
    return network


@pytest.mark.parametrize("size", [32, 45])
def test_pytorch_gives_the_same_logits_from_the_same_weights(size):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    net, _, variables = narrow()
    theirs = torch_mobilenet(torch, width=0.1, classes=7).eval()
    state = {name: torch.from_numpy(a) for name, a in to_torch_state_dict(variables).items()}
    theirs.load_state_dict(state)  # strict: every name and shape is torchvision's
    x = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        pooled = theirs.features(torch.tensor(x.transpose(0, 3, 1, 2).copy())).mean((2, 3))
        expected = theirs.classifier(pooled).numpy()
    _, logits = runner(net)(variables, jnp.asarray(x))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_full_network_has_the_known_parameters_and_shapes():
    params = shapes_of(make(classes=1000))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_504_872
    assert feature_shapes(make_backbone("mobilenet_v2"), (224, 224)) == (
        *((112, 112, 16), (56, 56, 24), (28, 28, 32)),
        *((14, 14, 96), (7, 7, 320), (7, 7, 1280)),
    )


@pytest.mark.parametrize(
    ("width", "first", "last"), [(0.35, (16, 8, 8), 1280), (1.4, (48, 24, 32), 1792)]
)
def test_the_width_rounds_channels_to_multiples_of_eight(width, first, last):
    backbone = make_backbone("mobilenet_v2", width=width)
    params = jax.eval_shape(
        lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )["params"]
    stem = params["stage0"]["stem"]["conv"]["kernel"].shape[-1]
    shapes = feature_shapes(backbone, (32, 32))
    assert (stem, shapes[0][-1], shapes[1][-1]) == first
    assert shapes[-1][-1] == last


def test_the_stages_in_two_parts_are_the_whole_network():
    net, x, variables = narrow()
    own = {collection: tree["backbone"] for collection, tree in variables.items()}
    backbone = net.backbone
    whole = runner(backbone, train=False)(own, x)
    first = runner(backbone, train=False, stop=3)(own, x)
    last = runner(backbone, train=False, start=3)(own, first[-1])
    assert len(whole) == backbone.num_stages == 6
    for one, other in zip((*first, *last), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    net = make(width=0.1, dtype="bfloat16")
    shapes = shapes_of(net)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    stages, logits = jax.eval_shape(net.apply, shapes, jnp.zeros((1, 32, 32, 3)))
    assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


def test_clamps_bind_where_they_are_loaded_and_nowhere_else():
    net, x, variables = narrow(activation_clamps=True, **FOLDED)
    stages, _ = runner(net)(variables, x)
    for stage in stages:
        assert float(stage.min()) >= np.float32(-0.3)
        assert float(stage.max()) <= np.float32(0.6)
    free = {
        **variables,
        "constants": jax.tree.map(lambda _: jnp.array([-jnp.inf, jnp.inf]), variables["constants"]),
    }
    plain = make(width=0.1, **FOLDED)
    without = {name: tree for name, tree in variables.items() if name != "constants"}
    np.testing.assert_array_equal(runner(net)(free, x)[1], runner(plain)(without, x)[1])


def test_norms_put_back_change_nothing_in_evaluation():
    net, x, variables = narrow(**FOLDED)
    measure = runner(net, mutable="statistics")
    halves = [measure(variables, half)[1]["statistics"] for half in (x[:2], x[2:])]
    _, new = measure(variables, x)
    merged = merge_statistics(halves)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        merged,
        new["statistics"],
    )
    unfolded = make(width=0.1, norm="batch", padding="same")
    restored = unfold_batch_norm(variables, merged)
    expected_shapes = jax.tree.map(jnp.shape, shapes_of(unfolded))
    assert jax.tree.map(jnp.shape, restored) == expected_shapes
    stages, logits = runner(net)(variables, x)
    new_stages, new_logits = runner(unfolded)(restored, x)
    for one, other in zip((*new_stages, new_logits), (*stages, logits), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # On the calibration images the batch statistics are the running ones, so that training
    # starts where evaluation is.
    (trained, _), _ = runner(unfolded, train=True, mutable="batch_stats")(restored, x)
    for one, other in zip(trained, stages, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_statistics_of_other_modules_are_told():
    _, _, variables = narrow(**FOLDED)
    with pytest.raises(UserError, match="no batches"):
        merge_statistics([])
    with pytest.raises(UserError, match="backbone/last has a bias and no statistics"):
        unfold_batch_norm(variables, {})
    odd = {"head": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    biased = {"params": {"backbone": {"conv": {"kernel": jnp.zeros(3)}}}}
    with pytest.raises(UserError, match="head has no bias to unfold"):
        unfold_batch_norm(biased, odd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "fold"}, "norm='fold'; did you mean 'folded'"),
        ({"padding": "valid"}, "padding='valid'; expected one of same, symmetric"),
        ({"width": 0}, "width=0; expected at least 0.05"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("mobilenet_v2", **options)
