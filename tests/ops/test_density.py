"""Densities, their limit and their inverse CDF: NumPy, the authors' sampler, and any attention."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import attention_densities, inverse_cdf, limit_density, reference_positions

CAPS = [1.0, 1.5, 4.0, 8.0]
densities = jax.jit(attention_densities, static_argnames="reduce")
limited = jax.jit(limit_density, static_argnames="max_density")
inverted = jax.jit(inverse_cdf, static_argnames="size")
referenced = jax.jit(reference_positions, static_argnames=("size", "max_density", "iterations"))


def make_density(b=3, n=8, power=6, seed=0):
    density = np.random.default_rng(seed).random((b, n)).astype(np.float32) ** power
    return density / density.sum(axis=1, keepdims=True)


def limit_by_bisection(density, max_density):
    density = np.asarray(density, np.float64)
    cap = max_density / density.shape[1]
    low, high = np.zeros((len(density), 1)), np.ones((len(density), 1))
    for _ in range(60):
        level = (low + high) / 2
        enough = np.minimum(density + level, cap).sum(axis=1, keepdims=True) >= 1
        low, high = np.where(enough, low, level), np.where(enough, level, high)
    return np.minimum(density + high, cap)


def inverse_by_interpolation(density, size):
    edges = np.pad(np.cumsum(density, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    targets, places = (np.arange(size) + 0.5) / size, np.linspace(0, 1, edges.shape[1])
    return np.array([np.interp(targets, one / one[-1], places) for one in edges])


def reference_oracle(pair, size, max_density, iterations):
    """Sections 1.2 and 1.3 of the specification, one axis and one search after the other."""
    shaped, n = [size * np.asarray(d, np.float64) for d in pair], len(pair[0])
    for i in range(iterations):
        cap = min(shaped[0].max(), shaped[1].max(), *([size * max_density / n] if i == 0 else []))
        shaped = [np.minimum(d, cap) for d in shaped]
        shaped = [d + (size - d.sum()) / n for d in shaped]
    found = []
    for d in shaped:
        cdf = np.concatenate([[0.0], np.cumsum(d[1:])])
        for target in np.arange(size) * cdf[-1] / size:
            j = next(j for j in range(1, n) if cdf[j] >= target)
            found.append(2 / (n - 1) * (j + (target - cdf[j]) / (cdf[j] - cdf[j - 1])) - 1)
    return np.reshape(found, (2, size))


@pytest.mark.parametrize(("reduce", "of"), [(jnp.max, max), (jnp.sum, sum)])
def test_densities_follow_the_definition(reduce, of):
    attention = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    by_rows, by_cols = densities(attention, reduce=reduce)
    for image, rows, cols in zip(np.maximum(attention, 0).tolist(), by_rows, by_cols, strict=True):
        for lines, found in ((image, rows), (list(zip(*image, strict=True)), cols)):
            expected = np.array([of(line) for line in lines])
            np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("max_density", CAPS)
def test_limit_and_inverse_follow_the_definition(max_density):
    density = make_density()
    expected = limit_by_bisection(density, max_density)
    found = limited(density, max_density=max_density)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(
        inverted(found, size=13), inverse_by_interpolation(expected, 13), atol=1e-5
    )


@pytest.mark.parametrize(("max_density", "iterations"), [(4.0, 5), (2.0, 0), (1.5, 1), (1.0, 3)])
def test_reference_positions_follow_the_specification(max_density, iterations):
    pair = make_density(), make_density(seed=1)
    options = {"size": 6, "max_density": max_density, "iterations": iterations}
    found = referenced(*pair, **options)
    for i in range(3):
        expected = reference_oracle([d[i] for d in pair], **options)
        np.testing.assert_allclose([found[0][i], found[1][i]], expected, atol=1e-5)


GOLDEN = ["batch3_32_s1", "blob64_s05", "nonsq_64x112_s05", "sharp64_dense2", "sharp64_iters10"]
GOLDEN += ["uniform32_s1", "zerorows112_s05"]


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize(("x64", "pixels"), [(True, 1e-4), (False, 2e-3)])
def test_the_released_sampler_gives_the_same_positions(shared, case, x64, pixels):
    golden = np.load(shared / "golden" / "tasn" / f"sampler_{case}.npz")
    assert golden["normalise"] == 1
    with jax.enable_x64(x64):
        by_rows, by_cols = densities(golden["att"].astype(np.float64 if x64 else np.float32))
        rows, cols = referenced(
            by_rows,
            by_cols,
            size=int(golden["out_size"]),
            max_density=float(golden["dense"]),
            iterations=int(golden["iters"]),
        )
    assert rows.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_allclose(by_rows, golden["norm_row"], atol=1e-7)
    np.testing.assert_allclose(by_cols, golden["norm_col"], atol=1e-7)
    # The first row of this case divides rounding errors by each other.
    first = 1 if case.startswith("zerorows") else 0
    height, width = golden["data"].shape[2:]
    theirs = golden["pt64_pos_y"][:, first:], golden["pt64_pos_x"]
    for ours, their, extent in zip((rows[:, first:], cols), theirs, (height, width), strict=True):
        np.testing.assert_allclose(ours, their, rtol=0, atol=pixels * 2 / (extent - 1))


def test_by_hand():
    by_rows, by_cols = attention_densities(jnp.array([[[0.0, 2.0, -9.0], [6.0, 0.0, 0.0]]]))
    np.testing.assert_array_equal(by_rows, [[0.25, 0.75]])
    np.testing.assert_array_equal(by_cols, [[0.75, 0.25, 0.0]])
    by_rows, _ = attention_densities(jnp.array([[[1.0, 2.0], [4.0, 1.0]]]), reduce=jnp.sum)
    np.testing.assert_array_equal(by_rows, [[0.375, 0.625]])
    # Two cells are capped at 1/2 in turn: lifting the others lifts the second over the cap, too.
    density = jnp.array([[0.75, 0.25, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(
        limit_density(density, max_density=1.5),
        [[0.375, 0.375, 0.125, 0.125]] * 2 + [[0.25] * 4],
        atol=1e-7,
    )
    np.testing.assert_array_equal(limit_density(density, max_density=4.0), density)
    np.testing.assert_allclose(limit_density(density, max_density=1.0), np.full((3, 4), 0.25))
    # Three quarters of the mass in the first cell; then a cell of nothing, which is stepped over.
    np.testing.assert_allclose(
        inverse_cdf(jnp.array([[0.75, 0.0, 0.25, 0.0]]), size=4),
        [[1 / 24, 3 / 24, 5 / 24, 5 / 8]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(inverse_cdf(jnp.zeros((1, 3)), size=2), [[0.25, 0.75]])
    np.testing.assert_allclose(inverse_cdf(3 * density, size=5), inverse_cdf(density, size=5))
    # c = (0, 0.5, 0.75), looked up at 0 and 0.375: index 0.75 of 2.
    rows, _ = reference_positions(*[jnp.array([[0.5, 0.25, 0.125]])] * 2, size=2, iterations=0)
    np.testing.assert_allclose(rows, [[-1.0, -0.25]], atol=1e-6)


SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-20, 8e37]
numbers = st.sampled_from(SPECIAL) | st.floats(-(2.0**125), 2.0**125, width=32)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), max_density=st.sampled_from(CAPS), size=st.sampled_from([1, 5, 12]))
def test_any_finite_attention_gives_sound_densities_and_positions(data, max_density, size):
    values = data.draw(st.lists(numbers, min_size=48, max_size=48))
    attention = np.array(values, np.float32).reshape(2, 3, 8)
    cap = np.float32(max_density)
    for density in densities(attention):
        np.testing.assert_allclose(density.sum(axis=1), 1, rtol=1e-5)
        assert (density >= 0).all()
        flat = limited(density, max_density=max_density)
        assert (flat <= cap / density.shape[1]).all()  # exactly
        np.testing.assert_allclose(flat.sum(axis=1), 1, rtol=1e-5)
        positions = np.asarray(inverted(flat, size=size))
        assert ((positions > 0) & (positions < 1)).all()
        assert (np.diff(positions) >= 0).all()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), power=st.sampled_from([0, 1, 8]), size=st.integers(5, 6))
def test_a_flipped_density_flips_the_positions(seed, power, size):
    density = limited(make_density(power=power, seed=seed), max_density=4.0)
    one, other = inverted(density, size=size), inverted(density[:, ::-1], size=size)
    np.testing.assert_allclose(one, 1 - other[:, ::-1], atol=1e-5 if power < 8 else 1e-3)


def test_a_flipped_density_flips_the_positions_over_an_empty_cell():
    density = jnp.array([[0.5, 0.0, 0.0, 0.5]])
    np.testing.assert_allclose(inverse_cdf(density, size=1), [[0.5]])


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_a_uniform_density_gives_the_centres_of_equal_cells(size):
    for n in (1, 4, 7):
        positions = inverted(np.full((1, n), 1 / n, np.float32), size=size)
        np.testing.assert_allclose(positions, [(np.arange(size) + 0.5) / size], atol=1e-6)


@pytest.mark.parametrize("level", [1e37, 8e37, 3e38])
def test_the_largest_attention_is_like_any_other(level):
    for density in densities(np.full((1, 3, 4), level, np.float32)):
        np.testing.assert_allclose(density, np.full_like(density, 1 / density.shape[1]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_under_checkify_and_finite_without(bad):
    attention = np.ones((2, 3, 4), np.float32)
    attention[0, 1, 2] = bad
    for density in densities(attention):
        assert np.isfinite(density).all()
        np.testing.assert_array_equal(density[1], np.full_like(density[1], 1 / len(density[1])))
    checked = jax.jit(checkify.checkify(attention_densities, errors=checkify.user_checks))
    with pytest.raises(checkify.JaxRuntimeError, match="attention is not finite"):
        checked(attention)[0].throw()
    checked(np.ones((2, 3, 4), np.float32))[0].throw()


@pytest.mark.parametrize("max_density", [1.5, 4.0])
def test_the_derivatives_are_right_to_second_order(max_density):
    # Far from ties of maxima and from targets on a cell's edge.
    attention = np.array([[[4.0, 1.0, 2.2], [0.6, 9.0, 0.7]]], np.float32)

    def f(attention):
        by_rows, by_cols = attention_densities(attention)
        by_cols = limit_density(by_cols, max_density=max_density)
        return inverse_cdf(by_rows, size=3), inverse_cdf(by_cols, size=4)

    check_grads(jax.jit(f), (jnp.asarray(attention),), order=2, modes=("rev",), eps=1e-2, rtol=2e-2)


def test_no_gradient_reaches_the_densities_through_the_reference():
    pair = make_density(), make_density(seed=1)
    slopes = jax.grad(lambda p: sum(x.sum() for x in referenced(*p, size=5)))(pair)
    for slope in slopes:
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


@pytest.mark.parametrize(
    "function",
    [
        lambda d: jnp.concatenate(attention_densities(d.reshape(-1, 2, 4)), axis=1),
        lambda d: limit_density(d, max_density=2.0),
        lambda d: inverse_cdf(d, size=5),
        lambda d: jnp.stack(reference_positions(d, d[:, ::-1], size=5), axis=1),
    ],
)
def test_jit_vmap_and_other_examples_change_nothing(function):
    density = jnp.asarray(make_density())
    plain, run = function(density), jax.jit(function)
    np.testing.assert_allclose(run(density), plain, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda one: function(one[None])[0])(density)
    np.testing.assert_allclose(mapped, plain, rtol=1e-5, atol=1e-6)
    other = run(density.at[1].set(jnp.array([0.0] * 7 + [1.0])))
    np.testing.assert_array_equal(run(density)[::2], other[::2])


def test_bfloat16():
    half = jnp.asarray(make_density(), jnp.bfloat16)
    assert limited(half, max_density=2.0).dtype == jnp.bfloat16
    np.testing.assert_array_equal(inverted(half, size=3), inverted(half.astype("float32"), size=3))
    wide = half.astype("float32")
    for one, other in zip(densities(half[:, None]), densities(wide[:, None]), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


def test_an_infinite_limit_changes_nothing():
    density = make_density()
    np.testing.assert_array_equal(limited(density, max_density=float("inf")), density)


@pytest.mark.parametrize(
    ("function", "shapes", "options", "message"),
    [
        (attention_densities, [(2, 3)], {}, r"attention has shape \(2, 3\)"),
        (attention_densities, [(2, 0, 3)], {}, r"attention has shape \(2, 0, 3\)"),
        (limit_density, [(4,)], {}, r"limit_density: a density of shape \(4,\)"),
        (limit_density, [(1, 0)], {}, r"limit_density: a density of shape \(1, 0\)"),
        (limit_density, [(1, 4)], {"max_density": 0.9}, "max_density is 0.9; expected at least 1"),
        (limit_density, [(1, 4)], {"max_density": np.nan}, "max_density is nan"),
        (inverse_cdf, [(1, 0)], {"size": 2}, r"inverse_cdf: a density of shape \(1, 0\)"),
        (inverse_cdf, [(1, 4)], {"size": 0}, "size is 0; expected at least 1"),
        (reference_positions, [(1, 4), (1, 5)], {"size": 2}, r"shape \(1, 4\) and \(1, 5\)"),
        (reference_positions, [(1, 1), (1, 1)], {"size": 2}, "n at least 2"),
        (reference_positions, [(1, 4)] * 2, {"size": 0}, "size is 0; expected"),
        (reference_positions, [(1, 4)] * 2, {"size": 2, "max_density": 0.5}, "max_density is 0.5"),
        (reference_positions, [(1, 4)] * 2, {"size": 2, "iterations": -1}, "iterations is -1"),
    ],
)
def test_mistakes_are_told(function, shapes, options, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # told by us, as users call it
    try:
        with pytest.raises(UserError, match=message) as caught:
            function(*(jnp.zeros(shape) for shape in shapes), **options)
        assert "\n" not in str(caught.value)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
