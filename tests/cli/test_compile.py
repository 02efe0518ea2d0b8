"""`fgkd compile`: what is read off a compiled program, and how the command says it."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from fgkd_jax.cli.abstract_run import abstract_run
from fgkd_jax.cli.compilation import study, topology
from fgkd_jax.cli.compilation.chips import CHIPS, GIB
from fgkd_jax.cli.compilation.collectives import (
    SENT,
    Collective,
    bytes_sent,
    find_collectives,
    summary,
)
from fgkd_jax.cli.compilation.program import read_program
from fgkd_jax.cli.compilation.topology import Slice, open_slice
from fgkd_jax.cli.config import config_folder, load_config
from fgkd_jax.cli.main import main
from fgkd_jax.cli.session import method_for
from fgkd_jax.data.published_sizes import SIZES, WORDS, sized_dataset
from fgkd_jax.data.registry import open_dataset
from fgkd_jax.errors import UserError
from fgkd_jax.train.sharding import MeshOptions, make_mesh
from fgkd_jax.train.steps import Counted

TINY = (
    "--config.data.image_size=32",
    "--config.method.backbone.width=4",
    "--config.train.batch_size=8",
)

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%reduced (p: f32[64]) -> f32[64] {
  ROOT %all-reduce.9 = f32[64]{0:T(256)} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%sum
}

%round (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %rs = bf16[4,2]{1,0:T(8,128)(2,1)} reduce-scatter(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%goes_on (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p0: f32[64], p1: f32[32]) -> f32[] {
  %pair = (f32[10]{0}, bf16[3]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%sum
  %s = f32[6]{0} all-reduce-start(%c), replica_groups={{0,1,2}}, to_apply=%sum
  %d = f32[6]{0} all-reduce-done(%s)
  %g = (f32[2]{0:T(256)S(1)}, f32[16]{0:T(256)}) all-gather-start(%e), replica_groups=[1,8]<=[8]
  %h = f32[16]{0} all-gather-done(%g)
  %m = ((f32[1]{0:T(256)}, f32[2]{0}), (f32[8]{0:T(256)}, f32[16]{0})) all-gather-start(%e, %f)
  %p = (s8[5]{0}, s8[5]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}
  %n = ((f32[8,8]{1,0}), f32[2,8]{1,0:T(8,128)}, u32[]) reduce-scatter-start(%p), to_apply=%sum
  %f = f32[64]{0} fusion(%p0), kind=kCustom, calls=%reduced
  %w = (s32[], f32[8]) while(%i), condition=%goes_on, body=%round, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{}}
  ROOT %all-reduce = f32[] get-tuple-element(%all-reduce.9), index=0
}
"""


def test_collectives_are_read_out_of_a_program():
    found = {
        (one.kind, one.bytes, one.devices, one.times)
        for one in find_collectives(read_program(PROGRAM), devices=8)
    }
    assert found == {
        ("all-reduce", 256, 4, 1),
        ("reduce-scatter", 16, 2, 5),
        ("reduce-scatter", 64, 8, 1),
        ("all-reduce", 46, 8, 1),
        ("all-reduce", 24, 3, 1),
        ("all-gather", 64, 8, 1),
        ("all-gather", 96, 8, 1),
        ("collective-permute", 5, 8, 1),
    }
    added = summary(find_collectives(read_program(PROGRAM), devices=8))
    assert added["reduce-scatter"] == {
        "count": 6,
        "instructions": 2,
        "bytes": 80 + 64,
        "bytes_sent": 80 + 7 * 64,
    }
    assert added["all-reduce"]["count"] == 3
    assert find_collectives(read_program(""), devices=8) == []


def test_a_loop_inside_a_loop_multiplies_and_dead_code_does_not_count():
    inner = """\
%deep (p: f32[2]) -> f32[2] {
  %r = f32[2]{0} all-reduce(%p), to_apply=%sum
}

%outer (p: f32[2]) -> f32[2] {
  %w = f32[2] while(%p), condition=%c, body=%deep, backend_config={"known_trip_count":{"n":"3"}}
}

%dead (p: f32[2]) -> f32[2] {
  %r = f32[2]{0} all-reduce(%p), to_apply=%sum
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %w = f32[2] while(%p), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"4"}}
  %v = f32[2] while(%p), condition=%c, body=%deep
}
"""
    assert [one.times for one in find_collectives(read_program(inner), devices=2)] == [13]


@pytest.fixture(scope="module")
def devices():
    return make_mesh(MeshOptions())


def compiled_text(devices, function, spec):
    placed = NamedSharding(devices, PartitionSpec("data"))
    argument = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=placed)
    result = NamedSharding(devices, spec)
    return jax.jit(function, out_shardings=result).lower(argument).compile().as_text()


def test_what_this_xla_writes_is_read(devices):
    whole = PartitionSpec()
    text = compiled_text(devices, lambda x: jnp.sum(x, axis=0), whole)
    assert find_collectives(read_program(text), devices=8) == [Collective("all-reduce", 4 * 32, 8)]
    text = compiled_text(devices, lambda x: 2 * x, whole)
    assert find_collectives(read_program(text), devices=8) == [
        Collective("all-gather", 4 * 16 * 32, 8)
    ]

    def rounds(x):
        return jax.lax.scan(lambda c, _: (jnp.sum(x * c) * 1e-3, None), x[0, 0], None, length=7)[0]

    found = find_collectives(read_program(compiled_text(devices, rounds, whole)), devices=8)
    assert max(one.times for one in found) == 7


def ring(kind, size, n):
    """What each of n devices sends in a ring, chunk by chunk."""
    chunk = size / n
    return {
        "all-gather": sum(chunk for _ in range(n - 1)),
        "reduce-scatter": sum(size for _ in range(n - 1)),  # the result is one chunk of n
        "all-reduce": sum(chunk for _ in range(n - 1)) + sum(chunk for _ in range(n - 1)),
        "all-to-all": sum(chunk for other in range(n) if other),
        "collective-permute": size,
    }[kind]


@given(
    st.sampled_from(["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]),
    st.integers(1, 10**9),
    st.integers(2, 512),
)
def test_bytes_sent_are_those_of_a_ring(kind, size, n):
    expected = ring(kind, size, n)
    np.testing.assert_allclose(bytes_sent(Collective(kind, size, n, times=3)), 3 * expected)
    assert bytes_sent(Collective(kind, size, 1)) == 0
    assert bytes_sent(Collective("collective-permute", size, n)) == size


@given(st.integers(1, 10**9), st.integers(2, 512))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(size, n):
    both = SENT["reduce-scatter"](size / n, n) + SENT["all-gather"](size, n)
    np.testing.assert_allclose(SENT["all-reduce"](size, n), both)


def slice_of(name, *, devices=4, chips=4):
    return Slice(f"{name}:2x2", jax.devices()[:devices], chips, CHIPS[name])


def test_the_estimate_is_the_figures_of_the_chip():
    found = study.estimate(197e12, 2 * 819e9, 0.5 * 200e9, slice_of("v5e"))
    assert found == {
        "interconnect_bytes": 0.5 * 200e9,
        "arithmetic_seconds": 1.0,
        "memory_seconds": 2.0,
        "interconnect_seconds": 0.5,
        "interconnect_share": 0.2,
    }
    assert study.estimate(0.0, 0.0, 0.0, slice_of("v5e"))["interconnect_share"] == 0
    assert study.estimate(1.0, 1.0, 1.0, Slice("cpu:2", jax.devices()[:2], 2, None)) is None


@pytest.mark.parametrize("name", CHIPS)
def test_chips_have_their_figures(name):
    chip = CHIPS[name]
    assert 16 * GIB <= chip.hbm_bytes <= 192 * GIB
    assert 1e14 < chip.peak_flops < 1e16
    assert 8e11 < chip.hbm_bandwidth < 1e13
    assert 1e11 < chip.ici_bandwidth < 1e12
    assert "https://" in chip.source


class Fails(Counted):
    """A program that the compiler gives up."""

    def __init__(self, text):
        super().__init__(lambda: None)
        self._text = text

    def lower(self, *arguments):
        return self

    def compile(self):
        raise RuntimeError(self._text)


def test_memory_that_the_compiler_itself_misses_becomes_a_report():
    text = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.\n\nTotal hbm usage >= 21G"
    )
    found = study.study(Fails(text), (), slice_of("v4", devices=8))
    assert found["fits"] is False
    assert found["memory"] == {"total": 2 * 20.5 * GIB, "capacity": 32 * GIB}
    assert found["said"] == text.splitlines()[0]
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (45.02G) exceeds available HBM (15.75G)."
    )
    found = study.study(Fails(temporaries), (), slice_of("v5e"))
    assert found["memory"] == {"total": round(45.02 * GIB), "capacity": 16 * GIB}
    found = study.study(Fails("Ran out of memory somewhere"), (), slice_of("v5e"))
    assert found["memory"] == {"total": None, "capacity": 16 * GIB}


def test_another_refusal_of_the_compiler_is_one_line():
    with pytest.raises(UserError, match=r"^the compiler refuses the step: INTERNAL: no$"):
        study.study(Fails("INTERNAL: no\nat somewhere"), (), slice_of("v5e"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x2", r"topology is 'v5:2x2'; expected one such as v4:2x2x1, .*cpu:8"),
        ("v7x:2x2x1", "expected one such as .*tpu7x:2x2x1"),
        ("v5e", "topology is 'v5e'; expected one such as v4:2x2x1"),
        ("v5e:2by2", "topology is 'v5e:2by2'; expected one such as"),
        ("cpu:", "topology is 'cpu:'; expected a number of devices"),
        ("cpu:2x2", "topology is 'cpu:2x2'; expected a number of devices"),
        ("cpu:9", "topology is 'cpu:9', but this process has 8 cpu devices"),
    ],
)
def test_a_topology_that_is_none_is_told_with_those_that_are(name, message):
    assert len(jax.devices()) == 8  # from now on there are no more
    with pytest.raises(UserError, match=message) as error:
        open_slice(name)
    assert "\n" not in str(error.value)


def test_a_missing_compiler_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert main(["compile", "--config", "classify_birds", "--topology", "v5e:2x2"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "libtpu is not installed; the extra 'tpu'" in told


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    output = tmp_path / "step.json"
    command = ["compile", "--config", "classify_birds", "--topology", "cpu:4", *TINY]
    command += ["--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "on cpu:4: 4 chips, 4 devices (cpu), mesh data 4 x fsdp 1" in printed
    assert "memory of a chip is not known" in printed
    made = json.loads(output.read_text())
    step = made["steps"]["train"]
    assert made["fits"] is step["fits"] is None
    assert made["command"].startswith("fgkd compile --config classify_birds --topology cpu:4")
    memory = step["memory"]
    parts = [memory[name] for name in ("arguments", "outputs", "temporaries", "program")]
    assert memory["total"] == sum(parts) - memory["aliased"]
    # The state is donated, all of it: what comes out lies where it went in, but for the metrics.
    assert 0 < memory["outputs"] - memory["aliased"] < 2048
    assert step["flops"] > 1e6
    assert step["arithmetic_intensity"] == round(step["flops"] / step["bytes_accessed"], 2)
    # Gradients of all parameters are summed over the devices, and statistics of batch norm.
    experiment = load_config("classify_birds", TINY)
    run = abstract_run(experiment, mesh=make_mesh(experiment.mesh, devices=jax.devices()[:4]))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    assert step["collectives"]["all-reduce"]["bytes"] >= 4 * numbers
    assert made["data"]["num_classes"] == 24

    assert main(command) == 2
    assert "exists; expected a new file" in capsys.readouterr().err
    again = [*command, "--overwrite", "--memory", "0.0001", "--config.mesh.fsdp=2"]
    assert main([*again, "--config.mesh.whole_below=0"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    made = json.loads(output.read_text())
    assert made["mesh"] == {"data": 2, "fsdp": 2}
    assert made["fits"] is False
    shared = made["steps"]["train"]
    assert shared["collectives"]["all-gather"]["bytes"] > 0
    assert shared["memory"]["arguments"] < memory["arguments"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "cpu:8"], "needs --config"),
        (["--config", "classify_birds"], "needs --topology"),
        (["--config", "classify_birds", "--topology", "cpu:8", "now"], "takes no argument 'now'"),
        (
            ["--config", "classify_birds", "--topology", "cpu:8", "--memory", "0"],
            "--memory is 0.0; expected more than 0 GiB",
        ),
        (
            ["--config", "classify_folder", "--topology", "cpu:8"],
            "data set 'image_folder' are not known; expected --config.method.num_classes, or ",
        ),
        (
            ["--config", "msdn_sun", "--topology", "cpu:2", "--sizes_of", "xlsa17/sun"],
            "did you mean 'xlsa17/SUN'",
        ),
        (
            ["--config", "msdn_sun", "--topology", "cpu:8", "--sizes_of", "xlsa17/SUN"],
            "train.batch_size is 50; expected a multiple of 8 devices",
        ),
        (
            ["--config", "classify_birds", "--topology", "cpu:8", "--config.mesh.fsdp=3"],
            "mesh.fsdp is 3; expected a divisor of the 8 cpu devices",
        ),
        (
            ["--config", "classify_cub", "--topology", "cpu:8", "--config.method.num_classes=7"],
            "method.num_classes is 7, but cub200_2011 has 200 classes",
        ),
    ],
)
def test_what_cannot_be_compiled_is_told_in_one_line(arguments, message, capsys):
    assert main(["compile", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_the_devices_of_the_processor_are_made_where_there_are_none_yet(tmp_path):
    output = tmp_path / "step.json"
    command = [sys.executable, "-m", "fgkd_jax.cli.main", "compile", "--config", "classify_birds"]
    command += ["--topology", "cpu:16", "--output", str(output), *TINY]
    done = subprocess.run(
        [*command, "--config.train.batch_size=16"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["topology"]["devices"] == 16


def test_a_second_step_is_compiled_as_well():
    experiment = load_config(
        "lmcl_birds",
        ["--config.data.image_size=16", "--config.train.batch_size=8"],
    )
    mesh = make_mesh(experiment.mesh)
    run = abstract_run(experiment, mesh=mesh)
    said = []
    compiled = []

    def stand_in(step, arguments, where, *, memory_bytes):
        compiled.append((step, len(arguments)))
        return {"fits": None}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "study", stand_in)
        found = study.study_steps(run, Slice("cpu:8", jax.devices(), 8, None), say=said.append)
    assert list(found) == ["train", "meta"]
    assert compiled == [(run.steps.train_step, 2), (run.steps.meta_step, 3)]
    assert said[1] == "compiling the meta step for cpu:8"
    here = Slice("cpu:8", jax.devices(), 8, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "study", stand_in)
        assert list(study.study_steps(run, here, only="meta")) == ["meta"]
    with pytest.raises(UserError, match="--step is 'mate'; expected one of meta, train"):
        study.study_steps(run, here, only="mate")
    state, _ = jax.eval_shape(run.steps.meta_step, run.state, run.batch, run.batch)
    assert jax.tree.structure(state.to_save()) == jax.tree.structure(run.state.to_save())


def test_the_published_sizes_are_those_of_the_data_set(tmp_path):
    sizes = SIZES["procedural_birds/tiny"]
    info = open_dataset("procedural_birds/tiny", data_dir=str(tmp_path)).info
    assert (info.num_classes, info.splits["train"]) == (sizes.num_classes, sizes.train)


def test_a_method_is_completed_from_sizes_as_from_data():
    experiment = load_config("mcl_imagenet")
    dataset = sized_dataset(experiment.data, SIZES[experiment.data.dataset])
    method = method_for(experiment, dataset)
    assert experiment.data.validation_fraction == 0.01
    assert (method.num_classes, method.num_examples) == (1000, round(0.99 * 1_281_167))
    thinner = dataclasses.replace(experiment.data, meta_fraction=0.5, train_fraction=0.1)
    splits = sized_dataset(thinner, SIZES["tfds/imagenet2012"]).info.splits
    assert splits == {"train": round(0.99 * 0.5 * 0.1 * 1_281_167)}

    experiment = load_config("msdn_sun")
    dataset = sized_dataset(experiment.data, SIZES["xlsa17/SUN"])
    method = method_for(experiment, dataset)
    sizes = (method.num_classes, method.num_attributes, method.word_size)
    assert sizes == (717, 102, 300)
    assert dataset.info.feature_shape == (7, 7, 2048)

    experiment = load_config("pma_cub")
    method = method_for(experiment, sized_dataset(experiment.data, SIZES["cub200_2011"]))
    assert method.vocabulary_size == WORDS


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pod_compile():
    spec = importlib.util.spec_from_file_location("pod_compile", BENCHMARKS / "pod_compile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_tables_are_those_of_the_committed_results(pod_compile):
    found = sorted((BENCHMARKS / "results").glob("compile_*.json"))
    assert found
    for path in found:
        values = json.loads(path.read_text())
        table = pod_compile.table(values["topology"], values["configs"])
        assert path.with_suffix(".md").read_text() == table
        for name, made in values["configs"].items():
            config, _, batch_size = name.partition("@")
            assert made["command"].startswith(f"fgkd compile --config {config} --topology")
            assert not batch_size or made["batch_size"] == int(batch_size)
            assert made["topology"]["name"] == values["topology"]


def test_a_row_of_what_does_not_fit_has_as_many_cells(pod_compile):
    failed = {
        "batch_size": 8,
        "steps": {
            "train": {
                "fits": False,
                "memory": {"total": 2 * GIB, "capacity": GIB},
                "said": "Ran out of memory",
                "compile_seconds": 3.2,
            }
        },
    }
    (row,) = pod_compile.rows("some@8", failed)
    assert row.startswith("| some | train | 8* | 2.00 GiB | - |"), "not its own batch"
    assert pod_compile.rows("some", failed) == [row.replace("8*", "8")]
    assert row.endswith("| **no** | 3 s |")
    assert row.count("|") == len(pod_compile.COLUMNS.split("|")) + 1


def test_results_of_the_same_compiler_are_kept(pod_compile, monkeypatch, tmp_path):
    text = (BENCHMARKS / "results" / "compile_v5e_2x2.json").read_text()
    results = json.loads(text)["configs"]
    names = ("classify_birds", "mcl_birds", "tasn_birds")
    made = {name: json.loads(json.dumps(results[name])) for name in names}
    here = {name: made["mcl_birds"]["versions"][name] for name in pod_compile.COMPILER}
    made["mcl_birds"]["versions"]["jaxlib"] = "0.0.1"
    file = tmp_path / "compile_v5e_2x2.json"
    file.write_text(json.dumps({"topology": "v5e:2x2", "configs": made}))
    called = []

    def compile_config(name, topology, output):
        called.append(name)
        output.write_text(json.dumps({**results["pma_cub"], "batch_size": 77}))
        return 0

    monkeypatch.setattr(pod_compile, "RESULTS", tmp_path)
    monkeypatch.setattr(pod_compile, "installed", lambda: here)
    monkeypatch.setattr(pod_compile, "compile_config", compile_config)
    pod_compile.main(["--folder", str(tmp_path / "made"), "pma_cub", "tasn_birds"])
    assert called == ["pma_cub", "tasn_birds"], "what is asked for is compiled again"
    kept = json.loads(file.read_text())["configs"]
    assert list(kept) == ["classify_birds", "pma_cub", "tasn_birds"]
    assert kept["classify_birds"] == results["classify_birds"]
    assert kept["tasn_birds"]["batch_size"] == 77
    called.clear()
    table = file.with_suffix(".md").read_text()
    assert "Without a row: " in table
    assert "mcl_birds" in table.partition("Without a row: ")[2]
    kept["retinanet_coco@8"] = kept["tasn_birds"]
    file.write_text(json.dumps({"topology": "v5e:2x2", "configs": kept}))
    assert pod_compile.main(["--folder", str(tmp_path / "more"), "--every"]) == 0
    assert len(called) == len(list(config_folder().glob("*.py"))) - 4
    assert not {"classify_birds", "pma_cub", "tasn_birds", "retinanet_coco"} & set(called)
    assert "Without a row: " not in file.with_suffix(".md").read_text()


def test_a_config_that_is_not_compiled_is_named(pod_compile, monkeypatch, tmp_path, capsys):
    text = (BENCHMARKS / "results" / "compile_v5e_2x2.json").read_text()
    results = json.loads(text)["configs"]
    here = {name: results["pma_cub"]["versions"][name] for name in pod_compile.COMPILER}

    def compile_config(name, topology, output):
        if name == "msdn_cub":
            return 2
        output.write_text(json.dumps(results["pma_cub"]))
        return 1

    monkeypatch.setattr(pod_compile, "RESULTS", tmp_path)
    monkeypatch.setattr(pod_compile, "installed", lambda: here)
    monkeypatch.setattr(pod_compile, "compile_config", compile_config)
    assert pod_compile.main(["--folder", str(tmp_path / "made"), "msdn_cub", "pma_cub"]) == 1
    assert capsys.readouterr().err == "error: not compiled: msdn_cub\n"
    assert list(json.loads((tmp_path / "compile_v5e_2x2.json").read_text())["configs"]) == [
        "pma_cub"
    ]


def test_a_config_is_compiled_at_another_batch(pod_compile, monkeypatch, tmp_path):
    called = []

    def run(command):
        called.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pod_compile.subprocess, "run", run)
    for name in ("retinanet_coco", "retinanet_coco@8"):
        pod_compile.compile_config(name, "v5e:2x2", tmp_path / f"{name}.json")
    plain, other = (command[3:] for command in called)
    assert plain[:3] == other[:3] == ["compile", "--config", "retinanet_coco"]
    assert plain[-2:] == ["--sizes_of", "coco2017"]
    assert other[-3:] == [*plain[-2:], "--config.train.batch_size=8"]
