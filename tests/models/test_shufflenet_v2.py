"""ShuffleNetV2: parity with PyTorch under torchvision's names, sizes, shapes, options."""

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
from fgkd_jax.models.shufflenet_v2 import shuffled
from fgkd_jax.train.pretrained import to_torch_state_dict

CLASSES = 5
SMALL = {"channels": (8, 12, 16), "stage_sizes": (2, 1, 2), "stem_channels": 6, "last_channels": 20}


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train):
        return self.head(self.backbone(x, train=train)[-1], train=train)


def shapes_of(net):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=False))


def torch_shufflenet(torch, *, channels, stage_sizes, stem_channels, last_channels, small):
    """ShuffleNetV2 in PyTorch whose modules are called as torchvision calls them."""
    nn = torch.nn

    def layers(*rows):
        """Convolutions (inputs, outputs, size, stride, groups, whether ReLU follows)."""
        found = []
        for ci, co, size, stride, groups, active in rows:
            found += [
                nn.Conv2d(ci, co, size, stride, size // 2, groups=groups, bias=False),
                nn.BatchNorm2d(co),
                *([nn.ReLU()] if active else []),
            ]
        return nn.Sequential(*found)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, down):
            super().__init__()
            half, stride = outputs // 2, 2 if down else 1
            inside = inputs if down else half
            self.branch1 = nn.Sequential()
            if down:
                self.branch1 = layers(
                    (inputs, inputs, 3, 2, inputs, False), (inputs, half, 1, 1, 1, True)
                )
            self.branch2 = layers(
                (inside, half, 1, 1, 1, True),
                (half, half, 3, stride, half, False),
                (half, half, 1, 1, 1, True),
            )
            self.down = down

        def forward(self, x):
            one, other = (x, x) if self.down else x.chunk(2, dim=1)
            both = torch.cat([self.branch1(one), self.branch2(other)], dim=1)
            order = torch.arange(both.shape[1]).reshape(2, -1).T.reshape(-1)
            return both[:, order]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = layers((3, stem_channels, 3, 1 if small else 2, 1, True))
            inputs = stem_channels
            for stage, (outputs, count) in enumerate(zip(channels, stage_sizes, strict=True)):
                blocks = []
                for block in range(count):
                    blocks.append(Block(inputs, outputs, down=block == 0))
                    inputs = outputs
                setattr(self, f"stage{stage + 2}", nn.Sequential(*blocks))
            self.conv5 = layers((inputs, last_channels, 1, 1, 1, True))
            self.fc = nn.Linear(last_channels, CLASSES)

        def forward(self, x):
            x = self.conv1(x)
            x = x if small else nn.functional.max_pool2d(x, 3, 2, 1)
            x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
            return self.fc(x.mean((2, 3)))

    return Network()


@functools.cache
def drawn(name):
    """A small network with values of its own everywhere."""
    net = Net(make_backbone(name, **SMALL), LinearHead(CLASSES))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.4, 0.4)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    return net, jax.tree_util.tree_map_with_path(draw, shapes_of(net))


@pytest.mark.parametrize(
    ("name", "size"), [("shufflenet_v2_x1_0", 70), ("cifar_shufflenet_v2_x1_0", 18)]
)
def test_pytorch_gives_the_same_logits_and_the_same_training_step(name, size):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    net, variables = drawn(name)
    theirs = torch_shufflenet(torch, **SMALL, small=name.startswith("cifar"))
    state = {name: torch.from_numpy(a) for name, a in to_torch_state_dict(variables).items()}
    theirs.load_state_dict(state)  # strict: every name and shape is torchvision's
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, size, size, 3)), jnp.float32)
    label = np.arange(4)
    tx = torch.tensor(np.array(x.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        expected = theirs.eval()(tx).numpy()
    torch.nn.functional.cross_entropy(theirs.train()(tx), torch.tensor(label)).backward()
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


def test_two_shuffles_take_four_channels_back_to_their_order():
    x = jnp.arange(4.0).reshape(1, 1, 1, 4)
    once = shuffled(x[..., :2], x[..., 2:])
    np.testing.assert_array_equal(once[0, 0, 0], [0, 2, 1, 3])
    np.testing.assert_array_equal(shuffled(once[..., :2], once[..., 2:]), x)


# As torchvision documents them, with 1000 classes.
@pytest.mark.parametrize(
    ("name", "parameters"), [("shufflenet_v2_x0_5", 1_366_792), ("shufflenet_v2_x1_0", 2_278_604)]
)
def test_the_full_networks_have_the_known_number_of_parameters(name, parameters):
    for prefix in ("", "cifar_"):  # the stems have the same kernels
        shapes = shapes_of(Net(make_backbone(prefix + name), LinearHead(1000)))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


def test_the_stages_have_their_shapes():
    assert feature_shapes(make_backbone("shufflenet_v2_x1_0"), (224, 224)) == (
        *((56, 56, 24), (28, 28, 116)),
        *((14, 14, 232), (7, 7, 1024)),
    )
    assert feature_shapes(make_backbone("cifar_shufflenet_v2_x0_5"), (32, 32)) == (
        *((32, 32, 24), (16, 16, 48)),
        *((8, 8, 96), (4, 4, 1024)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 7, 16)}, r"channels=\(8, 7, 16\); expected even numbers, at least one"),
        ({"channels": (8, 0, 16)}, r"channels=\(8, 0, 16\); expected even"),
        ({"channels": ()}, r"channels=\(\); expected even numbers, at least one"),
        ({"stage_sizes": (1, 2)}, r"stage_sizes=\(1, 2\); expected 3 numbers, each at least 1"),
        ({"stage_sizes": (1, 0, 2)}, r"stage_sizes=\(1, 0, 2\); expected 3 numbers"),
        ({"stem": "cifar"}, "stem='cifar'; expected one of imagenet, small"),
        ({"stem_channels": 0}, "stem_channels=0; expected at least 1"),
        ({"last_channels": 0}, "last_channels=0; expected at least 1"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_backbone("shufflenet_v2_x1_0", **options)
    assert "\n" not in str(caught.value)
