"""HCGNet: parity with PyTorch under the released names, its gates, sizes, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import feature_shapes, make_backbone
from fgkd_jax.models.hcgnet import Context
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import to_torch_state_dict

CLASSES = 5
SMALL = {"growth": (4, 8, 4), "stage_sizes": (2, 1, 2)}


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x, *, train):
        return self.head(self.backbone(x, train=train)[-1], train=train)


def shapes_of(net):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=False))


class Functional:
    """HCGNet as functions of a dict of PyTorch's tensors, under the released names."""

    def __init__(self, torch, state, *, train):
        self.torch, self.state, self.train = torch, state, train

    def conv(self, name, x, **options):
        bias = self.state.get(f"{name}.bias")
        return self.torch.nn.functional.conv2d(x, self.state[f"{name}.weight"], bias, **options)

    def norm(self, name, x):
        parts = ("running_mean", "running_var", "weight", "bias")
        arguments = [self.state[f"{name}.{part}"] for part in parts]
        return self.torch.nn.functional.batch_norm(x, *arguments, training=self.train)

    def active(self, name, x, **options):
        return self.conv(f"{name}.conv", self.norm(f"{name}.norm", x).relu(), **options)

    def context(self, name, x):
        weights = self.conv(name, x).flatten(1).softmax(dim=1)
        return self.torch.einsum("bp,bcp->bc", weights, x.flatten(2))[..., None, None]

    def gated(self, name, x, *, stride, groups):
        x = self.active(f"{name}.conv1_1x1", x)
        x = self.active(f"{name}.conv2_3x3", x, stride=stride, padding=1, groups=groups)
        channels = x.shape[1]
        forget = self.conv(f"{name}.fc1", self.context(f"{name}.global_forget_context", x))
        forget = self.conv(f"{name}.fc2", self.norm(f"{name}.bn_forget", forget).tanh()).sigmoid()
        contexts = []
        for size, dilation in (("3x3", 1), ("5x5", 2)):
            options = {"padding": dilation, "dilation": dilation, "groups": channels}
            y = self.active(f"{name}.conv_{size}", x, **options)
            contexts.append(self.context(f"{name}.global_context{size}", y))
        y = self.conv(f"{name}.fcall", self.torch.cat(contexts, dim=1))
        y = self.norm(f"{name}.bn_attention", y).tanh()
        scores = [self.conv(f"{name}.fc{size}", y) for size in ("3x3", "5x5")]
        shares = self.torch.stack(scores).softmax(dim=0)
        return forget * x + (shares * self.torch.stack(contexts)).sum(dim=0)

    def __call__(self, x, *, stage_sizes):
        x = self.conv("features.conv0", x, padding=1)
        for stage, count in enumerate(stage_sizes, start=1):
            for number in range(1, count + 1):
                name = f"features.HybridBlock{stage}.SMG{number}"
                x = self.torch.cat([x, self.gated(name, x, stride=1, groups=4)], dim=1)
            if stage < len(stage_sizes):
                x = self.gated(f"features.Transition{stage}", x, stride=2, groups=1)
        pooled = self.norm("features.norm5", x).relu().mean((2, 3))
        return pooled @ self.state["classifier.weight"].T + self.state["classifier.bias"]


@functools.cache
def drawn():
    """A small network with values of its own everywhere."""
    net = Net(make_backbone("cifar_hcgnet_a1", **SMALL), LinearHead(CLASSES))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.6, 0.6)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    return net, jax.tree_util.tree_map_with_path(draw, shapes_of(net))


def test_pytorch_gives_the_same_logits_and_the_same_training_step():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    net, variables = drawn()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 13, 13, 3)), jnp.float32)
    label = np.arange(4)
    tx = torch.tensor(np.array(x.transpose(0, 3, 1, 2)))
    state = {name: torch.tensor(a) for name, a in to_torch_state_dict(variables).items()}
    trained = [tensor for name, tensor in state.items() if "running" not in name]
    with torch.no_grad():
        expected = Functional(torch, state, train=False)(tx, stage_sizes=SMALL["stage_sizes"])
    for tensor in trained:
        tensor.requires_grad_()
    logits = Functional(torch, state, train=True)(tx, stage_sizes=SMALL["stage_sizes"])
    torch.nn.functional.cross_entropy(logits, torch.tensor(label)).backward()
    torch.optim.SGD(trained, lr=0.05).step()

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
    assert expected.abs().max() > 0.1
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-4)
    after = to_torch_state_dict(step(variables))
    assert after.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_allclose(after[name], value.detach().numpy(), atol=1e-4, err_msg=name)


def test_the_context_follows_the_scores_and_is_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.bfloat16)
    kernel, bias = jnp.zeros((1, 1, 5, 1)), jnp.ones(1)
    params = {"score": {"kernel": kernel, "bias": bias}}
    mean = Context().apply({"params": params}, x)
    assert mean.dtype == jnp.float32
    exact = np.asarray(x, np.float64).mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(mean, exact, atol=1e-6)
    # A score that one position wins by far: its features alone are left.
    sharp = {"score": {"kernel": kernel.at[0, 0, 2, 0].set(1e4), "bias": bias}}
    flat = np.asarray(x, np.float32).reshape(2, 12, 5)
    winners = flat[[0, 1], flat[..., 2].argmax(axis=1)]
    out = Context().apply({"params": sharp}, x)
    np.testing.assert_allclose(out[:, 0, 0], winners, atol=1e-5)


# With 10 and 100 classes, in millions, as the paper's table has them.
@pytest.mark.parametrize(("name", "millions"), [("cifar_hcgnet_a1", 1.1), ("cifar_hcgnet_a2", 3.1)])
def test_the_sizes_are_the_published_ones(name, millions):
    for classes in (10, 100):
        shapes = shapes_of(Net(make_backbone(name), LinearHead(classes)))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        assert round(count / 1e6, 1) == millions


def test_the_stages_have_their_shapes():
    assert feature_shapes(make_backbone("cifar_hcgnet_a1"), (32, 32)) == (
        *((32, 32, 24), (16, 16, (24 + 8 * 12) // 2)),
        *((8, 8, (60 + 8 * 24) // 2), (8, 8, 126 + 8 * 36)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": (12, 6, 36)}, r"growth=\(12, 6, 36\); expected multiples of 4, at least one"),
        ({"growth": (12, 0, 36)}, r"growth=\(12, 0, 36\); expected multiples of 4"),
        ({"growth": ()}, r"growth=\(\); expected multiples of 4"),
        ({"stage_sizes": (8, 8)}, r"stage_sizes=\(8, 8\); expected 3 numbers, each at least 1"),
        ({"stage_sizes": (8, 0, 8)}, r"stage_sizes=\(8, 0, 8\); expected 3 numbers"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_backbone("cifar_hcgnet_a1", **options)
    assert "\n" not in str(caught.value)
