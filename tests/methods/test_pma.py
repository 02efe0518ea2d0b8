"""PMA, its student and its controls: terms by hand, texts of every kind, a teacher at rest."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.evaluation import EVALUATORS
from fgkd_jax.losses import cross_entropy, soft_target_cross_entropy
from fgkd_jax.methods import METHODS, PMA, Classifier, PMAStudent, PMAText, PMAVision
from fgkd_jax.models import PhraseEncoder, ProgressiveAttention
from fgkd_jax.protocols import FROZEN, Taught, TextMethod, split_variables
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import MeshOptions, make_mesh
from fgkd_jax.train.step import make_train_step

CLASSES, WORDS = 4, 9
NET = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
       "dilations": (1,), "zero_init_residual": False}  # fmt: skip
SIZES = {"reduction": 2, "local_features": 3, "stage_features": 5}
TEXT = {"vocabulary_size": WORDS, "word_features": 3, "phrase_features": 6}


def make_pma(**options):
    return PMA(**{"num_classes": CLASSES, "backbone": NET, **SIZES, **TEXT, **options})


def make_vision(**options):
    return PMAVision(**{"num_classes": CLASSES, "backbone": NET, **SIZES, **options})


def make_text(**options):
    return PMAText(**{"num_classes": CLASSES, "reduction": 2, **TEXT, **options})


def make_student(**options):
    teacher = {"backbone": {**NET, "width": 6}, **SIZES, "word_features": 3, "phrase_features": 6}
    known = {"num_classes": CLASSES, "vocabulary_size": WORDS}
    return PMAStudent(**{**known, "backbone": NET, "teacher": teacher, **options})


MAKERS = {"pma": make_pma, "vision": make_vision, "text": make_text, "student": make_student}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    # Six phrases at most: three may be masked, and a choice is left.
    lengths = rng.integers(1, 4, (6, 6)) * (np.arange(6)[None] < np.array([[2, 1, 0, 6, 6, 3]]).T)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (6, 8, 6, 3), np.uint8)),
        "label": jnp.arange(6, dtype=jnp.int32) % CLASSES,
        "id": jnp.arange(6, dtype=jnp.int32),
        "mask": jnp.ones(6, bool).at[5].set(False),
        "phrases": jnp.asarray(rng.integers(1, WORDS, (6, 6, 3)), jnp.int32),
        "phrase_lengths": jnp.asarray(lengths, jnp.int32),
    }


@pytest.fixture(scope="module")
def variables(batch):
    return {name: jax.jit(make().init)(jax.random.key(0), batch) for name, make in MAKERS.items()}


def evaluate(method, variables, batch):
    return jax.jit(lambda v, b: method.loss(v, b, jax.random.key(1), train=False))(variables, batch)


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


def test_the_logits_are_those_of_the_attended_features(batch, variables):
    method, ours = make_pma(), variables["pma"]
    predicted = jax.jit(method.predict)(ours, batch)
    network, params = method.network, ours["params"]
    look = partial(network.apply, train=False, method="look")
    maps = jax.jit(look)(ours, method.normalize(batch["image"]))
    assert maps.shape == (6, 4, 3, 4)
    encoder = PhraseEncoder(WORDS, word_features=3, features=6)
    lengths = batch["phrase_lengths"]
    z = jax.jit(encoder.apply)({"params": params["encoder"]}, batch["phrases"], lengths)
    attention = ProgressiveAttention(reduction=2, local_features=3, stage_features=5)
    whole, stages = jax.jit(attention.apply)(
        {"params": params["attention"]}, maps, (z, lengths > 0)
    )
    dense = params["classifier"]["dense"]
    logits = whole @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(predicted["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(predicted["probabilities"], jax.nn.softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(predicted["located"], stages.located)
    np.testing.assert_allclose(predicted["phrase_weights"], stages.phrase_weights, atol=1e-6)
    assert predicted["located_box"].shape == (6, 3, 4)
    assert predicted["block_boxes"].shape == (6, 4, 4)


@pytest.mark.parametrize("name", ["pma", "vision", "text"])
def test_the_loss_is_the_cross_entropy_of_what_is_predicted(batch, variables, name):
    method = MAKERS[name](label_smoothing=0.1)
    terms, state, figures = evaluate(method, variables[name], batch)
    logits = jax.jit(method.predict)(variables[name], batch)["logits"]
    expected = jax.jit(partial(cross_entropy, label_smoothing=0.1))(logits, batch["label"])
    np.testing.assert_allclose(terms["cross_entropy"].sum[:5], expected[:5], rtol=1e-5, atol=1e-6)
    assert float(terms["cross_entropy"].sum[5]) == 0.0
    np.testing.assert_array_equal(terms["cross_entropy"].count, batch["mask"])
    right = (logits.argmax(-1) == batch["label"]) * batch["mask"]
    np.testing.assert_array_equal(figures["accuracy"][0], right)
    assert state.keys() == ({"batch_stats"} if name != "text" else set())


@pytest.mark.parametrize("name", ["pma", "text"])
def test_texts_removed_and_exchanged(batch, variables, name):
    method, ours = MAKERS[name](), variables[name]
    predict = jax.jit(method.predict)
    other = {
        "other_phrases": batch["phrases"][::-1],
        "other_phrase_lengths": batch["phrase_lengths"][::-1],
    }
    predicted = predict(ours, {**batch, **other})
    none = predict(ours, {**batch, "phrase_lengths": jnp.zeros((6, 6), jnp.int32)})
    np.testing.assert_allclose(predicted["logits_without_text"], none["logits"], atol=1e-6)
    swapped = predict(
        ours, {**batch, "phrases": batch["phrases"][::-1],
               "phrase_lengths": batch["phrase_lengths"][::-1]},
    )  # fmt: skip
    np.testing.assert_allclose(predicted["logits_with_other_text"], swapped["logits"], atol=1e-6)
    assert not np.allclose(predicted["logits"][0], predicted["logits_without_text"][0], atol=1e-4)
    np.testing.assert_allclose(
        predicted["logits"][2], predicted["logits_without_text"][2], atol=1e-6
    )
    bare = predict(ours, without(batch, "phrases", "phrase_lengths"))
    np.testing.assert_allclose(bare["logits"], none["logits"], atol=1e-6)
    assert "logits_with_other_text" not in bare


def test_a_vision_method_reads_no_text(batch, variables):
    method = make_vision()
    predicted = jax.jit(method.predict)(variables["vision"], without(batch, "phrases"))
    assert not [name for name in predicted if "text" in name or "phrase" in name]
    names = str(jax.tree.structure(variables["vision"]))
    assert "encoder" not in names
    assert "query" not in names
    assert not isinstance(method, TextMethod)
    assert all(isinstance(MAKERS[name](), TextMethod) for name in ("pma", "text", "student"))


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_finite_without_a_text_too(batch, variables, name):
    method = MAKERS[name](stages=5) if name in ("pma", "vision") else MAKERS[name]()
    ours = jax.jit(method.init)(jax.random.key(0), batch)
    params, rest, fixed = split_variables(ours)

    def loss(params, batch):
        terms, *_ = method.loss(
            {"params": params, **rest, **fixed}, batch, jax.random.key(1), train=True
        )
        return sum(jnp.sum(term.sum) for term in terms.values())

    differentiate = jax.jit(jax.value_and_grad(loss))
    for texts in (batch, {**batch, "phrase_lengths": jnp.zeros((6, 6), jnp.int32)}):
        value, grads = differentiate(params, texts)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_texts_are_left_out_by_the_draw_of_their_example(batch, variables):
    method = make_pma(text_dropout=0.5)
    key = jax.random.key(3)
    read = jax.jit(method.text, static_argnames="train")
    kept = np.asarray(read(batch, key, train=True)[1]).any(axis=1)
    whole = np.asarray(batch["phrase_lengths"]).any(axis=1)
    assert 0 < int(kept.sum()) < int(whole.sum())
    order = np.array([4, 2, 0, 1, 3, 5])
    shuffled = {name: jnp.asarray(np.asarray(value)[order]) for name, value in batch.items()}
    again = np.asarray(read(shuffled, key, train=True)[1]).any(axis=1)
    np.testing.assert_array_equal(again, kept[order])
    np.testing.assert_array_equal(read(batch, key, train=False)[1], batch["phrase_lengths"])
    share = jnp.arange(4000, dtype=jnp.int32)
    many = {"id": share, "phrases": jnp.ones((4000, 1, 1), jnp.int32),
            "phrase_lengths": jnp.ones((4000, 1), jnp.int32)}  # fmt: skip
    often = jax.jit(partial(make_pma(text_dropout=0.3).text, train=True))(many, key)[1]
    assert abs(float(often.mean()) - 0.7) < 0.03


@pytest.mark.parametrize("name", MAKERS)
def test_a_training_step_moves_everything_but_the_teacher(batch, name):
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    optimizer = optax.sgd(0.1)
    mesh = make_mesh(MeshOptions(data=1))
    method = MAKERS[name](dropout=0.1)
    state = initial_state(jax.random.key(0), method, optimizer, spec, mesh=mesh)
    before = jax.device_get((state.params, state.frozen))
    new, metrics = jax.jit(make_train_step(method, optimizer))(state, batch)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), new.params, before[0])
    assert all(jax.tree.leaves(moved)), moved
    jax.tree.map(np.testing.assert_array_equal, new.frozen, before[1])
    assert bool(metrics["finite"])
    assert "frozen" not in str(jax.tree.structure(new.to_save()))


def test_the_student_learns_what_the_teacher_says_of_image_and_text(batch, variables):
    ours = variables["student"]
    method = make_student(temperature=2.0, label_weight=0.3, distill_weight=0.7)
    terms, _, figures = evaluate(method, ours, batch)
    own = without(ours, FROZEN)
    plain = Classifier(num_classes=CLASSES, backbone=NET)
    student = jax.jit(plain.predict)(own, batch)["logits"]
    teacher = make_pma(backbone={**NET, "width": 6})
    taught = jax.jit(teacher.predict)(ours[FROZEN], batch)["logits"]
    soft = 4 * jax.jit(partial(soft_target_cross_entropy, temperature=2.0))(student, taught)
    hard = jax.jit(cross_entropy)(student, batch["label"])
    for name, weight, loss in (("distillation", 0.7, soft), ("cross_entropy", 0.3, hard)):
        np.testing.assert_allclose(terms[name].sum[:5], loss[:5], rtol=1e-4, atol=1e-5)
        assert float(terms[name].sum[5]) == 0.0
        assert float(terms[name].weight) == pytest.approx(weight)
    right = (taught.argmax(-1) == batch["label"]) * batch["mask"]
    np.testing.assert_array_equal(figures["teacher_accuracy"][0], right)
    assert isinstance(method, Taught)


def test_by_default_the_student_sees_no_label(batch, variables):
    run = jax.jit(partial(make_student().loss, train=False))

    def loss(batch):
        return run(variables["student"], batch, jax.random.key(1))[0]

    terms = loss(batch)
    assert terms.keys() == {"distillation"}
    other = loss({**batch, "label": (batch["label"] + 1) % CLASSES})
    jax.tree.map(np.testing.assert_array_equal, terms, other)
    another = loss({**batch, "phrase_lengths": jnp.ones((6, 6), jnp.int32)})
    assert not np.allclose(terms["distillation"].sum, another["distillation"].sum, atol=1e-5)


def test_no_gradient_reaches_the_teacher(batch, variables):
    def loss(frozen):
        terms, *_ = make_student().loss(
            {**variables["student"], FROZEN: frozen}, batch, jax.random.key(1), train=True
        )
        return sum(jnp.sum(term.sum) for term in terms.values())

    grads = jax.jit(jax.grad(loss))(variables["student"][FROZEN])
    assert all(np.abs(np.asarray(g)).max() == 0.0 for g in jax.tree.leaves(grads))


def test_a_teacher_may_want_images_normalised_otherwise(batch, variables):
    student = make_student()
    assert student.teaching.image_mean == student.image_mean
    other = make_student(teacher={**student.teacher, "image_mean": (0.1, 0.2, 0.3)})
    assert other.teaching.image_mean == (0.1, 0.2, 0.3)
    taught = [
        jax.jit(one.teaching.teach)(variables["student"][FROZEN], batch["image"], batch)
        for one in (student, other)
    ]
    assert not np.allclose(*taught, atol=1e-4)


def test_what_ships(batch, variables):
    for name, make in MAKERS.items():
        options = {"text_dropout": 0.2} if name == "pma" else {}
        options |= {"brightness": 0.1} if name != "text" else {}
        method = make(dropout=0.3, **options)
        exported = method.export(variables[name])
        predicted = jax.jit(exported.method.predict)(exported.variables, batch)["logits"]
        expected = jax.jit(method.predict)(variables[name], batch)["logits"]
        np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-6)
        assert exported.method.dropout == getattr(exported.method, "brightness", 0.0) == 0.0
        assert exported.variables.keys() == variables[name].keys() - {FROZEN}
        assert type(exported.method) is (Classifier if name == "student" else type(method))
        with pytest.raises(UserError, match="network is 1; expected 0, the only one"):
            method.export(variables[name], network=1)


def test_evaluators_read_what_is_predicted(batch, variables):
    info = dataclasses.make_dataclass("Info", ["num_classes", "groupings"])(CLASSES, {})
    full = {**batch, "parts": jnp.ones((6, 2, 3)), "other_phrases": batch["phrases"][::-1],
            "other_phrase_lengths": batch["phrase_lengths"][::-1]}  # fmt: skip
    for name, make in MAKERS.items():
        method = make()
        evaluator = EVALUATORS[method.task](info, ("parts",) if "v" in name else (), 1)
        predictions = jax.jit(method.predict)(variables[name], full)
        update = jax.jit(evaluator.update)
        figures = evaluator.finalise(update(evaluator.empty(), predictions, full))
        assert set(figures) == set(evaluator.figures)
        assert figures["examples"] == 5


def test_compute_in_bfloat16_gives_float32_logits(batch):
    method = make_pma(backbone={**NET, "dtype": "bfloat16"})
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    predicted = jax.jit(method.predict)(variables, batch)
    assert predicted["logits"].dtype == predicted["phrase_weights"].dtype == jnp.float32


def test_they_are_registered():
    assert [METHODS[name] for name in ("pma", "pma_vision", "pma_text", "pma_student")] == [
        PMA, PMAVision, PMAText, PMAStudent,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_pma, {"stages": 0}, "stages is 0; expected at least 1"),
        (make_pma, {"local_features": -1}, "local_features is -1; expected at least 0"),
        (make_pma, {"text_dropout": 1.0}, r"text_dropout is 1.0; expected it in \[0, 1\)"),
        (make_pma, {"phrase_features": 0}, "phrase_features is 0; expected at least 1"),
        (make_vision, {"backbone": {"name": "resnet31"}}, "backbone 'resnet31'"),
        (make_text, {"dropout": -0.1}, r"dropout is -0.1; expected it in \[0, 1\)"),
        (make_student, {"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        (make_student, {"teacher": {"stage": 2}}, "teacher.stage is not an option; did you mean"),
        (make_student, {"teacher": {"stages": 0}}, "stages is 0; expected at least 1"),
    ],
)
def test_bad_options_are_told_in_one_line(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
