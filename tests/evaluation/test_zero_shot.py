"""Zero-shot figures: brute force over offsets, golden vectors, ties, infinities and NaN."""

import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.data.class_descriptions import ClassDescriptions
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS, ZeroShotEvaluator
from fgkd_jax.evaluation.seen_unseen import (
    Decisions,
    SeenUnseenCurve,
    choose_offset,
    conventional,
    decisions,
    generalised,
    harmonic_mean,
    seen_unseen_curve,
)

SEEN = np.array([True, False, True, True, False, False])
NAMES = tuple("abcdef")


def per_class(right, labels, group):
    """One class after the other, in Python numbers."""
    shares = []
    for c in group:
        mine = [bool(r) for r, label in zip(right, labels, strict=True) if label == c]
        if mine:
            shares.append(sum(mine) / len(mine))
    return sum(shares) / len(shares)


def brute(scores, labels, seen, offset):
    """S, U and H with the offset added to the scores of unseen classes, as one would write it."""
    shifted = scores.astype(np.float64) + np.where(seen, 0.0, offset)
    predicted = [int(np.argmax(row)) if not np.isnan(row).any() else -1 for row in shifted]
    right = np.array(predicted) == labels
    s = per_class(right, labels, np.flatnonzero(seen))
    u = per_class(right, labels, np.flatnonzero(~seen))
    return s, u, 2 * s * u / (s + u) if s + u else 0.0


def brute_curve(scores, labels, seen):
    """The points of the curve: at every margin, between any two, and beyond both ends."""
    margins = set()
    for row in scores.astype(np.float64):
        if not np.isnan(row).any():
            with np.errstate(invalid="ignore"):
                margins.add(float(row[seen].max() - row[~seen].max()))
    margins = sorted(m for m in margins if np.isfinite(m)) or [0.0]
    between = [(a + b) / 2 for a, b in itertools.pairwise(margins)]
    offsets = sorted({margins[0] - 1, *margins, *between, margins[-1] + 1})
    return [brute(scores, labels, seen, offset)[:2] for offset in offsets], offsets


def brute_area(points):
    area = 0.0
    for (s0, u0), (s1, u1) in itertools.pairwise(points):
        area += (u1 - u0) * (s0 + s1) / 2
    return area


def drawn(seed=0, size=60, levels=0, spread=2.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(6), rng.integers(0, 6, size - 6)]).astype(np.int32)
    scores = rng.normal(size=(size, 6)) + spread * np.eye(6)[labels] * rng.random((size, 1))
    scores += np.where(SEEN, 0.8, 0.0)
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), labels


def make(**options):
    return ZeroShotEvaluator(tuple(SEEN.tolist()), NAMES, 200, **options)


def run(evaluator, scores, labels, mask=None, batch_size=8, update=None):
    counts, update = evaluator.empty(), update or jax.jit(evaluator.update)
    mask = np.ones(len(labels), bool) if mask is None else mask
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        size = len(labels[part])
        pad = [(0, batch_size - size)]
        batch = {"label": np.pad(labels[part], pad), "mask": np.pad(mask[part], pad)}
        counts = update(counts, {"scores": np.pad(scores[part], [*pad, (0, 0)])}, batch)
    return counts


class TestOffsets:
    @pytest.mark.parametrize("levels", [0, 1, 4])
    def test_accuracy_at_an_offset(self, levels):
        scores, labels = drawn(1, levels=levels)
        found = decisions(scores, labels, seen=SEEN)
        for offset in (-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 7.0):
            assert generalised(found, offset=offset) == pytest.approx(
                brute(scores, labels, SEEN, offset), abs=1e-12
            )

    @pytest.mark.parametrize("levels", [0, 1, 3])
    @pytest.mark.parametrize("seed", range(4))
    def test_curve_and_its_area(self, levels, seed):
        scores, labels = drawn(seed, levels=levels)
        curve = seen_unseen_curve(decisions(scores, labels, seen=SEEN))
        points, offsets = brute_curve(scores, labels, SEEN)
        assert curve.area == pytest.approx(brute_area(points), abs=1e-12)
        # Both name the same points, each of them once or more.
        ours = set(zip(curve.seen.round(9), curve.unseen.round(9), strict=True))
        assert ours == {(round(s, 9), round(u, 9)) for s, u in points}
        assert (np.diff(curve.seen) <= 0).all()
        assert (np.diff(curve.unseen) >= 0).all()
        assert (np.diff(curve.offsets) >= 0).all()
        assert curve.seen[-1] == curve.unseen[0] == 0
        for s, u, offset in zip(curve.seen, curve.unseen, curve.offsets, strict=True):
            assert brute(scores, labels, SEEN, offset)[:2] == pytest.approx((s, u), abs=1e-12)
        best = max(brute(scores, labels, SEEN, offset)[2] for offset in offsets)
        chosen = choose_offset(curve)
        assert brute(scores, labels, SEEN, chosen)[2] == pytest.approx(best, abs=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 10**6), st.sampled_from([0, 1, 2]), st.floats(-4, 4))
    def test_a_shift_of_unseen_scores_moves_the_curve_and_nothing_else(self, seed, levels, shift):
        shift = round(shift * 4) / 4
        scores, labels = drawn(seed, size=24, levels=levels or 8)
        moved = scores + np.where(SEEN, 0.0, shift).astype(np.float32)
        one, other = (seen_unseen_curve(decisions(s, labels, seen=SEEN)) for s in (scores, moved))
        np.testing.assert_array_equal(one.seen, other.seen)
        np.testing.assert_array_equal(one.unseen, other.unseen)
        assert one.area == other.area

    def test_the_least_of_equally_good_offsets(self):
        # Right at every offset in (-2, 3]: nothing is gained by moving away from 0.
        scores = np.array([[3.0, 0.0], [0.0, 2.0]])
        found = decisions(scores, np.array([0, 1]), seen=np.array([True, False]))
        assert choose_offset(seen_unseen_curve(found)) == 0.0
        found = decisions(
            scores + np.array([0, 2.5]), np.array([0, 1]), seen=np.array([True, False])
        )
        assert choose_offset(seen_unseen_curve(found)) == 0.0
        found = decisions(
            scores + np.array([0, 3.5]), np.array([0, 1]), seen=np.array([True, False])
        )
        assert choose_offset(seen_unseen_curve(found)) == pytest.approx(-3.0)

    def test_of_two_best_points_the_nearer_to_no_offset(self):
        seen, unseen = np.array([0.6, 0.5, 0.4, 0.0]), np.array([0.4, 0.1, 0.6, 0.7])
        for shift, expected in ((0.0, 1.0), (3.5, -1.0)):
            offsets = np.array([-4.5, -2.0, 1.0, 2.0]) + shift
            assert choose_offset(SeenUnseenCurve(offsets, seen, unseen)) == expected

    def test_ties_go_to_the_first_class_as_in_argmax(self):
        scores = np.zeros((4, 6), np.float32)
        labels = np.array([0, 1, 2, 4])
        found = decisions(scores, labels, seen=SEEN)
        assert found.predicted(0.0).tolist() == [0] * 4
        swapped = decisions(scores, labels, seen=~SEEN)
        assert swapped.predicted(0.0).tolist() == [0] * 4
        assert conventional(found) == pytest.approx(1 / 2)

    def test_infinite_scores_never_change_sides(self):
        inf = np.inf
        scores = np.array([[inf, 0.0], [-inf, 0.0], [inf, inf], [0.0, -inf]])
        found = decisions(scores, np.array([0, 1, 1, 0]), seen=np.array([True, False]))
        assert found.margins.tolist() == [inf, -inf, 0.0, inf]
        curve = seen_unseen_curve(found)
        assert curve.seen.tolist() == [1.0, 1.0]
        assert curve.unseen.tolist() == [0.5, 1.0]

    def test_without_a_margin_there_is_one_point(self):
        scores = np.array([[np.nan, 0.0], [0.0, np.nan]])
        curve = seen_unseen_curve(decisions(scores, np.array([0, 1]), seen=np.array([True, False])))
        assert curve.offsets.tolist() == curve.seen.tolist() == curve.unseen.tolist() == [0.0]
        assert curve.area == choose_offset(curve) == 0.0

    def test_harmonic_mean(self):
        assert harmonic_mean(0.0, 0.0) == 0
        assert harmonic_mean(np.array([0.5, 0.2]), np.array([0.5, 0.0])).tolist() == [0.5, 0.0]

    def test_mistakes_are_told(self):
        scores, labels = drawn()
        with pytest.raises(UserError, match=r"shape \(60, 6\); expected \(59, 6\)"):
            decisions(scores, labels[1:], seen=SEEN)
        with pytest.raises(UserError, match="all classes are of one kind"):
            decisions(scores, labels, seen=np.ones(6, bool))
        only = decisions(scores[SEEN[labels]], labels[SEEN[labels]], seen=SEEN)
        with pytest.raises(UserError, match="there are none of unseen classes"):
            seen_unseen_curve(only)
        with pytest.raises(UserError, match="a margin is NaN"):
            Decisions(labels, labels, labels, np.full(60, np.nan), SEEN)
        with pytest.raises(UserError, match="expected one entry per image"):
            Decisions(labels, labels, labels, np.zeros(3), SEEN)


class TestGolden:
    @pytest.mark.parametrize("name", ["eval_cub", "eval_sun"])
    def test_figures_of_the_released_code(self, shared, name):
        data = np.load(shared / "golden" / "msdn" / f"{name}.npz")
        a, b = data["coef"]
        meta = json.loads(str(data["meta_json"]))
        seen = np.zeros(8, bool)
        seen[data["in_seenclass"]] = True
        parts = {}
        for kind in ("seen", "unseen"):
            scores = a * data[f"S_pp_tv_{kind}"] + b * data[f"S_pp_vt_{kind}"]
            bias = np.where(seen, meta["bias_seen"], 0) if kind == "seen" else 0
            bias = np.where(seen, 0, meta["bias_unseen"]) if kind == "unseen" else bias
            parts[kind] = (scores + bias).astype(np.float32), data[f"test_{kind}_labels"]
            found = decisions(*parts[kind], seen=seen)
            np.testing.assert_array_equal(found.predicted(0.0), data[f"pred_gzsl_{kind}"])
        unseen = np.sort(data["in_unseenclass"])
        np.testing.assert_array_equal(found.best_unseen, unseen[data["pred_zsl_restricted"]])
        scores, labels = (np.concatenate(x) for x in zip(*parts.values(), strict=True))
        evaluator = ZeroShotEvaluator(tuple(seen.tolist()), tuple("abcdefgh"), 300)
        figures = evaluator.finalise(run(evaluator, scores, labels, batch_size=100))
        expected = {"seen_accuracy": "acc_seen", "unseen_accuracy": "acc_unseen"}
        expected |= {"harmonic_mean": "H", "zero_shot_accuracy": "acc_zs"}
        for ours, theirs in expected.items():
            # The released accuracies are means of shares in float32.
            assert figures[ours] == pytest.approx(float(data[theirs]), abs=1.2e-7), ours


class TestEvaluator:
    def test_padding_batches_and_devices_change_nothing(self):
        scores, labels = drawn(3)
        mask = np.random.default_rng(0).random(60) < 0.8
        mask[:6] = True
        whole = make().finalise(run(make(), scores[mask], labels[mask], batch_size=60))
        assert set(whole) == set(make().figures)
        assert make().finalise(run(make(), scores, labels, mask, batch_size=16)) == whole
        mesh = Mesh(np.array(jax.devices()), ("data",))
        split = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        sharded = jax.jit(
            make().update, in_shardings=(everywhere, split, split), out_shardings=everywhere
        )
        assert make().finalise(run(make(), scores, labels, mask, 16, sharded)) == whole
        s, u, h = brute(scores[mask], labels[mask], SEEN, 0.0)
        assert whole["seen_accuracy"] == pytest.approx(s)
        assert whole["unseen_accuracy"] == pytest.approx(u)
        assert whole["harmonic_mean"] == pytest.approx(h)
        points, _ = brute_curve(scores[mask], labels[mask], SEEN)
        assert whole["ausuc"] == pytest.approx(brute_area(points))
        assert whole["examples"] == mask.sum()
        rows = mask & ~SEEN[labels]
        predicted = np.where(SEEN, -np.inf, scores)[rows].argmax(1)
        restricted = per_class(predicted == labels[rows], labels[rows], np.flatnonzero(~SEEN))
        assert whole["zero_shot_accuracy"] == pytest.approx(restricted)

    def test_figures_at_the_chosen_offset(self):
        scores, labels = drawn(5)
        figures = make().finalise(run(make(), scores, labels))
        assert not [name for name in figures if name.startswith("calibrated")]
        evaluator = make(offset=figures["best_offset"])
        again = evaluator.finalise(run(evaluator, scores, labels))
        assert set(again) == set(evaluator.figures)
        assert again["calibrated_harmonic_mean"] == figures["best_harmonic_mean"]
        assert again["calibrated_harmonic_mean"] > again["harmonic_mean"]
        s, u, _ = brute(scores, labels, SEEN, figures["best_offset"])
        assert again["calibrated_seen_accuracy"] == pytest.approx(s)
        assert again["calibrated_unseen_accuracy"] == pytest.approx(u)

    @pytest.mark.parametrize("kind", ["seen", "unseen"])
    def test_a_split_of_one_group_has_the_figures_of_that_group(self, kind):
        scores, labels = drawn(2)
        rows = SEEN[labels] == (kind == "seen")
        figures = make().finalise(run(make(), scores[rows], labels[rows]))
        expected = (
            {"seen_accuracy"} if kind == "seen" else {"unseen_accuracy", "zero_shot_accuracy"}
        )
        assert set(figures) == expected | {"examples"}

    def test_an_empty_class_is_refused_by_name(self):
        scores, labels = drawn(2)
        for gone, message in ((1, "unseen class 'b' has no image"), (3, "the seen class 'd' has")):
            rows = labels != gone
            with pytest.raises(UserError, match=message):
                make().finalise(run(make(), scores[rows], labels[rows]))
        rows = (labels != 1) & (labels != 4)
        with pytest.raises(UserError, match=r"'b' \(and 1 more\) has no image to evaluate"):
            make().finalise(run(make(), scores[rows], labels[rows]))

    def test_a_nan_counts_as_wrong_whatever_the_offset(self):
        scores, labels = drawn(4)
        broken = scores.copy()
        broken[3:20:2, 5] = np.nan
        figures = make().finalise(run(make(), broken, labels))
        s, u, _ = brute(broken, labels, SEEN, 0.0)
        assert (figures["seen_accuracy"], figures["unseen_accuracy"]) == pytest.approx((s, u))
        points, _ = brute_curve(broken, labels, SEEN)
        assert figures["ausuc"] == pytest.approx(brute_area(points))
        none = make().finalise(run(make(), np.full_like(scores, np.nan), labels))
        assert none["ausuc"] == none["seen_accuracy"] == none["zero_shot_accuracy"] == 0

    def test_half_precision_scores(self):
        scores, labels = drawn(6, levels=2)
        half = run(make(), jax.numpy.asarray(scores, jax.numpy.bfloat16), labels, batch_size=60)
        assert make().finalise(half) == make().finalise(run(make(), scores, labels))

    def test_mistakes_are_told(self):
        scores, labels = drawn()
        with pytest.raises(UserError, match=r"shape \(8, 5\); expected 6 classes"):
            run(make(), scores[:, :5], labels)
        with pytest.raises(UserError, match="no example was evaluated"):
            make().finalise(make().empty())
        small = ZeroShotEvaluator(tuple(SEEN.tolist()), NAMES, 59)
        with pytest.raises(UserError, match="60 examples were evaluated; expected at most 59"):
            small.finalise(run(small, scores, labels))
        with pytest.raises(UserError, match="offset is nan"):
            make(offset=float("nan"))
        with pytest.raises(UserError, match="of one kind"):
            ZeroShotEvaluator((True,), ("a",), 3)
        with pytest.raises(UserError, match="2 entries for 1 classes"):
            ZeroShotEvaluator((True, False), ("a",), 3)

    def test_the_task_is_known(self):
        described = ClassDescriptions(NAMES, np.eye(6, dtype=np.float32), SEEN)
        splits = {"train": 7, "test_seen": 3, "test_unseen": 4}
        info = DatasetInfo("x", NAMES, splits, descriptions=described)
        expected = ZeroShotEvaluator(tuple(SEEN.tolist()), NAMES, 14)
        assert EVALUATORS["zero_shot"](info, (), 1) == expected
        with pytest.raises(UserError, match="y says nothing of its classes"):
            EVALUATORS["zero_shot"](DatasetInfo("y", NAMES, splits), (), 1)
