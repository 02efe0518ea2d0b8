"""Divisions whose whole part is exact, against whole numbers, and PyTorch's nearest neighbour."""

from functools import partial

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
    whole = np.arange(-300, 301)
    below, above = (np.nextafter(np.float32(whole * divisor), np.float32(to)) for to in (-9e9, 9e9))
    for x, floor in (
        (whole * divisor, whole),
        (np.float32(whole * divisor), whole),
        (below, whole - 1),
        (above, whole),
    ):
        exact = x == whole * divisor
        for function, expected in (
            (floor_divide, floor),
            (ceil_divide, np.where(exact, whole, floor + 1)),
            (truncate_divide, np.where((floor < 0) & ~exact, floor + 1, floor)),
        ):
            found = wrap(partial(function, divisor=divisor))(jnp.asarray(x))
            # The neighbours of 0 are denormal, which XLA takes for 0.
            kept = exact | (whole != 0)
            np.testing.assert_array_equal(found[kept], expected[kept])


def test_nearest_rows_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    for old in (1, 2, 14, 26, 44, 52, 62, 97, 106):
        ramp = torch.arange(old, dtype=torch.float32)[None, None]
        for new in range(1, 131):
            expected = torch.nn.functional.interpolate(ramp, size=new, mode="nearest")
            np.testing.assert_array_equal(nearest_rows(old=old, new=new), expected[0, 0].numpy())
