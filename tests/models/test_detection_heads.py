"""Detector heads on the reference's weights: targets, losses, gradients, proposals, detections."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.losses import dense_losses, proposal_losses, region_losses
from fgkd_jax.models import ProposalHead, RegionHead, RetinaHead
from fgkd_jax.ops import (
    RETINA_RULE,
    RPN_RULE,
    anchor_targets,
    base_anchors,
    dense_detections,
    grid_anchors,
    pyramid_levels,
    pyramid_roi_align,
    region_proposals,
    roi_detections,
    roi_targets,
)

LEVELS = range(5)
CLASSES = 5
OBJECTS = 8  # room for the objects of an image
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def load(shared, name):
    file = np.load(shared / "golden" / "detection" / f"{name}.npz")
    return {key: file[key] for key in file.files}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def conv(golden, name):
    kernel = golden[f"w__{name}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(golden[f"w__{name}.bias"])}


def dense(golden, name):
    kernel = golden[f"w__{name}.weight"].T
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(golden[f"w__{name}.bias"])}


def features_of(golden, levels=LEVELS):
    return tuple(nhwc(golden[f"feat_l{level}"]) for level in levels)


def objects_of(golden):
    """Boxes, labels and validity of the objects of both images, padded."""
    boxes, labels, valid = [], [], []
    for image in (0, 1):
        found = golden[f"gt{image}"]
        pad = OBJECTS - len(found)
        boxes.append(np.pad(found, ((0, pad), (0, 0))))
        labels.append(np.pad(golden[f"gtlab{image}"], (0, pad)).astype(np.int32))
        valid.append(np.arange(OBJECTS) < len(found))
    return tuple(jnp.asarray(np.stack(x)) for x in (boxes, labels, valid))


def anchors_of(golden, strides, scales):
    grids = []
    for level, stride in zip(LEVELS, strides, strict=True):
        base = base_anchors(sizes=[stride * s for s in scales], ratios=(0.5, 1.0, 2.0))
        size = golden[f"feat_l{level}"].shape[2:]
        grids.append(grid_anchors(base, stride=stride, size=size))
    return jnp.concatenate(grids), tuple(len(grid) for grid in grids)


def by_level(x, sizes):
    return np.split(np.asarray(x), np.cumsum(sizes)[:-1], axis=1)


def as_reference(predictions, width):
    """A flat level of predictions as `[b, anchors x width, h, w]`."""
    flat, (_, _, height, columns) = predictions
    return flat.reshape(len(flat), height, columns, -1).transpose(0, 3, 1, 2)


def check_predictions(golden, predictions, sizes):
    for name, values in (("cls", predictions.logits), ("reg", predictions.deltas)):
        for level, flat in enumerate(by_level(values, sizes)):
            expected = golden[f"{name}_l{level}"]
            found = as_reference((flat, expected.shape), None)
            np.testing.assert_allclose(found, expected, **CLOSE)


def check_targets(golden, found, sizes, background):
    for level, (labels, positive, negative, deltas) in enumerate(
        zip(
            *(by_level(x, sizes) for x in (found.labels, found.positive, found.negative)),
            by_level(found.deltas, sizes),
            strict=True,
        )
    ):
        weights = golden[f"tlabelw_l{level}"]
        np.testing.assert_array_equal(positive | negative, weights > 0)
        expected = np.where(weights > 0, golden[f"tlabels_l{level}"], background)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(positive, golden[f"tboxw_l{level}"][..., 0] > 0)
        np.testing.assert_allclose(deltas, golden[f"tbox_l{level}"], **CLOSE)


def check_losses(golden, losses, sizes):
    """Per level as the reference has them: `losses` takes a mask of anchors."""
    for level in LEVELS:
        mask = np.repeat(np.arange(5) == level, sizes)[None]
        for name, part in zip(("cls", "bbox"), losses(jnp.asarray(mask)), strict=True):
            expected = golden[f"loss_{name}_l{level}"]
            np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


def check_gradients(golden, grads):
    for level, grad in enumerate(grads):
        expected = golden[f"gradfeat_l{level}"].transpose(0, 2, 3, 1)
        # Sums in float32, also those of the reference: nearly nothing is left of some.
        nothing = 2e-6 * np.abs(expected).max()
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=nothing)


def check_detections(golden, found):
    for image in (0, 1):
        expected = golden[f"det_img{image}"]
        count = int(found.valid[image].sum())
        assert count == len(expected)
        np.testing.assert_array_equal(found.labels[image][:count], golden[f"detlab_img{image}"])
        np.testing.assert_allclose(found.boxes[image][:count], expected[:, :4], atol=1e-4)
        np.testing.assert_allclose(found.scores[image][:count], expected[:, 4], **CLOSE)


def total(part):
    return part[0].sum() / part[1].sum()


def test_region_proposals_of_the_reference(shared):
    golden = load(shared, "rpn_head")
    params = {
        "conv": conv(golden, "rpn_conv"),
        "logits": conv(golden, "rpn_cls"),
        "deltas": conv(golden, "rpn_reg"),
    }
    head = ProposalHead(features=6)
    features = features_of(golden)
    predict = jax.jit(lambda x: head.apply({"params": params}, x))
    found = predict(features)
    anchors, sizes = anchors_of(golden, (4, 8, 16, 32, 64), (8.0,))
    check_predictions(golden, found, sizes)
    boxes, _, valid = objects_of(golden)
    make = partial(anchor_targets, rule=RPN_RULE, num_classes=1)
    of_image = jax.vmap(lambda b, v: make(anchors, b, jnp.zeros(OBJECTS, int), gt_valid=v))
    targets = jax.jit(of_image)(boxes, valid)
    # There objects are 1 and background is 0.
    as_theirs = targets._replace(labels=1 - targets.labels)
    check_targets(golden, as_theirs, sizes, 0)
    assert int(targets.positive.sum()) == int(golden["num_pos"])
    assert int(targets.negative.sum()) == int(golden["num_neg"])
    counts = jax.jit(proposal_losses)(
        found.logits[..., 0], found.deltas, targets.positive, targets.negative, targets.deltas
    )

    @jax.jit
    def losses(mask, features=features):
        predictions = predict(features)
        parts = proposal_losses(
            predictions.logits[..., 0],
            predictions.deltas,
            targets.positive & mask,
            targets.negative & mask,
            targets.deltas,
        )
        return [p[0].sum() / c[1].sum() for p, c in zip(parts, counts, strict=True)]

    check_losses(golden, losses, sizes)
    every = jnp.ones((1, len(anchors)), bool)
    check_gradients(golden, jax.jit(jax.grad(lambda x: sum(losses(every, x))))(features))
    size = jnp.asarray(golden["image_hw"].astype(np.int32))
    propose = partial(
        region_proposals,
        level_sizes=sizes,
        pre_nms=int(golden["nms_pre"]),
        max_outputs=int(golden["nms_post"]),
        iou_threshold=float(golden["nms_thr"]),
    )
    proposals = jax.jit(jax.vmap(lambda x, d: propose(x, d, anchors, size)))(
        found.logits[..., 0], found.deltas
    )
    for image in (0, 1):
        expected = golden[f"proposals_img{image}"]
        assert int(proposals.valid[image].sum()) == len(expected)
        np.testing.assert_allclose(proposals.boxes[image], expected[:, :4], atol=1e-4)
        np.testing.assert_allclose(proposals.scores[image], expected[:, 4], **CLOSE)


def test_retinanet_of_the_reference(shared):
    golden = load(shared, "retina_head")
    params = {
        "logits_tower0": conv(golden, "cls_convs.0.conv"),
        "deltas_tower0": conv(golden, "reg_convs.0.conv"),
        "logits": conv(golden, "retina_cls"),
        "deltas": conv(golden, "retina_reg"),
    }
    head = RetinaHead(num_classes=CLASSES, features=6, depth=1)
    features = features_of(golden)
    predict = jax.jit(lambda x: head.apply({"params": params}, x))
    found = predict(features)
    scales = tuple(4 * 2 ** (i / 3) for i in range(3))
    anchors, sizes = anchors_of(golden, (8, 16, 32, 64, 128), scales)
    check_predictions(golden, found, sizes)
    boxes, labels, valid = objects_of(golden)
    make = partial(anchor_targets, rule=RETINA_RULE, num_classes=CLASSES)
    of_image = jax.vmap(lambda b, n, v: make(anchors, b, n, gt_valid=v))
    targets = jax.jit(of_image)(boxes, labels, valid)
    check_targets(golden, targets, sizes, CLASSES)
    assert int(targets.positive.sum()) == int(golden["num_pos"])

    @jax.jit
    def losses(mask, features=features):
        predictions = predict(features)
        arguments = predictions.logits, predictions.deltas, targets.labels
        kept = [targets.positive & mask, targets.negative & mask]
        parts = dense_losses(*arguments, *kept, targets.deltas)
        count = jnp.maximum(targets.positive.sum(axis=1), 1).sum()
        return [part[0].sum() / count for part in parts]

    check_losses(golden, losses, sizes)
    every = jnp.ones((1, len(anchors)), bool)
    check_gradients(golden, jax.jit(jax.grad(lambda x: sum(losses(every, x))))(features))
    size = jnp.asarray(golden["image_hw"].astype(np.int32))
    detect = partial(dense_detections, level_sizes=sizes, pre_nms=300, max_outputs=40)
    detections = jax.jit(jax.vmap(lambda x, d: detect(x, d, anchors, size)))(
        found.logits, found.deltas
    )
    check_detections(golden, detections)


def roi_params(golden):
    first = golden["w__bbox_head.shared_fcs.0.weight"]
    side = 7
    kernel = first.reshape(len(first), -1, side, side).transpose(2, 3, 1, 0)
    return {
        "dense0": {
            "kernel": jnp.asarray(kernel.reshape(-1, len(first))),
            "bias": jnp.asarray(golden["w__bbox_head.shared_fcs.0.bias"]),
        },
        "dense1": dense(golden, "bbox_head.shared_fcs.1"),
        "logits": dense(golden, "bbox_head.fc_cls"),
        "deltas": dense(golden, "bbox_head.fc_reg"),
    }


def test_the_head_on_regions_of_the_reference(shared):
    golden = load(shared, "roi_head")
    head, params = RegionHead(num_classes=CLASSES, features=12), roi_params(golden)
    features = features_of(golden, range(4))
    boxes, labels, valid = objects_of(golden)
    proposals = jnp.stack([jnp.asarray(golden[f"proposals{i}"]) for i in (0, 1)])
    make = partial(roi_targets, num_classes=CLASSES, size=100, positive_share=1.0)
    of_image = jax.vmap(lambda k, p, b, n, v: make(k, p, jnp.ones(len(p), bool), b, n, gt_valid=v))
    targets = jax.jit(of_image)(
        jax.random.split(jax.random.key(0), 2), proposals, boxes, labels, valid
    )
    kept = np.asarray(targets.valid)
    for image in (0, 1):
        assert int(targets.positive[image].sum()) == int(golden[f"npos{image}"])
        assert int(kept[image].sum()) == int(golden[f"npos{image}"] + golden[f"nneg{image}"])
    np.testing.assert_allclose(targets.boxes[kept], golden["rois"][:, 1:])
    np.testing.assert_array_equal(targets.labels[kept], golden["t_labels"])
    np.testing.assert_allclose(targets.deltas[kept], golden["t_box"], **CLOSE)
    np.testing.assert_array_equal(targets.positive[kept], golden["t_boxw"][:, 0] > 0)

    @jax.jit
    def predict(features, rois):
        levels = pyramid_levels(rois, num_levels=4)
        regions = pyramid_roi_align(features, rois, levels, strides=(4.0, 8.0, 16.0, 32.0))
        return head.apply({"params": params}, regions)

    logits, deltas = predict(features, targets.boxes)
    np.testing.assert_allclose(logits[kept], golden["cls_score"], **CLOSE)
    np.testing.assert_allclose(deltas[kept].reshape(-1, 20), golden["bbox_pred"], **CLOSE)

    @jax.jit
    def losses(features):
        predictions = predict(features, targets.boxes)
        return region_losses(
            *predictions, targets.labels, targets.positive, targets.valid, targets.deltas
        )

    classes, codes = (total(part) for part in losses(features))
    np.testing.assert_allclose(classes, golden["loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(codes, golden["loss_bbox"], rtol=1e-5)
    grads = jax.jit(jax.grad(lambda x: sum(total(part) for part in losses(x))))(features)
    check_gradients(golden, grads)
    check_detections(golden, detect_regions(golden, predict, features, proposals))


def detect_regions(golden, predict, features, proposals):
    size = jnp.asarray(golden["image_hw"].astype(np.int32))
    logits, deltas = predict(features, proposals)
    detect = partial(roi_detections, max_outputs=30)
    return jax.jit(jax.vmap(lambda x, d, p: detect(x, d, p, size)))(logits, deltas, proposals)


@pytest.mark.parametrize("head", [ProposalHead(), RetinaHead(num_classes=3, depth=1)])
def test_heads_are_the_same_at_all_levels_and_float32_comes_out(head):
    levels = tuple(jnp.ones((2, size, size, 4), jnp.bfloat16) for size in (3, 2))
    found, variables = jax.jit(head.init_with_output)(jax.random.key(0), levels)
    per_cell = head.anchors
    assert found.logits.shape[:2] == found.deltas.shape[:2] == (2, 13 * per_cell)
    assert found.logits.dtype == found.deltas.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    alone = jax.jit(head.apply)(variables, levels[1:])
    np.testing.assert_array_equal(alone.logits, found.logits[:, 9 * per_cell :])


def test_a_fresh_retinanet_believes_in_its_prior():
    head = RetinaHead(num_classes=3, features=8, depth=1, prior=0.02)
    found, _ = jax.jit(head.init_with_output)(jax.random.key(0), (jnp.ones((1, 3, 3, 4)),))
    np.testing.assert_allclose(jax.nn.sigmoid(found.logits), 0.02, rtol=0.2)


def test_images_without_objects_have_targets_and_finite_losses():
    anchors = grid_anchors(base_anchors(sizes=(8.0,), ratios=(1.0,)), stride=4, size=(4, 4))
    assign = jax.jit(partial(anchor_targets, rule=RETINA_RULE, num_classes=2))
    sample = jax.jit(partial(roi_targets, num_classes=2, size=8))
    for room in (0, 3):
        boxes, labels, valid = jnp.zeros((room, 4)), jnp.zeros(room, int), jnp.zeros(room, bool)
        found = assign(anchors, boxes, labels, gt_valid=valid)
        assert not found.positive.any()
        assert found.negative.all()
        batch = jax.tree.map(lambda x: x[None], found)
        losses = jax.jit(dense_losses)(
            jnp.zeros((1, 16, 2)),
            jnp.zeros((1, 16, 4)),
            batch.labels,
            batch.positive,
            batch.negative,
            batch.deltas,
        )
        assert losses.classes[1][0] == 1.0
        assert losses.boxes[0][0] == 0.0
        nobody, zeros = batch.positive & False, jnp.zeros((1, 16, 4))
        for negative, count in ((batch.negative, 17.0), (nobody, 2.0)):
            rpn = jax.jit(proposal_losses)(zeros[..., 0], zeros, nobody, negative, zeros)
            assert rpn.classes[1][0] == rpn.boxes[1][0] == count
        sampled = sample(
            jax.random.key(0), anchors, jnp.ones(16, bool), boxes, labels, gt_valid=valid
        )
        assert sampled.valid.all()
        assert not sampled.positive.any()
        np.testing.assert_array_equal(sampled.labels, 2)


def test_an_object_that_is_its_own_proposal_answers_for_itself():
    """Also where another has the same box, or its own has no area."""
    box, empty = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 20.0, 30.0]
    gt, labels = jnp.array([box, box, empty, box]), jnp.array([1, 2, 0, 1])
    valid = jnp.array([True, True, True, False])
    make = partial(
        roi_targets, gt_valid=valid, num_classes=3, size=8, positive_share=1.0, with_objects=True
    )
    found = make(jax.random.key(0), gt[:1] + 50.0, jnp.array([True]), gt, labels)
    assert found.labels.tolist() == [1, 2, 0, 3, 3, 3, 3, 3]
    assert found.positive.tolist() == [True] * 3 + [False] * 5
    assert found.valid.tolist() == [True] * 4 + [False] * 4
    np.testing.assert_array_equal(found.deltas[:3], 0.0)


@pytest.mark.parametrize("objects", [0, 2])
@pytest.mark.parametrize("with_objects", [True, False])
def test_no_proposals_leave_the_objects_alone(objects, with_objects):
    gt = jnp.tile(jnp.array([[0.0, 0.0, 4.0, 4.0]]), (objects, 1))
    found = roi_targets(
        jax.random.key(0),
        jnp.zeros((0, 4)),
        jnp.zeros(0, bool),
        gt,
        jnp.arange(objects),
        gt_valid=jnp.ones(objects, bool),
        num_classes=2,
        size=3,
        positive_share=1.0,
        with_objects=with_objects,
    )
    assert int(found.positive.sum()) == int(found.valid.sum()) == objects * with_objects
    assert found.labels[objects * with_objects :].tolist() == [2] * (3 - objects * with_objects)


def test_a_level_with_few_anchors_keeps_their_order():
    """It decides between equal scores: the first of them stays, wherever another class is best."""
    anchors = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    logits = jnp.array([[0.0, -3.0], [0.0, 3.0]])
    found = dense_detections(
        logits, jnp.zeros((2, 4)), anchors, jnp.array([20, 20]), level_sizes=(2,), max_outputs=2
    )
    of_class = {int(n): box.tolist() for n, box in zip(found.labels, found.boxes, strict=True)}
    assert of_class == {0: anchors[0].tolist(), 1: anchors[1].tolist()}
