"""`fgkd export`: the network alone predicts as in its run, and another run starts from it."""

import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.export import load_network
from fgkd_jax.cli.main import main
from fgkd_jax.cli.results import restore
from fgkd_jax.methods import LMCL, MCL, METHODS, TASN
from fgkd_jax.protocols import Exportable
from fgkd_jax.train.weight_files import load_arrays, load_metadata

NET = {"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
       "width": 4, "norm_groups": 2}  # fmt: skip
NETWORKS = (NET, {**NET, "width": 6})
RUNS = {
    "mcl": {"name": "mcl", "networks": NETWORKS, "embedding_size": 4},
    "lmcl": {"name": "lmcl", "networks": NETWORKS, "embedding_size": 4, "meta_every": 0},
    "plain": {"name": "classifier", "backbone": NET, "dropout": 0.1},
}

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": {"image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.2, 0.3), **%r},
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize", "images_per_class": 2},
        "optim": {"name": "sgd", "learning_rate": 0.05, "ema_decay": 0.5},
        "train": {"steps": 3, "batch_size": 8, "eval_batch_size": 8, "eval_every": 1,
                  "tensorboard": "off"},
        "mesh": {"data": 2},
        "checkpoint": {"every_steps": 1, "best_metric": "loss", "best_mode": "max"},
    })
"""


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory):
    """One short run per method."""
    folder = tmp_path_factory.mktemp("exported")
    for name, method in RUNS.items():
        config = folder / f"{name}.py"
        config.write_text(CONFIG % (method, str(photographs)))
        assert main(["train", "--config", str(config), "--workdir", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(photographs):
    files = sorted((photographs / "test").rglob("*.png"))
    read = [cv2.resize(cv2.imread(str(file)), (8, 8)) for file in files[::3]]
    return jnp.asarray(np.stack(read)[..., ::-1])


def export(workdir, output, *arguments):
    return main(["export", "--workdir", str(workdir), "--output", str(output), *arguments])


def logits_of(path, images):
    loaded = load_network(str(path))
    return jax.jit(loaded.method.predict)(loaded.variables, {"image": images})["logits"]


def logits_in_run(workdir, images, network, *, checkpoint="last"):
    restored = restore(str(workdir), checkpoint=checkpoint)
    method = restored.trainer.run.method
    predicted = method.predict(restored.state.variables(ema=True), {"image": images})
    return predicted["network_logits"][network] if network is not None else predicted["logits"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("names", "suffix"), [("jax", ".npz"), ("torch", ".safetensors")])
def test_the_network_alone_predicts_the_same(runs, images, tmp_path, name, names, suffix):
    network = None if name == "plain" else 1
    output = tmp_path / "new" / f"network{suffix}"
    assert export(runs / name, output, "--network", str(network or 0), "--names", names) == 0
    expected = logits_in_run(runs / name, images, network)
    np.testing.assert_allclose(logits_of(output, images), expected, rtol=0, atol=1e-6)
    assert [one.name for one in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("name", ["mcl", "lmcl"])
def test_nothing_but_the_network_is_written(runs, tmp_path, name, capsys):
    output = tmp_path / "network.safetensors"
    assert export(runs / name, output, "--network", "1") == 0
    assert "network 1 after 3 steps, cifar_resnet20, 3 classes, " in capsys.readouterr().out
    arrays = load_arrays(output)
    assert {path.split("/")[0] for path in arrays} == {"params", "batch_stats"}
    assert {path.split("/")[1] for path in arrays} == {"backbone", "head"}
    assert arrays["params/backbone/stem/conv/kernel"].shape == (3, 3, 3, 6)
    metadata = load_metadata(output)
    assert metadata["class_names"] == ["blue", "green", "red"]
    assert metadata["image_size"] == [8, 8]
    assert metadata["method"]["image_mean"] == [0.4, 0.5, 0.6]
    assert metadata["method"]["backbone"] == {**NETWORKS[1], "stage_sizes": [1], "strides": [1],
                                              "dilations": [1]}  # fmt: skip
    assert metadata["trained"]["step"] == 3
    assert str(tmp_path) not in json.dumps(metadata)
    assert load_network(str(output)).metadata == metadata


def test_the_best_checkpoint_is_another_one(runs, images, tmp_path):
    last, best = tmp_path / "last.npz", tmp_path / "best.npz"
    assert export(runs / "mcl", last) == 0
    assert export(runs / "mcl", best, "--checkpoint", "best") == 0
    expected = logits_in_run(runs / "mcl", images, 0, checkpoint="best")
    np.testing.assert_allclose(logits_of(best, images), expected, rtol=0, atol=1e-6)
    assert np.abs(logits_of(best, images) - logits_of(last, images)).max() > 1e-3


@pytest.mark.parametrize("names", ["jax", "torch"])
def test_another_run_starts_from_it(runs, images, tmp_path, names):
    """As a whole, and, without its classifier, as one of the networks of another run."""
    output = tmp_path / "start.safetensors"
    assert export(runs / "mcl", output, "--names", names) == 0
    expected = load_network(str(output)).variables
    still = "--config.optim.learning_rate=0"
    started = tmp_path / "classifier"
    options = ["--config.pretrained.reinit_head=False", "--config.train.steps=1", still]
    command = ["train", "--config", str(runs / "plain.py"), "--workdir", str(started), *options]
    assert main([*command, f"--config.pretrained.path={output}"]) == 0
    state = restore(str(started), checkpoint="last").state
    jax.tree.map(np.testing.assert_array_equal, state.params, expected["params"])

    started = tmp_path / "mcl"
    command = ["train", "--config", str(runs / "mcl.py"), "--workdir", str(started)]
    command += ["--config.train.steps=1", f"--config.pretrained.others.networks_0={output}", still]
    assert main(command) == 0
    state = restore(str(started), checkpoint="last").state
    backbone = expected["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, state.params["networks_0"], backbone)


def test_a_file_that_is_there_is_kept_unless_told(runs, images, tmp_path, capsys):
    output = tmp_path / "network.npz"
    output.write_bytes(b"dear to someone")
    assert export(runs / "plain", output) == 2
    assert f"output {output} exists already; expected a name" in capsys.readouterr().err
    assert output.read_bytes() == b"dear to someone"
    assert export(runs / "plain", output, "--overwrite") == 0
    assert logits_of(output, images).shape == (len(images), 3)


def one_line(capsys, status):
    printed = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    return printed[-1]


def test_mistakes_are_told_in_one_line(runs, tmp_path, capsys):
    output = tmp_path / "x.npz"
    status = export(runs / "mcl", output, "--network", "2")
    assert one_line(capsys, status) == "fgkd: error: network is 2; expected 0 to 1"
    status = export(runs / "plain", output, "--network", "1")
    assert "network is 1; expected 0, the only one" in one_line(capsys, status)
    status = export(runs / "plain", tmp_path / "x.pth")
    line = one_line(capsys, status)
    assert "x.pth ends in '.pth'; expected .safetensors or .npz" in line
    status = export(runs / "plain", tmp_path)
    assert "ends in ''" in one_line(capsys, status)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs / "plain" / "config.json", unfinished)
    status = export(unfinished, output)
    assert "holds no 'last' checkpoint" in one_line(capsys, status)
    status = export(tmp_path / "nowhere", output)
    assert "holds no run: config.json is missing" in one_line(capsys, status)
    assert main(["export", "--workdir", str(runs / "plain")]) == 2
    assert "fgkd export needs --output" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    status = export(runs / "plain", tmp_path / "file" / "x.npz")
    assert "x.npz cannot be written: " in one_line(capsys, status)
    assert not output.exists()
    np.savez(output, a=np.ones(2))
    with pytest.raises(ValueError, match=r"x.npz: its format is None; expected 1"):
        load_network(str(output))


def make_images(size, count=3):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, size, size, 3), np.uint8))


def test_tasn_ships_its_master():
    small = {**NET, "norm_groups": 1}
    method = TASN(num_classes=4, backbone=small, attention_backbone=small, attention_size=8,
                  out_size=8, dilated_head=False)  # fmt: skip
    batch = {"image": make_images(16)}
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    exported = method.export(variables)
    assert exported.image_size == (8, 8)
    assert exported.variables["params"].keys() == {"backbone", "head"}
    predicted = jax.jit(method.predict)(variables, batch)
    alone = exported.method.predict(exported.variables, {"image": predicted["structure"]})
    np.testing.assert_allclose(alone["logits"], predicted["logits"], rtol=0, atol=1e-6)


def test_lmcl_ships_the_classifier_of_the_last_stage():
    two = {**NET, "stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 1), "norm_groups": 1}
    method = LMCL(num_classes=4, networks=(two, two), embedding_size=4, meta_every=0)
    batch = {"image": make_images(8)}
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    expected = jax.jit(method.predict)(variables, batch)["network_logits"][1]
    exported = method.export(variables, network=1)
    alone = exported.method.predict(exported.variables, batch)["logits"]
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6)


def test_a_shared_trunk_goes_with_every_network_that_is_of_its_kind():
    two = {**NET, "stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 1), "norm_groups": 1}
    deeper = {**two, "stage_sizes": (1, 2)}
    wide = {"name": "wrn_16_2", "stage_sizes": (1, 1), "strides": (1, 2), "widening": 1}
    method = MCL(num_classes=4, networks=(two, deeper, wide), embedding_size=4, shared_stages=2)
    batch = {"image": make_images(8)}
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    expected = jax.jit(method.predict)(variables, batch)["network_logits"]
    for network in (0, 1):
        exported = method.export(variables, network=network)
        template = jax.eval_shape(exported.method.init, jax.random.key(0), batch)
        assert jax.tree.structure(dict(exported.variables)) == jax.tree.structure(template)
        alone = exported.method.predict(exported.variables, batch)["logits"]
        np.testing.assert_allclose(alone, expected[network], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="network 2 stands on 2 stages of network 0, which are no"):
        method.export(variables, network=2)


def test_every_method_of_images_can_be_exported():
    # MSDN reads what `fgkd features` wrote of them.
    none = {name for name, method in METHODS.items() if not issubclass(method, Exportable)}
    assert none == {"msdn"}
    assert isinstance(load_config("classify_birds").method, Exportable)
