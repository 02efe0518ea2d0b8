"""Wide ResNets: parity with PyTorch in evaluation and training, sizes, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import feature_shapes, make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import to_torch_state_dict

CLASSES = 5


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train):
        return self.head(self.backbone(x, train=train)[-1], train=train)


def shapes_of(net):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=False))


def torch_wide_resnet(torch, *, blocks, widening, width):
    """A wide ResNet in PyTorch whose modules are called as those of the MCL reference."""
    conv = functools.partial(torch.nn.Conv2d, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.bn1 = torch.nn.BatchNorm2d(inputs)
            self.conv1 = conv(inputs, outputs, 3, stride, 1)
            self.bn2 = torch.nn.BatchNorm2d(outputs)
            self.conv2 = conv(outputs, outputs, 3, 1, 1)
            self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

        def forward(self, x):
            active = self.bn1(x).relu()
            y = self.conv2(self.bn2(self.conv1(active)).relu())
            return y + (x if self.convShortcut is None else self.convShortcut(active))

    network = torch.nn.Module()
    network.conv1 = conv(3, width, 3, 1, 1)
    inputs = width
    for stage, (count, stride) in enumerate(zip(blocks, (1, 2, 2), strict=True), start=1):
        outputs = width * widening * 2 ** (stage - 1)
        layers = [
            Block(outputs if block else inputs, outputs, 1 if block else stride)
            for block in range(count)
        ]
        place = torch.nn.Module()
        place.layer = torch.nn.Sequential(*layers)
        setattr(network, f"block{stage}", place)
        inputs = outputs
    network.bn1 = torch.nn.BatchNorm2d(inputs)
    network.fc = torch.nn.Linear(inputs, CLASSES)

    def logits(x):
        x = network.conv1(x)
        for stage in range(1, 4):
            x = getattr(network, f"block{stage}").layer(x)
        return network.fc(network.bn1(x).relu().mean((2, 3)))

    return network, logits


@functools.cache
def drawn(widening):
    """A small network with values of its own everywhere."""
    backbone = make_backbone("wrn_16_2", stage_sizes=(2, 1, 2), widening=widening, width=4)
    net = Net(backbone, LinearHead(CLASSES))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.3, 0.3)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    return net, jax.tree_util.tree_map_with_path(draw, shapes_of(net))


# widening=1: the first block of stage 1 changes no shape, so that it has no projection.
@pytest.mark.parametrize("widening", [1, 2])
def test_pytorch_gives_the_same_logits_and_the_same_training_step(widening):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    net, variables = drawn(widening)
    theirs, logits = torch_wide_resnet(torch, blocks=(2, 1, 2), widening=widening, width=4)
    state = {name: torch.from_numpy(a) for name, a in to_torch_state_dict(variables).items()}
    theirs.load_state_dict(state)  # strict: every name and shape is the reference's
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 17, 17, 3)), jnp.float32)
    label = np.arange(4)
    tx = torch.tensor(np.array(x.transpose(0, 3, 1, 2)))
    theirs.eval()
    with torch.no_grad():
        expected = logits(tx).numpy()
    theirs.train()
    torch.nn.functional.cross_entropy(logits(tx), torch.tensor(label)).backward()
    torch.optim.SGD(theirs.parameters(), lr=0.05).step()

    @jax.jit
    def step(variables):
        def loss(params):
            out, new = net.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(out, label).mean(), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
        return {**new, "params": params}

    out = jax.jit(functools.partial(net.apply, train=False))(variables, x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    after = to_torch_state_dict(step(variables))
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(after[name], value.numpy(), atol=1e-4, err_msg=name)


# In millions, with 100 classes: as the papers on distillation give them.
@pytest.mark.parametrize(
    ("name", "millions"), [("wrn_16_2", 0.70), ("wrn_40_2", 2.26), ("wrn_28_4", 5.87)]
)
def test_the_sizes_are_the_published_ones(name, millions):
    shapes = shapes_of(Net(make_backbone(name), LinearHead(100)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert round(count / 1e6, 2) == millions


def test_the_stages_have_their_shapes():
    assert feature_shapes(make_backbone("wrn_28_4"), (32, 32)) == (
        *((32, 32, 16), (32, 32, 64)),
        *((16, 16, 128), (8, 8, 256)),
    )


def test_the_last_stage_alone_ends_with_a_rectified_norm():
    net, variables = drawn(2)
    own = {collection: tree["backbone"] for collection, tree in variables.items()}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
    run = jax.jit(functools.partial(net.backbone.apply, train=False))
    *before, last = run(own, x)
    assert float(last.min()) == 0.0
    assert all(float(stage.min()) < 0.0 for stage in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_sizes": (2, 0, 2)}, r"stage_sizes=\(2, 0, 2\); expected 3 numbers, each at least"),
        ({"stage_sizes": ()}, r"stage_sizes=\(\); expected 1 numbers"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\); expected 3 numbers"),
        ({"widening": 0}, "widening=0; expected at least 1"),
        ({"width": 0}, "width=0; expected at least 1"),
        ({"widen": 2}, "option 'widen'; did you mean 'widening'"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_backbone("wrn_16_2", **options)
    assert "\n" not in str(caught.value)
