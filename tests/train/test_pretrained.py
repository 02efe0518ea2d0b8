"""Pretrained weights: files, names, what is told when something does not fit, and the way back."""

import functools
import hashlib
import pickle
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from fgkd_jax.errors import UserError
from fgkd_jax.models.backbones import BACKBONES, make_backbone
from fgkd_jax.models.heads import LinearHead
from fgkd_jax.train.pretrained import load_pretrained, to_torch_state_dict
from fgkd_jax.train.torch_families import (
    MOBILENET_V2_SUMS,
    hcgnet_name,
    mobilenet_v2_name,
    resnet_name,
    shufflenet_v2_name,
    vgg_name,
    wide_resnet_name,
)
from fgkd_jax.train.torch_names import family_of, torch_names
from fgkd_jax.train.weight_files import file_sha256, load_arrays

CLASSES = 5
QUANTISED = {"norm": "folded", "padding": "same", "activation_clamps": True}
NETWORKS = {
    "resnet": ("resnet18", {"stage_sizes": (1, 2, 1, 1), "width": 4}),
    "bottlenecks": ("resnet50", {"stage_sizes": (1, 1, 1, 1), "width": 4}),
    "mobilenet_v2": ("mobilenet_v2", {"width": 0.1}),
    "quantised": ("mobilenet_v2", {"width": 0.1, **QUANTISED}),
    "zero_pad": ("cifar_resnet20", {"stage_sizes": (1, 2, 1), "width": 4, "shortcut": "zero_pad"}),
    "wide_resnet": ("wrn_16_2", {"stage_sizes": (1, 2, 1), "width": 2}),
    "shufflenet_v2": ("shufflenet_v2_x0_5", {"stage_sizes": (1, 2, 1), "channels": (4, 6, 8)}),
    "hcgnet": ("cifar_hcgnet_a1", {"stage_sizes": (1, 2, 1), "growth": (4, 8, 4)}),
    "vgg": ("vgg16", {"width": 2}),
    "vgg with norms": ("vgg19_bn", {"width": 2, "stage_sizes": (1, 2, 1)}),
}


class Net(nn.Module):
    """A backbone and a head under the names that the loader expects."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x):
        return self.head(self.backbone(x, train=False)[-1], train=False)


@functools.cache
def shapes_of(name, classes=CLASSES, **options):
    net = Net(make_backbone(name, **options), LinearHead(classes))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def drawn(network, classes=CLASSES, seed=0):
    """Variables with values of their own everywhere."""
    name, options = NETWORKS[network]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        shapes_of(name, classes, **options),
    )


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def save(path, arrays):
    safetensors.numpy.save_file(dict(arrays), path)
    return path


@pytest.fixture
def resnet_file(tmp_path):
    """The file of a small ResNet, and the arrays in it."""
    arrays = to_torch_state_dict(drawn("resnet"))
    return save(tmp_path / "resnet.safetensors", arrays), arrays


# Names


@pytest.mark.parametrize("name", BACKBONES)
def test_every_variable_of_every_backbone_has_one_name_and_every_name_one_variable(name):
    variables = shapes_of(name)
    names = torch_names(variables, family=family_of(variables))
    assert sorted(names.values()) == sorted(flatten_dict(variables))


def test_the_names_are_those_of_torchvision():
    assert resnet_name(("stem", "conv")) == "conv1"
    assert resnet_name(("stem", "norm")) == "bn1"
    assert resnet_name(("stage4", "block2", "conv3")) == "layer4.2.conv3"
    assert resnet_name(("stage1", "block0", "shortcut_conv")) == "layer1.0.downsample.0"
    assert resnet_name(("stage1", "block0", "conv")) is None
    assert mobilenet_v2_name(("stage0", "stem", "conv")) == "features.0.0"
    assert mobilenet_v2_name(("stage0", "block1", "depthwise", "norm")) == "features.1.conv.0.1"
    assert mobilenet_v2_name(("stage0", "block1", "project", "conv")) == "features.1.conv.1"
    assert mobilenet_v2_name(("stage4", "block17", "expand", "conv")) == "features.17.conv.0.0"
    assert mobilenet_v2_name(("stage4", "block17", "project", "norm")) == "features.17.conv.3"
    assert mobilenet_v2_name(("last", "norm")) == "features.18.1"
    assert mobilenet_v2_name(("stage9", "elsewhere")) is None
    assert shufflenet_v2_name(("stem", "norm")) == "conv1.1"
    assert shufflenet_v2_name(("stage3", "last", "conv")) == "conv5.0"
    assert shufflenet_v2_name(("stage3", "block1", "project", "norm")) == "stage4.1.branch2.6"
    assert shufflenet_v2_name(("stage3", "block1", "depthwise", "conv")) == "stage4.1.branch2.3"
    assert shufflenet_v2_name(("stage1", "block0", "side_depthwise", "conv")) == (
        "stage2.0.branch1.0"
    )
    assert shufflenet_v2_name(("stage1", "block0", "squeeze", "conv")) is None
    assert vgg_name(("stage4", "conv28")) == "features.28"
    assert vgg_name(("stage4", "norm41")) == "features.41"
    assert vgg_name(("stage4", "conv")) is None
    assert vgg_name(("stage4", "block1", "conv1")) is None


def test_the_names_are_those_of_the_networks_of_mcl():
    assert wide_resnet_name(("stem", "conv")) == "conv1"
    assert wide_resnet_name(("stage3", "norm")) == "bn1"
    assert wide_resnet_name(("stage3", "block5", "norm2")) == "block3.layer.5.bn2"
    assert wide_resnet_name(("stage1", "block0", "conv1")) == "block1.layer.0.conv1"
    assert wide_resnet_name(("stage1", "block0", "conv")) is None
    assert hcgnet_name(("stem", "conv")) == "features.conv0"
    assert hcgnet_name(("stage3", "norm")) == "features.norm5"
    assert hcgnet_name(("stage2", "transition", "forget_norm")) == "features.Transition2.bn_forget"
    assert hcgnet_name(("stage2", "module7", "large", "norm")) == (
        "features.HybridBlock2.SMG8.conv_5x5.norm"
    )
    assert hcgnet_name(("stage2", "module7", "large")) is None
    assert hcgnet_name(("stage2", "module7", "large", "score")) is None


def test_the_residual_sums_are_those_of_the_network():
    constants = shapes_of("mobilenet_v2", **QUANTISED)["constants"]
    sums = [path for path in flatten_dict(constants) if path[-1] == "add_range"]
    assert sorted(int(path[-2].removeprefix("block")) for path in sums) == list(MOBILENET_V2_SUMS)


# There and back


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_exported_can_be_loaded(network, tmp_path):
    variables = drawn(network)
    path = save(tmp_path / "weights.safetensors", to_torch_state_dict(variables))
    for target in (drawn(network, seed=1), jax.tree.map(np.asarray, drawn(network, seed=1))):
        loaded, report = load_pretrained(target, path)
        assert_same(loaded, variables)
        assert len(report.loaded) == len(jax.tree.leaves(variables))
        assert report.kept == report.unused == ()
        assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_export_is_laid_out_as_pytorch_lays_out():
    for network, name, shape in (
        ("resnet", "layer2.0.downsample.0.weight", (8, 4, 1, 1)),
        ("resnet", "fc.weight", (CLASSES, 32)),
        ("mobilenet_v2", "features.2.conv.1.0.weight", (48, 1, 3, 3)),
    ):
        assert to_torch_state_dict(drawn(network))[name].shape == shape
    v = drawn("resnet")
    exported = to_torch_state_dict(v)["conv1.weight"]
    np.testing.assert_array_equal(
        exported[3, 2, 1, 0], v["params"]["backbone"]["stem"]["conv"]["kernel"][1, 0, 2, 3]
    )


def test_loading_changes_neither_the_arguments_nor_other_networks(resnet_file):
    path, _ = resnet_file
    student = drawn("resnet", seed=1)
    both = {
        "params": {"teacher": drawn("resnet", seed=2)["params"], **student["params"]},
        "batch_stats": {
            "teacher": drawn("resnet", seed=2)["batch_stats"],
            **student["batch_stats"],
        },
        "empty": {},
    }
    before = jax.tree.map(np.array, both)
    loaded, _ = load_pretrained(both, path)
    assert_same(both, before)
    assert loaded["empty"] == {}
    assert_same(loaded["params"]["teacher"], both["params"]["teacher"])
    assert_same(loaded["params"]["backbone"], drawn("resnet")["params"]["backbone"])
    deep, _ = load_pretrained(both, path, backbone="teacher/backbone", head="teacher/head")
    assert_same(deep["params"]["backbone"], student["params"]["backbone"])
    assert_same(deep["batch_stats"]["teacher"], drawn("resnet")["batch_stats"])


def test_a_bare_backbone_is_the_root(resnet_file):
    path, arrays = resnet_file
    bare = {name: tree["backbone"] for name, tree in drawn("resnet", seed=1).items()}
    loaded, report = load_pretrained(bare, path, backbone="", head=None)
    expected = {name: tree["backbone"] for name, tree in drawn("resnet").items()}
    assert_same(loaded, expected)
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    exported = to_torch_state_dict(loaded, backbone="", head=None)
    assert exported.keys() == arrays.keys() - {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_variables_keep_their_dtype(resnet_file, tmp_path, dtype):
    _, arrays = resnet_file
    path = save(tmp_path / "other.safetensors", {k: v.astype(dtype) for k, v in arrays.items()})
    loaded, _ = load_pretrained(drawn("resnet", seed=1), path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
    kernel = loaded["params"]["head"]["dense"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["fc.weight"].T.astype(dtype).astype(np.float32))


# What does not fit


def test_another_number_of_classes_needs_a_word(resnet_file):
    path, _ = resnet_file
    target = drawn("resnet", classes=7, seed=1)
    with pytest.raises(UserError) as caught:
        load_pretrained(target, path)
    message = str(caught.value)
    assert "fc.weight with shape (5, 32), expected (7, 32), for params/head/dense/kernel" in message
    assert "and 1 more; reinit_head=True" in message
    assert "\n" not in message
    loaded, report = load_pretrained(target, path, reinit_head=True)
    assert_same(loaded["params"]["head"], target["params"]["head"])
    assert_same(loaded["params"]["backbone"], drawn("resnet")["params"]["backbone"])
    assert set(report.kept) == set(report.unused) == {"fc.weight", "fc.bias"}
    assert "fc.bias and 1 more kept as initialised" in str(report)


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: without(a, "layer1.0.bn2.running_var"),
            r"missing: layer1.0.bn2.running_var "
            r"\(for batch_stats/backbone/stage1/block0/norm2/var\)$",
        ),
        (lambda a: {**a, "layer9.w": a["fc.bias"]}, r"unexpected: layer9.w \(5,\)$"),
        (
            lambda a: {**a, "conv1.weight": a["conv1.weight"][..., :3, :3].copy()},
            r"misshapen: conv1.weight with shape \(4, 3, 3, 3\), expected \(4, 3, 7, 7\), "
            r"for params/backbone/stem/conv/kernel$",
        ),
        (lambda a: {**a, "fc.bias": a["fc.bias"] * np.nan}, "not finite numbers: fc.bias$"),
        (lambda a: {**a, "fc.bias": a["fc.bias"].astype(np.int32)}, "numbers: fc.bias$"),
        (lambda a: {"w": a["fc.bias"]}, r"of 1 tensors, missing: .* and \d+ more; unexpected: w"),
        (
            lambda a: {**without(a, "bn1.bias"), "odd": a["bn1.bias"]},
            r"missing: bn1.bias .*; unexpected: odd",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(resnet_file, tmp_path, change, message):
    _, arrays = resnet_file
    path = save(tmp_path / "changed.safetensors", change(arrays))
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(drawn("resnet"), path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_skipped_tensors_are_kept_and_unused(resnet_file, tmp_path):
    _, arrays = resnet_file
    odd = {**without(arrays, "layer4.0.conv1.weight"), "layer4.9.odd": arrays["fc.bias"]}
    path = save(tmp_path / "odd.safetensors", odd)
    target = drawn("resnet", seed=1)
    loaded, report = load_pretrained(target, path, skip=["^layer4"])
    for collection in ("params", "batch_stats"):
        new, old = loaded[collection]["backbone"], target[collection]["backbone"]
        assert_same(new["stage4"], old["stage4"])
        assert_same(new["stage3"], drawn("resnet")[collection]["backbone"]["stage3"])
    assert "layer4.0.conv1.weight" in report.kept
    assert "layer4.9.odd" in report.unused
    with pytest.raises(UserError, match="not a regular expression"):
        load_pretrained(target, path, skip=["("])


def test_a_network_may_end_before_that_of_the_file(resnet_file):
    path, arrays = resnet_file
    full = drawn("resnet", seed=1)
    short = {
        name: {"backbone": {k: v for k, v in tree["backbone"].items() if k != "stage4"}}
        for name, tree in full.items()
    }
    with pytest.raises(UserError, match="unexpected: layer4"):
        load_pretrained(short, path, head=None, family="resnet")
    loaded, report = load_pretrained(short, path, head=None, family="resnet", truncated=True)
    expected = drawn("resnet")
    for name, tree in loaded.items():
        for stage, values in tree["backbone"].items():
            assert_same(values, expected[name]["backbone"][stage])
    assert set(report.loaded) | set(report.unused) == set(arrays)
    assert all(name.startswith(("layer4.", "fc.")) for name in report.unused)
    short["params"]["backbone"]["stage9"] = {"kernel": jnp.zeros(1)}
    with pytest.raises(UserError):
        load_pretrained(short, path, head=None, family="resnet", truncated=True)


def test_counters_and_ranges_that_no_variable_wants_are_left_out(tmp_path):
    counters = {"bn1.num_batches_tracked": np.array(3)}
    arrays = to_torch_state_dict(drawn("resnet")) | counters
    _, report = load_pretrained(drawn("resnet"), save(tmp_path / "a.safetensors", arrays))
    assert report.unused == ("bn1.num_batches_tracked",)

    quantised = to_torch_state_dict(drawn("quantised"))
    path = save(tmp_path / "b.safetensors", quantised)
    free = {k: v for k, v in drawn("quantised", seed=1).items() if k != "constants"}
    loaded, report = load_pretrained(free, path)
    assert_same(loaded["params"], drawn("quantised")["params"])
    assert all(name.endswith("out_range") for name in report.unused)


def test_the_ranges_of_sums_may_come_in_one_array(tmp_path):
    arrays = to_torch_state_dict(drawn("quantised"))
    names = [f"features.{block}.add.out_range" for block in MOBILENET_V2_SUMS]
    together = {name: array for name, array in arrays.items() if name not in names}
    together["add.out_range"] = np.stack([arrays[name] for name in names])
    path = tmp_path / "weights.npz"
    np.savez(path, **together)
    assert_same(load_pretrained(drawn("quantised", seed=1), path)[0], drawn("quantised"))
    np.savez(path, **{**together, "add.out_range": together["add.out_range"][:3]})
    with pytest.raises(UserError, match=r"add.out_range has shape \(3, 2\); expected \(10, 2\)"):
        load_pretrained(drawn("quantised"), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "bakbone"}, "nothing under backbone='bakbone'; found backbone, head"),
        ({"head": "top"}, "nothing under head='top'; found .*; head=None leaves it out"),
        ({"family": "resnets"}, "family of weights 'resnets'; did you mean 'resnet'"),
        ({"family": "mobilenet_v2"}, "variable .*/backbone/.* is not part of a mobilenet_v2"),
    ],
)
def test_wrong_places_and_families_are_told(resnet_file, options, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(drawn("resnet"), resnet_file[0], **options)


def test_networks_of_no_family_are_told(resnet_file):
    strange = {"params": {"backbone": {"dense": {"kernel": jnp.zeros((2, 2))}}}}
    with pytest.raises(UserError, match=r"not part of a resnet; .* not part of a mobilenet_v2"):
        load_pretrained(strange, resnet_file[0], head=None)


def test_weights_of_another_network_are_told(tmp_path):
    path = save(tmp_path / "mobile.safetensors", to_torch_state_dict(drawn("mobilenet_v2")))
    with pytest.raises(UserError, match=r"missing: .* and \d+ more; unexpected: .* more$"):
        load_pretrained(drawn("resnet"), path)


# Files

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


def test_safetensors_and_npz_are_read(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    save(tmp_path / "w.safetensors", ARRAYS)
    for suffix in ("npz", "safetensors"):
        assert_same(load_arrays(tmp_path / f"w.{suffix}"), ARRAYS)
        assert_same(load_arrays(str(tmp_path / f"w.{suffix}")), ARRAYS)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}])
def test_pytorch_files_are_read(tmp_path, prefix, wrap):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    state = {prefix + name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}
    torch.save(wrap(state), tmp_path / "w.pth")
    assert_same(load_arrays(tmp_path / "w.pth"), ARRAYS)


def test_pytorchs_bfloat16_is_widened(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    torch.save({"a": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)}, tmp_path / "w.pt")
    assert_same(load_arrays(tmp_path / "w.pt"), {"a": np.array([1.5, 2.0], np.float32)})


class Evil:
    """Runs code of its own when unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["evil.pth", "evil.npz"])
def test_nothing_in_a_file_is_executed(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, a=np.array([Evil()], dtype=object))
    else:
        pytest.importorskip("torch", reason="the extra `torch` is not installed")
        path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(UserError, match="not a readable") as caught:
        load_arrays(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_told(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(1000))
    save(tmp_path / "w.safetensors", ARRAYS)
    for name in ("w.npz", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"something else entirely"):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=r"not a readable .* file of arrays: ") as caught:
                load_arrays(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_damaged_pytorch_files_are_told(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else entirely"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"not a readable \.pth file of arrays: ") as caught:
            load_arrays(path)
        assert "\n" not in str(caught.value)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(UserError, match="holds a list; expected a dict of tensors"):
        load_arrays(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no arrays"):
        load_arrays(path)


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"missing\.npz: no such file"):
        load_arrays(tmp_path / "missing.npz")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"not a weights file; expected one of \.safetensors"):
        load_arrays(tmp_path / "w.h5")
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="holds one array without a name"):
        load_arrays(tmp_path / "one.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(UserError, match="holds no arrays"):
        load_arrays(tmp_path / "none.npz")


def test_a_missing_pytorch_is_told_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'fgkd-jax\[torch\]'"):
        load_arrays(tmp_path / "w.pth")


def test_the_fingerprint_is_that_of_the_bytes(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    assert file_sha256(tmp_path / "w") == hashlib.sha256(b"abc").hexdigest()


def test_variables_may_be_nested_under_any_depth(resnet_file):
    deep = {name: {"networks": {"first": tree}} for name, tree in drawn("resnet", seed=1).items()}
    options = {"backbone": "networks/first/backbone", "head": "networks/first/head"}
    loaded, _ = load_pretrained(deep, resnet_file[0], **options)
    flat = {key[:1] + key[3:]: value for key, value in flatten_dict(loaded).items()}
    assert_same(unflatten_dict(flat), drawn("resnet"))
