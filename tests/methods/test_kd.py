"""Plain distillation: its terms by hand, a teacher that nothing moves, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import cross_entropy, knowledge_distillation
from fgkd_jax.methods import KD, Classifier
from fgkd_jax.protocols import FROZEN, Taught, split_variables
from fgkd_jax.train.init import initial_state
from fgkd_jax.train.sharding import MeshOptions, make_mesh
from fgkd_jax.train.step import make_train_step

CLASSES = 4
TINY = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
        "width": 4}  # fmt: skip
TEACHER = {"name": "resnet_narrow", "width": 6, "stage_sizes": (1,), "strides": (2,),
           "dilations": (1,), "zero_init_residual": False}  # fmt: skip


def make_method(**options):
    return KD(**{"num_classes": CLASSES, "backbone": TINY, "teacher": TEACHER, **options})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (6, 8, 8, 3), np.uint8)),
        "label": jnp.arange(6, dtype=jnp.int32) % CLASSES,
        "id": jnp.arange(6, dtype=jnp.int32),
        "mask": jnp.ones(6, bool).at[5].set(False),
    }


@pytest.fixture(scope="module")
def variables(batch):
    return jax.jit(make_method().init)(jax.random.key(0), batch)


def alone(backbone, variables, batch, **options):
    """The logits of a plain classifier with these variables."""
    method = Classifier(num_classes=CLASSES, backbone=backbone, **options)
    return jax.jit(method.predict)(variables, batch)["logits"]


def test_the_terms_are_the_losses_of_what_both_say(batch, variables):
    method = make_method(distill_weight=0.7, label_weight=0.3, temperature=2.0)
    terms, state, figures = method.loss(variables, batch, jax.random.key(1), train=False)
    own = {name: value for name, value in variables.items() if name != FROZEN}
    student, teacher = alone(TINY, own, batch), alone(TEACHER, variables[FROZEN], batch)
    expected = {
        "cross_entropy": (0.3, cross_entropy(student, batch["label"])),
        "distillation": (0.7, knowledge_distillation(student, teacher, temperature=2.0)),
    }
    assert terms.keys() == expected.keys()
    for name, (weight, loss) in expected.items():
        np.testing.assert_allclose(terms[name].sum[:5], loss[:5], rtol=1e-4, atol=1e-6)
        assert float(terms[name].sum[5]) == 0.0
        np.testing.assert_array_equal(terms[name].count, batch["mask"])
        assert float(terms[name].weight) == pytest.approx(weight)
        assert terms[name].accumulable
    right = (teacher.argmax(-1) == batch["label"]) * batch["mask"]
    np.testing.assert_array_equal(figures["teacher_accuracy"][0], right)
    assert state.keys() == {"batch_stats"}
    np.testing.assert_allclose(method.predict(variables, batch)["logits"], student, atol=1e-6)


def test_the_teacher_may_want_images_normalised_otherwise(batch, variables):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    method = make_method(teacher_mean=mean, teacher_std=std, label_weight=0.0, temperature=1.0)
    terms, *_ = method.loss(variables, batch, jax.random.key(1), train=False)
    own = {name: value for name, value in variables.items() if name != FROZEN}
    student = alone(TINY, own, batch)
    teacher = alone(TEACHER, variables[FROZEN], batch, image_mean=mean, image_std=std)
    expected = knowledge_distillation(student, teacher, temperature=1.0)
    np.testing.assert_allclose(terms["distillation"].sum[:5], expected[:5], rtol=1e-4, atol=1e-6)


def test_nothing_moves_the_teacher_and_no_checkpoint_holds_it(batch):
    method = make_method(brightness=0.2, dropout=0.1)
    spec = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), batch)
    optimizer = optax.sgd(0.1, momentum=0.9)
    mesh = make_mesh(MeshOptions(data=1))
    state = initial_state(jax.random.key(0), method, optimizer, spec, mesh=mesh)
    before = jax.device_get((state.frozen, state.params, state.model_state))
    saved = jax.tree.structure(state.to_save())
    new, metrics = jax.jit(make_train_step(method, optimizer))(state, batch)
    jax.tree.map(np.testing.assert_array_equal, new.frozen, before[0])
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), (new.params, new.model_state), before[1:]
    )
    assert all(jax.tree.leaves(moved))
    assert before[0].keys() == {"params", "batch_stats"}
    assert "frozen" not in str(saved)
    assert jax.tree.structure(new.to_save()) == saved
    widths = {leaf.shape[-1] for leaf in jax.tree.leaves(new.to_save()["opt_state"]) if leaf.ndim}
    assert 6 not in widths  # no momentum of the teacher's
    assert bool(metrics["finite"])


def test_no_gradient_reaches_the_teacher(batch, variables):
    def loss(frozen):
        terms, *_ = make_method().loss(
            {**variables, FROZEN: frozen}, batch, jax.random.key(1), train=True
        )
        return sum(jnp.sum(term.sum) for term in terms.values())

    grads = jax.jit(jax.grad(loss))(variables[FROZEN])
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


def test_a_teacher_is_among_what_never_changes(variables):
    params, state, fixed = split_variables(variables)
    assert params.keys() == {"backbone", "head"}
    assert state.keys() == {"batch_stats"}
    assert fixed.keys() == {FROZEN}
    assert isinstance(make_method(), Taught)
    assert not isinstance(Classifier(), Taught)


def test_the_student_is_what_ships(batch, variables):
    exported = make_method().export(variables)
    predicted = jax.jit(exported.method.predict)(exported.variables, batch)["logits"]
    expected = jax.jit(make_method().predict)(variables, batch)["logits"]
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-6)
    assert exported.variables.keys() == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": {"name": "resnet31"}}, "backbone 'resnet31'"),
        ({"teacher": {"width": 3}}, r"teacher is .*; expected a key 'name'"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; expected it in \[0, 1\)"),
    ],
)
def test_bad_options_are_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)
