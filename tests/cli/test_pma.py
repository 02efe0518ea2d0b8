"""PMA through the commands: trains on images and captions, resumes, teaches, predicts."""

import json
import shutil

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from fgkd_jax.cli.export import load_network
from fgkd_jax.cli.main import main
from fgkd_jax.train.weight_files import load_arrays, load_metadata, save_arrays

NET = {"name": "resnet_narrow", "width": 4, "stage_sizes": (1,), "strides": (2,),
       "dilations": (1,), "norm_groups": 2}  # fmt: skip
SIZES = {"stage_features": 4, "local_features": 4, "word_features": 3, "phrase_features": 4}
COLOURS = ("blue", "green", "red")
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "method": %r,
        "data": {"dataset": "image_folder", "data_dir": %r, "image_size": 8,
                 "train_geometry": "resize", "eval_geometry": "resize", "text": %r},
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.05},
        "train": {"steps": 3, "batch_size": 8, "eval_batch_size": 8, "log_every": 1,
                  "tensorboard": "off"},
        "mesh": {"data": 2},
        "checkpoint": {"every_steps": 1},
        "report": {"figures": %r},
    })
"""
FIGURES = ("accuracy", "accuracy_without_text", "accuracy_with_other_text")


def write_images(root):
    """Squares of three colours, and ten captions of each that say which."""
    for k, name in enumerate(COLOURS):
        (root / "text_c10" / name).mkdir(parents=True)
        for split, count in (("train", 6), ("validation", 2), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.random.default_rng([k, i]).integers(0, 99, (12, 12, 3), np.uint8)
                image[..., k] += 120
                cv2.imwrite(str(root / split / name / f"{split}{i}.png"), image)
                text = "\n".join(f"a {name} square with {n} dark spots" for n in range(2, 12))
                (root / "text_c10" / name / f"{split}{i}.txt").write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs with captions, configs, and a trained teacher in a file."""
    folder = tmp_path_factory.mktemp("pma")
    write_images(folder / "data")
    text = {"captions_dir": str(folder / "data"), "max_phrases": 3, "max_words": 3}
    data = str(folder / "data")
    teacher = {"backbone": NET, **SIZES}
    methods = {
        "pma": {"name": "pma", **teacher, "text_dropout": 0.2, "dropout": 0.1, "brightness": 0.1},
        "student": {"name": "pma_student", "backbone": NET, "teacher": teacher},
    }
    for name, method in methods.items():
        (folder / f"{name}.py").write_text(CONFIG % (method, data, text, FIGURES))
    silent = CONFIG % (methods["pma"], data, None, ("accuracy",))
    (folder / "silent.py").write_text(silent)
    assert train(folder, "pma", folder / "teacher") == 0
    command = ["export", "--workdir", str(folder / "teacher")]
    assert main([*command, "--output", str(folder / "t.safetensors")]) == 0
    return folder


def train(folder, config, workdir, *overrides):
    command = ["train", "--config", str(folder / f"{config}.py"), "--workdir", str(workdir)]
    return main([*command, *(f"--config.{one}" for one in overrides)])


def refused(capsys, status):
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_resumes_bit_for_bit(folder, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "teacher", resumed)
    (resumed / "summary.json").unlink()
    for step in ("2", "3"):
        shutil.rmtree(resumed / "checkpoints" / "last" / step, ignore_errors=True)
    assert train(folder, "pma", resumed) == 0
    whole = folder / "teacher"
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    figures = lines[-1]
    assert set(FIGURES) <= set(figures), figures


def test_an_exported_teacher_says_what_it_reads(folder):
    metadata = load_metadata(folder / "t.safetensors")
    assert {"dark", "spots", "square", *COLOURS} <= set(metadata["vocabulary"])
    loaded = load_network(str(folder / "t.safetensors"))
    assert loaded.method.vocabulary_size == len(metadata["vocabulary"]) + 2
    image = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    predicted = loaded.method.predict(loaded.variables, {"image": image})
    assert np.isfinite(predicted["logits"]).all()
    assert loaded.method.text_dropout == 0.0


def test_a_student_learns_from_the_file_and_ships_as_a_classifier(folder, tmp_path, capsys):
    run = tmp_path / "run"
    teacher = f"pretrained.teacher={folder / 't.safetensors'}"
    assert train(folder, "student", run, teacher) == 0
    assert "teacher: " in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/distillation"] > 0 for line in lines if line["split"] == "train")
    assert lines[-1]["accuracy"] == lines[-1]["accuracy_without_text"]
    image = str(folder / "data" / "test" / "red" / "test0.png")
    assert main(["predict", "--workdir", str(run), "--json", image]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 3
    output = str(tmp_path / "s.safetensors")
    assert main(["export", "--workdir", str(run), "--output", output]) == 0
    assert load_metadata(output)["method"]["name"] == "classifier"


def test_each_seed_of_a_row_may_have_a_teacher_of_its_own(folder, tmp_path, capsys):
    for seed in range(2):
        shutil.copy(folder / "t.safetensors", tmp_path / f"t{seed}.safetensors")
    runs = tmp_path / "runs"
    command = ["reproduce", str(folder / "student.py"), "--seeds", "2", "--workdir", str(runs)]
    named = f"--config.pretrained.teacher={tmp_path}/t{{seed}}.safetensors"
    assert main([*command, named]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert "t{seed}.safetensors" in row
    for seed in range(2):
        config = json.loads((runs / "student" / f"seed{seed}" / "config.json").read_text())
        assert config["pretrained"]["teacher"] == f"{tmp_path}/t{seed}.safetensors"
        assert config["seed"] == seed
    (tmp_path / "t1.safetensors").unlink()
    line = refused(capsys, main([*command, named]))
    assert "t1.safetensors" in line


def test_image_files_are_predicted_with_a_text_or_without(folder, tmp_path, capsys):
    image = str(folder / "data" / "test" / "red" / "test0.png")
    command = ["predict", "--workdir", str(folder / "teacher"), "--pictures", str(tmp_path)]
    assert main([*command, "--json", image]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["classes"]) == 3
    assert told["pictures"] == [str(tmp_path / "test0.blocks.png")]
    assert cv2.imread(told["pictures"][0]).shape == (512, 512, 3)
    assert "phrases" not in told
    caption = ["--caption", "the red square has dark spots and a purple border"]
    assert main([*command, *caption, "--json", image]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [list(stage) for stage in told["phrases"]] == [["red square", "dark spots", "? ?"]] * 3
    assert sum(told["phrases"][0].values()) == pytest.approx(1.0, abs=1e-3)
    written = cv2.imread(told["pictures"][0])
    assert written.shape[0] == 512
    assert written.shape[1] > 512 + 100  # phrases beside the blocks
    assert main([*command, *caption, image]) == 0
    assert "  stage 1: red square 0." in capsys.readouterr().out


def test_a_run_on_true_boxes_is_shown_all_of_a_file(folder, tmp_path, capsys):
    image = str(folder / "data" / "test" / "blue" / "test1.png")
    boxes = tmp_path / "boxes"
    shutil.copytree(folder / "teacher", boxes)
    config = json.loads((boxes / "config.json").read_text())
    assert config["data"]["eval_geometry"] == "resize"
    config["data"]["eval_geometry"] = "box"
    (boxes / "config.json").write_text(json.dumps(config))
    told = []
    for run in (folder / "teacher", boxes):
        assert main(["predict", "--workdir", str(run), "--json", image]) == 0
        told.append(json.loads(capsys.readouterr().out)["classes"])
    assert told[0] == told[1]


def test_another_vocabulary_is_refused(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder / "data" / "text_c10", other / "text_c10")
    file = other / "text_c10" / "red" / "train0.txt"
    file.write_text(file.read_text().replace("spots", "stripes"))
    moved = f"data.text.captions_dir={other}"
    teacher = f"pretrained.teacher={folder / 't.safetensors'}"
    line = refused(capsys, train(folder, "student", tmp_path / "run", teacher, moved))
    assert "t.safetensors was trained with the vocabulary " in line
    words = load_metadata(folder / "t.safetensors")["vocabulary"]
    assert f" of {len(words) + 2} words; expected " in line
    assert "words of this data set; the first that differs is '" in line
    both = tmp_path / "both.npz"
    metadata = load_metadata(folder / "t.safetensors")
    renamed = {**metadata, "class_names": ["green", *metadata["class_names"][1:]]}
    save_arrays(both, load_arrays(folder / "t.safetensors"), metadata=renamed)
    line = refused(
        capsys, train(folder, "student", tmp_path / "run", f"pretrained.teacher={both}", moved)
    )
    assert f"class 0 of the teacher {both} is 'green'; expected 'blue'" in line
    classifier = {**metadata, "method": {**metadata["method"], "name": "classifier"}}
    save_arrays(both, load_arrays(folder / "t.safetensors"), metadata=classifier, overwrite=True)
    line = refused(capsys, train(folder, "student", tmp_path / "run", f"pretrained.teacher={both}"))
    assert line.endswith(f"the teacher {both} is a classifier; expected a pma")
    assert not (tmp_path / "run").exists()
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "teacher", resumed)
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "last" / "3")
    file = folder / "data" / "text_c10" / "red" / "train0.txt"
    before = file.read_text()
    try:
        file.write_text(before.replace("spots", "stripes"))
        line = refused(capsys, train(folder, "pma", resumed))
    finally:
        file.write_text(before)
    assert "the checkpoint of step 2 was trained with the vocabulary " in line
    assert "the 19 words of this data set" in line


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    run = tmp_path / "run"
    line = refused(capsys, train(folder, "silent", run))
    assert "the method reads phrases, but data.text is None; expected options of text" in line
    line = refused(capsys, train(folder, "pma", run, "data.text.chunker=parser"))
    assert "data.text.chunker is 'parser'; expected one of rules, spacy" in line
    line = refused(capsys, train(folder, "pma", run, "data.text.captions_dir=nowhere"))
    assert "there is no folder of captions nowhere" in line
    line = refused(capsys, train(folder, "pma", run, "method.vocabulary_size=7"))
    assert "method.vocabulary_size is 7, but image_folder has " in line
    line = refused(capsys, train(folder, "student", run))
    assert "learns from a frozen teacher, but pretrained.teacher is empty" in line
    wrong = [f"pretrained.teacher={folder / 't.safetensors'}", "method.teacher.stage_features=5"]
    line = refused(capsys, train(folder, "student", run, *wrong))
    assert "t.safetensors has stage_features " in line
    assert line.endswith("; expected 5 (method.teacher.stage_features)")
    assert not run.exists()
