"""A loop of few steps: as `lax.scan`, and without a loop on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.ops.loops import MOST, scan_steps


def body(carry, item):
    total, product = carry
    return (total + item["x"], product * item["y"]), {"sum": total * item["y"]}


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_a_scan(reverse):
    rng = np.random.default_rng(0)
    items = {"x": rng.normal(size=(4, 3)), "y": rng.normal(size=4)}
    start = jnp.zeros(3), jnp.ones(())
    found = jax.jit(lambda s, i: scan_steps(body, s, i, reverse=reverse))(start, items)
    expected = jax.lax.scan(body, start, items, reverse=reverse)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_what_is_closed_over_is_traced():
    def f(scale):
        return scan_steps(lambda c, x: (c + scale * x, c), jnp.zeros(()), jnp.arange(3.0))[0]

    assert jax.jit(f)(2.0) == 6
    assert jax.grad(f)(2.0) == 3


def test_no_loop_is_left_on_cpu():
    def compiled(scan, count=4):
        lowered = jax.jit(lambda s, i: scan(body, s, i)).lower(
            (jnp.zeros(3), jnp.ones(())), {"x": jnp.ones((count, 3)), "y": jnp.ones(count)}
        )
        return lowered.compile().as_text()

    assert "while(" in compiled(jax.lax.scan)
    assert "while(" not in compiled(scan_steps)
    assert "while(" not in compiled(scan_steps, MOST)
    assert "while(" in compiled(scan_steps, MOST + 1)
