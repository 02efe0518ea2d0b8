"""Backbones by name, and the linear head."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import BACKBONES, feature_shapes, make_backbone
from fgkd_jax.models.heads import LinearHead


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_its_stages(name):
    backbone = make_backbone(name)
    shapes = feature_shapes(backbone, (64, 64))
    assert len(shapes) == backbone.num_stages
    assert all(rows == columns for rows, columns, _ in shapes)
    assert all(before[0] >= after[0] for before, after in itertools.pairwise(shapes))


def test_the_stages_of_resnet50_are_where_they_are_known_to_be():
    assert feature_shapes(make_backbone("resnet50"), (224, 224)) == (
        *((56, 56, 64), (56, 56, 256), (28, 28, 512)),
        *((14, 14, 1024), (7, 7, 2048)),
    )
    tasn = make_backbone("resnet18", strides=[1, 1, 2, 1])
    assert feature_shapes(tasn, (224, 224))[-1] == (28, 28, 512)


def test_equal_options_make_equal_modules():
    assert make_backbone("resnet18", strides=[1, 1, 2, 1]) == make_backbone(
        "resnet18", strides=(1, 1, 2, 1)
    )
    assert make_backbone("resnet18") != make_backbone("resnet34")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "backbone 'resnet51'; did you mean 'resnet50'"),
        ("vit", {}, "backbone 'vit'; expected one of cifar_hcgnet_a1, cifar_hcgnet_a2"),
        ("resnet18", {"widht": 3}, "backbone resnet18: option 'widht'; did you mean 'width'"),
        ("mobilenet_v2", {"stem": "small"}, "backbone mobilenet_v2: option 'stem'; expected one"),
        ("mobilenet_v2", {"width": "1.0"}, "width='1.0'; expected float"),
        ("resnet18", {"zero_init_residual": 1}, "zero_init_residual=1; expected bool"),
        ("resnet18", {"remat": 2}, "remat=2; expected tuple of int"),
    ],
)
def test_mistakes_are_told(name, options, message):
    with pytest.raises(UserError, match=message):
        make_backbone(name, **options)


def test_a_whole_number_may_be_a_width_multiplier():
    assert make_backbone("mobilenet_v2", width=1).width == 1


def head_variables(channels=6, classes=4):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(channels, classes)), rng.normal(size=classes)
    dense = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {"params": {"dense": dense}}


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 5, 6)])
def test_the_head_classifies_the_mean_over_positions(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    v = head_variables()
    logits = LinearHead(4).apply(v, jnp.asarray(x), train=True)
    dense = jax.tree.map(np.asarray, v["params"]["dense"])
    expected = x.reshape(2, -1, 6).mean(axis=1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_logits_are_float32_and_pooled_in_float32():
    # The mean has more digits than bfloat16 keeps.
    x = jnp.asarray(np.random.default_rng(1).uniform(1, 2, (1, 8, 8, 6)), jnp.bfloat16)
    v = head_variables()
    logits = LinearHead(4).apply(v, x, train=False)
    assert logits.dtype == jnp.float32
    dense = jax.tree.map(np.asarray, v["params"]["dense"])
    exact = np.asarray(x, np.float64).mean(axis=(1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(logits, exact, atol=1e-5)


def test_dropout_acts_in_training_only():
    x, v = jnp.ones((2, 3, 3, 6)), head_variables()
    head = LinearHead(4, dropout=0.5)
    calm = head.apply(v, x, train=False)
    dropped = head.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, calm, atol=1e-3)
    np.testing.assert_allclose(calm, LinearHead(4).apply(v, x, train=True), atol=1e-6)


def test_the_head_starts_as_pytorchs_linear_layer():
    params = LinearHead(50).init(jax.random.key(0), jnp.zeros((1, 1, 1, 400)), train=False)
    kernel = params["params"]["dense"]["kernel"]
    assert 0.049 < float(jnp.abs(kernel).max()) <= 0.05
    np.testing.assert_allclose(kernel.std(), 0.05 / 3**0.5, rtol=0.02)
    np.testing.assert_array_equal(params["params"]["dense"]["bias"], 0.0)
