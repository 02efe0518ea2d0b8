"""Marks of parts: nothing in a run, and a function as far as one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.parts import part, part_names, until


def work(x):
    doubled = part("double", 2 * x)
    _, pair = part("pair", (doubled + 1, {"both": doubled * doubled}))
    return part("sum", jnp.sum(pair["both"]))


def test_a_mark_gives_back_what_it_is_given():
    value = object()
    assert part("anything", value) is value
    assert float(jax.jit(work)(jnp.arange(3.0))) == 20.0


def test_the_parts_are_listed_in_their_order():
    assert part_names(lambda: work(jnp.ones(2))) == ("double", "pair", "sum")
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert part_names(lambda: jax.eval_shape(work, shape)) == ("double", "pair", "sum")
    assert part_names(lambda: None) == ()


def test_a_function_is_cut_off_behind_a_part():
    x = jnp.arange(3.0)
    (doubled,) = jax.jit(until(work, ("double",)))(x)
    np.testing.assert_array_equal(doubled, 2 * x)
    doubled, (more, pair) = jax.jit(until(work, ("double", "pair")))(x)
    np.testing.assert_array_equal(more, doubled + 1)
    np.testing.assert_array_equal(pair["both"], doubled**2)
    ((_, alone),) = until(work, ("pair",))(x)
    np.testing.assert_array_equal(alone["both"], pair["both"])


def test_what_follows_is_left_out():
    reached = []

    def function():
        part("early", 1)
        reached.append("late")

    assert until(function, ("early",))() == (1,)
    assert reached == []


def test_parts_under_a_gradient_are_passed_over():
    def step(x):
        return part("gradient", jax.grad(work)(x))

    (gradient,) = jax.jit(until(step, ("gradient",)))(jnp.arange(3.0))
    np.testing.assert_array_equal(gradient, 8 * np.arange(3.0))


def test_marks_are_silent_again_afterwards():
    with pytest.raises(ValueError, match="there is no part 'triple' to stop at"):
        until(work, ("double", "triple"))(jnp.ones(2))
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 / 0, ("double",))()
    names = []
    assert part_names(lambda: names.append(until(work, ("double",))(jnp.ones(2)))) == ()
    assert work(jnp.ones(2)) == 8.0
