"""DeFeat as a method: its loss in NumPy, a teacher that nothing moves, what ships, mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.cli.batch_spec import scene_spec
from fgkd_jax.errors import UserError
from fgkd_jax.methods import DefeatFasterRCNN, DefeatRetinaNet, FasterRCNN, RetinaNet
from fgkd_jax.methods.defeat_detectors import TEACHING, TEACHING_TITLES, teaching
from fgkd_jax.methods.detector_network import FeatureMaps
from fgkd_jax.methods.teaching_masks import MASKS
from fgkd_jax.protocols import FROZEN, Exportable, Method, Taught
from fgkd_jax.train.init import abstract_variables, initial_state
from fgkd_jax.train.optim import OptimOptions, make_optimizer, trainable_mask
from fgkd_jax.train.sharding import MeshOptions, make_mesh
from fgkd_jax.train.step import make_train_step

CLASSES, MOST, BUCKET = 3, 4, (32, 48)
TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4, "frozen_norm": "."}  # fmt: skip
WIDE = {**TINY, "width": 6, "frozen_norm": ""}
COMMON = {"num_classes": CLASSES, "backbone": TINY, "frozen_stages": 1, "pyramid_stages": (1, 2),
          "pyramid_features": 8, "max_detections": 5}  # fmt: skip
STUDENTS = {
    "dense": RetinaNet(
        **COMMON, extra_levels=1, head_features=8, head_depth=1, anchor_octaves=2, candidates=20
    ),
    "regions": FasterRCNN(
        **COMMON, proposal_features=8, region_features=16, region_size=3, anchor_samples=16,
        region_samples=8, train_candidates=30, candidates=20, proposals=10, anchor_scale=4.0,
        region_scale=4.0,
    ),
}  # fmt: skip
CLASSES_OF = {"dense": DefeatRetinaNet, "regions": DefeatFasterRCNN}
KINDS = tuple(STUDENTS)
TEACHER = {"backbone": WIDE, "pyramid_features": 12}
WEIGHTS = {
    "object_weight": 3.0,
    "background_weight": 0.7,
    "stage_object_weight": 1.1,
    "stage_background_weight": 0.3,
    "head_object_weight": 0.9,
    "head_background_weight": 0.4,
    "object_temperature": 2.0,
    "background_temperature": 0.5,
}


def make_method(kind, **options):
    plain = {f.name: getattr(STUDENTS[kind], f.name) for f in dataclasses.fields(STUDENTS[kind])}
    given = {"teacher": TEACHER, **WEIGHTS, "compared_stages": (1, 2), **options}
    return CLASSES_OF[kind](**{**plain, **given})


def make_batch():
    """Four images; one without a box, one with a box that is ignored, three with padding."""
    rng = np.random.default_rng(0)
    spec = scene_spec(BUCKET, max_boxes=MOST, batch_size=4)
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    sizes = [BUCKET, (30, 40), (24, 47), (32, 21)]
    for i, (height, width) in enumerate(sizes):
        batch["image"][i, :height, :width] = rng.integers(0, 256, (height, width, 3))
        batch["valid_size"][i] = height, width
        count = (2, 0, 3, 1)[i]
        corner = rng.uniform(0, 0.4, (count, 2))
        ends = corner + rng.uniform(0.3, 0.6, (count, 2))
        batch["boxes"][i, :count] = np.concatenate([corner, ends], 1) * ([width, height] * 2)
        batch["box_labels"][i, :count] = rng.integers(0, CLASSES, count)
        batch["box_mask"][i, :count] = True
    batch["boxes"][0, :2] = [[1, 2, 40, 31], [20, 4, 31, 15]]  # one on each of two levels
    batch["box_ignored"][2, 0] = True
    return {**batch, "id": np.arange(10, 14, dtype=np.int32), "mask": np.ones(4, bool)}


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def variables(batch):
    """Of both methods, with weights large enough that every part has a say."""

    def init(kind):
        found = jax.jit(make_method(kind).init)(jax.random.key(0), batch)
        for tree in (found, found[FROZEN]):
            tree["params"] = jax.tree.map(lambda x: 3.0 * x, tree["params"])
        return found

    return {kind: init(kind) for kind in KINDS}


@functools.cache
def compiled(kind):
    return jax.jit(functools.partial(make_method(kind).loss, train=True))


def run_loss(kind, variables, batch):
    return jax.device_get(compiled(kind)(variables[kind], batch, jax.random.key(1)))


def plain(kind, **options):
    return dataclasses.replace(STUDENTS[kind], **options)


def student_of(variables):
    params = {k: v for k, v in variables["params"].items() if not k.endswith("_adapters")}
    return {"params": params, "batch_stats": variables["batch_stats"]}


def maps_of(kind, variables, batch):
    """The maps of both detectors, each run by itself."""

    @jax.jit
    def run(own, frozen, batch):
        key = jax.random.key(0)
        pairs = ((plain(kind), own), (plain(kind, **TEACHER), frozen))
        return [
            method.maps(mine, batch, key, recolour=False, train=False)[0] for method, mine in pairs
        ]

    return jax.device_get(run(student_of(variables), variables[FROZEN], batch))


def painted(boxes, stride, size):
    """The cells of boxes, cell by cell."""
    mask = np.zeros(size, bool)
    for box in boxes:
        x0, y0, x1, y1 = (int(v / stride) for v in box)
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return mask


def objects_of(batch, i):
    return batch["boxes"][i][batch["box_mask"][i] & ~batch["box_ignored"][i]]


def errors_of(student, teacher, adapter, batch, stride, chosen, *, relu):
    """Sums and counts of squared errors inside and outside of the boxes that `chosen` keeps."""
    kernel, bias = (np.asarray(adapter[n], np.float64) for n in ("kernel", "bias"))
    adapted = student @ kernel[0, 0] + bias
    if relu:
        adapted = np.maximum(adapted, 0)
    error = ((adapted - teacher) ** 2).mean(-1) / 2
    found = np.zeros((2, 2, len(student)))  # part, sum and count, image
    for i, (height, width) in enumerate(batch["valid_size"]):
        boxes = [box for box in objects_of(batch, i) if chosen(box)]
        mask = painted(boxes, stride, error.shape[1:])
        inside = np.zeros_like(mask)
        inside[: -(-height // stride), : -(-width // stride)] = True
        for part, cells in enumerate((mask & inside, ~mask & inside)):
            found[part, 0, i] = error[i][cells].sum()
            found[part, 1, i] = cells.sum()
    return found


def level_of(kind, box):
    """The level of a box, by its side; regions from 32 pixels on go one level up."""
    side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    if kind == "regions":
        return int(side >= 32)
    anchors = [4.0 * 4 * 2 ** (k / 2) for k in range(2)]  # of the first level
    middle = np.sqrt(anchors[0] * anchors[1])
    return int(np.clip(np.round(np.log2(side / middle)), 0, 2))


def check(term, weight, found, name):
    assert float(term.weight) == pytest.approx(weight), name
    np.testing.assert_allclose(term.sum, found[0], rtol=2e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(term.count, found[1], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_compared_inside_and_outside_of_objects(kind, variables, batch):
    terms, *_ = run_loss(kind, variables, batch)
    student, teacher = maps_of(kind, variables[kind], batch)
    params = variables[kind]["params"]
    populated = 0
    for level, stride in enumerate((4, 8, 16)):
        found = errors_of(
            student.levels[level],
            teacher.levels[level],
            params["neck_adapters"][f"conv{level}"],
            batch,
            stride,
            lambda box, level=level: level_of(kind, box) == level,
            relu=False,
        )
        populated += found[0, 1].sum() > 0
        check(terms[f"neck_object_{level}"], 3.0 / 3, found[0], "object")
        check(terms[f"neck_background_{level}"], 0.7 / 3, found[1], "background")
    assert populated == 2
    for index, stage in enumerate((1, 2)):
        found = errors_of(
            student.stages[stage],
            teacher.stages[stage],
            params["stage_adapters"][f"conv{index}"],
            batch,
            (4, 8)[index],
            lambda box: True,
            relu=True,
        )
        check(terms[f"stage_object_{stage}"], 1.1 / 2, found[0], "object")
        check(terms[f"stage_background_{stage}"], 0.3 / 2, found[1], "background")


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(student, teacher, temperature):
    log_q, log_p = (log_softmax(x.astype(np.float64) / temperature) for x in (teacher, student))
    return temperature**2 * (np.exp(log_q) * (log_q - log_p)).sum(-1)


def test_heads_are_compared_on_regions_that_the_teacher_proposes(variables, batch):
    mine = variables["regions"]
    student, teacher = plain("regions"), plain("regions", **TEACHER)
    maps = maps_of("regions", mine, batch)

    @jax.jit
    def run(own, frozen, levels, taught, batch, key):
        found = teacher.dense(frozen, taught)
        proposals = teacher.propose(found, taught, batch, train=True)
        sample = student.sample_regions(proposals, batch, key)
        ours, _ = student.regions(own, levels, sample.boxes)
        theirs, _ = teacher.regions(frozen, taught, sample.boxes)
        return sample, ours, theirs

    key = jax.random.split(jax.random.split(jax.random.key(1))[1])[1]
    levels = [m.levels for m in maps]
    sample, ours, theirs = jax.device_get(run(student_of(mine), mine[FROZEN], *levels, batch, key))
    terms, *_ = run_loss("regions", variables, batch)
    assert sample.positive.any()
    for name, cells, weight, temperature in (
        ("head_object", sample.positive & sample.valid, 0.9, 2.0),
        ("head_background", ~sample.positive & sample.valid, 0.4, 0.5),
    ):
        each = divergence(ours, theirs, temperature)
        found = [np.where(cells, each, 0).sum(1), cells.sum(1)]
        assert found[0].max() > 1e-3
        check(terms[name], weight, found, name)


def test_dense_heads_are_compared_on_the_anchors_that_are_trained(variables, batch):
    mine = variables["dense"]
    student, teacher = plain("dense"), plain("dense", **TEACHER)
    maps = maps_of("dense", mine, batch)

    @jax.jit
    def run(own, frozen, levels, taught, batch):
        target = student.targets(levels, batch)
        return target, student.dense(own, levels).logits, teacher.dense(frozen, taught).logits

    levels = [m.levels for m in maps]
    target, ours, theirs = jax.device_get(run(student_of(mine), mine[FROZEN], *levels, batch))
    terms, *_ = run_loss("dense", variables, batch)
    assert target.positive.any()
    for name, cells, weight, temperature in (
        ("head_object", target.positive, 0.9, 2.0),
        ("head_background", target.negative, 0.4, 0.5),
    ):
        # Every class against its absence, whose logit is 0.
        pairs = (np.stack([x, np.zeros_like(x)], -1) for x in (ours, theirs))
        each = divergence(*pairs, temperature).sum(-1)
        found = [np.where(cells, each, 0).sum(1), cells.sum(1)]
        assert found[0].max() > 1e-5
        check(terms[name], weight, found, name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_the_loss_of_the_student_alone(kind, variables, batch):
    terms, state, figures = run_loss(kind, variables, batch)
    own = student_of(variables[kind])
    if kind == "regions":  # its samples are drawn by a key that is split once more
        samples = jax.random.split(jax.random.split(jax.random.key(1))[1])[0]
    else:
        samples = jax.random.key(0)
    levels = maps_of(kind, variables[kind], batch)[0].levels
    alone, theirs = jax.device_get(jax.jit(plain(kind).losses)(own, levels, batch, samples))
    added = {name for name in terms if name.partition("_")[0] in ("neck", "stage", "head")}
    assert terms.keys() - added == alone.keys()
    assert len(added) == 12
    for name, term in alone.items():
        np.testing.assert_allclose(terms[name].sum, term.sum, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(terms[name].count, term.count, err_msg=name)
    assert figures.keys() == {*theirs, "dropped_boxes"}
    assert state.keys() == {"batch_stats"}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_the_teacher_and_the_student_learns(kind, batch):
    method = make_method(kind, brightness=0.2)
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    params = abstract_variables(method, spec)["params"]
    options = OptimOptions(name="adamw", learning_rate=0.01, schedule="constant")
    optimizer = make_optimizer(options, params, total_steps=20)
    step = jax.jit(make_train_step(method, optimizer, trainable=trainable_mask(options, params)))
    state = initial_state(
        jax.random.key(0), method, optimizer, spec, mesh=make_mesh(MeshOptions(data=1))
    )
    frozen, before = jax.device_get((state.frozen, state.params))
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(jax.device_get(metrics))
    jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen)
    saved = {leaf.shape for leaf in jax.tree.leaves(state.to_save()) if hasattr(leaf, "shape")}
    assert (3, 3, 12, 12) not in saved  # a convolution of the teacher's pyramid
    for name in ("neck_adapters", "stage_adapters"):
        moved = jax.tree.map(lambda a, b: (a != b).any(), state.params[name], before[name])
        assert any(jax.tree.leaves(moved)), name
    for name in ("loss", "loss/neck_background_0", "loss/neck_object_0"):
        assert losses[-1][name] < losses[0][name], name
    assert all(m["finite"] for m in losses)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_teacher_and_every_part_of_the_student_has_one(
    kind, variables, batch
):
    def total(params, frozen, batch):
        terms, *_ = make_method(kind).loss(
            {**variables[kind], "params": params, FROZEN: {**variables[kind][FROZEN], **frozen}},
            batch,
            jax.random.key(1),
            train=True,
        )
        return sum(term.weight * jnp.sum(term.sum) for term in terms.values())

    params, frozen = variables[kind]["params"], {"params": variables[kind][FROZEN]["params"]}
    own, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(params, frozen, batch)
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(theirs))
    for name, tree in own.items():
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(tree)), name
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree)) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_what_ships(kind, variables, batch):
    method = make_method(kind)
    assert isinstance(method, Method)
    assert isinstance(method, Exportable)
    assert isinstance(method, Taught)
    assert not isinstance(STUDENTS[kind], Taught)
    exported = method.export(variables[kind])
    assert exported.method == STUDENTS[kind]
    assert exported.variables.keys() == {"params", "batch_stats"}
    shapes = jax.eval_shape(STUDENTS[kind].init, jax.random.key(0), batch)
    assert jax.tree.structure(shapes) == jax.tree.structure(dict(exported.variables))
    found = jax.jit(exported.method.predict)(exported.variables, batch)
    mine = jax.jit(method.predict)(variables[kind], batch)
    jax.tree.map(np.testing.assert_array_equal, found, mine)
    with pytest.raises(UserError, match="network is 1; expected 0"):
        method.export(variables[kind], network=1)


@pytest.mark.parametrize("name", TEACHING)
def test_what_is_taken_from_the_teacher(name, batch):
    """Which terms there are; that masks are those of `fgkd_jax.ops`, see its tests."""
    method = make_method("dense", **{**dict.fromkeys(WEIGHTS, 1.0), **teaching(name)})
    method = dataclasses.replace(method, compared_stages=())
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    terms, *_ = jax.eval_shape(
        lambda v, b: method.loss(v, b, jax.random.key(0), train=True), shapes, batch
    )
    parts = {name.rstrip("_0123456789") for name in terms} - {"classes", "boxes"}
    both = {"neck_object", "neck_background"}
    assert parts == {
        "defeat": both | {"head_object", "head_background"},
        "reference": both,
        "background": {"neck_background"},
    }.get(name, {"neck_object"})
    assert TEACHING_TITLES.keys() == TEACHING.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_put_an_object_on_its_level(kind, mask, batch):
    method = make_method(kind, mask=mask)
    levels = tuple(jnp.zeros((4, 32 // s, 48 // s, 8)) for s in (4, 8, 16))
    scene = method.scene(levels, jax.tree.map(jnp.asarray, batch))
    masks = [np.asarray(m) for m in MASKS[mask](scene)]
    assert [m.shape for m in masks] == [(4, 8, 12), (4, 4, 6), (4, 2, 3)]
    for i in range(4):
        places = {level_of(kind, box) for box in objects_of(batch, i)}
        for level, m in enumerate(masks):
            if mask == "everything":
                assert m[i].all()
            else:
                assert bool(m[i].any()) == (level in places), (i, level)


def test_the_reference_paints_boxes_as_released(batch):
    method = make_method("dense", **teaching("reference"))
    levels = tuple(jnp.zeros((4, 32 // s, 48 // s, 8)) for s in (4, 8, 16))

    def scene_of(method, box, i):
        boxes = np.array(batch["boxes"])
        boxes[i, 0] = box
        return method.scene(levels, jax.tree.map(jnp.asarray, {**batch, "boxes": boxes}))

    # Boxes of less than 111 pixels are on the first level, whatever the anchors.
    assert scene_of(method, [0, 0, 110, 110], 0).levels[0].tolist() == [0, 0, 0, 0]
    assert scene_of(method, [0, 0, 111, 111], 0).levels[0].tolist() == [1, 0, 0, 0]
    # A long box of less than one cell is one cell; padding is background.
    thin = [0.5, 1.0, 1.5, 30.0]
    for painter, cells in ((method, 1), (make_method("dense"), 7)):
        assert int(MASKS["boxes"](scene_of(painter, thin, 3))[0][3].sum()) == cells
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    kernel = shapes["params"]["neck_adapters"]["conv0"]["kernel"]
    assert kernel.shape == (3, 3, 8, 12)


def test_the_reference_has_the_released_loss_of_released_maps(shared):
    """From maps and boxes on: adapters, masks, padding, weights and sums are the method's."""
    golden, levels = np.load(shared / "golden" / "defeat" / "neck_loss.npz"), range(5)
    backbone = {**TINY, "strides": (1, 2, 2, 2), "stage_sizes": (1,) * 4, "dilations": (1,) * 4}
    method = DefeatFasterRCNN(
        num_classes=CLASSES,
        backbone=backbone,
        pyramid_features=8,
        teacher={"backbone": backbone},
        **teaching("reference"),
    )
    ours, theirs = (
        tuple(jnp.asarray(golden[f"{name}_l{i}"].transpose(0, 2, 3, 1)) for i in levels)
        for name in "ST"
    )
    height, width = golden["image_hw"]
    given = [golden[f"boxes_img{i}"] for i in range(2)]
    boxes, wanted = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4), bool)
    for i, some in enumerate(given):
        boxes[i, : len(some)], wanted[i, : len(some)] = some, True
    batch = {
        "image": jnp.zeros((2, height, width, 3), jnp.uint8),
        "valid_size": jnp.array([[height, width], [height // 2, width // 2]]),  # padding counts
        "boxes": jnp.asarray(boxes),
        "box_labels": jnp.zeros((2, 4), jnp.int32),
        "box_mask": jnp.asarray(wanted),
        "box_ignored": jnp.zeros((2, 4), bool),
        "mask": jnp.ones(2, bool),
    }
    adapters = {
        f"conv{i}": {
            "kernel": jnp.asarray(golden[f"adaptW_l{i}"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(golden[f"adaptB_l{i}"]),
        }
        for i in levels
    }

    def losses(adapters, ours):
        params, taught = {"neck_adapters": adapters}, FeatureMaps((), theirs)
        terms = method.feature_losses(params, FeatureMaps((), ours), taught, batch)
        assert len(terms) == 10
        return {
            part: sum(
                term.weight * term.sum.sum() / jnp.maximum(1.0, term.count.sum())
                for name, term in terms.items()
                if name.startswith(f"neck_{part}")
            )
            for part in ("object", "background")
        }

    found = jax.jit(losses)(adapters, ours)
    case = "released_decouple_adapt__"
    np.testing.assert_allclose(found["object"], golden[f"{case}losskd_neck"], rtol=1e-5)
    np.testing.assert_allclose(found["background"], golden[f"{case}losskd_neck_back"], rtol=1e-5)
    grads = jax.jit(jax.grad(lambda *a: sum(losses(*a).values()), (0, 1)))(adapters, ours)
    for i in levels:
        for got, expected in (
            (grads[1][i].transpose(0, 3, 1, 2), golden[f"{case}gradS_l{i}"]),
            (grads[0][f"conv{i}"]["kernel"].transpose(3, 2, 0, 1), golden[f"{case}gradW_l{i}"]),
            (grads[0][f"conv{i}"]["bias"], golden[f"{case}gradB_l{i}"]),
        ):
            # Sums in float32, also those of the released code: nearly nothing is left of some.
            nothing = 2e-6 * np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=nothing)


def test_padding_counts_only_where_it_is_asked_for(variables, batch):
    method = make_method("dense", count_padding=True)
    terms, *_ = jax.jit(functools.partial(method.loss, train=True))(
        variables["dense"], batch, jax.random.key(1)
    )
    kept, *_ = run_loss("dense", variables, batch)
    for level, cells in enumerate((96, 24, 6)):
        pair = [terms[f"neck_{part}_{level}"] for part in ("object", "background")]
        np.testing.assert_array_equal(pair[0].count + pair[1].count, cells)
        ours = [kept[f"neck_{part}_{level}"] for part in ("object", "background")]
        counts = ours[0].count + ours[1].count
        assert counts[0] == cells
        assert (counts[1:3] <= cells).all()
        assert counts[3] == -(-32 // (4 << level)) * -(-21 // (4 << level))


def test_the_students_proposals_are_an_option(variables, batch):
    method = make_method("regions", student_proposals=True)
    other, *_ = jax.jit(functools.partial(method.loss, train=True))(
        variables["regions"], batch, jax.random.key(1)
    )
    terms, *_ = run_loss("regions", variables, batch)
    assert (other["head_background"].sum != terms["head_background"].sum).any()
    np.testing.assert_allclose(other["region_classes"].sum, terms["region_classes"].sum, rtol=1e-4)
