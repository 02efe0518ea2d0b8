"""What a step exchanges as a pod grows: how results of `fgkd compile` are put together."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("pod_scaling", BENCHMARKS / "pod_scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_that_of_the_committed_results(scaling):
    results = BENCHMARKS / "results"
    found = json.loads((results / "scaling_v5e.json").read_text())
    assert (results / "scaling_v5e.md").read_text() == scaling.table(found)
    for one in found.values():
        for count in map(str, scaling.COUNTS):
            assert one["chips"][count]["on_paper"]["bytes_sent"] > 0


def write(folder, name, held=5, read=2 * 819e9, **kinds):
    collectives = {
        kind.replace("_", "-"): {"count": 1, "bytes": size, "bytes_sent": sent}
        for kind, (size, sent) in kinds.items()
    }
    step = {
        "flops": 197e12,
        "bytes_accessed": read,
        "memory": {"total": 7, "arguments": held},
        "compile_seconds": 1.0,
        "collectives": collectives,
    }
    (folder / f"{name}.json").write_text(json.dumps({"steps": {"train": step}}))


def test_bytes_grow_as_between_virtual_devices(scaling, tmp_path):
    write(tmp_path, "tasn_tpu", all_reduce=(80, 120))
    write(tmp_path, "tasn_4", all_reduce=(100, 150), all_gather=(20, 50))
    write(tmp_path, "tasn_64", all_reduce=(100, 160), all_gather=(20, 240))
    found = scaling.collect(tmp_path)
    assert list(found) == ["tasn"]
    rows = found["tasn"]["chips"]
    assert {name: row["on_paper"]["bytes_sent"] for name, row in rows.items()} == {
        "4": 120,
        "64": 240,
    }
    assert rows["4"]["on_paper"]["compute_seconds"] == 2.0
    assert rows["4"]["on_paper"]["interconnect_seconds"] == 120 / 200e9


def test_what_chips_send_that_share_parameters_is_that_of_the_compiler_for_tpu(scaling, tmp_path):
    write(tmp_path, "tasn_tpu", all_reduce=(80, 120))
    kinds = {"all_gather": (6400, 4800), "reduce_scatter": (1600, 4800), "all_reduce": (8, 12)}
    write(tmp_path, "tasn_fsdp", **kinds)
    rows = scaling.collect(tmp_path)["tasn"]["chips"]
    assert list(rows) == ["4_fsdp", "64_fsdp", "256_fsdp"]
    for label, n in (("4_fsdp", 4), ("64_fsdp", 64)):
        # Of 6400 bytes of parameters and as many of gradients each sends all but its own part.
        expected = 2 * (n - 1) / n * (6400 + 8)
        assert rows[label]["on_paper"]["bytes_sent"] == pytest.approx(expected)
    assert rows["4_fsdp"]["on_paper"]["bytes_sent"] == 9612
    assert rows["4_fsdp"]["memory_of_a_chip"] == {"arguments": 5, "total": 7}
    assert not {"memory_of_virtual_device", "memory_of_a_chip"} & rows["64_fsdp"].keys()


def test_banks_exchange_as_with_narrow_networks_and_gradients_as_they_are(scaling, tmp_path):
    write(tmp_path, "lmcl_tpu", all_reduce=(1000, 1500), all_gather=(9, 9))
    write(tmp_path, "lmcl_4", all_reduce=(2000, 3000), all_to_all=(500, 375))
    write(tmp_path, "lmcl_narrow_4", all_gather=(400, 300), all_reduce=(4, 6))
    write(tmp_path, "lmcl_narrow_256", all_gather=(4, 3))
    found = scaling.collect(tmp_path)["lmcl"]
    assert list(found["v5e:2x2"]["collectives"]) == ["all-reduce"]
    rows = found["chips"]
    assert rows["4"]["on_paper"]["bytes_sent"] == 306 + 1500
    assert rows["256"]["on_paper"]["bytes_sent"] == 3 + 2 * 255 / 256 * 1000
    text = scaling.table({"lmcl": found})
    assert "| 256 | as configured | 1 all-gather (of narrow networks) | 0.0 |" in text
    assert rows["4"]["memory_of_a_chip"] == {"arguments": 5, "total": 7}
    assert "64" not in rows
    assert scaling.disagreement({"lmcl": found}) == pytest.approx(0.2)
    assert "\ndiffer by at most 20.0%." in text


def test_rows_of_which_a_folder_has_nothing_stay(scaling, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write(first, "lmcl_tpu", all_reduce=(1000, 1500))
    write(first, "lmcl_narrow_4", all_gather=(400, 300))
    write(first, "lmcl_narrow_64", all_gather=(400, 390))
    write(first, "lmcl_64", all_to_all=(500, 375))
    before = scaling.collect(first)
    assert scaling.collect(second, before) == before
    write(second, "lmcl_narrow_4", all_gather=(400, 300))
    write(second, "lmcl_narrow_64", all_gather=(300, 290))
    write(second, "lmcl_narrow_64_split", held=8, read=5 * 819e9, all_gather=(8, 7))
    rows = scaling.collect(second, before)["lmcl"]["chips"]
    assert list(rows) == ["4", "64", "64_split"]
    assert rows["4"] == before["lmcl"]["chips"]["4"]
    assert rows["64"]["collectives"] == before["lmcl"]["chips"]["64"]["collectives"]
    assert rows["64"]["narrow"]["all-gather"]["bytes"] == 300
    assert rows["64_split"]["on_paper"]["bytes_sent"] == 7 + 2 * 63 / 64 * 1000
    assert rows["64_split"]["memory_of_a_chip"] == {"arguments": 8, "total": 7}
    text = scaling.table(scaling.collect(second, before))
    assert "| 64 | memory banks shared by all chips | 1 all-gather (of narrow networks) |" in text


def test_a_chip_by_itself_does_what_narrow_networks_do_more(scaling, tmp_path):
    write(tmp_path, "lmcl_tpu", read=9 * 819e9, all_reduce=(1000, 1500))
    write(tmp_path, "lmcl_narrow_4", read=2 * 819e9, all_gather=(400, 300))
    write(tmp_path, "lmcl_narrow_4_split", read=5 * 819e9, all_gather=(400, 300))
    rows = scaling.collect(tmp_path)["lmcl"]["chips"]
    seconds = {label: row["on_paper"]["compute_seconds"] for label, row in rows.items()}
    assert seconds == {"4": 9, "4_split": 12}
    stored = scaling.collect(tmp_path)
    stored["lmcl"][scaling.SMALLEST]["banks"] = "split"  # what was compiled of ResNet-50
    (tmp_path / "lmcl_tpu.json").unlink()
    rows = scaling.collect(tmp_path, stored)["lmcl"]["chips"]
    seconds = {label: row["on_paper"]["compute_seconds"] for label, row in rows.items()}
    assert seconds == {"4": 6, "4_split": 9}


def test_nothing_compiled_is_nothing_told(scaling, tmp_path):
    assert scaling.collect(tmp_path) == {}


def test_every_size_of_the_table_is_a_slice(scaling):
    for count, name in scaling.SLICES.items():
        rows, columns = map(int, name.partition(":")[2].split("x"))
        assert rows * columns == count
    assert tuple(scaling.SLICES) == scaling.COUNTS
