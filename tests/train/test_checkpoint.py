"""Round trips, retention, damage, full disks, killed processes, other numbers of devices."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgkd_jax.errors import UserError
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions

UNLISTED = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def placed(value, devices: int, *axes: str | None):
    return jax.device_put(value, NamedSharding(mesh(devices), PartitionSpec(*axes)))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def small(step: int):
    """A tree of a step, with some thousand incompressible bytes."""
    values = np.random.default_rng(step).normal(size=(40, 30)).astype(np.float32)
    return {"step": jnp.int32(step), "w": jnp.asarray(values), "key": jax.random.key(step)}


def bits(leaf) -> tuple:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def saved(directory: Path, steps=(1, 2), **options) -> Path:
    with Checkpointer(directory, CheckpointOptions(**options)) as checkpointer:
        for step in steps:
            checkpointer.save(step, small(step))
    return directory


def restored(directory: Path, tree=None, *, read_only: bool = False, **options):
    """What is restored as the last, and the notices."""
    options = CheckpointOptions(**options)
    with Checkpointer(directory, options, read_only=read_only, log=lambda line: None) as reader:
        return reader.restore_last(abstract(small(0) if tree is None else tree)), reader.notices


def listing(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# Round trips.


def test_a_tree_of_everything_comes_back_bit_for_bit_and_where_it_was(tmp_path):
    params = {"kernel": placed(jnp.arange(48.0).reshape(16, 3) / 7, 8, "data"), "bias": jnp.ones(3)}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 10)))
    tree = {
        "params": params,
        "opt_state": jax.tree.map(lambda x: placed(x, 8), optimizer.init(params)),
        "half": placed(jnp.asarray([1.1, jnp.nan, -0.0, jnp.inf], jnp.bfloat16), 8),
        "key": placed(jax.random.key(3), 8),
        "keys": placed(jax.random.split(jax.random.key(4, impl="rbg"), 8), 8, "data"),
        "bytes": placed(jnp.arange(16, dtype=jnp.uint8), 4, "data"),
        "flags": placed(jnp.array([True, False]), 1),
        "none_at_all": placed(jnp.zeros((0, 3)), 8),
        "ema": None,
        "extra": {},
        "a/b.c [d]": (jnp.int32(7), [jnp.float16(0.1)]),
    }
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        assert checkpointer.save(5, tree)
        result, step = checkpointer.restore_last(abstract(tree))
    assert step == 5
    assert same(result, tree)
    for leaf, original in zip(jax.tree.leaves(result), jax.tree.leaves(tree), strict=True):
        assert leaf.sharding.is_equivalent_to(original.sharding, original.ndim)
    jax.random.normal(result["key"])
    jax.random.normal(tree["key"])  # saving did not consume it


def test_numbers_and_host_arrays_are_saved_as_they_are_at_the_call(tmp_path):
    array = np.arange(4, dtype=np.float32)
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        checkpointer.save(1, {"host": array, "count": 3, "rate": 0.5})
        array[:] = -1
        like = {"host": jax.ShapeDtypeStruct((4,), np.float32), "count": 0, "rate": 0.0}
        tree, _ = checkpointer.restore_last(like)
    assert tree["host"].tolist() == [0, 1, 2, 3]
    assert (tree["count"], tree["rate"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("devices", "axes"), [(8, ("data",)), (4, (None, "data")), (2, ()), (1, ())]
)
def test_a_checkpoint_of_eight_devices_is_restored_on_others(tmp_path, devices, axes):
    value = jnp.arange(16 * 8, dtype=jnp.float32).reshape(16, 8)
    like = {
        "w": abstract(placed(value, devices, *axes)),
        "key": abstract(placed(jax.random.key(0), devices)),
    }
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        checkpointer.save(1, {"w": placed(value, 8, "data"), "key": placed(jax.random.key(9), 8)})
        tree, _ = checkpointer.restore_last(like)
    assert same(tree, {"w": value, "key": jax.random.key(9)})
    assert tree["w"].sharding == like["w"].sharding
    assert tree["key"].sharding.device_set == set(jax.devices()[:devices])


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    move = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    tree = {f"w{i}": placed(jnp.full((64, 5000), float(i)), 8, "data") for i in range(4)}
    expected = jax.device_get(tree)
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        checkpointer.save(1, tree)
        for _ in range(20):
            tree = move(tree)
        jax.block_until_ready(tree)
        result, _ = checkpointer.restore_last(abstract(tree))
    assert same(jax.device_get(result), expected)


def test_it_works_where_implicit_transfers_are_disallowed_and_says_nothing(tmp_path, capfd):
    tree = small(1)
    with (
        Checkpointer(tmp_path, CheckpointOptions()) as checkpointer,
        jax.transfer_guard("disallow"),
    ):
        checkpointer.save(1, tree)
        checkpointer.save_best(1, tree, {"accuracy": 0.5})
        checkpointer.wait()
        result, _ = checkpointer.restore_last(abstract(tree))
    assert same(result, tree)
    assert capfd.readouterr() == ("", "")


def test_metadata_is_kept_beside_the_arrays(tmp_path):
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        checkpointer.save(1, small(1), metadata={"config": "abc", "frozen": {"sha256": "1f"}})
        checkpointer.save_best(1, small(1), {"accuracy": 1.0}, metadata={"best": True})
        checkpointer.wait()
        assert checkpointer.metadata(1) == {"config": "abc", "frozen": {"sha256": "1f"}}
        assert checkpointer.metadata(1, best=True) == {"best": True}
        with pytest.raises(UserError, match=r"last/2/metadata.json is missing"):
            checkpointer.metadata(2)


# What is kept.


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_newest_are_kept_and_a_step_is_saved_once(tmp_path, asynchronous):
    options = CheckpointOptions(keep_last=2, asynchronous=asynchronous)
    with Checkpointer(tmp_path, options) as checkpointer:
        assert [checkpointer.save(step, small(step)) for step in (1, 2, 3, 3)] == [True] * 3 + [
            False
        ]
        checkpointer.wait()
        assert checkpointer.steps() == (2, 3)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["2", "3"]
    with Checkpointer(tmp_path, CheckpointOptions(keep_last=1)) as checkpointer:
        assert checkpointer.steps() == (2, 3)
        checkpointer.save(4, small(4))
        tree, step = checkpointer.restore_last(abstract(small(0)))
    assert step == 4
    assert same(tree, small(4))
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["4"]


@pytest.mark.parametrize(
    ("mode", "figures", "kept"),
    [
        ("max", [0.1, 0.5, 0.5, 0.4], [0, 1]),
        ("min", [0.5, 0.1, 0.1, 0.4], [0, 1]),
        ("max", [float("nan"), 0.1, float("nan"), float("inf")], [1]),
    ],
)
def test_the_best_is_kept_and_of_equals_the_earlier(tmp_path, mode, figures, kept):
    options = CheckpointOptions(best_metric="figure", best_mode=mode)
    for step, figure in enumerate(figures):  # each in a process of its own, so to speak
        with Checkpointer(tmp_path, options) as checkpointer:
            assert checkpointer.save_best(step, small(step), {"figure": figure}) == (step in kept)
    with Checkpointer(tmp_path, options) as checkpointer:
        tree, step = checkpointer.restore_best(abstract(small(0)))
        assert checkpointer.restore_last(abstract(small(0))) is None
    assert step == kept[-1]
    assert same(tree, small(step))
    assert [path.name for path in (tmp_path / "best").iterdir()] == [str(step)]


def test_the_best_of_two_is_taken_after_a_kill_between_commit_and_removal(tmp_path):
    options = CheckpointOptions()
    for step, figure in ((120, 0.4), (110, 0.6)):
        with Checkpointer(tmp_path / str(step), options) as checkpointer:
            checkpointer.save_best(step, small(step), {"accuracy": figure})
    shutil.copytree(tmp_path / "120" / "best" / "120", tmp_path / "110" / "best" / "120")
    with Checkpointer(tmp_path / "110", options) as checkpointer:
        assert checkpointer.restore_best(abstract(small(0)))[1] == 110
        assert not checkpointer.save_best(130, small(130), {"accuracy": 0.5})
        assert checkpointer.save_best(130, small(130), {"accuracy": 0.7})


def test_a_damaged_best_is_reported_and_the_other_taken(tmp_path):
    options = CheckpointOptions()
    for step, figure in ((1, 0.4), (2, 0.6)):
        with Checkpointer(tmp_path / str(step), options) as checkpointer:
            checkpointer.save_best(step, small(step), {"accuracy": figure})
    shutil.copytree(tmp_path / "1" / "best" / "1", tmp_path / "2" / "best" / "1")
    (tmp_path / "2" / "best" / "2" / "metadata.json").write_text("{")
    with Checkpointer(tmp_path / "2", options, log=lambda line: None) as checkpointer:
        assert checkpointer.restore_best(abstract(small(0)))[1] == 1
        assert "metadata.json has 1 bytes" in checkpointer.notices[0]
        assert checkpointer.save_best(3, small(3), {"accuracy": 0.5})  # better than what is left


def test_best_is_left_alone_where_it_is_not_wanted_and_needs_its_metric(tmp_path):
    with Checkpointer(tmp_path, CheckpointOptions(keep_best=False)) as checkpointer:
        assert not checkpointer.save_best(1, small(1), {})
    with Checkpointer(tmp_path, CheckpointOptions(best_metric="acuracy")) as checkpointer:
        with pytest.raises(UserError, match="'acuracy' is not measured; did you mean 'accuracy'"):
            checkpointer.save_best(1, small(1), {"accuracy": 0.5, "top5": 0.7})
        assert checkpointer.restore_best(abstract(small(0))) is None


@pytest.mark.parametrize("options", [{"every_steps": 0}, {"keep_last": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is .*; expected"):
        CheckpointOptions(**options)


def test_a_url_is_refused():
    with pytest.raises(UserError, match="gs://bucket/run is a URL; expected a mounted path"):
        Checkpointer("gs://bucket/run", CheckpointOptions())


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use the checkpoint folder .*Not a directory"):
        Checkpointer(tmp_path / "file", CheckpointOptions())


# Damage.


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "delete": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flip at the start": lambda path: flip(path, 0.0),
    "flip in the middle": lambda path: flip(path, 0.5),
    "flip at the end": lambda path: flip(path, 1.0),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("pristine"))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_of_any_file_of_the_newest_is_noticed(pristine, tmp_path, name):
    newest = pristine / "last" / "2"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        directory = shutil.copytree(pristine, tmp_path / str(number))
        DAMAGES[name](directory / "last" / "2" / file)
        (tree, step), notices = restored(directory)
        names = sorted(path.name for path in (directory / "last").iterdir())
        assert same(tree, small(step)), file
        if file.name in UNLISTED:  # nothing is restored from these
            assert (step, names, notices) == (2, ["1", "2"], []), file
        else:
            assert (step, names) == (1, ["1", "2.corrupt"]), file
            assert len(notices) == 1
            assert f"{directory}/last/2 is damaged (" in notices[0]
            assert file.name in notices[0]
            assert "renamed to 2.corrupt; taking step 1 instead" in notices[0]
        shutil.rmtree(directory)


def test_after_a_damaged_step_that_step_is_saved_again(pristine, tmp_path):
    directory = shutil.copytree(pristine, tmp_path / "run")
    for number in range(2):
        (directory / "last" / "2" / "manifest.ocdbt").unlink()
        (_, step), _ = restored(directory)
        assert step == 1
        with Checkpointer(directory, CheckpointOptions()) as checkpointer:
            assert checkpointer.save(2, small(2))
        (tree, step), notices = restored(directory)
        assert (step, notices) == (2, [])
        assert same(tree, small(2))
        corrupt = sorted(path.name for path in (directory / "last").glob("*corrupt*"))
        assert corrupt == ["2.corrupt", "2.corrupt1"][: number + 1]


def test_where_all_are_damaged_it_stops_and_leaves_them_every_time(pristine, tmp_path):
    directory = shutil.copytree(pristine, tmp_path / "run")
    for step in (1, 2):
        (directory / "last" / str(step) / "MANIFEST.json").unlink()
    before = listing(directory)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            restored(directory)
        message = str(caught.value)
        assert "\n" not in message
        assert "every checkpoint in" in message
        assert "step 2: MANIFEST.json is missing; step 1: MANIFEST.json is missing" in message
    assert listing(directory) == before


def test_reading_only_changes_nothing(pristine, tmp_path):
    directory = shutil.copytree(pristine, tmp_path / "run")
    (directory / "last" / "2" / "_METADATA").write_text("")
    (directory / "last" / "3.orbax-checkpoint-tmp").mkdir()
    (directory / "last" / "3.orbax-checkpoint-tmp" / "part").write_text("of a run that is alive")
    before = listing(directory)
    (_, step), notices = restored(directory, read_only=True)
    assert (step, len(notices)) == (1, 1)
    assert "renamed" not in notices[0]
    assert listing(directory) == before
    assert restored(tmp_path / "nowhere", read_only=True) == (None, [])
    assert not (tmp_path / "nowhere").exists()


def test_sizes_are_compared_even_without_hashes(tmp_path):
    directory = saved(tmp_path / "run", verify_hashes=False)
    manifest = json.loads((directory / "last" / "2" / "MANIFEST.json").read_text())
    assert {entry["sha256"] for entry in manifest["files"].values()} == {None}
    intact = shutil.copytree(directory, tmp_path / "copy")
    data = max((directory / "last" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    DAMAGES["truncate"](data)
    assert restored(directory, verify_hashes=False)[0][1] == 1
    flip(intact / "last" / "2" / "manifest.ocdbt", 0.5)
    with pytest.raises(UserError, match=r"cannot restore .*; with verify_hashes a damaged"):
        restored(intact, verify_hashes=False)


def test_notices_go_to_the_log(pristine, tmp_path, caplog):
    directory = shutil.copytree(pristine, tmp_path / "run")
    (directory / "last" / "2" / "_METADATA").unlink()
    with Checkpointer(directory, CheckpointOptions()) as checkpointer:
        checkpointer.restore_last(abstract(small(0)))
        assert [record.getMessage() for record in caplog.records] == checkpointer.notices
    assert "_METADATA is missing" in caplog.text


# Another configuration.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"w": jnp.zeros((40, 31))},
            r"holds w as float32\[40,30\]; the configuration expects float32\[40,31\]",
        ),
        (
            {"w": jnp.zeros((40, 30), jnp.bfloat16)},
            r"holds w as float32\[40,30\]; the configuration expects bfloat16\[40,30\]",
        ),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"holds key as key<fry>\[\]; .* uint32\[2\]"),
        (
            {"params": {"head": jnp.zeros(3)}},
            r"has no params/head; the configuration expects it as float32\[3\]",
        ),
        ({"w": None}, r"holds w as float32\[40,30\]; the configuration has no such leaf"),
    ],
)
def test_a_checkpoint_of_another_configuration_names_the_first_difference(
    pristine, tmp_path, change, message
):
    directory = shutil.copytree(pristine, tmp_path / "run")
    before = listing(directory)
    with pytest.raises(UserError, match=message) as caught:
        restored(directory, small(0) | change)
    assert "\n" not in str(caught.value)
    assert f"checkpoint {directory}/last/2" in str(caught.value)
    assert listing(directory) == before


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "holds no numbers"),
        ({"name": "x"}, "leaf 'name' of the tree is a str; expected numbers"),
        ({"a/b": 1, "a": {"b": 2}}, "two leaves of the tree have the path 'a/b'"),
    ],
)
def test_a_tree_that_cannot_be_saved_is_refused(tmp_path, tree, message):
    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        with pytest.raises(UserError, match=message):
            checkpointer.save(1, tree)
        assert checkpointer.save(1, small(1))


# A full disk.


@contextlib.contextmanager
def tiny_disk(directory: Path, size: str) -> Iterator[Path]:
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the permission to mount a tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("room", [600_000, 100_000, 30_000, 5_000, 0])
def test_a_full_disk_is_told_in_one_line_and_spares_earlier_checkpoints(
    tmp_path, capfd, asynchronous, room
):
    rows = np.random.default_rng(0).normal(size=(30, 10_000)).astype(np.float32)
    big = dict(enumerate(map(jnp.asarray, rows)))  # several fail at once
    options = CheckpointOptions(asynchronous=asynchronous)
    with tiny_disk(tmp_path / "disk", "2m") as disk:
        with Checkpointer(disk, options) as checkpointer:
            checkpointer.save(1, small(1))
        before = listing(disk / "last")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - room))
        with Checkpointer(disk, options) as checkpointer:

            def save_twice() -> None:
                checkpointer.save(2, big)
                checkpointer.save(3, small(3))

            with pytest.raises(UserError) as caught:
                save_twice()
            assert str(caught.value) == (
                f"no space left on device while writing {disk}/last/2; the last good checkpoint is"
                " step 1"
            )
            assert listing(disk / "last") == before  # what was written of it is gone, too
            ballast.unlink()
            assert checkpointer.save(3, small(3))
        (tree, step), notices = restored(disk)
    assert (step, notices) == (3, [])
    assert same(tree, small(3))
    assert capfd.readouterr() == ("", "")


def test_an_error_while_the_manifest_is_written_spares_earlier_checkpoints(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path, CheckpointOptions()) as checkpointer:
        checkpointer.save(1, small(1))
        checkpointer.wait()
        with monkeypatch.context() as patch:
            patch.setattr("fgkd_jax.train.array_store.write_manifest", fail)
            checkpointer.save(2, small(2))
            with pytest.raises(UserError, match=r"no space left.*last/2; .* is step 1$"):
                checkpointer.wait()
        assert [path.name for path in (tmp_path / "last").iterdir()] == ["1"]
        assert checkpointer.save(2, small(2))


def test_leaving_by_an_exception_does_not_hide_it_behind_a_failed_write(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    lines: list[str] = []
    monkeypatch.setattr("fgkd_jax.train.array_store.write_manifest", fail)

    def loop() -> None:
        with Checkpointer(tmp_path, CheckpointOptions(), log=lines.append) as checkpointer:
            checkpointer.save(2, small(2))
            raise KeyError("of the loop")

    with pytest.raises(KeyError):
        loop()
    assert len(lines) == 1
    assert "cannot write" in lines[0]
    assert "Permission denied; the last good checkpoint is none" in lines[0]


# A process that is killed.

CHILD = """
import os, signal, sys, random
import jax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp, numpy as np
from fgkd_jax.train import array_store, checkpoint, manifest
directory, where, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)

def tree(step):
    values = np.random.default_rng(step).normal(size=(3, 300_000)).astype(np.float32)
    w = list(map(jnp.asarray, values))
    return {"step": jnp.int32(step), "w": w, "key": jax.random.key(step)}

abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(0))
keeper = checkpoint.Checkpointer(directory, checkpoint.CheckpointOptions())
found = keeper.restore_last(abstract)
start = 0 if found is None else found[1]
same = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
assert found is None or same(found[0], tree(start)), start
assert not keeper.notices, keeper.notices
print("restored", start, flush=True)
last = start + steps
for step in range(start + 1, last + 1):
    if step == last:
        keeper.wait()
        if where == "before the manifest":
            array_store.write_manifest = die
        if where == "before the commit":
            array_store.write_manifest = lambda *a, **k: (manifest.write_manifest(*a, **k), die())
        if where == "while an old one is removed":
            checkpoint.shutil.rmtree = lambda p: (os.unlink(next(p.rglob("MANIFEST.json"))), die())
    keeper.save(step, tree(step))
    print("saving", step, flush=True)
keeper.close()
print("done", flush=True)
"""


def killed_tree(step: int):
    values = np.random.default_rng(step).normal(size=(3, 300_000)).astype(np.float32)
    w = list(map(jnp.asarray, values))
    return {"step": jnp.int32(step), "w": w, "key": jax.random.key(step)}


def start_child(directory: Path, where: str, steps: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), where, str(steps)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(tmp_path):
    """Each child checks what it restores against the step it came from."""
    draw = random.Random(0)
    committed = 0
    kills = ["before the manifest", "before the commit", "while an old one is removed"]
    for where in (*kills, "at random"):
        child = start_child(tmp_path, where, 4 if where in kills else 1000)
        lines = [child.stdout.readline()]
        first = int(lines[0].removeprefix("restored "))
        assert first >= committed
        if where in kills:
            lines += child.stdout.readlines()
            committed = first + (4 if where == kills[2] else 3)
        else:
            while len(lines) < 4:
                lines.append(child.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.2))
            child.send_signal(signal.SIGKILL)
            child.stdout.read()
            committed = first + 2  # the third was handed over after the second was committed
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        left = {path.name for path in (tmp_path / "last").iterdir()}
        whole = {name for name in left if (tmp_path / "last" / name / "MANIFEST.json").exists()}
        assert {name for name in left if name.isdecimal()} <= whole
        if where in kills[:2]:
            assert f"{first + 4}.orbax-checkpoint-tmp" in left
    (found, step), notices = restored(tmp_path, killed_tree(0))
    assert step >= committed
    assert notices == []
    assert same(found, killed_tree(step))
    assert all(path.name.isdecimal() for path in (tmp_path / "last").iterdir())


# Several processes.

PEER = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
address, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index, initialization_timeout=60)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from fgkd_jax.errors import UserError
from fgkd_jax.train.checkpoint import Checkpointer, CheckpointOptions
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split, everywhere = (NamedSharding(mesh, PartitionSpec(*p)) for p in (("data",), ()))

def tree(step):
    rows = np.arange(8 * 5, dtype=np.float32).reshape(8, 5) + step
    return {
        "w": jax.make_array_from_callback(rows.shape, split, lambda i: rows[i]),
        "key": jax.jit(lambda: jax.random.key(step), out_shardings=everywhere)(),
    }

like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0))
with Checkpointer(directory, CheckpointOptions(), log=print) as keeper:
    for step in (1, 2, 3):
        keeper.save(step, tree(step))
    keeper.save_best(3, tree(3), {"accuracy": 0.5})
    keeper.wait()
    if index == 0:
        with open(f"{directory}/last/3/_METADATA", "a") as file:
            file.write(" ")
    found, step = keeper.restore_last(like)
    assert step == 2 and len(keeper.notices) == 1 and keeper.steps() == (2,)
    for shard in found["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(tree(2)["w"].addressable_data(
            [s.index for s in found["w"].addressable_shards].index(shard.index))))
    wrong = {"w": like["w"], "key": like["w"]}
    try:
        keeper.restore_last(wrong)
    except UserError as error:
        print("refused:", error)
jax.distributed.shutdown()
"""


def test_two_processes_save_agree_on_damage_and_one_process_reads_it(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, address, str(index), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [peer.communicate(timeout=120) for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
    for peer, (out, error) in zip(peers, outputs, strict=True):
        assert peer.returncode == 0, error
        assert "_METADATA has" in out
        assert "refused: checkpoint" in out
    rows = jnp.arange(8 * 5, dtype=jnp.float32).reshape(8, 5)
    like = {"w": placed(rows, 8, "data"), "key": placed(jax.random.key(0), 8)}
    (tree, step), notices = restored(tmp_path, like)
    assert (step, notices) == (2, [])
    assert same(tree, {"w": rows + 2, "key": jax.random.key(2)})
