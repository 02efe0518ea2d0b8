"""Separable resampling: every lowering against loops, the authors' images and each other."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.ops import corner_aligned_resize, corners_to_pixels, separable_resample
from fgkd_jax.ops import resample_lowerings as lowerings

RESAMPLES = {
    "gathers": lowerings.resample_by_gathers,
    "promised": partial(lowerings.resample_by_gathers, promised=True),
    "products": lowerings.resample_by_products,
    "public": separable_resample,
}
TRANSPOSES = {
    "loops": lowerings.transpose_by_loops,
    "scatters": lowerings.transpose_by_scatters,
    "products": lowerings.transpose_by_products,
}
SLOPES = {
    "gathers": lowerings.slopes_by_gathers,
    "promised": partial(lowerings.slopes_by_gathers, promised=True),
    "one_kernel": lowerings.slopes_in_one_kernel,
    "products": lowerings.slopes_by_products,
}
SIZES = [((5, 4), (3, 6)), ((1, 7), (2, 4)), ((6, 1), (1, 3)), ((1, 1), (2, 2)), ((2, 2), (9, 1))]
run = jax.jit(separable_resample, static_argnames="exact")


def make(size=(5, 4), out=(3, 6), b=2, c=3, seed=0, kinks=True):
    """Image, positions in no order, some of them outside or on pixels, and a cotangent."""
    rng = np.random.default_rng(seed)
    axes = []
    for extent, n in zip(size, out, strict=True):
        if kinks:
            axes.append(rng.choice([-1.5, 0.0, 0.3, extent - 1, extent + 0.4, extent / 3], (b, n)))
        else:
            axes.append(rng.integers(0, extent - 1, (b, n)) + rng.uniform(0.2, 0.8, (b, n)))
    arrays = rng.normal(size=(b, *size, c)), *axes, rng.normal(size=(b, *out, c))
    return tuple(x.astype(np.float32) for x in arrays)


def crossings(image, rows, cols):
    """Of every output pixel: its index, then (index, weight, slopes of the weight) of its four."""
    height, width = image.shape[1:3]
    for b, i, j in np.ndindex(len(image), rows.shape[1], cols.shape[1]):
        y, x = (
            min(max(float(p), 0.0), n - 1.0) for p, n in ((rows[b, i], height), (cols[b, j], width))
        )
        four = []
        for u in {int(y), min(int(y) + 1, height - 1)}:
            for v in {int(x), min(int(x) + 1, width - 1)}:
                four.append(((b, u, v), (1 - abs(y - u)) * (1 - abs(x - v))))
        yield (b, i, j), four


def resample_by_hand(image, rows, cols):
    out = np.zeros((len(image), rows.shape[1], cols.shape[1], image.shape[3]))
    for place, four in crossings(image, rows, cols):
        for pixel, weight in four:
            out[place] += weight * image[pixel].astype(np.float64)
    return out


def transpose_by_hand(image, rows, cols, grad):
    out = np.zeros(image.shape)
    for place, four in crossings(image, rows, cols):
        for pixel, weight in four:
            out[pixel] += weight * grad[place].astype(np.float64)
    return out


def slopes_by_differences(image, rows, cols, grad, step=1e-3):
    """Exact, away from pixels, as the interpolant is linear there."""
    by_rows, by_cols = (
        grad * (resample_by_hand(image, *after) - resample_by_hand(image, *before)) / (2 * step)
        for before, after in (
            ((rows - step, cols), (rows + step, cols)),
            ((rows, cols - step), (rows, cols + step)),
        )
    )
    return by_rows.sum(axis=(2, 3)), by_cols.sum(axis=(1, 3))


@pytest.mark.parametrize("name", RESAMPLES)
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_every_lowering_follows_the_definition(name, size, out):
    image, rows, cols, _ = make(size, out)
    found = jax.jit(RESAMPLES[name])(image, rows, cols)
    assert found.shape == (2, *out, 3)
    np.testing.assert_allclose(found, resample_by_hand(image, rows, cols), atol=1e-5)


@pytest.mark.parametrize("name", TRANSPOSES)
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_every_transpose_follows_the_definition(name, size, out):
    image, rows, cols, grad = make(size, out)
    found = jax.jit(partial(TRANSPOSES[name], size=size))(grad, rows, cols)
    np.testing.assert_allclose(found, transpose_by_hand(image, rows, cols, grad), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", SLOPES)
def test_every_slope_follows_the_definition(name, channels):
    image, rows, cols, grad = make(c=channels, kinks=False)
    rows[0, 0], cols[1, 2], cols[1, 3] = -0.4, 3.7, 99.0  # clamped
    found = jax.jit(SLOPES[name])(image, rows, cols, grad)
    wide = image, rows.astype(np.float64), cols.astype(np.float64), grad
    for ours, expected in zip(found, slopes_by_differences(*wide), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert found[0][0, 0] == found[1][1, 2] == found[1][1, 3] == 0.0


@pytest.mark.parametrize(("size", "out"), SIZES)
def test_slopes_on_pixels_agree_between_lowerings(size, out):
    image, rows, cols, grad = make(size, out)
    first, *others = (jax.jit(f)(image, rows, cols, grad) for f in SLOPES.values())
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_products_in_bfloat16_are_close():
    image, rows, cols, grad = make((16, 16), (12, 12), kinks=False)
    grey = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    rough = jax.jit(partial(lowerings.resample_by_products, exact=False))(grey, rows, cols)
    assert rough.dtype == jnp.float32
    error = np.abs(rough - run(grey, rows, cols)).max()
    assert 0.01 < error <= 1.5
    pairs = [(lowerings.transpose_by_products, (grad, rows, cols), {"size": (16, 16)})]
    pairs += [(lowerings.slopes_by_products, (image, rows, cols, grad), {})]
    for function, arguments, options in pairs:
        arguments = [jnp.asarray(x) for x in arguments]
        exact, rough = (function(*arguments, **options, exact=e) for e in (True, False))
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
            assert a.dtype == b.dtype == jnp.float32
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


def test_by_hand():
    image = jnp.array([[0.0, 1.0], [10.0, 31.0]]).reshape(1, 2, 2, 1)
    rows, cols = jnp.array([[0.5, -3.0]]), jnp.array([[0.5, 1.0, 7.0]])
    expected = [[10.5, 16.0, 16.0], [0.5, 1.0, 1.0]]
    np.testing.assert_array_equal(separable_resample(image, rows, cols)[0, :, :, 0], expected)
    image = jnp.array([0.0, 3.0, 12.0]).reshape(1, 3, 1, 1)
    out = corner_aligned_resize(image, size=(5, 2))
    np.testing.assert_array_equal(out[0, :, 1, 0], [0.0, 1.5, 3.0, 7.5, 12.0])
    np.testing.assert_array_equal(corner_aligned_resize(image, size=(1, 1)).ravel(), [0.0])


GOLDEN = ["batch3_32_s1", "blob64_s05", "nonsq_64x112_s05", "sharp64_dense2", "sharp64_iters10"]
GOLDEN += ["uniform32_s1", "zerorows112_s05"]


@pytest.mark.parametrize("case", GOLDEN)
def test_the_released_sampler_gives_the_same_images_and_gradients(shared, case):
    golden = np.load(shared / "golden" / "tasn" / f"sampler_{case}.npz")
    image, cotangent, theirs, gradient = (
        golden[name].transpose(0, 2, 3, 1)
        for name in ("data", "cotangent", "pt_out_ac1", "pt_grad_ac1")
    )
    size = image.shape[1:3]
    rows, cols = (
        corners_to_pixels(jnp.asarray(golden[f"pt_pos_{axis}"]), extent=extent)
        for axis, extent in zip("yx", size, strict=True)
    )
    for function in RESAMPLES.values():
        out = jax.jit(function)(image, rows, cols)
        np.testing.assert_allclose(out, theirs, rtol=0, atol=1e-5)
    for transpose in TRANSPOSES.values():
        ours = jax.jit(partial(transpose, size=size))(cotangent, rows, cols)
        np.testing.assert_allclose(ours, gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("out", [(7, 9), (3, 2), (1, 1)])
def test_the_corner_aligned_resize_is_that_of_pytorch(out):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    image = make()[0]
    theirs = torch.nn.functional.interpolate(
        torch.tensor(image.transpose(0, 3, 1, 2)), out, mode="bilinear", align_corners=True
    )
    ours = jax.jit(partial(corner_aligned_resize, size=out))(image)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("out", [(3, 6), (2, 2)])
def test_the_derivatives_are_right_to_second_order(out):
    image, rows, cols, _ = make(out=out, b=1, c=1, kinks=False)

    def f(image, rows, cols):
        return jnp.sin(separable_resample(image, rows, cols))

    arguments = tuple(jnp.asarray(x) for x in (image, rows, cols))
    check_grads(jax.jit(f), arguments, order=2, modes=("rev",), eps=1e-2, rtol=2e-2, atol=2e-2)


def loss(image, rows, cols, exact=False):
    return jnp.sum(jnp.sin(separable_resample(image, rows, cols, exact=exact)))


def text_for(platform, function, image, **options):
    _, rows, cols, _ = make()
    traced = jax.jit(partial(function, **options)).trace(image, rows, cols)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_platform_gets_its_lowering(dtype):
    image = make()[0].astype(dtype)
    by_image, by_positions = (jax.grad(loss, argnums=a, allow_int=True) for a in (0, (1, 2)))
    functions = separable_resample, by_positions, by_image
    for function in functions[: 2 if dtype == np.uint8 else 3]:
        text = text_for("tpu", function, image)
        assert "dot_general" in text
        assert not any(op in text for op in ("gather", "while", "scatter", "dynamic_slice"))
        text = text_for("cpu", function, image)
        assert not any(op in text for op in ("dot_general", "scatter"))
        assert "stablehlo.gather" in text
        assert "stablehlo.gather" in text_for("cuda", function, image)
    assert "stablehlo.reduce_window" in text_for("cpu", by_positions, image)
    assert "stablehlo.while" not in text_for("cuda", by_positions, image)
    if dtype == np.float32:
        assert "stablehlo.while" in text_for("cpu", by_image, image)
        text = text_for("cuda", by_image, image)
        assert "stablehlo.scatter" in text
        assert not any(op in text for op in ("while", "dot_general"))
    assert "dot_general" not in text_for("cuda", by_positions, image)
    assert "bf16" in text_for("tpu", by_positions, image)
    assert "bf16" not in text_for("tpu", by_positions, image, exact=True)
    assert "HIGHEST" in text_for("tpu", by_positions, image, exact=True)


def test_jit_vmap_and_other_examples_change_nothing():
    image, rows, cols, _ = (jnp.asarray(x) for x in make(b=3))
    slopes = jax.grad(loss, argnums=(0, 1, 2))

    def both(*arguments):
        return separable_resample(*arguments), slopes(*arguments)

    plain = both(image, rows, cols)
    mapped = jax.vmap(lambda *one: jax.tree.map(lambda x: x[0], both(*(x[None] for x in one))))
    for other in (jax.jit(both), mapped):
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-5), other(image, rows, cols), plain
        )
    others = image.at[1].set(jnp.nan), rows.at[1].set(0.0), cols
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[::2], b[::2]),
        *(jax.jit(both)(*x) for x in ((image, rows, cols), others)),
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_the_transpose_is_one_and_flips_flip(seed):
    image, rows, cols, grad = make(seed=seed)
    out, vjp = jax.vjp(run, image, rows, cols)
    np.testing.assert_allclose(jnp.vdot(out, grad), jnp.vdot(image, vjp(grad)[0]), atol=1e-4)
    assert image.min() - 1e-6 <= out.min() <= out.max() <= image.max() + 1e-6
    flipped = run(image[:, ::-1, ::-1], 4 - rows, 3 - cols)
    np.testing.assert_allclose(flipped, out, atol=1e-5)


def test_types():
    image, rows, cols, grad = make()
    grey = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    for function in SLOPES.values():
        pair = (jax.jit(function)(x, rows, cols, grad) for x in (grey, grey.astype(np.float32)))
        for one, other in zip(*pair, strict=True):
            assert one.dtype == other.dtype == jnp.float32
            np.testing.assert_array_equal(one, other)
    for function in (*RESAMPLES.values(), partial(lowerings.resample_by_products, exact=False)):
        one, other = (jax.jit(function)(x, rows, cols) for x in (grey, grey.astype(np.float32)))
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)
        half = jax.jit(function)(jnp.asarray(image, jnp.bfloat16), rows, cols)
        wide = jax.jit(function)(jnp.asarray(image, jnp.bfloat16).astype("float32"), rows, cols)
        assert half.dtype == jnp.bfloat16
        np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(jnp.asarray(image, jnp.bfloat16), rows, cols)
    assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert corner_aligned_resize(jnp.asarray(grey), size=(2, 3)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 4), (2, 3), (2, 3)), r"image has shape \(2, 5, 4\), rows \(2, 3\)"),
        (((2, 5, 4, 3), (1, 3), (2, 3)), r"rows \(1, 3\) and cols .* with the same b"),
        (((2, 5, 4, 3), (2, 3), (2, 3, 1)), r"cols \(2, 3, 1\); expected"),
        (((2, 0, 4, 3), (2, 3), (2, 3)), r"\(2, 0, 4, 3\).* at least one pixel"),
        (((2, 5, 4, 3), (2, 3), (2, 0)), r"cols \(2, 0\); expected at least one"),
    ],
)
def test_mistakes_are_told(shapes, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # told by us, as users call it
    try:
        with pytest.raises(UserError, match=message):
            separable_resample(*(jnp.zeros(shape) for shape in shapes))
        with pytest.raises(UserError, match=r"image of shape \(5, 4, 3\)"):
            corner_aligned_resize(jnp.zeros((5, 4, 3)), size=(2, 2))
        for size in ((0, 2), (2, -1)):
            with pytest.raises(UserError, match="at least one pixel"):
                corner_aligned_resize(jnp.zeros((1, 5, 4, 3)), size=size)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
