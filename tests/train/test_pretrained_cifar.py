"""Weights of networks for CIFAR: published ones, and the references of MCL and L-MCL.

The references are outputs of the released PyTorch networks on drawn weights: in evaluation, in
training, and the running statistics after that one training batch.
"""

import functools
import io
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Branched(nn.Module):
    """A network with, behind each stage but the last, a private copy of the stages that follow."""

    backbone: nn.Module
    head: nn.Module
    branches: tuple[nn.Module, ...] = ()
    heads: tuple[nn.Module, ...] = ()

    def __call__(self, x, *, train):
        stages = self.backbone(x, train=train)
        maps = [
            branch(stages[index], train=train, start=index + 1)[-1]
            for index, branch in enumerate(self.branches, start=1)
        ]
        heads = (*self.heads, self.head)
        pairs = zip((*maps, stages[-1]), heads, strict=True)
        return [(x.mean((1, 2)), head(x, train=train)) for x, head in pairs]


def network(name, *, classes, branches=0, **options):
    parts = [make_backbone(name, **options) for _ in range(1 + branches)]
    heads = [LinearHead(classes) for _ in parts]
    return Branched(parts[0], heads[0], tuple(parts[1:]), tuple(heads[1:]))


def shapes_of(net):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=False))


def run(net, variables, x, *, train):
    """What comes out, and in training the new statistics."""
    mutable = ["batch_stats"] if train else False
    return jax.jit(functools.partial(net.apply, train=train, mutable=mutable))(variables, x)


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def read(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def below(arrays, prefixes):
    """The arrays whose names start with one of the prefixes, which is exchanged for its value."""
    return {
        new + name.removeprefix(old): array
        for name, array in arrays.items()
        for old, new in prefixes.items()
        if name.startswith(old)
    }


# Published weights of CIFAR-10


def first_images(folder, count):
    """The first test images, normalised as the weights were trained."""
    archive = read(folder / "test.npz")
    data, offsets = archive["jpeg"].tobytes(), archive["offsets"]
    files = [data[a:b] for a, b in itertools.pairwise(offsets[: count + 1])]
    images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    return ((images / 255 - MEAN) / STD).astype(np.float32)


@pytest.mark.parametrize("depth", [20, 32])
def test_the_published_weights_give_their_logits(shared, depth):
    folder = shared / "data" / "cifar10_resnet_weights"
    net = network(f"cifar_resnet{depth}", classes=10, shortcut="zero_pad")
    variables, report = load_pretrained(shapes_of(net), folder / f"resnet{depth}.npz")
    assert report.kept == report.unused == ()
    x = first_images(shared / "data" / "cifar10_jpeg", 100)
    [(_, logits)] = run(net, variables, x, train=False)
    expected = np.load(folder / f"resnet{depth}_logits_first100.npy")
    np.testing.assert_allclose(logits, expected, atol=1e-3)


# The references


def assert_close(ours, theirs, **options):
    """To 1e-5 of the largest value: on drawn weights, logits go up to some thousands."""
    atol = 1e-5 * float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, **options)


def assert_parity(net, variables, arrays, *, outputs, statistics):
    """Embeddings and logits, evaluated and trained, and the statistics after training."""
    x = jnp.asarray(arrays["in_x"].transpose(0, 2, 3, 1))
    evaluated = run(net, variables, x, train=False)
    trained, new = run(net, variables, x, train=True)
    for mode, results in (("eval", evaluated), ("train", trained)):
        for output, (embedding, logits) in zip(outputs, results, strict=True):
            assert_close(embedding, arrays[f"{mode}_emb_{output}"])
            assert_close(logits, arrays[f"{mode}_logits_{output}"])
    for place, expected in statistics.items():
        after = to_torch_state_dict({**variables, **new}, **place._asdict())
        before = to_torch_state_dict(variables, **place._asdict())
        norms = {name for name in after if name.endswith(("running_mean", "running_var"))}
        assert norms == expected.keys()
        for name in norms:
            assert_close(after[name], expected[name], err_msg=name)
            assert np.abs(before[name] - expected[name]).max() > 1e-3, name


class Place(NamedTuple):
    """Where a network is in the variables."""

    backbone: str
    head: str


@pytest.mark.parametrize("index", [0, 1])
def test_the_networks_of_mcl(shared, tmp_path, index):
    arrays = read(shared / "golden" / "mcl" / "model_resnet32_n2.npz")
    theirs = f"module_list.{index}."
    net = network("cifar_resnet32", classes=100)
    path = saved(tmp_path / "one.npz", below(arrays, {f"param_{theirs}": ""}))
    variables, report = load_pretrained(shapes_of(net), path)
    assert all(name.endswith("num_batches_tracked") for name in report.unused)
    statistics = below(arrays, {f"after_train_{theirs}": ""})
    assert_parity(
        *(net, variables, arrays),
        outputs=[index],
        statistics={Place("backbone", "head"): statistics},
    )


def test_the_network_of_lmcl_with_its_branches(shared, tmp_path):
    arrays = read(shared / "golden" / "lmcl" / "model_lmcl_resnet32_n1.npz")
    net = network("cifar_resnet32", classes=100, branches=2)
    auxiliary = "auxiliary_classifier."
    parts = {  # ours: theirs, and how torchvision calls what is below
        Place("backbone", "head"): {"backbone.": ""},
        Place("branches_0", "heads_0"): {
            f"{auxiliary}block_extractor1.0.": "layer2.",
            f"{auxiliary}block_extractor1.1.": "layer3.",
            f"{auxiliary}fc1.": "fc.",
        },
        Place("branches_1", "heads_1"): {
            f"{auxiliary}block_extractor2.0.": "layer3.",
            f"{auxiliary}fc2.": "fc.",
        },
    }

    def of(kind, names):
        return below(arrays, {f"{kind}module_list.0.{old}": new for old, new in names.items()})

    variables = shapes_of(net)
    for number, (place, names) in enumerate(parts.items()):
        path = saved(tmp_path / f"{number}.npz", of("param_", names))
        variables, report = load_pretrained(variables, path, **place._asdict())
        assert report.kept == ()
        assert all(name.endswith("num_batches_tracked") for name in report.unused)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))  # none is left
    assert_parity(
        *(net, variables, arrays),
        outputs=["0_0", "0_1", "0_2"],
        statistics={place: of("after_train_", names) for place, names in parts.items()},
    )


# What a file calls the classifier


@pytest.mark.parametrize("called", ["fc", "linear", "classifier"])
def test_the_classifier_may_have_any_of_its_names(tmp_path, called):
    net = network("cifar_resnet20", classes=5, stage_sizes=(1, 1, 1), width=4)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes_of(net))
    arrays = to_torch_state_dict(drawn)
    renamed = {name.replace("fc.", f"{called}."): array for name, array in arrays.items()}
    path = saved(tmp_path / "weights.npz", renamed)
    loaded, report = load_pretrained(shapes_of(net), path)
    jax.tree.map(np.testing.assert_array_equal, loaded, drawn)
    assert report.kept == report.unused == ()
    # Left out where there is no head, as any classifier.
    bare, report = load_pretrained(shapes_of(net), path, head=None)
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    jax.tree.map(
        np.testing.assert_array_equal, bare["params"]["backbone"], drawn["params"]["backbone"]
    )


def test_two_classifiers_are_not_guessed_between(tmp_path):
    net = network("cifar_resnet20", classes=5, stage_sizes=(1, 1, 1), width=4)
    arrays = to_torch_state_dict(jax.tree.map(lambda s: jnp.ones(s.shape), shapes_of(net)))
    both = {name.replace("fc.", "linear."): array for name, array in arrays.items()}
    both |= {name.replace("fc.", "classifier."): array for name, array in arrays.items()}
    with pytest.raises(UserError, match=r"missing: fc\..* unexpected: linear\.") as caught:
        load_pretrained(shapes_of(net), saved(tmp_path / "weights.npz", both))
    assert "\n" not in str(caught.value)
