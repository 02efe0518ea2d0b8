"""Anchors in the order and the places of the reference, and which of them are on the image."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.ops import base_anchors, grid_anchors, inside_anchors, valid_anchors

SCALES = {"frcnn": (8.0,), "retina": tuple(4 * 2 ** (i / 3) for i in range(3))}


@pytest.mark.parametrize("case", SCALES)
def test_anchors_of_the_reference(shared, case):
    golden = np.load(shared / "golden" / "detection" / "anchors.npz")
    padded = jnp.asarray(golden[f"{case}_pad_hw"].astype(np.int32))
    for level, stride in enumerate(golden[f"{case}_strides"].tolist()):
        sizes = [stride * scale for scale in SCALES[case]]
        base = base_anchors(sizes=sizes, ratios=(0.5, 1.0, 2.0))
        np.testing.assert_allclose(base, golden[f"{case}_base_l{level}"], rtol=1e-6)
        size = tuple(golden[f"{case}_sizes"][level].tolist())
        grid = grid_anchors(base, stride=stride, size=size)
        np.testing.assert_allclose(grid, golden[f"{case}_grid_l{level}"], rtol=1e-6, atol=1e-5)
        valid = valid_anchors(padded, stride=stride, size=size, per_cell=len(base))
        np.testing.assert_array_equal(valid, golden[f"{case}_valid_l{level}"])


def test_order_and_shape_by_hand():
    base = base_anchors(sizes=(10.0, 20.0), ratios=(0.25, 1.0))
    width, height = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
    np.testing.assert_allclose(width, [20, 40, 10, 20])
    np.testing.assert_allclose(height, [5, 10, 10, 20])
    np.testing.assert_allclose(base[:, :2], -base[:, 2:])
    grid = grid_anchors(base, stride=3, size=(2, 5)).reshape(2, 5, 4, 4)
    np.testing.assert_allclose(grid[1, 4], np.add(base, [12, 3, 12, 3]), rtol=1e-6)


def test_rounding_is_to_even_as_torchvision_has_it():
    base = base_anchors(sizes=(5.0, 32.0), ratios=(1.0, 0.5), rounded=True)
    np.testing.assert_array_equal(base[0], [-2, -2, 2, 2])
    np.testing.assert_array_equal(base[3], [-23, -11, 23, 11])


def test_every_image_has_its_own_valid_cells():
    sizes = jnp.array([[[8, 12], [9, 1]]])
    valid = valid_anchors(sizes, stride=4, size=(3, 3), per_cell=2).reshape(1, 2, 3, 3, 2)
    expected = np.zeros((1, 2, 3, 3), bool)
    expected[0, 0, :2], expected[0, 1, :, :1] = True, True
    np.testing.assert_array_equal(valid, np.stack([expected] * 2, axis=-1))


@pytest.mark.parametrize("stride", [7, 14, 41])
def test_cells_are_counted_exactly_at_any_stride(stride):
    @jax.jit
    def count(size):
        return valid_anchors(size, stride=stride, size=(9, 1), per_cell=1).sum()

    for cells in range(1, 9):
        assert count(jnp.array([cells * stride, 1])) == cells
        assert count(jnp.array([cells * stride + 1, 1])) == cells + 1


def test_inside_by_hand():
    anchors = jnp.array([[-2.0, 0, 3, 3], [0, 0, 10, 3], [0, 0, 3, 6], [-2.5, 0, 3, 3]])
    size = jnp.array([5, 10])
    assert inside_anchors(anchors, size).tolist() == [False, True, False, False]
    assert inside_anchors(anchors, size, border=2.0).tolist() == [True, True, True, False]


def test_mistakes_are_told():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in (
            (lambda: base_anchors(sizes=(), ratios=(1.0,)), r"sizes of anchors are \[\]"),
            (lambda: base_anchors(sizes=(1.0,), ratios=(-1.0,)), r"ratios of anchors are \[-1.0\]"),
            (lambda: grid_anchors(jnp.zeros(4), stride=4, size=(1, 1)), r"shape \(4,\)"),
            (lambda: grid_anchors(jnp.zeros((1, 4)), stride=0, size=(1, 1)), "stride 0"),
            (
                lambda: valid_anchors(jnp.zeros(3), stride=4, size=(1, 1), per_cell=1),
                r"image_size has the shape \(3,\)",
            ),
            (
                lambda: valid_anchors(jnp.zeros(2), stride=4, size=(1, 1), per_cell=0),
                "per_cell is 0",
            ),
            (lambda: inside_anchors(jnp.zeros((1, 4)), jnp.zeros(3)), r"image_size \(3,\)"),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
