"""`fgkd bench`: how samples are taken and summed up, what is compared, what is refused."""

import dataclasses
import json
import sys
import threading
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fgkd_jax.cli.bench import COMMAND
from fgkd_jax.cli.benchmarks import (
    BENCHMARKS,
    base,
    data,
    depthwise,
    record,
    step,
    timing,
    torch_models,
    torch_step,
)
from fgkd_jax.cli.benchmarks.timing import Alternative, Case, Measured, Spread, Times
from fgkd_jax.cli.experiment import parse_experiment
from fgkd_jax.cli.main import main
from fgkd_jax.data.options import DataOptions
from fgkd_jax.data.registry import open_dataset
from fgkd_jax.data.transforms import crop_and_resize
from fgkd_jax.errors import UserError
from fgkd_jax.methods.classifier import Classifier
from fgkd_jax.train.sharding import put_batch

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
QUICK = ["--repeats", "2", "--seconds", "0.001"]
SMALL = """
from ml_collections import ConfigDict


def get_config():
    backbone = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (1,),
                "dilations": (1,)}
    return ConfigDict({
        "method": {"name": "classifier", "num_classes": 3, "backbone": backbone},
        "data": {"image_size": 8},
        "optim": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 10, "batch_size": 8},
        "mesh": {"data": 2},
    })
"""
PLAIN = [  # what the comparison with torch needs of the config in conftest.py
    "--config.mesh.data=1",
    "--config.method.backbone.norm_groups=1",
    "--config.method.brightness=0",
    "--config.optim.ema_decay=0",
]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the extra `bench` is not installed")


class FakeClock:
    """A clock that only moves when work is done, and a log of the work."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def alternative(self, name, *, seconds, first=0.0):
        """Each call takes the next of `seconds`, the very first one `first` more."""
        costs = iter(seconds)
        extra = [first]

        def run(count):
            self.log.append((name, count))
            self.now += count * next(costs) + (extra.pop() if extra else 0.0)

        return Alternative(name, run)


def case(*alternatives, **kwargs):
    return Case("work", {"n": 3}, alternatives, **kwargs)


def measured(ours, other, **kwargs):
    times = {"ours": Times(9.0, 2, ours), "other": Times(8.0, 1, other)}
    return Measured(case(**kwargs), times)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4.0], Spread(4.0, 4.0, 4.0)),
        ([5.0, 1.0, 2.0], Spread(2.0, 1.0, 5.0)),
        ([8.0, 1.0, 2.0, 4.0], Spread(3.0, 1.0, 8.0)),
    ],
)
def test_spread_is_exact(values, expected):
    assert timing.spread(values) == expected


def test_ratios_pair_the_samples_of_one_repetition():
    ours, other = [1.0, 4.0, 2.0], [3.0, 4.0, 8.0]
    assert timing.ratios(ours, other) == (3.0, 1.0, 4.0)
    # The ratio of the medians would be 2.
    assert timing.spread(timing.ratios(ours, other)) == Spread(3.0, 1.0, 4.0)
    with pytest.raises(ValueError, match="longer"):
        timing.ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("per_call", "expected"), [(2.0, 1), (1.0, 1), (0.3, 4), (0.25, 4), (0.0, timing.MAX_CALLS)]
)
def test_a_sample_is_at_least_as_long_as_asked_for(per_call, expected):
    assert timing.calls_for(1.0, per_call=per_call) == expected


def test_alternatives_take_turns():
    clock = FakeClock()
    result = timing.measure(
        case(
            clock.alternative("a", seconds=[0.5, 0.5, 1.0, 2.0, 4.0], first=7.0),
            clock.alternative("b", seconds=[2.0, 2.0, 3.0, 2.0, 2.0], first=1.0),
        ),
        repeats=3,
        seconds=1.0,
        clock=clock,
    )
    first, second, turn = [("a", 1), ("b", 1)], [("a", 1), ("b", 1)], [("a", 2), ("b", 1)]
    assert clock.log == [*first, *second, *turn, *turn, *turn]
    assert result.times == {
        "a": Times(first_call=7.5, calls=2, samples=(1.0, 2.0, 4.0)),
        "b": Times(first_call=3.0, calls=1, samples=(3.0, 2.0, 2.0)),
    }
    assert result.ours == "a"
    assert result.case.alternatives == ()


def test_what_surrounds_a_sample_is_not_timed():
    clock = FakeClock()

    def aside():
        clock.log.append("aside")
        clock.now += 100.0

    one = dataclasses.replace(clock.alternative("a", seconds=[2.0] * 3), begin=aside, end=aside)
    result = timing.measure(case(one), repeats=1, seconds=1.0, clock=clock)
    assert result.times["a"] == Times(first_call=102.0, calls=1, samples=(2.0,))
    assert clock.log == ["aside", ("a", 1), "aside"] * 3


def test_a_failing_alternative_is_cleared_up_after():
    ended = []
    one = Alternative("a", lambda count: 1 / 0, end=lambda: ended.append(True))
    with pytest.raises(ZeroDivisionError):
        timing.measure(case(one), repeats=1, seconds=1.0)
    assert ended == [True]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"repeats": 0, "seconds": 1.0}, "repeats is 0; expected at least 1"),
        ({"repeats": 1, "seconds": 0.0}, "seconds is 0.0; expected a number above 0"),
        ({"repeats": 1, "seconds": float("nan")}, "seconds is nan; expected a number above 0"),
    ],
)
def test_measure_says_what_is_out_of_range(kwargs, message):
    with pytest.raises(UserError) as error:
        timing.measure(case(), **kwargs)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("chained", "platform", "expected"),
    [(False, "cpu", [1, 2, 3, 3]), (True, "cpu", [3]), (False, "gpu", [3])],
)
def test_jax_is_waited_for(monkeypatch, chained, platform, expected):
    waited, made = [], iter([1, 2, 3])
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    timing.jax_alternative("a", lambda: next(made), chained=chained).run(3)
    assert waited == expected


@pytest.mark.parametrize(
    ("kind", "expected"), [("cpu", ["call"] * 2), ("cuda", ["call"] * 2 + ["wait"])]
)
def test_torch_is_waited_for(monkeypatch, kind, expected, torch):
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    device = types.SimpleNamespace(type=kind)
    timing.torch_alternative("t", lambda: log.append("call"), device=device).run(2)
    assert log == expected


def test_a_case_becomes_json():
    values = timing.to_dict(measured((1.0, 4.0, 2.0), (3.0, 4.0, 8.0), images=6, notes=("n",)))
    assert json.loads(json.dumps(values)) == {
        "case": "work",
        "sizes": {"n": 3},
        "ours": "ours",
        "unit": "seconds per call",
        "alternatives": {
            "ours": {
                "samples": [1.0, 4.0, 2.0], "median": 2.0, "min": 1.0, "max": 4.0,
                "calls_per_sample": 2, "first_call": 9.0, "images_per_second": 3.0,
            },
            "other": {
                "samples": [3.0, 4.0, 8.0], "median": 4.0, "min": 3.0, "max": 8.0,
                "calls_per_sample": 1, "first_call": 8.0, "images_per_second": 1.5,
                "ratio": {"samples": [3.0, 1.0, 4.0], "median": 3.0, "min": 1.0, "max": 4.0},
            },
        },
        "notes": ["n"],
    }  # fmt: skip


def test_the_table_has_a_row_per_alternative():
    lines = timing.table([measured((0.001, 0.002), (0.003, 0.004), images=2, notes=("n",))])
    head, _, ours, other, _, meaning, note = lines.splitlines()
    assert head.split("  ")[0] == "case"
    assert ours.split() == ["work", "ours", "1.5000", "1.0000", "2.0000", "1333", "9.0000"]
    assert other.split()[-3:] == ["2.5000", "2.0000", "3.0000"]
    assert timing.RATIO in meaning
    assert note == "n"
    assert "images/s" not in timing.table([measured((1.0,), (1.0,))])


@pytest.mark.parametrize(
    ("load", "notes"), [(0.0, ["given"]), (1e6, ["given", "shared"]), (None, ["given"])]
)
def test_a_record_says_what_it_was_made_with(load, notes):
    made = record.record(
        [measured((1.0,), (2.0,))],
        name="work",
        command="fgkd bench work",
        settings={"repeats": 1},
        load_before=load,
        notes=["given"],
    )
    assert made["ratio"] == "alternative seconds / ours seconds; above 1 means ours is faster"
    assert made["command"] == "fgkd bench work"
    assert {"jax", "fgkd_jax", "device", "python"} <= made["versions"].keys()
    assert made["machine"]["cpus"] >= 1
    assert made["machine"]["load_before"] == load
    assert made["cases"][0]["alternatives"]["other"]["ratio"]["median"] == 2.0
    assert len(made["notes"]) == len(notes)
    assert ("shared" in notes) == any("the machine was shared: load" in n for n in made["notes"])


def error_of(capsys, *arguments):
    capsys.readouterr()
    assert main(["bench", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("fgkd: error: ")


def test_wrong_arguments_are_told_in_one_line(capsys, config, tmp_path):
    names = ", ".join(BENCHMARKS)
    assert error_of(capsys) == f"fgkd bench needs one name; expected one of {names}"
    assert error_of(capsys, "step", "data").startswith("fgkd bench needs one name")
    assert error_of(capsys, "steps") == "fgkd bench has no 'steps'; did you mean 'step'?"
    assert error_of(capsys, "step").startswith("fgkd bench step needs --config")
    assert "takes no --config" in error_of(capsys, "depthwise", "--config", config)
    assert "there is no --config" in error_of(capsys, "step", "--config.seed=1")
    unknown = error_of(capsys, "data", "--config", config, "--against", "torch")
    assert unknown == "fgkd bench data knows no alternative 'torch'; expected one of pillow"
    close = error_of(capsys, "depthwise", "--against", "torch_channel_last")
    assert close.endswith("did you mean 'torch_channels_last'?")
    assert "batch_size is 0" in error_of(capsys, "depthwise", "--batch_size", "0")
    assert "num_workers is 2" in error_of(
        capsys, "data", "--config", config, "--config.data.num_workers=2"
    )


def test_nothing_is_written_over(capsys, tmp_path):
    taken = tmp_path / "result.json"
    taken.write_text("mine")
    assert "exists; expected a new file" in error_of(capsys, "depthwise", "--output", taken)
    assert taken.read_text() == "mine"
    with pytest.raises(UserError, match="exists"):
        record.write(str(taken), {})
    missing = tmp_path / "none" / "result.json"
    assert "there is no folder" in error_of(capsys, "depthwise", "--output", missing)


def test_without_torch_the_extra_is_named(capsys, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    step_error = error_of(capsys, "step", "--config", config, "--against", "torch", *PLAIN)
    assert step_error == "comparing with PyTorch needs it: pip install 'fgkd-jax[bench]'"
    assert error_of(capsys, "depthwise", "--against", "torch") == step_error


def test_torch_has_to_share_the_device(monkeypatch, torch):
    assert torch_models.torch_device() == torch.device("cpu")
    for platform in ("tpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match=f"cannot use the {platform} that JAX uses"):
            torch_models.torch_device()


def test_the_help_knows_every_benchmark():
    text = COMMAND.help()
    for name, benchmark in BENCHMARKS.items():
        assert f"  {name} " in text
        assert benchmark.name == name
        assert all(alternative in text for alternative in benchmark.against)
        assert set(benchmark.default_against) <= set(benchmark.against)


def experiment(*, optim=None, train=None, data=None, mesh=1, **method):
    """A tiny experiment; `method` holds options of the classifier."""
    backbone = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (1,)}
    backbone |= {"dilations": (1,), **method.pop("backbone", {})}
    return parse_experiment(
        {
            "method": {"name": "classifier", "num_classes": 3, "backbone": backbone, **method},
            "data": {"image_size": 8, **(data or {})},
            "optim": {"name": "sgd", "learning_rate": 0.05, **(optim or {})},
            "train": {"steps": 10, "batch_size": 4, **(train or {})},
            "mesh": {"data": mesh},
        }
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_stages": 1}, "config.method.frozen_stages is 1; the comparison with torch"),
        ({"contrast": 0.5}, "config.method.contrast is 0.5"),
        ({"backbone": {"norm_groups": 2}}, "config.method.backbone.norm_groups is 2"),
        ({"backbone": {"remat": (1,)}}, "config.method.backbone.remat is (1,)"),
        ({"backbone": {"dtype": "float16"}}, "expected float32 or bfloat16"),
        ({"optim": {"name": "rmsprop"}}, "config.optim.name 'rmsprop' is not compared; expected"),
        ({"optim": {"ema_decay": 0.9}}, "config.optim.ema_decay is 0.9"),
        ({"optim": {"rules": ({"pattern": "a"},)}}, "config.optim.rules is"),
        ({"train": {"accumulate": 2}}, "config.train.accumulate is 2"),
    ],
)
def test_what_torch_does_not_compute_is_refused(options, message):
    with pytest.raises(UserError) as error:
        torch_step.check_comparable(experiment(**options), devices=1)
    assert message in str(error.value)


def test_other_networks_and_several_devices_are_refused():
    tiny = experiment()
    torch_step.check_comparable(tiny, devices=1)
    with pytest.raises(UserError, match=r"config.mesh.data is 2; .* expects 1"):
        torch_step.check_comparable(tiny, devices=2)
    method = dataclasses.replace(tiny.method, backbone={"name": "mobilenet_v2"})
    with pytest.raises(UserError, match="'mobilenet_v2', which has no counterpart in torch"):
        torch_step.check_comparable(dataclasses.replace(tiny, method=method), devices=1)


def random_variables(method, spec, *, seed):
    """Variables of every kind away from their initial values, where much would go unnoticed."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(method.init, jax.random.key(0), dict(spec)))


@pytest.mark.parametrize(
    ("backbone", "tolerance"),
    [
        ({"stage_sizes": (2, 1), "strides": (1, 2), "dilations": (1, 1)}, 2e-5),
        (
            {
                "name": "resnet50",
                "stage_sizes": (1, 2),
                "strides": (2, 1),
                "dilations": (1, 2),
            },
            2e-5,
        ),
        ({"dtype": "bfloat16"}, 0.02),
    ],
)
def test_the_network_in_torch_is_ours(torch, backbone, tolerance):
    prepared = step.prepared(experiment(backbone=backbone, data={"image_size": 18}))
    method, spec = prepared.method, step.image_spec(prepared.data, batch_size=3)
    variables = random_variables(method, spec, seed=1)
    batch = step.random_batch(spec, num_classes=3)
    expected = jax.jit(method.predict)(variables, batch)["logits"]
    assert np.std(expected) > 10 * tolerance

    rival = torch_step.make_torch_step(prepared, variables, batch, layout="channels_last")
    network = rival.network.eval()
    with torch.no_grad():
        found = network(torch.from_numpy(batch["image"]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.numpy(), expected, atol=tolerance, rtol=tolerance)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert torch_models.parameter_count(network) == count


def test_weights_of_another_network_are_refused(torch):
    prepared = step.prepared(experiment())
    spec = step.image_spec(prepared.data, batch_size=2)
    variables = random_variables(prepared.method, spec, seed=0)
    wider = step.prepared(experiment(backbone={"stage_sizes": (2,)}))
    batch = step.random_batch(spec, num_classes=3)
    with pytest.raises(UserError, match=r"in torch and ours differ in 'layer1.1.bn1.bias'"):
        torch_step.make_torch_step(wider, variables, batch, layout="contiguous_format")


@pytest.mark.parametrize(
    "optim",
    [
        {"nesterov": True, "weight_decay": 0.1, "warmup_steps": 2, "clip_norm": 0.5},
        {"name": "adam", "weight_decay": 0.1, "epsilon": 1e-3},
        {"name": "adamw", "weight_decay": 0.1, "epsilon": 1e-3, "decay_vectors": True},
    ],
)
def test_the_step_in_torch_is_ours(torch, optim):
    prepared = step.prepared(experiment(optim=optim, label_smoothing=0.1))
    trainer = step.make_trainer(prepared)
    state = trainer.initial_state()
    variables = jax.device_get(state.variables())
    batch = next(trainer.run.feed.train(0))
    rival = torch_step.make_torch_step(prepared, variables, batch, layout="contiguous_format")
    placed = put_batch(batch, mesh=trainer.run.mesh)
    losses = []
    for _ in range(4):
        state, metrics = trainer.train_step(state, placed)
        losses.append((float(metrics["loss"]), float(rival.call())))
    ours, theirs = np.transpose(losses)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert ours[-1] < ours[0]
    own = torch_step.to_torch_state_dict(jax.device_get(state.variables()))
    before = torch_step.to_torch_state_dict(variables)
    found = rival.network.state_dict()
    assert any(np.abs(own[name] - before[name]).max() > 0.01 for name in own)
    for name, expected in own.items():
        np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-4, err_msg=name)


def test_the_learning_rate_in_torch_follows_the_schedule():
    prepared = experiment(optim={"warmup_steps": 2, "learning_rate": 0.5, "schedule": "linear"})
    np.testing.assert_allclose(
        torch_step._learning_rates(prepared)[:4], [0.0, 0.25, 0.5, 0.4375], rtol=1e-6
    )
    assert len(torch_step._learning_rates(prepared)) == 10


def test_a_failing_torch_compile_is_told_in_one_line():
    def fails(*args):
        raise RuntimeError("no compiler\nfound")

    fake = types.SimpleNamespace(compile=lambda function: fails)
    with pytest.raises(UserError, match=r"^torch.compile fails on this machine: no compiler$"):
        torch_step._compiled(fake, lambda x: x)(1)


def test_a_config_without_classes_gets_some():
    method = dataclasses.replace(experiment().method, num_classes=None)
    prepared = step.prepared(dataclasses.replace(experiment(), method=method), batch_size=6)
    assert prepared.method.num_classes == step.CLASSES
    assert prepared.train.batch_size == 6

    class Captioner(Classifier):
        task = "captions"

    with pytest.raises(UserError, match="task is 'captions'; expected one of classification"):
        step.prepared(dataclasses.replace(experiment(), method=Captioner()))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("layout", torch_models.LAYOUTS.values())
def test_depthwise_alternatives_agree(torch, gradients, layout):
    shape = depthwise.Shape(side=7, channels=3, stride=2)
    arrays = depthwise.random_arrays(shape, batch_size=2)
    own = [
        depthwise.ours(name, shape, arrays, gradients=gradients)() for name in depthwise.LOWERINGS
    ]
    out, *rest = depthwise.theirs(layout, shape, arrays, gradients=gradients)()
    theirs = [out.permute(0, 2, 3, 1).numpy()]
    if gradients:
        of_x, of_kernel = rest
        theirs += [of_x.permute(0, 2, 3, 1).numpy(), of_kernel[:, 0].permute(1, 2, 0).numpy()]
    for found in own:
        assert len(found) == len(theirs) == (3 if gradients else 1)
        for one, other in zip(found, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "first"), [("cpu", "shifted products"), ("gpu", "grouped convolution")]
)
def test_what_the_library_chooses_is_ours(monkeypatch, platform, first):
    monkeypatch.setattr(depthwise, "SHAPES", (depthwise.Shape(4, 2, 1),))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    made = list(depthwise.cases(base.Request()))
    assert [one.sizes["gradients"] for one in made] == [False, True]
    assert all(one.alternatives[0].name == first for one in made)
    assert all(len(one.alternatives) == 2 for one in made)


@pytest.mark.parametrize(
    "window", [(3, 5, 20, 16), (0, 0, 40, 30), (-6, -2, 40, 30), (20, 9, 8, 6)]
)
def test_pillow_cuts_and_resizes_as_the_pipeline_does(window):
    rows, columns = np.mgrid[:30, :40]
    waves = [np.sin(rows / 4) + np.cos(columns / 5), np.sin(columns / 6), np.cos(rows / 3)]
    image = (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)
    example = {"image": image, "label": 0, "id": 0, "name": "waves"}
    expected = crop_and_resize(example, window=window, size=(12, 16))["image"]
    opened = data.open_pillow(image, "waves")
    found = np.asarray(data.pillow_image(opened, window=window, size=(12, 16)))
    difference = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape
    assert difference.mean() < 4
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_pillow_opens_what_the_pipeline_opens(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (10, 4), 200).save(path, exif=exif)
    image = data.open_pillow(path.read_bytes(), "turned.jpg")
    assert image.mode == "RGB"
    assert image.size == (4, 10)
    with pytest.raises(UserError, match=r"image broken.jpg: "):
        data.open_pillow(b"nothing", "broken.jpg")


def test_pillow_makes_the_batches_of_the_pipeline(photographs):
    dataset = open_dataset("image_folder", data_dir=str(photographs))
    options = DataOptions(
        dataset="image_folder", image_size=16, train_geometry="shift_crop", read_threads=2
    )
    batches = data.PillowBatches(dataset, options, batch_size=12)
    made = [next(batches) for _ in range(3)]
    batches.close()
    for batch in made:
        assert batch["image"].shape == (12, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        # Each class of the photographs is brightest in its own channel.
        assert (batch["image"].mean(axis=(1, 2)).argmax(-1) == 2 - batch["label"]).all()
    assert not np.array_equal(made[0]["image"], made[1]["image"])


def test_a_stream_is_measured_in_its_steady_state():
    log, go_on = [], threading.Event()

    class Fake:
        def __init__(self):
            log.append("open")
            self.worker = threading.Thread(target=lambda: (go_on.wait(), log.append("idle")))
            self.worker.start()

        def __next__(self):
            log.append("next")

        def close(self):
            log.append("close")
            go_on.set()

    one = data.streaming("fake", Fake, ahead=2)
    before = threading.active_count()
    one.begin()
    one.run(3)
    one.end()
    assert log == ["open", "next", "next", "next", "next", "next", "close", "idle"]
    assert threading.active_count() == before


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def run_bench(tmp_path, capsys, *arguments):
    output = tmp_path / "result.json"
    assert main(["bench", *arguments, *QUICK, "--output", str(output)]) == 0
    made = json.loads(output.read_text())
    assert timing.RATIO in capsys.readouterr().out
    for one in made["cases"]:
        assert all(len(entry["samples"]) == 2 for entry in one["alternatives"].values())
        assert all(min(entry["samples"]) > 0 for entry in one["alternatives"].values())
    return made


def test_bench_step_runs(torch, small, tmp_path, capsys):
    override = "--config.mesh.data=1"
    arguments = ["step", "--config", str(small), "--batch_size", "4", "--note", "a test", override]
    made = run_bench(tmp_path, capsys, *arguments, "--against", "torch,torch_channels_last")
    (one,) = made["cases"]
    assert list(one["alternatives"]) == ["fgkd_jax", "torch", "torch_channels_last"]
    assert one["ours"] == "fgkd_jax"
    assert one["sizes"]["batch_size"] == 4
    assert one["sizes"]["parameters"] > 100
    assert one["sizes"]["backbone"]["width"] == 4
    assert made["notes"][0] == "a test"
    assert made["settings"] == {
        "repeats": 2,
        "seconds": 0.001,
        "against": ["torch", "torch_channels_last"],
    }
    assert made["command"].startswith("fgkd bench step --config=")
    assert "--against=torch,torch_channels_last --batch_size=4 --repeats=2" in made["command"]
    assert made["command"].endswith(override)
    assert "torch" in made["versions"]


def test_bench_step_runs_without_torch(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (one,) = run_bench(tmp_path, capsys, "step", "--config", str(small))["cases"]
    assert list(one["alternatives"]) == ["fgkd_jax"]
    assert one["sizes"]["batch_size"] == 8
    assert one["sizes"]["devices"] == 2


def test_bench_depthwise_runs(torch, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depthwise, "SHAPES", (depthwise.Shape(5, 2, 2),))
    arguments = ["depthwise", "--batch_size", "2", "--against", "torch"]
    made = run_bench(tmp_path, capsys, *arguments)
    assert [one["case"] for one in made["cases"]] == [
        "5x5x2 stride 2 forward",
        "5x5x2 stride 2 with gradients",
    ]
    for one in made["cases"]:
        assert list(one["alternatives"]) == ["shifted products", "grouped convolution", "torch"]
        assert one["sizes"]["batch_size"] == 2


def test_bench_data_runs(config, tmp_path, capsys):
    before = threading.active_count()
    made = run_bench(tmp_path, capsys, "data", "--config", str(config), "--batch_size", "4")
    (one,) = made["cases"]
    assert list(one["alternatives"]) == ["fgkd_jax", "pillow"]
    assert one["sizes"]["dataset"] == "image_folder"
    assert one["sizes"]["train_images"] == 48
    assert one["alternatives"]["fgkd_jax"]["images_per_second"] > 0
    assert threading.active_count() == before


def committed():
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return [made for made in found if "benchmark" in made]


def test_committed_results_are_what_the_command_writes():
    for made in committed():
        assert made["benchmark"] in BENCHMARKS
        assert made["ratio"] == timing.RATIO
        assert made["command"].startswith(f"fgkd bench {made['benchmark']}")
        for one in made["cases"]:
            own = one["alternatives"][one["ours"]]["samples"]
            for entry in one["alternatives"].values():
                found = Spread(entry["median"], entry["min"], entry["max"])
                assert timing.spread(entry["samples"]) == found
                if "ratio" in entry:
                    expected = list(timing.ratios(own, entry["samples"]))
                    assert entry["ratio"]["samples"] == expected
