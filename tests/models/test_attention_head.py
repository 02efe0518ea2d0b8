"""The attention net's head against its golden vectors and PyTorch's convention."""

import jax
import jax.numpy as jnp
import numpy as np

from fgkd_jax.models.attention_head import AttentionHead, SharedDilatedConv


def test_the_head_is_the_released_one(shared):
    golden = np.load(shared / "golden" / "tasn" / "atthead_pytorch.npz")
    kernels = {
        f"conv{i}": {"kernel": jnp.asarray(golden[f"w{i}"].transpose(2, 3, 1, 0))} for i in (1, 2)
    }
    x = jnp.asarray(golden["x"].transpose(0, 2, 3, 1))
    y = AttentionHead().apply({"params": kernels}, x)
    np.testing.assert_allclose(y, golden["out"].transpose(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_one_kernel_and_bias_serve_all_dilations():
    # A kernel with one tap, up and left: dilation d reads the pixel d up and d left.
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    params = {"kernel": kernel, "bias": jnp.asarray([-2.0])}
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y = SharedDilatedConv((1, 2), use_bias=True).apply({"params": params}, x)[0, :, :, 0]
    padded = np.pad(np.arange(16.0).reshape(4, 4), 2)
    expected = [
        [max(0, padded[i + 1, j + 1] - 2) + max(0, padded[i, j] - 2) for j in range(4)]
        for i in range(4)
    ]
    np.testing.assert_allclose(y, expected)


def test_biases_are_an_option_and_the_dtype_comes_back():
    x = jnp.ones((1, 4, 4, 3), jnp.bfloat16)
    for use_bias in (False, True):
        head = AttentionHead(use_bias=use_bias)
        y, variables = head.init_with_output(jax.random.key(0), x)
        assert y.dtype == jnp.bfloat16
        leaves = jax.tree.leaves(variables)
        assert len(leaves) == 2 + 2 * use_bias
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
