"""Every config that comes with the project is built and shape-checked."""

import ast
import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from fgkd_jax.cli.abstract_run import abstract_run
from fgkd_jax.cli.batch_spec import batch_spec
from fgkd_jax.cli.compilation.known_sizes import OVERRIDES, SIZES_OF
from fgkd_jax.cli.config import config_folder, find_config, load_config
from fgkd_jax.cli.experiment import experiment_to_dict, parse_experiment
from fgkd_jax.data.base import DatasetInfo
from fgkd_jax.errors import UserError
from fgkd_jax.methods.defeat_options import strides_of
from fgkd_jax.train.init import abstract_variables, state_sharding
from fgkd_jax.train.sharding import MeshOptions, make_mesh

NAMES = sorted(path.stem for path in config_folder().glob("*.py"))


def completed(experiment, *, batch_size):
    """The method for 7 classes, and a batch."""
    known = {"num_classes": 7}
    shape = None
    if experiment.method.task == "zero_shot":
        shape = (7, 7, 2048)
        known |= {"num_attributes": 5, "word_size": 6}
    info = DatasetInfo("some", tuple("abcdefg"), {"train": 70}, feature_shape=shape)
    spec = batch_spec(info, experiment.data, batch_size=batch_size)
    return dataclasses.replace(experiment.method, **known), spec


def test_there_are_configs():
    assert "classify_birds" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_first_line_is_the_command(name):
    docstring = ast.get_docstring(ast.parse(find_config(name).read_text()))
    line = docstring.splitlines()[0]
    assert line.startswith(f"fgkd train --config configs/{name}.py --workdir runs/"), line


def assert_like(new, state):
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        new.to_save(),
        state.to_save(),
    )


@functools.cache
def prepared(name):
    """The run of a config by its shapes, on as many devices as its batch divides by."""
    experiment = load_config(name, list(OVERRIDES.get(name, ())))
    count = math.gcd(experiment.train.batch_size, len(jax.devices()))
    mesh = make_mesh(experiment.mesh, devices=jax.devices()[:count])
    return abstract_run(experiment, mesh=mesh, sizes_of=SIZES_OF.get(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_step_on_its_mesh_has_consistent_shapes(name):
    run = prepared(name)
    size = len(run.batch["label" if "label" in run.batch else "image"])
    new, metrics = jax.eval_shape(run.steps.train_step, run.state, run.batch)
    assert_like(new, run.state)
    if run.steps.meta_step is not None:
        arguments = (run.state, run.batch, run.batch)
        assert_like(jax.eval_shape(run.steps.meta_step, *arguments)[0], run.state)
    assert metrics["loss"].shape == ()
    assert metrics["example_finite"].shape == (size,)
    predictions = jax.eval_shape(run.method.predict, run.state.variables(), run.batch)
    if run.method.task == "detection":
        assert predictions["boxes"].shape == (size, run.method.max_detections, 4)
        return
    scores = "scores" if run.method.task == "zero_shot" else "logits"
    assert predictions[scores].shape == (size, run.method.num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_devices_can_share_the_parameters_of_every_config(name):
    run, options = prepared(name), MeshOptions(fsdp=8)
    placed = state_sharding(
        run.method,
        run.state.variables(),
        mesh=make_mesh(options),
        placement=options,
        optimizer=run.steps.optimizer,
    )
    for part in ("params", "opt_state"):
        described = jax.tree.leaves(getattr(run.state, part))
        shardings = jax.tree.leaves(getattr(placed, part))
        for leaf, sharding in zip(described, shardings, strict=True):
            parts = 8 if leaf.size >= options.whole_below else 1
            assert np.prod(sharding.shard_shape(leaf.shape)) == leaf.size // parts, leaf.shape


@pytest.mark.parametrize("name", ["mcl_cifar10:dml,wrn_16_2", "lmcl_cifar10:wrn_16_2"])
def test_named_networks_learn_all_of_cifar10(name):
    few, every = load_config(name.partition(":")[0], []), load_config(name, [])
    assert [one["name"] for one in few.method.networks] == ["cifar_resnet20"] * 2
    assert [one["name"] for one in every.method.networks] == ["wrn_16_2"] * 2
    assert few.data.train_fraction == pytest.approx(10_000 / 48_000)
    assert every.data.train_fraction == 1.0
    assert every.train.steps == 30 * 48_000 // every.train.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_survives_its_own_json(name):
    experiment = load_config(name)
    assert parse_experiment(experiment_to_dict(experiment)) == experiment


def test_every_option_can_be_overridden():
    experiment = load_config(
        "classify_birds",
        [
            "--config.train.steps=120",
            "--config.data.data_dir=/data",
            "--config.data.crop_scale=(0.5, 1.0)",
            "--config.method.num_classes=5",
            "--config.method.backbone.width=8",
            "--config.optim.learning_rate=1",
            "--config.features.views=0",
        ],
    )
    assert experiment.train.steps == 120
    assert experiment.data.data_dir == "/data"
    assert experiment.data.crop_scale == (0.5, 1.0)
    assert experiment.method.num_classes == 5
    assert experiment.method.backbone["width"] == 8
    assert experiment.optim.learning_rate == 1.0


VARIANTS = (
    "tasn_birds:uniform",
    "tasn_birds:box",
    "tasn_cub:paper",
    "tasn_cub:reference",
    "tasn_cub:vgg19,336",
    "tasn_cub50:uniform",
    "tasn_cub50:plain",
    "classify_birds:longer",
    "classify_birds:full",
    "faster_rcnn_voc:resnet101",
    "faster_rcnn_bccd:teacher",
    "faster_rcnn_folder:resnet101",
    "defeat_faster_rcnn_folder:object,resnet152",
    "retinanet_coco:resnet101",
    "defeat_faster_rcnn_voc:reference",
    "defeat_faster_rcnn_coco:resnet101",
    "defeat_faster_rcnn_bccd:imitation",
    "defeat_faster_rcnn_birds:object",
    "defeat_faster_rcnn_birds:background",
    "defeat_retinanet_bccd:fine_grained",
    "defeat_retinanet_birds:gaussian",
    "mcl_birds:dml",
    "mcl_birds:afd",
    "mcl_birds:kd",
    "lmcl_birds:uniform",
    "mcl_cifar100:wrn_16_2,cifar_shufflenet_v2_x0_5",
    "mcl_cifar100:dml,cifar_hcgnet_a1",
    "mcl_cifar100:afd,wrn_16_2,cifar_resnet32",
    "mcl_cifar100:kd,cifar_resnet32,wrn_16_2",
    "lmcl_cifar100:wrn_16_2,cifar_resnet32",
    "mcl_cifar10:dml",
    "mcl_imagenet:resnet34,shufflenet_v2_x1_0",
    "mcl_imagenet:ensemble,shufflenet_v2_x0_5",
    "mcl_imagenet:afd,resnet18",
    "mcl_imagenet:kd,resnet18,resnet50",
    "lmcl_imagenet:resnet34,shufflenet_v2_x1_0",
    "mcl_moco_imagenet:resnet50",
    "pma_birds:vision",
    "pma_birds:text",
    "pma_birds:student",
    "pma_birds:plain",
    "pma_cub:vision,vgg19",
    "pma_cub:student",
    "pma_cub:text",
    "pma_flowers:vgg16",
    "pma_cars:vgg16",
    "pma_cub50:plain",
)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_its_config(name):
    experiment = load_config(name)
    assert experiment != load_config(name.partition(":")[0])
    batch_size = 8
    method, spec = completed(experiment, batch_size=batch_size)
    spec["bbox"] = jax.ShapeDtypeStruct((batch_size, 4), np.float32)
    variables = abstract_variables(method, spec)
    predictions = jax.eval_shape(method.predict, variables, spec)
    if method.task == "detection":
        assert predictions["valid"].shape == (batch_size, method.max_detections)
        return
    scores = "scores" if method.task == "zero_shot" else "logits"
    assert predictions[scores].shape == (batch_size, 7)


@pytest.mark.parametrize("name", NAMES)
def test_controls_are_configs(name):
    for control in load_config(name).report.controls:
        assert load_config(control).report.figures[0] == "accuracy"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tasn_cub:referense", "no preset or variant 'referense'; did you mean 'reference'"),
        ("tasn_cub:paper,reference", "several presets"),
        ("tasn_birds:oracle", "no variant 'oracle'; expected one of"),
        ("mcl_birds:dlm", "no preset or comparison 'dlm'; did you mean 'dml'"),
        (
            "mcl_cifar100:kd,wrn_16_2,wrn_16_2,wrn_16_2",
            "3 networks; expected two, the student and its teacher",
        ),
        ("mcl_cifar100:dml,resnet31", "no network 'resnet31'; expected some of cifar_resnet32, "),
        ("mcl_imagenet:dml,wrn_16_2", "no network 'wrn_16_2'; expected some of resnet18, "),
        ("mcl_cifar10:kd", "no variant 'kd'; expected one of"),
        ("lmcl_cifar100:wrn_16_2,", "no network ''; expected some of cifar_resnet32, "),
        ("pma_birds:bimodel", "no variant 'bimodel'; did you mean 'bimodal'"),
        ("pma_cub:vgg16,vgg19", "variant 'vgg16,vgg19' has both vgg16 and vgg19"),
        ("pma_cars:student", "pma_cars has no variant 'student'; expected one of resnet50, "),
        (
            "defeat_faster_rcnn_bccd:imitaton",
            "defeat_faster_rcnn_bccd has no variant 'imitaton'; did you mean 'imitation'",
        ),
        (
            "defeat_retinanet_coco:resnet50",
            "retinanet_coco has no variant 'resnet50'; did you mean",
        ),
        (
            "defeat_faster_rcnn_coco:object,gaussian",
            "variant 'object,gaussian' has both object and gaussian",
        ),
        ("defeat_retinanet_coco:resnet152,resnet101", "has both resnet152 and resnet101"),
        ("defeat_faster_rcnn_voc:resnet152", "no variant 'resnet152'; did you mean 'resnet101'"),
        ("faster_rcnn_voc:resnet110", "no variant 'resnet110'; did you mean 'resnet101'"),
        ("classify_birds:longest", "no variant 'longest'; did you mean 'longer'"),
    ],
)
def test_unknown_variants_are_told_in_one_line(name, message):
    with pytest.raises(UserError, match=message):
        load_config(name)


def test_the_reference_preset_trains_as_released():
    experiment = load_config("tasn_cub:reference,336")
    method, optim = experiment.method, experiment.optim
    assert (method.grid, method.squared_structure, method.teacher_gradient) == (
        "reference",
        True,
        True,
    )
    assert (method.out_size, method.attention_scale, method.temperature) == (336, 7.0, 10.0)
    assert (optim.learning_rate, optim.momentum, optim.weight_decay) == (0.1, 0.0, 0.0)
    assert experiment.train.steps == round(300 * 5994 / 96)


def test_imagenet_is_learned_as_released():
    experiment = load_config("mcl_imagenet")
    method, optim = experiment.method, experiment.optim
    assert (method.num_positives, method.num_negatives, method.bank_momentum) == (2, 8192, 0.5)
    assert (method.temperature, method.soft_temperature, method.embedding_size) == (0.07, 3.0, 128)
    assert tuple(method.contrast_weights.values()) == (0.1, 0.1, 1.0, 1.0)
    assert (optim.learning_rate, optim.weight_decay, optim.decay_factor) == (0.1, 1e-4, 0.1)
    assert experiment.train.batch_size == 256
    layers = load_config("lmcl_imagenet")
    assert (layers.method.num_stages, layers.method.meta_every) == (4, 500)
    assert tuple(layers.method.contrast_weights.values()) == (0.01, 0.01, 1.0, 1.0)
    assert (layers.method.num_positives, layers.method.meta_weight_decay) == (2, 1e-4)
    assert layers.optim.step_boundaries == (0.3, 0.6, 0.9)
    moco = load_config("mcl_moco_imagenet")
    assert (moco.method.queue_size, moco.method.key_momentum) == (65536, 0.999)
    assert set(moco.method.contrast_weights.values()) == {1.0}
    assert (moco.optim.learning_rate, moco.optim.nesterov) == (0.03, False)


def test_defeat_is_learned_as_released():
    experiment = load_config("defeat_faster_rcnn_voc:reference")
    method, optim = experiment.method, experiment.optim
    assert (method.object_weight, method.background_weight, method.mask) == (3.0, 12.0, "boxes")
    assert (method.head_object_weight, method.head_background_weight) == (0.0, 0.0)
    assert (method.adapter_size, method.adapter_std, method.compared_stages) == (3, 1e-4, ())
    assert method.count_padding
    assert method.released_masks
    assert (method.backbone["name"], method.teaching.backbone["name"]) == ("resnet50", "resnet101")
    assert (method.backbone["frozen_norm"], method.frozen_stages) == (".", 2)
    assert method.strides == method.teaching.strides == (4, 8, 16, 32, 64)
    assert experiment.report.figures[0] == "voc07_AP50"
    assert {tuple(sorted(size)) for size in experiment.data.buckets} == {(608, 1024)}
    # 12 passes over the images of both years, in batches of 2 x 8.
    assert (experiment.train.steps, experiment.train.batch_size) == (12 * 16551 // 16, 16)
    assert (optim.name, optim.momentum, optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (optim.learning_rate, optim.clip_norm, optim.warmup_steps) == (0.01, 35.0, 200)
    assert optim.warmup_init == pytest.approx(0.001 * optim.learning_rate)
    assert (optim.schedule, optim.step_boundaries, optim.decay_factor) == ("step", (3 / 4,), 0.1)
    alone, teacher = (load_config(f"faster_rcnn_voc{of}").optim for of in ("", ":resnet101"))
    assert alone == optim
    assert teacher == dataclasses.replace(optim, learning_rate=0.02, warmup_init=0.001 * 0.02)


def test_defeat_has_its_authors_weights_on_coco():
    experiment = load_config("defeat_faster_rcnn_coco")
    method, optim = experiment.method, experiment.optim
    assert (method.object_weight, method.background_weight) == (4.0, 16.0)
    assert (method.stage_object_weight, method.stage_background_weight) == (4.0, 16.0)
    assert strides_of(method, method.compared_stages) == (16, 32)  # the last two
    assert method.compared_stages == (3, 4)
    assert (method.head_object_weight, method.head_background_weight) == (2.0, 2.0)
    assert (method.object_temperature, method.background_temperature) == (1.0, 1.0)
    assert (experiment.train.steps, experiment.train.batch_size) == (12 * 118287 // 16, 16)
    assert (optim.learning_rate, optim.momentum, optim.weight_decay) == (0.02, 0.9, 1e-4)
    assert (optim.clip_norm, optim.warmup_steps, optim.warmup_init) == (0.0, 500, 0.001 * 0.02)
    assert (optim.step_boundaries, optim.decay_factor) == ((8 / 12, 11 / 12), 0.1)
    dense = load_config("defeat_retinanet_coco")
    assert (dense.optim.learning_rate, dense.optim.clip_norm) == (0.01, 35.0)
    assert (dense.method.object_weight, dense.method.background_weight) == (4.0, 16.0)
    assert dense.method.compared_stages == ()


def test_a_config_takes_an_argument():
    assert load_config("classify_imagenet:resnet18").method.backbone["name"] == "resnet18"
