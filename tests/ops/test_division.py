"""Divisions whose whole part is exact, against whole numbers, and PyTorch's nearest neighbour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.ops.division import ceil_divide, floor_divide, nearest_rows, truncate_divide


@settings(deadline=None, max_examples=60)
@given(divisor=st.integers(1, 200), compiled=st.booleans())
def test_multiples_and_their_neighbours(divisor, compiled):
    wrap = jax.jit if compiled else (lambda function: function)
    functions = floor_divide, ceil_divide, truncate_divide
    divide = wrap(lambda x: [function(x, divisor=divisor) for function in functions])
    whole = np.arange(-300, 301)
    below, above = (np.nextafter(np.float32(whole * divisor), np.float32(to)) for to in (-9e9, 9e9))
    for x, floor in (
        (whole * divisor, whole),
        (np.float32(whole * divisor), whole),
        (below, whole - 1),
        (above, whole),
    ):
        exact = x == whole * divisor
        expected = (
            floor,
            np.where(exact, whole, floor + 1),
            np.where((floor < 0) & ~exact, floor + 1, floor),
        )
        # The neighbours of 0 are denormal, which XLA takes for 0.
        kept = exact | (whole != 0)
        for function, found, values in zip(
            functions, divide(jnp.asarray(x)), expected, strict=True
        ):
            np.testing.assert_array_equal(found[kept], values[kept], err_msg=function.__name__)


def test_nearest_rows_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    for old in (1, 2, 14, 26, 44, 52, 62, 97, 106):
        ramp = torch.arange(old, dtype=torch.float32)[None, None]
        for new in range(1, 131):
            expected = torch.nn.functional.interpolate(ramp, size=new, mode="nearest")
            np.testing.assert_array_equal(nearest_rows(old=old, new=new), expected[0, 0].numpy())
