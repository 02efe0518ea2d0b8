"""What a run starts from, where that was a detector: all of it is taken, or told."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from fgkd_jax.cli.experiment import Experiment, PretrainedOptions, method_to_dict
from fgkd_jax.cli.weights import weights_overlay
from fgkd_jax.data import DetectionOptions
from fgkd_jax.data.options import DataOptions
from fgkd_jax.errors import UserError
from fgkd_jax.methods import Classifier, DefeatFasterRCNN, FasterRCNN, RetinaNet
from fgkd_jax.train.init import abstract_variables
from fgkd_jax.train.pretrained import named_arrays
from fgkd_jax.train.weight_files import save_arrays

TINY = {"name": "resnet_narrow", "stem": "imagenet", "strides": (1, 2), "stage_sizes": (1, 1),
        "dilations": (1, 1), "width": 4}  # fmt: skip
COMMON = {"num_classes": 3, "backbone": TINY, "frozen_stages": 1, "pyramid_stages": (1, 2),
          "pyramid_features": 8}  # fmt: skip
REGIONS = FasterRCNN(**COMMON, proposal_features=8, region_features=8, region_size=2)
DENSE = RetinaNet(**COMMON, extra_levels=0, head_features=8, head_depth=1)
TAUGHT = DefeatFasterRCNN(
    **{f.name: getattr(REGIONS, f.name) for f in dataclasses.fields(REGIONS)},
    teacher={"backbone": {**TINY, "width": 6}},
)
IMAGE = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)}
OF_CLASSES = {
    "faster_rcnn": {f"params/region_head/{layer}/{leaf}" for layer in ("logits", "deltas")
                    for leaf in ("kernel", "bias")},
    "retinanet": {f"params/dense_head/logits/{leaf}" for leaf in ("kernel", "bias")},
}  # fmt: skip


def drawn(method, seed):
    """Variables of a method, all of random numbers."""
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(method, IMAGE)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def flat(variables):
    return flatten_dict(dict(variables), sep="/")


def saved(path, method, seed=1, **metadata):
    there = drawn(method, seed)
    metadata = {"method": {**method_to_dict(method), **metadata}}
    save_arrays(path, named_arrays(there), metadata=metadata)
    return flat(there)


def started(method, **options):
    """Variables before and after files were laid over them."""
    data = DataOptions if isinstance(method, Classifier) else DetectionOptions
    experiment = Experiment(method, data(dataset="none"), pretrained=PretrainedOptions(**options))
    before = drawn(method, 2)
    after = weights_overlay(experiment, method, IMAGE)(before)
    return flat(before), flat(after)


def taken(before, after, there):
    """Names of the variables that are those of the file; all others are as before."""
    changed = {name for name in before if (before[name] != after[name]).any()}
    for name in before:
        source = there if name in changed else before
        np.testing.assert_array_equal(after[name], source[name], err_msg=name)
    return changed


@pytest.mark.parametrize("method", [REGIONS, DENSE], ids=["regions", "dense"])
def test_a_detector_starts_from_all_of_another(method, tmp_path, capsys):
    path = str(tmp_path / "detector.safetensors")
    there = saved(path, method)
    before, after = started(method, path=path)
    assert taken(before, after, there) == set(before) == set(there)
    told = capsys.readouterr().err
    assert told.strip().endswith(f": {len(there)} tensors")
    assert "note" not in told


@pytest.mark.parametrize("method", [REGIONS, DENSE], ids=["regions", "dense"])
def test_layers_of_other_classes_alone_are_new(method, tmp_path, capsys):
    path = str(tmp_path / "detector.npz")
    there = saved(path, dataclasses.replace(method, num_classes=5))
    before, after = started(method, path=path)
    new = OF_CLASSES[method_to_dict(method)["name"]]
    assert new < set(before)
    assert taken(before, after, there) == set(before) - new
    more = f"{sorted(new)[0]} and {len(new) - 1} more"
    assert f"{more} kept as initialised, {more} of the file unused" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"misshapen: params/.*; reinit_head=True starts with new"):
        started(method, path=path, reinit_head=False)


def test_a_student_starts_from_a_detector_without_its_teacher(tmp_path, capsys):
    path = str(tmp_path / "detector.npz")
    there = saved(path, REGIONS)
    before, after = started(TAUGHT, path=path)
    assert taken(before, after, there) == set(there)
    kept = [n for n in before if n not in there and not n.startswith("frozen/")]
    assert {name.split("/")[1] for name in kept} == {"neck_adapters"}
    assert f"{kept[0]} and {len(kept) - 1} more kept" in capsys.readouterr().err


def test_of_another_kind_of_network_the_backbone_is_taken_and_the_rest_told(tmp_path, capsys):
    path = str(tmp_path / "retinanet.npz")
    there = saved(path, DENSE)
    backbone = {name for name in there if "/backbone/" in name}
    rest = [name for name in there if name not in backbone]
    for method, options in (
        (REGIONS, {"path": path}),
        (DENSE, {"others": {"backbone": path}}),
        (Classifier(num_classes=3, backbone=TINY), {"path": path}),
    ):
        before, after = started(method, **options)
        assert taken(before, after, there) == backbone
        told = capsys.readouterr().err
        assert f"{rest[0]} and {len(rest) - 1} more of the file unused" in told


def test_a_detector_that_does_not_fit_is_told(tmp_path):
    path = str(tmp_path / "detector.npz")
    saved(path, dataclasses.replace(REGIONS, pyramid_features=6))
    match = r"misshapen: params/neck/.* more; others.backbone in place of path takes the backbone"
    with pytest.raises(UserError, match=match):
        started(REGIONS, path=path)
    before, after = started(REGIONS, others={"backbone": path})
    assert {n for n in before if (before[n] != after[n]).any()} == {
        name for name in before if "/backbone/" in name
    }


def test_what_a_detector_was_trained_with_is_told_where_it_differs(tmp_path, capsys):
    path = str(tmp_path / "detector.npz")
    saved(path, REGIONS, anchor_scale=2.0, image_std=[1, 1, 1], anchor_samples=9)
    started(REGIONS, path=path)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert notes == [
        f"note: {path} was trained with image_std (1, 1, 1); method.image_std is "
        "(0.229, 0.224, 0.225)",
        f"note: {path} was trained with anchor_scale 2.0; method.anchor_scale is 8.0",
    ]


def test_what_a_classifier_was_trained_with_is_told_where_it_differs(tmp_path, capsys):
    path = str(tmp_path / "classifier.npz")
    method = Classifier(num_classes=3, backbone=TINY)
    saved(path, method, image_mean=[0.5, 0.5, 0.5], dropout=0.5)
    for other in (method, REGIONS):
        started(other, path=path)
        told = capsys.readouterr().err
        assert told.count("note: ") == 1
        assert f"{path} was trained with image_mean (0.5, 0.5, 0.5); method.image_mean is (" in told


def test_a_file_of_numbers_that_are_none_is_refused(tmp_path):
    path = str(tmp_path / "detector.npz")
    there = flat(drawn(REGIONS, 1))
    there["params/region_head/deltas/bias"][0] = np.nan
    save_arrays(path, named_arrays(unflatten_dict(there, sep="/")), metadata={})
    with pytest.raises(UserError, match="not finite numbers: params/region_head/deltas/bias"):
        started(REGIONS, path=path)
