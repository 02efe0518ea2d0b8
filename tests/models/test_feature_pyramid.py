"""The feature pyramid against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.models import FeaturePyramid
from fgkd_jax.models.feature_pyramid import enlarge

SIZES = ((9, 14), (5, 7), (3, 4))  # not all of them twice the next


def stages(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(2, *size, 3 + i)), dtype) for i, size in enumerate(SIZES)
    )


@pytest.mark.parametrize("extra_convs", [False, True])
def test_torch_builds_the_same(extra_convs):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    functional = torch.nn.functional
    pyramid = FeaturePyramid(features=5, extra_levels=2, extra_convs=extra_convs)
    found, variables = pyramid.init_with_output(jax.random.key(0), stages())

    def conv(x, name, stride=1):
        kernel = np.asarray(variables["params"][name]["kernel"]).transpose(3, 2, 0, 1)
        bias = np.asarray(variables["params"][name]["bias"])
        pad = kernel.shape[2] // 2
        return functional.conv2d(
            x, torch.tensor(kernel), torch.tensor(bias), stride=stride, padding=pad
        )

    inputs = [torch.tensor(np.asarray(x)).permute(0, 3, 1, 2) for x in stages()]
    merged = [conv(x, f"lateral{i}") for i, x in enumerate(inputs)]
    for i in (1, 0):
        merged[i] = merged[i] + functional.interpolate(merged[i + 1], size=merged[i].shape[2:])
    expected = [conv(x, f"output{i}") for i, x in enumerate(merged)]
    if extra_convs:
        expected.append(conv(inputs[-1], "extra0", 2))
        expected.append(conv(functional.relu(expected[-1]), "extra1", 2))
    else:
        for _ in range(2):
            expected.append(functional.max_pool2d(expected[-1], 1, stride=2))
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            ours.transpose(0, 3, 1, 2), theirs.detach().numpy(), rtol=1e-4, atol=1e-5
        )


def test_half_precision_stays_and_parameters_do_not():
    found, variables = FeaturePyramid(features=4).init_with_output(
        jax.random.key(0), stages(jnp.bfloat16)
    )
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_enlarging_repeats_cells():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    twice = enlarge(x, size=(4, 6))[0, :, :, 0]
    np.testing.assert_array_equal(twice, np.kron(x[0, :, :, 0], np.ones((2, 2))))
    np.testing.assert_array_equal(enlarge(x, size=(3, 4))[0, :, 0, 0], [0, 0, 3])


def test_no_stage_is_told():
    with pytest.raises(UserError, match="no stages"):
        FeaturePyramid().init(jax.random.key(0), ())
