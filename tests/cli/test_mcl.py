"""MCL and L-MCL through the commands: they train, resume bit for bit, tell every network apart."""

import json
import shutil
import textwrap

import pytest

from fgkd_jax.cli.main import main

STEPS = 5


def write_config(folder, photographs, method):
    path = folder / "tiny_mutual.py"
    path.write_text(
        textwrap.dedent(f"""
        from ml_collections import ConfigDict

        NET = {{"name": "cifar_resnet20", "stage_sizes": (1,), "strides": (1,), "dilations": (1,),
                "width": 4, "norm_groups": 2}}


        def get_config():
            return ConfigDict(
                {{
                    "method": {{
                        "networks": (NET, {{**NET, "width": 6}}), "embedding_size": 4,
                        "brightness": 0.1, **{method!r},
                    }},
                    "data": {{
                        "dataset": "image_folder", "data_dir": {str(photographs)!r},
                        "image_size": 8, "train_geometry": "shift_crop",
                        "eval_geometry": "resize", "images_per_class": 2,
                        "views": {2 if method["name"] == "mcl_moco" else 1},
                    }},
                    "optim": {{"name": "sgd", "momentum": 0.9, "learning_rate": 0.05}},
                    "train": {{
                        "steps": {STEPS}, "batch_size": 8, "eval_batch_size": 8,
                        "log_every": 1, "tensorboard": "off",
                    }},
                    "mesh": {{"data": 2}},
                    "checkpoint": {{"every_steps": 2}},
                    "report": {{"figures": ("accuracy", "network1_accuracy")}},
                }}
            )
        """)
    )
    return path


METHODS = {
    "mcl": {"name": "mcl", "dropout": 0.1, "mutual_learning_weight": 0.5},
    "mcl_bank": {"name": "mcl_bank", "num_negatives": 30, "num_positives": 3},
    "mcl_moco": {"name": "mcl_moco", "queue_size": 20, "key_momentum": 0.9},
    "lmcl": {"name": "lmcl", "meta_every": 2, "inner_steps": 1, "match_size": 3},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_bit_for_bit_and_reports_every_network(name, photographs, tmp_path, capsys):
    config = write_config(tmp_path, photographs, METHODS[name])
    command = ["train", "--config", str(config), "--workdir"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*command, str(whole)]) == 0
    shutil.copytree(whole, resumed)
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "last" / str(STEPS))
    assert main([*command, str(resumed)]) == 0
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    results, again = (
        json.loads((folder / "summary.json").read_text())["results"] for folder in (whole, resumed)
    )
    assert results == again
    figures = results[0]["figures"]
    single = [figures[f"network{i}_accuracy"] for i in range(2)]
    assert figures["accuracy"] == pytest.approx(sum(single) / 2)
    assert "ensemble_accuracy" in figures

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    if name in ("mcl_bank", "mcl_moco"):
        assert all(line["loss/soft_icl"] > 0 for line in trained)
    else:
        assert all(line["with_positive"] == 1.0 for line in trained)
    met = [line for line in lines if line["split"] == "meta"]
    assert [line["step"] for line in met] == ([1, 3, 5] if name == "lmcl" else [])
    assert all(line["meta_grad_norm"] > 0 for line in met)
    if name == "lmcl":
        # The weights between stages move, and not only because the networks do.
        assert len({line["match/0.0-1.0"] for line in trained}) == STEPS
    pictures = [path.name for path in whole.glob("pictures/*")]
    assert pictures == (["match.0-1.png"] if name == "lmcl" else [])

    capsys.readouterr()
    picture = next((photographs / "test").rglob("*.png"))
    assert main(["predict", "--workdir", str(whole), str(picture)]) == 0
    assert picture.name in capsys.readouterr().out
