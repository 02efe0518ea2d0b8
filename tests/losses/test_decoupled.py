"""DeFeat's losses: the released figures, NumPy, and what no cell or proposal may change."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

from fgkd_jax.errors import UserError
from fgkd_jax.losses import decoupled_features, decoupled_logits, decoupled_scores
from fgkd_jax.ops import box_mask, resize_mask

NECK_CASES = {  # adapted, mask, weights of objects and background
    "released_decouple_adapt": (True, "mask", (3.0, 12.0)),
    "decouple_noadapt": (False, "mask", (3.0, 12.0)),
    "decouple_decay05": (False, "mask", (1.5, 6.0)),
    "fgfi_adapt": (True, "roimask", (3.0, 0.0)),
    "allregions_noadapt": (False, "ones", (3.0, 0.0)),
    "emptymask": (False, "zeros", (3.0, 12.0)),
}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def mean(part):
    return part[0].sum() / jnp.maximum(1.0, part[1].sum())


@pytest.mark.parametrize("case", NECK_CASES)
def test_the_released_neck_loss(shared, case):
    golden = np.load(shared / "golden" / "defeat" / "neck_loss.npz")
    adapted, mask, weights = NECK_CASES[case]
    levels = range(5)
    masks = []
    for level in levels:
        like = golden[f"mask_l{level}"]
        constant = {"ones": np.ones_like(like), "zeros": np.zeros_like(like)}
        masks.append(jnp.asarray(constant.get(mask, golden.get(f"{mask}_l{level}", like)) > 0))
    teacher = [nhwc(golden[f"T_l{level}"]) for level in levels]

    def losses(student, kernels, biases):
        parts = []
        for x, target, marked, kernel, bias in zip(
            student, teacher, masks, kernels, biases, strict=True
        ):
            if adapted:
                numbers = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(
                    x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers
                )
                x = x + bias.reshape(1, 1, 1, -1)
            parts.append([mean(part) / 5 for part in decoupled_features(x, target, marked)])
        return tuple(w * sum(x) for w, x in zip(weights, zip(*parts, strict=True), strict=True))

    arguments = (
        [nhwc(golden[f"S_l{level}"]) for level in levels],
        [jnp.asarray(golden[f"adaptW_l{level}"].transpose(2, 3, 1, 0)) for level in levels],
        [jnp.asarray(golden[f"adaptB_l{level}"]) for level in levels],
    )
    found = jax.jit(losses)(*arguments)
    np.testing.assert_allclose(found[0], golden[f"{case}__losskd_neck"], rtol=1e-5)
    if f"{case}__losskd_neck_back" in golden:
        np.testing.assert_allclose(found[1], golden[f"{case}__losskd_neck_back"], rtol=1e-5)
    np.testing.assert_allclose(sum(found), golden[f"{case}__loss"], rtol=1e-5)
    grads = jax.jit(jax.grad(lambda *a: sum(losses(*a)), (0, 1, 2)))(*arguments)
    for level in levels:
        check_gradient(grads[0][level].transpose(0, 3, 1, 2), golden[f"{case}__gradS_l{level}"])
        if adapted:
            kernel = grads[1][level].transpose(3, 2, 0, 1)
            check_gradient(kernel, golden[f"{case}__gradW_l{level}"])
            check_gradient(grads[2][level], golden[f"{case}__gradB_l{level}"])


def check_gradient(found, expected):
    """To 1e-5, and of sums that nearly cancel, to 2e-6 of the largest.

    The released gradients are sums in float32: where they nearly cancel, gradients in float64
    differ from them as much as these, up to 1e-6 of the largest.
    """
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def test_the_mask_of_a_backbone_stage_by_loops():
    # One mask at stride 4, resized; the normaliser counts elements over the whole batch.
    rng = np.random.default_rng(0)
    boxes = jnp.array([[[3.0, 5.0, 40.0, 30.0]], [[0.0, 0.0, 12.0, 63.0]]])
    first = box_mask(boxes, jnp.ones((2, 1), bool), stride=4, size=(16, 16), single_cell=True)
    student, teacher = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    mask = resize_mask(first, size=(8, 8))
    found = decoupled_features(jnp.asarray(student), jnp.asarray(teacher), mask)
    sums, counts = np.zeros(2), np.zeros(2)
    for b, y, x, c in np.ndindex(student.shape):
        which = 0 if first[b, 2 * y, 2 * x] else 1
        sums[which] += (float(student[b, y, x, c]) - float(teacher[b, y, x, c])) ** 2
        counts[which] += 2
    for part, total, count in zip(found, sums, counts, strict=True):
        np.testing.assert_allclose(mean(part), total / count, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_objects_and_background_make_the_whole(seed):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 3, 4, 5, 2)))
    mask = jnp.asarray(rng.uniform(size=(3, 4, 5)) < 0.4)
    parts = decoupled_features(student, teacher, mask)
    whole = decoupled_features(student, teacher, jnp.ones_like(mask))
    np.testing.assert_allclose(parts.object[0] + parts.background[0], whole.object[0], rtol=1e-5)
    np.testing.assert_array_equal(parts.object[1] + parts.background[1], 20)
    np.testing.assert_array_equal(whole.background, np.zeros((2, 3)))
    swapped = decoupled_features(teacher, student, ~mask)
    np.testing.assert_allclose(swapped.object, parts.background, rtol=1e-5)


def test_soft_masks_weigh_and_half_precision_counts_exactly():
    student, teacher = jnp.zeros((1, 100, 100, 1)), jnp.full((1, 100, 100, 1), 2.0)
    quarter = decoupled_features(student, teacher, jnp.full((1, 100, 100), 0.25))
    np.testing.assert_allclose([x[0] for x in quarter.object], [5000, 2500])
    half = decoupled_features(
        student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), jnp.ones((1, 100, 100), bool)
    )
    assert half.object[0].dtype == jnp.float32
    np.testing.assert_array_equal([x[0] for x in half.object], [20000, 10000])


def test_gradients_of_features_under_vmap():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 2, 3, 2, 2)))
    mask = jnp.asarray(rng.uniform(size=(2, 3, 2)) < 0.5)
    run = jax.jit(lambda s, t: sum(x[0].sum() for x in decoupled_features(s, t, mask)))
    check_grads(run, (student, teacher), order=2, modes=("rev",), rtol=1e-2, atol=1e-2)
    stacked = decoupled_features(student, teacher, mask)
    one = jax.vmap(lambda s, t, m: decoupled_features(s[None], t[None], m[None]))
    for a, b in zip(stacked, one(student, teacher, mask), strict=True):
        np.testing.assert_allclose(a, jnp.stack(b)[..., 0], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1, 2, 4])
@pytest.mark.parametrize("case", ["mix", "nobg", "allbg"])
def test_the_released_head_loss(shared, case, temperature):
    golden = np.load(shared / "golden" / "defeat" / "head_loss.npz")
    labels = golden[f"{case}_labels"]
    student, teacher = jnp.asarray(golden["logits_s"]), jnp.asarray(golden["logits_t"])
    positive = jnp.asarray(labels < labels.max())  # as released: the largest label that occurs
    prefix = f"{case}_T{temperature}_"
    right = jnp.asarray(golden["logits_t"].argmax(axis=1) == labels)

    def parts(student, teacher, valid, positive=positive):
        found = decoupled_logits(
            student,
            teacher,
            positive,
            valid=valid,
            object_temperature=float(temperature),
            background_temperature=float(temperature),
        )
        return [2.0 * mean(part) for part in found]

    every = jnp.ones(len(labels), bool)
    objects, background = parts(student, teacher, every)
    close = {"rtol": 1e-5, "atol": 1e-6}
    key = f"{prefix}KL-decouple__"
    np.testing.assert_allclose(objects, golden[f"{key}losskd_hcls"], **close)
    np.testing.assert_allclose(background, golden[f"{key}losskd_hcls_back"], **close)
    np.testing.assert_allclose(objects, golden[f"{prefix}KL-fore__loss"], **close)
    np.testing.assert_allclose(background, golden[f"{prefix}KL-back__loss"], **close)
    for name, valid, marked in (
        ("all", every, every),
        ("cfore", right, positive),
        ("correct", right, every),
    ):
        found = parts(student, teacher, valid, marked)[0]
        np.testing.assert_allclose(found, golden[f"{prefix}KL-{name}__loss"], **close)
    grads = jax.grad(lambda s, t: sum(parts(s, t, every)), (0, 1))(student, teacher)
    np.testing.assert_allclose(grads[0], golden[f"{key}grad"], **close)
    np.testing.assert_allclose(grads[1], golden[f"{key}grad_teacher_logits"], **close)


def test_each_part_has_its_own_temperature():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=2.0, size=(2, 6, 3)).astype(np.float32)
    positive = np.array([True, False] * 3)
    valid = np.array([True] * 5 + [False])
    found = jax.jit(
        lambda *x: decoupled_logits(
            *x, valid=jnp.asarray(valid), object_temperature=3.0, background_temperature=0.5
        )
    )(student, teacher, positive)
    for row in range(6):
        t = 3.0 if positive[row] else 0.5
        p, q = (np.exp(x[row].astype(np.float64) / t) for x in (student, teacher))
        p, q = p / p.sum(), q / q.sum()
        expected = t**2 * np.sum(q * np.log(q / p)) * valid[row]
        part, other = (found.object, found.background)[:: 1 if positive[row] else -1]
        np.testing.assert_allclose(part[0][row], expected, rtol=1e-4)
        assert part[1][row] == float(valid[row])
        assert other[0][row] == other[1][row] == 0.0


def test_what_does_not_count_reaches_no_gradient():
    student = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    teacher = jnp.array([[0.5, -jnp.inf], [jnp.nan, 0.0]])
    valid = jnp.array([True, False])

    def total(student):
        found = decoupled_logits(student, teacher, jnp.array([True, True]), valid=valid)
        return found.object[0].sum() + found.background[0].sum()

    value, grad = jax.value_and_grad(total)(student)
    np.testing.assert_allclose(value, np.log1p(np.exp(1.0)), rtol=1e-6)
    np.testing.assert_array_equal(grad[1], 0.0)


def test_equal_logits_are_no_loss_and_the_dtype_comes_back():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.bfloat16)
    mask = jnp.ones(4, bool)
    found = decoupled_logits(logits, logits, mask, valid=mask)
    assert found.object[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found.object[0], np.float32), 0.0, atol=1e-6)


def test_scores_are_compared_class_by_class_as_yes_and_no():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=3.0, size=(2, 6, 4)).astype(np.float32)
    positive = np.array([True, False] * 3)
    valid = np.array([True] * 5 + [False])

    def run(student, teacher):
        return decoupled_scores(
            student,
            teacher,
            jnp.asarray(positive),
            valid=jnp.asarray(valid),
            object_temperature=3.0,
            background_temperature=0.5,
        )

    found = jax.jit(run)(student, teacher)
    for row in range(6):
        t = 3.0 if positive[row] else 0.5
        p, q = (1 / (1 + np.exp(-x[row].astype(np.float64) / t)) for x in (student, teacher))
        yes, no = q * np.log(q / p), (1 - q) * np.log((1 - q) / (1 - p))
        part, other = (found.object, found.background)[:: 1 if positive[row] else -1]
        np.testing.assert_allclose(part[0][row], t * t * (yes + no).sum() * valid[row], rtol=1e-4)
        assert part[1][row] == float(valid[row])
        assert other[0][row] == other[1][row] == 0.0
    total = jax.jit(lambda s, t: sum(part[0].sum() for part in run(s, t)))
    check_grads(total, (student, teacher), order=1, modes=("rev",), rtol=2e-2, atol=2e-2)
    each = jax.vmap(
        lambda s, t, one, two: decoupled_scores(
            s[None], t[None], one[None], valid=two[None], object_temperature=3.0
        )
    )(student, teacher, positive, valid)
    np.testing.assert_allclose(each.object[0][:, 0], found.object[0], rtol=1e-5)


def test_one_class_of_yes_and_no_is_two_classes():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 5, 1)))
    mask = jnp.array([True, True, False, False, True])
    two = [jnp.concatenate([x, jnp.zeros_like(x)], axis=1) for x in (student, teacher)]
    scores = decoupled_scores(student, teacher, mask, valid=mask | True, object_temperature=2.0)
    logits = decoupled_logits(*two, mask, valid=mask | True, object_temperature=2.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), scores, logits
    )


def test_scores_that_do_not_count_and_sure_ones():
    student = jnp.array([[0.0], [jnp.nan], [60.0]])
    teacher = jnp.array([[-jnp.inf], [0.0], [-60.0]])
    valid = jnp.array([True, False, True])

    def total(student):
        found = decoupled_scores(student, teacher, valid, valid=valid)
        return found.object[0].sum()

    value, grad = jax.value_and_grad(total)(student)
    np.testing.assert_allclose(value, np.log(2) + 60.0, rtol=1e-6)
    np.testing.assert_allclose(grad[:, 0], [0.5, 0.0, 1.0], rtol=1e-6)
    half = decoupled_scores(
        student[:1].astype(jnp.bfloat16), student[:1], valid[:1], valid=valid[:1]
    )
    assert half.object[0].dtype == jnp.bfloat16
    assert float(half.object[0][0]) == 0.0


def test_cells_that_are_not_valid_belong_to_neither_part():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 2, 3, 4, 2)))
    mask = jnp.asarray(rng.uniform(size=(2, 3, 4)) < 0.5)
    valid = jnp.asarray(rng.uniform(size=(2, 3, 4)) < 0.6)
    found = decoupled_features(student, teacher, mask, valid=valid)
    error = np.square(np.asarray(student) - np.asarray(teacher)).mean(-1) / 2
    for part, cells in ((found.object, mask & valid), (found.background, ~mask & valid)):
        np.testing.assert_allclose(part[0], (error * cells).sum((1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(part[1], cells.sum((1, 2)))


def test_mistakes_are_told():
    x, mask = jnp.zeros((2, 3, 3, 1)), jnp.zeros((2, 3, 3), bool)
    logits, positive = jnp.zeros((4, 2)), jnp.zeros(4, bool)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for call, message in (
            (lambda: decoupled_features(x, x[:1], mask), r"teacher \(1, 3, 3, 1\)"),
            (lambda: decoupled_features(x, x, mask[..., None]), r"mask \(2, 3, 3, 1\)"),
            (
                lambda: decoupled_features(x, x, mask, valid=mask[:1]),
                r"mask \(2, 3, 3\) and valid \(1, 3, 3\); expected",
            ),
            (
                lambda: decoupled_scores(logits, logits[:1], positive, valid=positive),
                r"teacher \(1, 2\)",
            ),
            (
                lambda: decoupled_logits(logits, logits, positive[:2], valid=positive),
                r"positive \(2,\)",
            ),
            (
                lambda: decoupled_logits(
                    logits, logits, positive, valid=positive, background_temperature=0.0
                ),
                "background_temperature is 0.0",
            ),
        ):
            with pytest.raises(UserError, match=message):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_cells_that_count_for_nothing_may_hold_anything():
    student = jnp.array([[[[1.0], [jnp.inf], [2.0]]]])
    teacher = jnp.zeros_like(student).at[0, 0, 2].set(jnp.nan)
    mask, valid = jnp.array([[[True, False, False]]]), jnp.array([[[True, False, False]]])

    def total(student):
        parts = decoupled_features(student, teacher, mask, valid=valid)
        return sum(jnp.sum(part[0]) for part in parts)

    value, gradient = jax.value_and_grad(total)(student)
    assert value == 0.5
    np.testing.assert_array_equal(gradient.ravel(), [1.0, 0.0, 0.0])
