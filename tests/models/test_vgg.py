"""VGG: parity with a PyTorch network of torchvision's layers, sizes, stages and options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import feature_shapes, make_backbone
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

# Channels over those of the first layer; "M" is a max-pooling.
LAYERS = {
    "vgg16": [1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M"],
    "vgg19": [1, 1, "M", 2, 2, "M", 4, 4, 4, 4, "M", 8, 8, 8, 8, "M", 8, 8, 8, 8, "M"],
}
NAMES = ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
WIDTH = 4


def torch_vgg(torch, name):
    """A narrow VGG in PyTorch whose layers are numbered as in torchvision's `features`."""
    layers, channels = [], 3
    for entry in LAYERS[name.removesuffix("_bn")]:
        if entry == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
            continue
        layers.append(torch.nn.Conv2d(channels, entry * WIDTH, 3, padding=1))
        channels = entry * WIDTH
        if name.endswith("_bn"):
            layers.append(torch.nn.BatchNorm2d(channels))
        layers.append(torch.nn.ReLU())
    network = torch.nn.Module()
    network.features = torch.nn.Sequential(*layers)
    network.classifier = torch.nn.Sequential(torch.nn.Linear(channels * 49, 8), torch.nn.ReLU())
    return network


def randomise(torch, network):
    """Values that keep the activations' size, and biases, norms and statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 4:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif name.endswith(("weight", "running_var")):
                tensor.uniform_(0.6, 1.4, generator=generator)
            elif tensor.ndim == 1:
                tensor.uniform_(-0.3, 0.3, generator=generator)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Makes a PyTorch network, and the variables of ours read from its file."""
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

    @functools.cache
    def make(name):
        theirs = torch_vgg(torch, name)
        randomise(torch, theirs)
        path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
        torch.save(theirs.state_dict(), path)
        backbone = make_backbone(name, width=WIDTH)
        variables, report = load_pretrained(shapes_of(backbone), path, backbone="", head=None)
        assert not report.kept
        assert all(one.startswith("classifier") or "num_batches" in one for one in report.unused)
        return torch, theirs, variables

    return make


def shapes_of(backbone):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: backbone.init(jax.random.key(0), image, train=False))


def images(rows, columns, examples=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, rows, columns, 3)).astype(np.float32)


def torch_stages(torch, network, x):
    """What comes out of every pooling, and what goes into the last one."""
    outputs, y = [], torch.tensor(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for layer in network.features:
            before, y = y, layer(y)
            if isinstance(layer, torch.nn.MaxPool2d):
                outputs.append(y)
    return [one.numpy().transpose(0, 2, 3, 1) for one in (*outputs, before)]


@functools.cache
def runner(backbone, *, train, **stages):
    """The network compiled; in training it returns the new statistics too."""
    mutable = ["batch_stats"] if train else False
    return jax.jit(functools.partial(backbone.apply, train=train, mutable=mutable, **stages))


def assert_close(one, other, atol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), one, other)


@pytest.mark.parametrize("name", NAMES)
def test_converted_weights_give_pytorchs_maps_at_every_stage(converted, name):
    torch, theirs, variables = converted(name)
    x = images(32, 45)  # odd: the poolings drop the last column
    *expected, unpooled = torch_stages(torch, theirs.eval(), x)
    assert np.abs(expected[-1]).max() > 0.1
    out = runner(make_backbone(name, width=WIDTH), train=False)(variables, jnp.asarray(x))
    assert_close(list(out), expected, atol=1e-4)
    dense = make_backbone(name, width=WIDTH, final_pool=False)
    *first, last = runner(dense, train=False)(variables, jnp.asarray(x))
    assert_close(first, expected[:-1], atol=1e-4)
    assert_close(last, unpooled, atol=1e-4)


def test_training_normalises_and_collects_statistics_as_pytorch_does(converted):
    torch, theirs, variables = converted("vgg16_bn")
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    x = images(32, 32, examples=4)
    try:
        expected = torch_stages(torch, theirs.train(), x)[:-1]
        after = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    finally:
        theirs.load_state_dict(before)
    backbone = make_backbone("vgg16_bn", width=WIDTH)
    out, new = runner(backbone, train=True)(variables, jnp.asarray(x))
    assert_close(list(out), expected, atol=1e-4)
    collected = to_torch_state_dict({**variables, **new}, backbone="", head=None)
    moved = [name for name in collected if "running" in name]
    assert len(moved) == 26
    for name in moved:
        assert_close(collected[name], after[name])
        assert np.abs(before[name].numpy() - after[name]).max() > 1e-3, name


# Parameters that torchvision publishes, without its classifier's.
CLASSIFIER = 25_088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
PARAMETERS = {
    "vgg16": 138_357_544 - CLASSIFIER,
    "vgg16_bn": 138_365_992 - CLASSIFIER,
    "vgg19": 143_667_240 - CLASSIFIER,
    "vgg19_bn": 143_678_248 - CLASSIFIER,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_full_networks_have_the_known_parameters_and_shapes(name):
    backbone = make_backbone(name)
    params = shapes_of(backbone)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    maps = ((112, 112, 64), (56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 512))
    assert feature_shapes(backbone, (224, 224)) == maps
    assert backbone.num_stages == 5
    dense = make_backbone(name, final_pool=False)
    assert feature_shapes(dense, (224, 224)) == (*maps[:-1], (14, 14, 512))
    assert shapes_of(dense) == shapes_of(backbone)


def test_layers_carry_their_number_in_features():
    plain = shapes_of(make_backbone("vgg16"))["params"]
    assert set(plain["stage0"]) == {"conv0", "conv2"}
    assert set(plain["stage4"]) == {"conv24", "conv26", "conv28"}
    normed = shapes_of(make_backbone("vgg19_bn"))["params"]
    assert set(normed["stage1"]) == {"conv7", "norm8", "conv10", "norm11"}
    assert {"conv49", "norm50"} < set(normed["stage4"])


TINY = {"stage_sizes": (1, 2, 1), "width": 4}


@functools.cache
def tiny(name="vgg16_bn", **options):
    """A small network, images and variables of any values: initialisers take long to compile."""
    backbone = make_backbone(name, **{**TINY, **options})
    rng = np.random.default_rng(0)
    shapes = shapes_of(backbone)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 0.4, s.shape), s.dtype), shapes)
    params = jax.tree.map(lambda p: p - 0.2 if p.ndim > 1 else p, variables["params"])
    return backbone, jnp.asarray(images(16, 16)), {**variables, "params": params}


@pytest.mark.parametrize("cut", [1, 2])
def test_the_stages_in_two_parts_are_the_whole_network(cut):
    backbone, x, variables = tiny()
    out, new = runner(backbone, train=True)(variables, x)
    first, new_first = runner(backbone, train=True, stop=cut)(variables, x)
    last, new_last = runner(backbone, train=True, start=cut)(variables, first[-1])
    assert (len(first), len(last)) == (cut, 3 - cut)
    assert_close((*first, *last), out)
    for index in range(3):
        part = new_first if index < cut else new_last
        stage = f"stage{index}"
        assert_close(part["batch_stats"][stage], new["batch_stats"][stage])


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


@pytest.mark.parametrize("remat", [(), (1,)])
def test_norms_are_frozen_by_their_place(remat):
    backbone, x, variables = tiny(frozen_norm=r"^stage0|stage1/norm8", remat=remat)
    before = flatten_dict(variables["batch_stats"], sep="/")
    after = flatten_dict(runner(backbone, train=True)(variables, x)[1]["batch_stats"], sep="/")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    frozen = ("stage0/norm1", "stage1/norm8")
    assert same == {f"{place}/{name}" for place in frozen for name in ("mean", "var")}
    assert len(before) == 8


def test_groups_reach_every_norm():
    backbone, x, variables = tiny(norm_groups=2)
    pairs = jnp.concatenate([x, 2 * x + 1])
    together = runner(backbone, train=True)(variables, pairs)[0]
    single = runner(tiny()[0], train=True)
    apart = [single(variables, half)[0] for half in (x, 2 * x + 1)]
    for stage, halves in zip(together, zip(*apart, strict=True), strict=True):
        assert_close(stage, np.concatenate(halves), atol=1e-4)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_bfloat16_computes_in_bfloat16_with_float32_parameters(name):
    backbone, x, variables = tiny(name, dtype="bfloat16")
    out, new = runner(backbone, train=True)(variables, x)
    assert {stage.dtype for stage in out} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}
    exact = runner(tiny(name)[0], train=True)(variables, x)[0][-1]
    rounded = out[-1].astype(jnp.float32)
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_a_network_without_norms_is_the_same_in_training_and_has_no_statistics():
    backbone, x, variables = tiny("vgg16")
    assert variables.keys() == {"params"}
    out, new = runner(backbone, train=True)(variables, x)
    assert not new
    assert_close(out, runner(backbone, train=False)(variables, x))


def test_layers_start_as_torchvision_starts_them():
    backbone = make_backbone("vgg16_bn", stage_sizes=(1,), width=64)
    init = jax.jit(functools.partial(backbone.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]["stage0"]
    # He's initialiser: variance 2 / outgoing connections, over 1728 draws.
    assert 0.9 < float(params["conv0"]["kernel"].std()) / (2 / (9 * 64)) ** 0.5 < 1.1
    np.testing.assert_array_equal(params["conv0"]["bias"], 0.0)
    np.testing.assert_array_equal(params["norm1"]["scale"], 1.0)


def test_images_that_a_pooling_would_leave_empty_are_told():
    def shape_of_last(backbone, variables, *shape):
        image = jnp.zeros((1, *shape, 3))
        return jax.eval_shape(runner(backbone, train=False), variables, image)[-1].shape

    backbone, _, variables = tiny()
    assert shape_of_last(backbone, variables, 8, 8) == (1, 1, 1, 16)
    for shape in ((7, 16), (16, 7)):
        with pytest.raises(UserError, match=r"^stage2: .* of shape \(1, \d, \d, 16\)") as caught:
            shape_of_last(backbone, variables, *shape)
        assert "\n" not in str(caught.value)
    dense, _, variables = tiny(final_pool=False)
    assert shape_of_last(dense, variables, 7, 7) == (1, 1, 1, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "8"}, "width='8'; expected int"),
        ({"width": 0}, "VGG: width=0; expected at least 1"),
        ({"stage_sizes": (1, 2.0, 1)}, r"\(1, 2.0, 1\); expected tuple of int"),
        ({"stage_sizes": ()}, r"VGG: stage_sizes=\(\); expected one number or more"),
        ({"stage_sizes": (1, 0)}, r"VGG: stage_sizes=\(1, 0\); expected .* each at least 1"),
        ({"final_pool": 0}, "final_pool=0; expected bool"),
        ({"batch_norm": "yes"}, "batch_norm='yes'; expected bool"),
        ({"stem": "small"}, "option 'stem'; expected one of"),
        ({"final_pol": False}, "option 'final_pol'; did you mean 'final_pool'"),
        ({"norm_groups": 0}, "VGG: norm_groups=0; expected at least 1"),
        ({"frozen_norm": "("}, r"VGG: frozen_norm='\(' is not a regular expression"),
        ({"dtype": "int32"}, "VGG: dtype=int32; expected a floating type"),
        ({"remat": (3,)}, r"VGG: remat=\(3,\); expected stages from 0 to 2"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_backbone("vgg16_bn", **{**TINY, **options})
    assert "\n" not in str(caught.value)
