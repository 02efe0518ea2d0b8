"""RetinaNet and Faster R-CNN as methods: losses from parts, masks, sampling, devices, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.cli.batch_spec import scene_spec
from fgkd_jax.errors import UserError
from fgkd_jax.evaluation.detection import overlaps
from fgkd_jax.methods import DefeatFasterRCNN, DefeatRetinaNet, FasterRCNN, RetinaNet
from fgkd_jax.methods.detector import image_sizes
from fgkd_jax.ops import RETINA_RULE
from fgkd_jax.protocols import Exportable, Method
from fgkd_jax.train.init import abstract_variables, initial_state
from fgkd_jax.train.optim import OptimOptions, make_optimizer, trainable_mask
from fgkd_jax.train.sharding import MeshOptions, make_mesh, put_batch
from fgkd_jax.train.step import make_train_step

CLASSES, MOST = 3, 4
TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4, "frozen_norm": "."}  # fmt: skip
COMMON = {"num_classes": CLASSES, "backbone": TINY, "frozen_stages": 1, "pyramid_stages": (1, 2),
          "pyramid_features": 8, "max_detections": 5}  # fmt: skip
METHODS = {
    "dense": RetinaNet(
        **COMMON, extra_levels=1, head_features=8, head_depth=1, anchor_octaves=2, candidates=20
    ),
    "regions": FasterRCNN(
        **COMMON, proposal_features=8, region_features=16, region_size=3, anchor_samples=16,
        region_samples=8, train_candidates=30, candidates=20, proposals=10, anchor_scale=4.0,
    ),
}  # fmt: skip
KINDS = tuple(METHODS)


def make_batch(size=4, bucket=(32, 48), seed=0):
    """Images of several sizes in one bucket; image 1 has no box, one box of image 2 is ignored."""
    rng = np.random.default_rng(seed)
    spec = scene_spec(bucket, max_boxes=MOST, batch_size=size)
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    batch["image"] = rng.integers(0, 256, spec["image"].shape, np.uint8)
    for i in range(size):
        height, width = bucket if i == 0 else rng.integers(20, bucket)
        batch["image"][i, height:] = batch["image"][i, :, width:] = 0
        batch["valid_size"][i] = height, width
        count = 0 if i == 1 else int(rng.integers(1, MOST + 1))
        corner = rng.uniform(0, 0.4, (count, 2))
        side = rng.uniform(0.3, 0.6, (count, 2))
        scale = np.array([width, height] * 2)
        batch["boxes"][i, :count] = np.concatenate([corner, corner + side], axis=1) * scale
        batch["box_labels"][i, :count] = rng.integers(0, CLASSES, count)
        batch["box_mask"][i, :count] = True
    batch["box_ignored"][2 % size, 0] = size > 2
    return {
        **batch,
        "original_size": 2 * batch["valid_size"],
        "id": np.arange(10, 10 + size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    """Of both methods, with weights large enough that every part has a say."""

    def init(method):
        found = jax.jit(method.init)(jax.random.key(0), batch)
        params = jax.tree.map(lambda x: 2.0 * x, found["params"])
        return {**found, "params": params}

    return {kind: init(method) for kind, method in METHODS.items()}


@functools.cache
def compiled_loss(kind):
    return jax.jit(functools.partial(METHODS[kind].loss, train=True))


def run_loss(kind, variables, batch, *, key=1):
    return compiled_loss(kind)(variables[kind], batch, jax.random.key(key))


def parts_of(kind, variables, batch, key):
    """The pyramid, and what the heads make of it, step by step."""
    method, mine = METHODS[kind], variables[kind]

    @jax.jit
    def run(mine, batch, key):
        again = jax.random.clone(key)
        levels, _ = method.pyramid(mine, batch, jax.random.key(0), train=False)
        found, anchors = method.dense(mine, levels), method.anchors(levels, batch)
        terms, figures = method.losses(mine, levels, batch, key)
        rest = ()
        if kind == "regions":
            proposals = method.propose(found, levels, batch, train=True)
            sample = method.sample_regions(proposals, batch, jax.random.split(again)[1])
            rest = (sample, *method.regions(mine, levels, sample.boxes))
        anchors = anchors._replace(level_sizes=jnp.asarray(anchors.level_sizes))
        return levels, found, anchors, terms, figures, rest

    return jax.device_get(run(mine, batch, key))


def sums_of(terms):
    return {name: np.asarray(term.sum) for name, term in terms.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_method_that_can_be_exported(kind):
    assert isinstance(METHODS[kind], Method)
    assert isinstance(METHODS[kind], Exportable)
    assert METHODS[kind].task == "detection"


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_published_detectors(kind):
    method = type(METHODS[kind])()
    if kind == "dense":
        assert method.strides == (8, 16, 32, 64, 128)
        assert (method.anchors_per_cell, method.anchor_scale, method.pyramid_features) == (
            9, 4.0, 256,
        )  # fmt: skip
        assert (method.focal_alpha, method.focal_gamma, method.candidates) == (0.25, 2.0, 1000)
    else:
        assert method.strides == (4, 8, 16, 32, 64)
        assert (method.anchors_per_cell, method.anchor_scale, method.region_size) == (3, 8.0, 7)
        assert (method.anchor_samples, method.region_samples, method.positive_share) == (
            256, 512, 0.25,
        )  # fmt: skip
        assert (method.train_candidates, method.candidates, method.proposals) == (2000, 1000, 1000)
    assert (method.score_threshold, method.iou_threshold, method.max_detections) == (0.05, 0.5, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_have_the_shapes_of_the_predictions(kind, variables, batch):
    method = METHODS[kind]
    levels, found, anchors, *_ = parts_of(kind, variables, batch, jax.random.key(5))
    assert method.strides == (4, 8, 16)
    assert [level.shape[1:3] for level in levels] == [(8, 12), (4, 6), (2, 3)]
    assert anchors.boxes.shape == found.deltas.shape[1:]
    assert anchors.valid.shape == found.deltas.shape[:2]
    assert sum(anchors.level_sizes) == len(anchors.boxes)
    # Sizes are spread evenly over an octave, and twice as large on every level.
    start = 0
    for stride, count in zip(method.strides, anchors.level_sizes.tolist(), strict=True):
        box = anchors.boxes[start : start + method.anchors_per_cell]
        roots = np.unique(np.sqrt(np.prod(box[:, 2:] - box[:, :2], axis=1)).round(3))
        octaves = method.anchor_octaves
        expected = [method.anchor_scale * stride * 2 ** (k / octaves) for k in range(octaves)]
        np.testing.assert_allclose(roots, expected, rtol=1e-4)
        start += count
    # Of a full image all count, of a smaller one those whose cell begins on it.
    assert anchors.valid[0].all()
    height, width = batch["valid_size"][1]
    cells = sum(-(-height // s) * -(-width // s) for s in method.strides)
    assert int(anchors.valid[1].sum()) == cells * method.anchors_per_cell


def test_a_dense_loss_is_that_of_its_parts(variables, batch):
    """The focal loss and L1, written out in NumPy on assignments made box by box."""
    _, found, anchors, terms, figures, _ = parts_of("dense", variables, batch, jax.random.key(5))
    for i in range(len(batch["id"])):
        kept = np.flatnonzero(batch["box_mask"][i] & ~batch["box_ignored"][i])
        valid = np.asarray(anchors.valid[i])
        iou = overlaps(anchors.boxes, batch["boxes"][i][kept]) if len(kept) else None
        label, gt = np.full(len(valid), CLASSES), np.zeros(len(valid), int)
        state = np.where(valid, 0, -1)  # 0 background, 1 object, -1 neither
        if iou is not None:
            iou = np.where(valid[:, None], iou, -1)
            best = iou.max(1)
            state[valid & (best >= RETINA_RULE.negative)] = -1
            hit = valid & (best >= RETINA_RULE.positive)
            state[hit], gt[hit] = 1, iou.argmax(1)[hit]
            for g in range(len(kept)):
                same = iou[:, g] == iou[:, g].max()
                state[same], gt[same] = 1, g
            label[state == 1] = batch["box_labels"][i][kept][gt[state == 1]]
        p = 1 / (1 + np.exp(-np.asarray(found.logits[i], np.float64)))
        hot = np.eye(CLASSES + 1)[label][:, :CLASSES]
        focal = hot * 0.25 * (1 - p) ** 2 * -np.log(p) + (1 - hot) * 0.75 * p**2 * -np.log1p(-p)
        np.testing.assert_allclose(
            terms["classes"].sum[i], focal[state >= 0].sum(), rtol=1e-4, atol=1e-5
        )
        positive = state == 1
        assert terms["classes"].count[i] == max(1, positive.sum())
        assert figures["positives"][0][i] == positive.sum()
        box = np.asarray(anchors.boxes, np.float64)[positive]
        side, centre = box[:, 2:] - box[:, :2], (box[:, 2:] + box[:, :2]) / 2
        true = batch["boxes"][i][kept][gt[positive]].astype(np.float64)
        code = np.concatenate(
            [((true[:, 2:] + true[:, :2]) / 2 - centre) / side,
             np.log((true[:, 2:] - true[:, :2]) / side)], axis=1
        )  # fmt: skip
        error = np.abs(np.asarray(found.deltas[i])[positive] - code).sum()
        np.testing.assert_allclose(terms["boxes"].sum[i], error, rtol=1e-4, atol=1e-5)


def test_a_region_loss_is_that_of_its_parts(variables, batch):
    """The second head's loss, written out in NumPy on the regions that were sampled."""
    *_, terms, _, rest = parts_of("regions", variables, batch, jax.random.key(5))
    sample, logits, deltas = rest
    logits, deltas = logits.astype(np.float64), deltas.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for i in range(len(batch["id"])):
        valid, labels = np.asarray(sample.valid[i]), np.asarray(sample.labels[i])
        expected = -log_p[i][np.arange(len(labels)), labels][valid].sum()
        np.testing.assert_allclose(terms["region_classes"].sum[i], expected, rtol=1e-4)
        assert terms["region_classes"].count[i] == valid.sum() > 0
        positive = np.flatnonzero(sample.positive[i])
        error = np.abs(
            deltas[i][positive, labels[positive]] - np.asarray(sample.deltas[i])[positive]
        ).sum()
        np.testing.assert_allclose(terms["region_boxes"].sum[i], error, rtol=1e-4, atol=1e-6)
        assert (labels[positive] < CLASSES).all()
    # Objects stand among the regions, so that an image with boxes has positives.
    per_image = np.asarray(sample.positive).sum(1)
    assert per_image[1] == 0
    assert (per_image[[0, 2, 3]] > 0).all()
    assert (per_image <= 2).all()  # a quarter of 8


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_boxes_train_and_all_gradients_are_finite(kind, variables, batch):
    empty = {**batch, "box_mask": np.zeros_like(batch["box_mask"])}

    def total(params, empty):
        terms, *_ = METHODS[kind].loss(
            {**variables[kind], "params": params}, empty, jax.random.key(0), train=True
        )
        return sum(
            jnp.sum(term.sum) / jnp.maximum(1, jnp.sum(term.count)) for term in terms.values()
        )

    value, gradient = jax.jit(jax.value_and_grad(total))(variables[kind]["params"], empty)
    assert float(value) > 0
    norms = {
        name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        for name, tree in gradient.items()
    }
    assert all(np.isfinite(x) for x in norms.values())
    assert all(x > 0 for name, x in norms.items())
    assert jax.tree.all(jax.tree.map(lambda x: (x == 0).all(), gradient["backbone"]["stem"]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_ignored_padded_or_masked_does_not_count(kind, variables, batch):
    terms, _, figures = run_loss(kind, variables, batch)
    changed = {name: value.copy() for name, value in batch.items()}
    # An ignored box, a row behind the last one, and pixels beside an image.
    changed["boxes"][2, 0] = [0, 0, 9, 9]
    changed["box_labels"][2, 0] = 1
    changed["boxes"][1] = [3, 3, 20, 20]
    height, width = batch["valid_size"][3]
    changed["image"][3, height:] = 255
    changed["image"][3, :, width:] = 255
    again, _, _ = run_loss(kind, variables, changed)
    for name, value in sums_of(terms).items():
        np.testing.assert_array_equal(value, sums_of(again)[name], err_msg=name)

    changed["mask"][3] = False
    again, _, masked = run_loss(kind, variables, changed)
    for name, term in again.items():
        np.testing.assert_array_equal(term.sum, np.append(terms[name].sum[:3], 0), err_msg=name)
        assert term.count[3] == 0
    assert masked["positives"][1].tolist() == [1, 1, 1, 0]
    assert figures["dropped_boxes"][0].tolist() == [0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_counts_the_same_in_any_batch(kind, variables, batch):
    """Anchors and regions are drawn by an image's id, not by its place."""
    terms, *_ = run_loss(kind, variables, batch)
    turned = {name: value[::-1].copy() for name, value in batch.items()}
    again, *_ = run_loss(kind, variables, turned)
    for name, value in sums_of(terms).items():
        np.testing.assert_allclose(
            value, sums_of(again)[name][::-1], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_regions_are_drawn_by_the_key(variables, batch):
    one, *_ = run_loss("regions", variables, batch, key=1)
    other, *_ = run_loss("regions", variables, batch, key=2)
    assert (one["proposal_classes"].sum != other["proposal_classes"].sum).any()


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_boxes_of_the_image_without_doubles(kind, variables, batch):
    method = dataclasses.replace(METHODS[kind], score_threshold=0.0)
    found = jax.jit(method.predict)(variables[kind], batch)
    assert {name: x.shape for name, x in found.items()} == {
        "boxes": (4, 5, 4), "scores": (4, 5), "labels": (4, 5), "valid": (4, 5),
    }  # fmt: skip
    for i in range(4):
        valid = np.asarray(found["valid"][i])
        boxes, scores = np.asarray(found["boxes"][i])[valid], np.asarray(found["scores"][i])[valid]
        assert len(scores)
        height, width = batch["valid_size"][i]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height] * 2).all()
        assert (np.diff(scores) <= 0).all()
        labels = np.asarray(found["labels"][i])[valid]
        doubles = (overlaps(boxes, boxes) > 0.5) & (labels[:, None] == labels)
        assert not (doubles & ~np.eye(len(boxes), dtype=bool)).any()
    # Without a size the whole frame is the image.
    whole = {"image": batch["image"][:1]}
    assert image_sizes(jax.tree.map(jnp.asarray, whole)).tolist() == [[32, 48]]
    alone = jax.jit(method.predict)(variables[kind], whole)
    np.testing.assert_allclose(alone["scores"][0], found["scores"][0], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_too_low_are_left_out(kind, variables, batch):
    strict = dataclasses.replace(METHODS[kind], score_threshold=1.0)
    found = jax.jit(strict.predict)(variables[kind], batch)
    assert not found["valid"].any()
    assert (found["boxes"] == 0).all()


TEACHER = {"backbone": {**TINY, "width": 6}, "pyramid_features": 12}
TAUGHT = {
    f"{kind} taught": make(
        **{f.name: getattr(METHODS[kind], f.name) for f in dataclasses.fields(METHODS[kind])},
        teacher=TEACHER,
        compared_stages=(1, 2),
    )
    for kind, make in (("dense", DefeatRetinaNet), ("regions", DefeatFasterRCNN))
}


@pytest.mark.parametrize("kind", TAUGHT)
def test_eight_devices_train_as_one(kind):
    """A detector that is taught has all losses of one that is not, and more."""
    method, batch = TAUGHT[kind], make_batch(size=8)
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    params = abstract_variables(method, spec)["params"]
    options = OptimOptions(name="sgd", learning_rate=0.01, schedule="constant")
    optimizer = make_optimizer(options, params, total_steps=2)
    step = make_train_step(method, optimizer, trainable=trainable_mask(options, params))
    results = []
    for devices in (1, 8):
        mesh = make_mesh(MeshOptions(data=devices))
        state = initial_state(jax.random.key(0), method, optimizer, spec, mesh=mesh)
        state, metrics = jax.jit(step)(state, put_batch(batch, mesh=mesh))
        results.append(jax.device_get((state.params, metrics)))
    (params, metrics), (others, other_metrics) = results
    assert metrics["example_finite"].shape == (8,)
    assert metrics["finite"]
    for name, value in metrics.items():
        np.testing.assert_allclose(value, other_metrics[name], rtol=1e-4, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, others
    )


def test_bfloat16_features_give_float32_losses_and_scores(batch):
    for kind, plain in METHODS.items():
        method = dataclasses.replace(plain, backbone={**TINY, "dtype": "bfloat16"})
        variables = jax.eval_shape(method.init, jax.random.key(0), batch)
        terms, *_ = jax.eval_shape(
            lambda v, b, m=method: m.loss(v, b, jax.random.key(0), train=True), variables, batch
        )
        assert {term.sum.dtype for term in terms.values()} == {np.dtype(np.float32)}, kind
        found = jax.eval_shape(method.predict, variables, batch)
        assert found["scores"].dtype == np.float32
        assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_frozen_stages_are_named():
    named = METHODS["dense"].frozen_parameters()
    assert named
    assert all(name.startswith("^backbone/stem/") for name in named)
    assert dataclasses.replace(METHODS["dense"], frozen_stages=0).frozen_parameters() == ()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dense", {"pyramid_stages": (2, 1)}, "pyramid_stages is .2, 1.; expected rising numbers"),
        ("dense", {"pyramid_stages": (1, 3)}, "pyramid_stages is .1, 3.; .* from 0 to 2"),
        ("dense", {"pyramid_stages": ()}, "pyramid_stages is ..; expected rising numbers"),
        ("regions", {"frozen_stages": 3}, "frozen_stages is 3; expected 0 to 2, the last of"),
        ("regions", {"anchor_ratios": (1.0, 0.0)}, "anchor_ratios is .1.0, 0.0.; .* above 0"),
        ("regions", {"anchor_scale": 0.0}, "anchor_scale is 0.0; expected a number above 0"),
        ("dense", {"box_weight": -1.0}, "box_weight is -1.0; expected at least 0"),
        ("dense", {"iou_threshold": 1.5}, r"iou_threshold is 1.5; expected it in \[0, 1\]"),
        ("dense", {"focal_alpha": 2.0}, r"focal_alpha is 2.0; expected it in \[0, 1\]"),
        ("dense", {"head_depth": -1}, "head_depth is -1; expected at least 0"),
        ("regions", {"proposals": 0}, "proposals is 0; expected at least 1"),
        ("regions", {"positive_share": -0.1}, r"positive_share is -0.1; expected it in \[0, 1\]"),
        ("regions", {"region_scale": 0.0}, "region_scale is 0.0; expected a number above 0"),
        ("regions", {"backbone": {"name": "resnet5"}}, "backbone 'resnet5'; did you mean"),
    ],
)
def test_bad_options_are_told_in_one_line(kind, options, message):
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(METHODS[kind], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "regions", "dense"),
    [
        ({"name": "resnet18"}, (1, 2, 3, 4), (2, 3, 4)),
        ({"name": "resnet50"}, (1, 2, 3, 4), (2, 3, 4)),
        # The stem of the one ends at stride 4; two stages of the other are of stride 32.
        ({"name": "shufflenet_v2_x1_0"}, (0, 1, 2, 3), (1, 2, 3)),
        ({"name": "mobilenet_v2"}, (1, 2, 3, 5), (2, 3, 5)),
        ({"name": "vgg16_bn"}, (1, 2, 3, 4), (2, 3, 4)),
        ({"name": "resnet_narrow", "strides": (2, 2, 2, 2)}, (2, 3, 4), (3, 4)),
        ({"name": "cifar_resnet20"}, (3,), None),
    ],
)
def test_a_pyramid_reads_the_deepest_stage_of_each_stride(backbone, regions, dense):
    for kind, expected in (("regions", regions), ("dense", dense)):
        options = {"backbone": backbone, "pyramid_stages": None}
        if expected is None:
            with pytest.raises(UserError, match=r"are .1, 1, 2, 4.; expected one of 8, 16, 32 am"):
                dataclasses.replace(METHODS[kind], **options)
            continue
        method = dataclasses.replace(METHODS[kind], **options)
        assert method.stages == method.network.stages == expected
        assert not method.ends_early
        assert method.chosen() == dataclasses.replace(method, pyramid_stages=expected)
        given = dataclasses.replace(method, pyramid_stages=(1, 2))
        assert given.stages == given.chosen().pyramid_stages == (1, 2)
        assert given.ends_early


def test_a_teacher_chooses_stages_of_its_own_backbone():
    options = {"teacher": {"backbone": {"name": "shufflenet_v2_x0_5"}}, "pyramid_stages": None}
    method = DefeatFasterRCNN(num_classes=CLASSES, backbone={"name": "resnet18"}, **options)
    assert method.stages == (1, 2, 3, 4)
    assert method.teaching.stages == method.chosen().teaching.stages == (0, 1, 2, 3)


def test_only_the_one_network_is_exported(variables):
    exported = METHODS["dense"].export(variables["dense"])
    assert exported.method == METHODS["dense"]
    with pytest.raises(UserError, match="network is 1; expected 0, the only one"):
        METHODS["dense"].export(variables["dense"], network=1)
