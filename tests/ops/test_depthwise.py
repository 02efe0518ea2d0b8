"""Depthwise convolution: both lowerings against a NumPy oracle, PyTorch and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import depthwise
from fgkd_jax.ops.depthwise import depthwise_conv

CASES = [
    # strides, padding, (kh, kw), (h, w), dilation
    ((1, 1), "SAME", (3, 3), (5, 4), (1, 1)),
    ((2, 2), "SAME", (3, 3), (6, 7), (1, 1)),
    ((2, 2), ((1, 1), (1, 1)), (3, 3), (6, 7), (1, 1)),
    ((1, 2), "VALID", (3, 1), (5, 6), (1, 1)),
    ((3, 1), ((0, 2), (1, 0)), (2, 4), (5, 4), (1, 1)),
    ((3, 3), "SAME", (2, 2), (7, 8), (1, 1)),
    ((1, 1), ((2, 2), (2, 2)), (3, 3), (5, 6), (2, 2)),
    ((2, 3), "SAME", (3, 2), (8, 9), (2, 3)),
    ((1, 2), "VALID", (2, 3), (6, 7), (3, 1)),
]
LOWERINGS = {"cpu": depthwise._shifted, "default": depthwise._grouped}


def oracle(x, kernel, strides, pads, dilation=(1, 1)):
    """The definition, one output pixel after the other, in float64."""
    kernel = spread(np.asarray(kernel, np.float64), dilation)
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)))
    kh, kw, _ = kernel.shape
    rows = [
        [
            (x[:, i : i + kh, j : j + kw] * kernel).sum(axis=(1, 2))
            for j in range(0, x.shape[2] - kw + 1, strides[1])
        ]
        for i in range(0, x.shape[1] - kh + 1, strides[0])
    ]
    return np.array(rows).transpose(2, 0, 1, 3)


def spread(kernel, dilation):
    """A kernel with the zeros between its weights that dilation stands for."""
    kh, kw, channels = kernel.shape
    dh, dw = dilation
    wide = np.zeros(((kh - 1) * dh + 1, (kw - 1) * dw + 1, channels), kernel.dtype)
    wide[::dh, ::dw] = kernel
    return wide


def same_pads(size, kernel, stride):
    """TensorFlow's rule: as many outputs as strides fit, the odd zero at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def explicit(padding, size, kernel, strides):
    if padding == "SAME":
        return tuple(same_pads(*one) for one in zip(size, kernel, strides, strict=True))
    return ((0, 0), (0, 0)) if padding == "VALID" else padding


def inputs(size, kernel, channels=3, batch=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *size, channels))
    return jnp.asarray(x, jnp.float32), jnp.asarray(
        rng.normal(size=(*kernel, channels)), jnp.float32
    )


@pytest.mark.parametrize(("strides", "padding", "kernel_size", "size", "dilation"), CASES)
def test_both_lowerings_follow_the_definition(strides, padding, kernel_size, size, dilation):
    x, kernel = inputs(size, kernel_size)
    extent = spread(np.asarray(kernel), dilation).shape[:2]
    pads = explicit(padding, size, extent, strides)
    expected = oracle(x, kernel, strides, pads, dilation)
    out = depthwise_conv(x, kernel, strides=strides, padding=padding, dilation=dilation)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for lowering in LOWERINGS.values():
        out = lowering(x, kernel, strides=strides, pads=pads, dilation=dilation)
        assert out.shape == expected.shape
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_pytorch_gives_the_same_values_and_gradients():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    x, kernel = inputs((6, 7), (3, 3))
    weights = np.random.default_rng(1).normal(size=(2, 3, 4, 3)).astype(np.float32)

    tx = torch.tensor(np.array(x.transpose(0, 3, 1, 2)), requires_grad=True)
    tk = torch.tensor(np.array(kernel.transpose(2, 0, 1)[:, None]), requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tk, stride=2, padding=1, groups=3)
    (ty * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    theirs = (
        ty.detach().numpy().transpose(0, 2, 3, 1),
        tx.grad.numpy().transpose(0, 2, 3, 1),
        tk.grad.numpy()[:, 0].transpose(1, 2, 0),
    )
    for lowering in LOWERINGS.values():

        def loss(x, kernel, lowering=lowering):
            y = lowering(x, kernel, strides=(2, 2), pads=((1, 1), (1, 1)))
            return jnp.sum(y * weights), y

        grads, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
        for ours, their in zip((y, *grads), theirs, strict=True):
            np.testing.assert_allclose(ours, their, atol=1e-5)


@pytest.mark.parametrize("lowering", LOWERINGS.values())
def test_the_derivatives_are_right_to_second_order(lowering):
    x, kernel = inputs((4, 5), (3, 3), channels=2, batch=1)

    def f(x, kernel):
        return jnp.sin(lowering(x, kernel, strides=(2, 1), pads=((1, 0), (1, 1))))

    check_grads(jax.jit(f), (x, kernel), order=2, modes=("fwd", "rev"), eps=1e-2, rtol=2e-2)


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_each_platform_gets_its_lowering(platform, grouped):
    x, kernel = inputs((4, 4), (3, 3))
    lowered = jax.jit(depthwise_conv).trace(x, kernel).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert text.count("stablehlo.convolution") == grouped
    assert text.count("feature_group_count = 3") == grouped


def test_jit_and_vmap_change_nothing():
    x, kernel = inputs((5, 4), (3, 3))
    plain = depthwise_conv(x, kernel)
    np.testing.assert_allclose(jax.jit(depthwise_conv)(x, kernel), plain, atol=1e-6)
    mapped = jax.vmap(lambda one: depthwise_conv(one[None], kernel)[0])(x)
    np.testing.assert_allclose(mapped, plain, atol=1e-6)


@pytest.mark.parametrize("lowering", LOWERINGS.values())
def test_bfloat16_comes_back_rounded_once(lowering):
    x, kernel = inputs((5, 4), (3, 3))
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    out = lowering(x, kernel, strides=(1, 1), pads=((1, 1), (1, 1)))
    assert out.dtype == jnp.bfloat16
    exact = oracle(x.astype(np.float32), kernel.astype(np.float32), (1, 1), ((1, 1), (1, 1)))
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2**-8, atol=1e-6)


jitted = {name: jax.jit(f, static_argnames=("strides", "pads")) for name, f in LOWERINGS.items()}


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_flipping_image_and_kernel_flips_the_result(data):
    whole = st.integers(-8, 8)
    x = np.array(data.draw(st.lists(whole, min_size=60, max_size=60)), np.float32)
    kernel = np.array(data.draw(st.lists(whole, min_size=18, max_size=18)), np.float32)
    x, kernel = x.reshape(1, 5, 6, 2), kernel.reshape(3, 3, 2)
    for run in jitted.values():
        out = run(x, kernel, strides=(1, 1), pads=((1, 1), (1, 1)))
        flipped = run(x[:, ::-1, ::-1], kernel[::-1, ::-1], strides=(1, 1), pads=((1, 1), (1, 1)))
        np.testing.assert_array_equal(out[:, ::-1, ::-1], flipped)
        np.testing.assert_array_equal(out, oracle(x, kernel, (1, 1), ((1, 1), (1, 1))))


@pytest.mark.parametrize(
    ("kernel_shape", "options", "message"),
    [
        ((3, 3, 4), {}, r"shape \(1, 4, 4, 2\) and kernel \(3, 3, 4\)"),
        ((3, 3, 2), {"strides": (0, 1)}, r"strides \(0, 1\); expected at least 1"),
        ((3, 3, 2), {"dilation": (1, 0)}, r"dilation \(1, 0\); expected at least 1"),
        (
            *((3, 3, 2), {"padding": "VALID", "dilation": (1, 2)}),
            r"smaller than the kernel of shape \(3, 3, 2\) with dilation \(1, 2\)",
        ),
        ((3, 3, 2), {"padding": "SAM"}, "padding 'SAM'; did you mean 'SAME'"),
        ((3, 3, 2), {"padding": ((-1, 1), (1, 1))}, "expected at least 0"),
        ((5, 5, 2), {"padding": "VALID"}, r"smaller than the kernel of shape \(5, 5, 2\)"),
    ],
)
def test_mistakes_are_told(kernel_shape, options, message):
    # Channels that differ are a user's mistake to be told by us, not by the type checker.
    function = getattr(depthwise_conv, "__wrapped__", depthwise_conv)
    with pytest.raises(UserError, match=message):
        function(jnp.zeros((1, 4, 4, 2)), jnp.zeros(kernel_shape), **options)
