"""VGG's pretrained weights: torchvision's and timm's files, whose classifiers are not ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

CLASSES = 5
# The layers of a published classifier (here narrow), by their names: torchvision's, timm's.
CLASSIFIERS = {
    "torchvision": {
        "classifier.0.weight": (6, 16 * 49),
        "classifier.0.bias": (6,),
        "classifier.3.weight": (6, 6),
        "classifier.3.bias": (6,),
        "classifier.6.weight": (10, 6),
        "classifier.6.bias": (10,),
    },
    "timm": {
        "pre_logits.fc1.weight": (6, 16, 7, 7),
        "pre_logits.fc1.bias": (6,),
        "pre_logits.fc2.weight": (6, 6, 1, 1),
        "pre_logits.fc2.bias": (6,),
        "head.fc.weight": (10, 6),
        "head.fc.bias": (10,),
    },
}


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x):
        return self.head(self.backbone(x, train=False)[-1], train=False)


@functools.cache
def drawn(name="vgg16_bn", *, classes=CLASSES, seed=0):
    """Variables of a narrow network with values of their own everywhere."""
    net = Net(make_backbone(name, width=2), LinearHead(classes))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def features_of(name="vgg16_bn"):
    """A published file's part below `features`, with the counters of its norms."""
    arrays = to_torch_state_dict(drawn(name), head=None)
    norms = [key.removesuffix("running_var") for key in arrays if key.endswith("running_var")]
    return arrays | {f"{norm}num_batches_tracked": np.array(7) for norm in norms}


def published(source, name="vgg16_bn"):
    shapes = CLASSIFIERS[source]
    # NaN: so does torchvision fill the classifier that its weights of features alone come with.
    return features_of(name) | {key: np.full(s, np.nan, np.float32) for key, s in shapes.items()}


def save(path, arrays):
    safetensors.numpy.save_file(dict(arrays), path)
    return path


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("source", CLASSIFIERS)
@pytest.mark.parametrize("name", ["vgg16", "vgg19_bn"])
def test_published_features_load_under_a_new_head(tmp_path, source, name):
    path = save(tmp_path / "weights.safetensors", published(source, name))
    target, expected = drawn(name, seed=1), drawn(name)
    loaded, report = load_pretrained(target, path, reinit_head=True)
    for collection, tree in expected.items():
        assert_same(loaded[collection]["backbone"], tree["backbone"])
    assert_same(loaded["params"]["head"], target["params"]["head"])
    assert set(report.kept) == {"head.fc.weight", "head.fc.bias"}
    counters = {key for key in report.unused if key.endswith("num_batches_tracked")}
    assert set(report.unused) - counters == CLASSIFIERS[source].keys()
    assert len(counters) == (16 if name == "vgg19_bn" else 0)


@pytest.mark.parametrize("source", CLASSIFIERS)
def test_published_features_load_into_a_bare_backbone(tmp_path, source):
    path = save(tmp_path / "weights.safetensors", published(source))
    bare = {collection: tree["backbone"] for collection, tree in drawn(seed=1).items()}
    loaded, report = load_pretrained(bare, path, backbone="", head=None)
    assert_same(loaded, {collection: tree["backbone"] for collection, tree in drawn().items()})
    assert report.kept == ()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "torchvision",
            r"missing: head\.fc\.bias \(for params/head/dense/bias\) and 1 more; "
            r"unexpected: classifier\.0\.bias \(6,\) and 5 more",
        ),
        (
            "timm",
            r"unexpected: pre_logits\.fc1\.bias \(6,\) and 3 more; "
            r"misshapen: head\.fc\.weight with shape \(10, 6\), expected \(5, 16\), "
            r"for params/head/dense/kernel and 1 more; not finite .*",
        ),
    ],
)
def test_a_classifier_of_three_layers_is_not_the_head(tmp_path, source, told):
    path = save(tmp_path / "weights.safetensors", published(source))
    with pytest.raises(
        UserError, match=f"{told}; reinit_head=True starts with a new head$"
    ) as caught:
        load_pretrained(drawn(), path)
    assert "\n" not in str(caught.value)


def test_a_linear_layer_on_the_last_map_is_the_head(tmp_path):
    linear = {"head.fc.weight": np.ones((CLASSES, 16)), "head.fc.bias": np.zeros(CLASSES)}
    path = save(tmp_path / "weights.safetensors", features_of() | linear)
    loaded, _ = load_pretrained(drawn(seed=1), path)
    np.testing.assert_array_equal(loaded["params"]["head"]["dense"]["kernel"], 1.0)
    message = r"head.fc.weight with shape \(5, 16\), expected \(7, 16\).*; reinit_head=True"
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(drawn(classes=7), path)
    assert "\n" not in str(caught.value)


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: without(a, "features.41.running_mean"),
            r"missing: features.41.running_mean \(for batch_stats/backbone/stage4/norm41/mean\)$",
        ),
        (
            lambda a: without(a, "features.40.bias"),
            r"missing: features.40.bias \(for params/backbone/stage4/conv40/bias\)$",
        ),
        (
            lambda a: {**a, "features.0.weight": a["features.0.weight"][:, :1].copy()},
            r"misshapen: features.0.weight with shape \(2, 1, 3, 3\), expected \(2, 3, 3, 3\), "
            r"for params/backbone/stage0/conv0/kernel$",
        ),
        (lambda a: {**a, "extra.w": np.zeros(3)}, r"unexpected: extra.w \(3,\)$"),
        (
            lambda a: {**a, "features.1.bias": np.full(2, np.inf)},
            "finite numbers: features.1.bias$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    path = save(tmp_path / "changed.safetensors", change(published("torchvision")))
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(drawn(), path, reinit_head=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "network"),
    [("vgg16", "vgg16_bn"), ("vgg16_bn", "vgg16"), ("vgg16", "vgg19"), ("vgg16_bn", "vgg19_bn")],
)
def test_weights_of_another_vgg_are_told(tmp_path, file, network):
    path = save(tmp_path / "other.safetensors", published("torchvision", file))
    with pytest.raises(UserError, match=r"missing: features\.|misshapen: features\.") as caught:
        load_pretrained(drawn(network), path, reinit_head=True)
    assert "\n" not in str(caught.value)
    assert "reinit_head" not in str(caught.value)
