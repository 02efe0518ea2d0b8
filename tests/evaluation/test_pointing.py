"""The pointing game: loops over regions, ties, borders, padding and what does not fit."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS, ZeroShotEvaluator
from fgkd_jax.evaluation.pointing import (
    TOLERANCE,
    add_pointing,
    no_pointing,
    pointing_figures,
    pointing_hits,
    regions_near,
)

PARTS = (2, -1, 0, 0, 1)
SEEN = np.array([True, False, True])
NAMES = ("a", "b", "c")


@pytest.fixture
def unchecked():
    """Shapes reach the function, as without the tests' own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def distance(point, row, column):
    """How far a point is from a region, along the axis in which it is further."""
    x, y = (float(v) for v in point)
    across = max(column - x, x - (column + 1), 0.0)
    down = max(row - y, y - (row + 1), 0.0)
    return max(across, down)


def play(attention, point, tolerance):
    """Hit and chance of one map, region by region."""
    height, width = attention.shape
    if np.isnan(attention).any():
        largest = []
    else:
        top = max(float(v) for v in attention.flat)
        largest = [
            (r, c) for r in range(height) for c in range(width) if float(attention[r, c]) == top
        ]
    near = [
        (r, c) for r in range(height) for c in range(width) if distance(point, r, c) <= tolerance
    ]
    hit = len(set(largest) & set(near)) / len(largest) if largest else 0.0
    return hit, len(near) / (height * width)


def drawn(seed=0, size=9, height=3, width=4, channels=2):
    rng = np.random.default_rng(seed)
    points = rng.random((size, 3, 2)) * np.array([width, height])
    visible = rng.random((size, 3, 1)) < 0.7
    return {
        "attention": rng.random((size, len(PARTS), height, width)).astype(np.float32),
        "parts": np.concatenate([points * visible, visible], axis=2).astype(np.float32),
        "features": np.zeros((size, height, width, channels), np.float16),
        "mask": rng.random(size) < 0.8,
        "label": np.arange(size, dtype=np.int32) % 3,
    }


def count(data, parts=PARTS, batch_size=4):
    """Counts over batches, the last one filled up."""
    add = jax.jit(
        lambda counts, one: add_pointing(counts, one["attention"], one, attribute_parts=parts)
    )
    counts, size = no_pointing(), len(data["mask"])
    for start in range(0, size, batch_size):
        rows = range(start, min(start + batch_size, size))
        fill = batch_size - len(rows)
        batch = {
            key: np.pad(value[rows], [(0, fill)] + [(0, 0)] * (value.ndim - 1))
            for key, value in data.items()
        }
        counts = add(counts, batch)
    return counts


class TestHits:
    @pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.25])
    def test_region_by_region(self, tolerance):
        rng = np.random.default_rng(1)
        attention = rng.integers(0, 5, (6, 3, 4, 5)).astype(np.float32)
        points = (rng.random((6, 3, 2)) * np.array([5, 4])).astype(np.float32)
        hits, chance = jax.jit(pointing_hits, static_argnames="tolerance")(
            attention, points, tolerance=tolerance
        )
        for i in range(6):
            for n in range(3):
                expected = play(attention[i, n], points[i, n], tolerance)
                assert (hits[i, n], chance[i, n]) == pytest.approx(expected, abs=1e-6)

    def test_a_point_on_a_border_belongs_to_both_sides(self):
        near = regions_near(jnp.array([[[1.0, 1.0], [4.0, 2.0]]]), grid=(2, 4), tolerance=0.0)[0]
        assert np.argwhere(near[0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        # The corner of the image is in the last region.
        assert np.argwhere(near[1]).tolist() == [[1, 3]]

    def test_x_is_across_and_y_is_down(self):
        attention = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1, 2].set(1.0)
        right, wrong = jnp.array([[[2.5, 1.5]]]), jnp.array([[[1.5, 0.4]]])
        assert pointing_hits(attention, right, tolerance=0.0)[0].item() == 1
        assert pointing_hits(attention, wrong, tolerance=0.0)[0].item() == 0
        assert pointing_hits(attention, wrong, tolerance=0.5)[0].item() == 0
        assert pointing_hits(attention, wrong, tolerance=0.6)[0].item() == 1

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10**6), st.floats(0, 3), st.booleans())
    def test_an_even_map_hits_as_often_as_chance(self, seed, tolerance, zero):
        rng = np.random.default_rng(seed)
        points = (rng.random((2, 2, 2)) * np.array([4, 3])).astype(np.float32)
        attention = np.full((2, 2, 3, 4), 0.0 if zero else 1 / 12, np.float32)
        hits, chance = pointing_hits(
            jnp.asarray(attention), jnp.asarray(points), tolerance=tolerance
        )
        np.testing.assert_allclose(hits, chance, atol=1e-6)
        assert (chance >= 1 / 12 - 1e-6).all()

    def test_a_nan_points_nowhere_and_half_precision_does(self):
        attention = jnp.zeros((1, 2, 2, 2)).at[0, :, 0, 0].set(1.0)
        attention = attention.at[0, 1, 1, 1].set(jnp.nan)
        points = jnp.full((1, 2, 2), 0.5)
        assert pointing_hits(attention, points, tolerance=0.0)[0].tolist() == [[1.0, 0.0]]
        half = pointing_hits(jnp.asarray(attention, jnp.bfloat16), points, tolerance=0.0)
        assert half[0].tolist() == [[1.0, 0.0]]
        assert half[0].dtype == half[1].dtype == jnp.float32

    def test_under_vmap(self):
        data = drawn()
        attention = jnp.asarray(data["attention"][:, :3])
        points = jnp.asarray(data["parts"][..., :2])
        rows = jax.vmap(lambda a, p: pointing_hits(a[None], p[None]))(attention, points)
        for one, other in zip(rows, pointing_hits(attention, points), strict=True):
            np.testing.assert_array_equal(one[:, 0], other)

    def test_mistakes_are_told(self, unchecked):
        with pytest.raises(UserError, match=r"points \(1, 2, 2\); expected \[b, n, h, w\] and"):
            pointing_hits(jnp.zeros((1, 3, 2, 2)), jnp.zeros((1, 2, 2)))
        with pytest.raises(UserError, match=r"attention has shape \(1, 2, 2\)"):
            pointing_hits(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2)))


class TestCounts:
    @pytest.mark.parametrize("batch_size", [1, 4, 9])
    def test_visible_parts_of_real_rows_for_each_attribute(self, batch_size):
        data = drawn(3)
        hits, chances = [], []
        for i in np.flatnonzero(data["mask"]):
            for a, part in enumerate(PARTS):
                if part >= 0 and data["parts"][i, part, 2]:
                    point = data["parts"][i, part, :2]
                    hit, chance = play(data["attention"][i, a], point, TOLERANCE)
                    hits.append(hit)
                    chances.append(chance)
        assert 0 < len(hits) < 4 * data["mask"].sum()
        found = count(data, batch_size=batch_size)
        assert int(found.pairs) == len(hits)
        assert pointing_figures(found) == pytest.approx(
            {"pointing": np.mean(hits), "pointing_gain": np.sum(hits) / np.sum(chances)}
        )

    def test_maps_of_a_convolution_lie_in_the_middle(self):
        data = drawn(2, height=4, width=5)
        # 2 x 2 without padding: region (r, c) is made of rows r, r + 1 and columns c, c + 1.
        smaller = {**data, "attention": data["attention"][:, :, :3, :4]}
        moved = {**smaller, "features": data["features"][:, :3, :4], "parts": data["parts"].copy()}
        moved["parts"][..., :2] -= 0.5
        for one, other in zip(
            jax.tree.leaves(count(smaller)), jax.tree.leaves(count(moved)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        assert float(count(smaller).hits) != float(count({**moved, "parts": data["parts"]}).hits)

    def test_nothing_to_point_at(self):
        data = drawn()
        hidden = {**data, "parts": np.zeros_like(data["parts"])}
        assert pointing_figures(count(hidden)) == {}
        assert pointing_figures(count(data, parts=(-1,) * 5)) == {}
        assert pointing_figures(no_pointing()) == {}

    def test_mistakes_are_told(self):
        data = drawn()
        with pytest.raises(UserError, match="an attribute shows at part 3; expected one of 3"):
            count(data, parts=(0, 1, 2, 3, 0))
        with pytest.raises(UserError, match=r"expected \[b, 4, h, w\], a map for each attribute"):
            count(data, parts=(0, 1, 2, 0))


class TestEvaluator:
    def update(self, evaluator, data, **more):
        scores = np.eye(3, dtype=np.float32)[data["label"]]
        predictions = {"scores": scores, **more}
        return evaluator.finalise(jax.jit(evaluator.update)(evaluator.empty(), predictions, data))

    def test_figures_where_parts_are_known(self):
        data = drawn(5) | {"mask": np.arange(9) < 7}
        evaluator = ZeroShotEvaluator(tuple(SEEN.tolist()), NAMES, 20, attribute_parts=PARTS)
        figures = self.update(evaluator, data, attention=data["attention"])
        assert set(figures) == set(evaluator.figures)
        assert figures["pointing"] == pointing_figures(count(data))["pointing"]
        plain = ZeroShotEvaluator(tuple(SEEN.tolist()), NAMES, 20)
        assert set(plain.figures) == set(evaluator.figures) - {"pointing", "pointing_gain"}
        assert set(self.update(plain, data, attention=data["attention"])) == set(plain.figures)
        # A method without attention is not judged by it.
        assert set(self.update(evaluator, data)) == set(plain.figures)

    def test_it_is_asked_for_by_the_parts_of_a_batch(self):
        told = np.array([1, -1, 0], np.int32)
        splits = {"train": 7, "test_unseen": 3}

        def info(**more):
            described = ClassDescriptions(NAMES, np.eye(3, dtype=np.float32), SEEN, **more)
            return DatasetInfo("x", NAMES, splits, descriptions=described)

        make = EVALUATORS["zero_shot"]
        assert make(info(attribute_parts=told), ("parts",), 1).attribute_parts == (1, -1, 0)
        assert make(info(attribute_parts=told), ("bbox",), 1).attribute_parts == ()
        assert make(info(), ("parts",), 1).attribute_parts == ()
