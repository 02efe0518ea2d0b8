"""Figures that cannot be measured: for want of a tool, or of anything to measure."""

import pytest

from fgkd_jax.cli import measurable
from fgkd_jax.cli.config import load_config
from fgkd_jax.cli.main import main
from fgkd_jax.cli.reproduce import table_row
from fgkd_jax.errors import UserError

INSTALL = "needs pycocotools: pip install 'fgkd-jax[detection]'"


@pytest.fixture
def without_tool(monkeypatch):
    def trained(*arguments, **options):
        raise AssertionError("a seed is trained")

    monkeypatch.setattr(measurable, "coco_is_installed", lambda: False)
    monkeypatch.setattr("fgkd_jax.cli.reproduce.reproduce_row", trained)


def refused(capsys, status):
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.usefixtures("without_tool")
def test_no_seed_is_trained_whose_figures_cannot_be_measured(tmp_path, capsys):
    runs = tmp_path / "runs"
    line = refused(capsys, main(["reproduce", "retinanet_birds", "--workdir", str(runs)]))
    assert f"report.figures of retinanet_birds has 'AP', which {INSTALL}" in line
    assert not runs.exists()


@pytest.mark.usefixtures("without_tool")
def test_controls_are_looked_at_before_the_first_seed_too(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    options = ["--config.report.figures=('voc_AP50',)", "--config.report.controls=('mine',)"]

    def with_controls(name, overrides):
        if name != "mine":
            return load_config(name, overrides)
        return load_config("retinanet_birds", [])

    monkeypatch.setattr("fgkd_jax.cli.config.load_config", with_controls)
    command = ["reproduce", "retinanet_birds", "--workdir", str(runs), *options]
    assert "report.figures of mine has 'AP'" in refused(capsys, main(command))
    assert not runs.exists()


@pytest.mark.usefixtures("without_tool")
def test_no_run_begins_whose_best_checkpoint_cannot_be_told(tmp_path, capsys, monkeypatch):
    class Opened(Exception):
        pass

    def opened(experiment):
        raise Opened

    monkeypatch.setattr("fgkd_jax.cli.processes.open_same_data", opened)
    run = tmp_path / "run"
    command = ["train", "--config", "retinanet_birds", "--workdir", str(run)]
    decisive = "--config.checkpoint.best_metric=AP75"
    line = refused(capsys, main([*command, decisive]))
    assert f"checkpoint.best_metric has 'AP75', which {INSTALL}; without it there are voc_A" in line
    for fine in ([], [decisive, "--config.checkpoint.keep_best=False"]):
        with pytest.raises(Opened):
            main([*command, *fine])
    assert not run.exists()


def experiment_of(*figures, name="retinanet_birds"):
    return load_config(name, [f"--config.report.figures={figures!r}"])


def summary(**figures):
    result = {"split": "test", "checkpoint": "last", "step": 3, "figures": figures}
    return {"results": [result], "data": {"name": "birds"}}


def test_a_figure_without_anything_to_measure_is_told_in_the_row():
    experiment = experiment_of("AP", "AP_small", "background_false_positives")
    seeds = [summary(AP=0.2, background_false_positives=0.5, examples=7), summary(AP=0.4)]
    row = table_row(experiment, seeds, command="fgkd")
    assert row["ours"] == (
        "AP 30.0 ± 14.1%, AP small not measurable, background false positives 50.0% (1 of 2 seeds)"
    )
    nothing = {"mean": None, "std": None, "values": [None, None]}
    assert row["figures"]["AP_small"] == nothing
    row = table_row(experiment, seeds[:1], command="fgkd")
    assert row["ours"].endswith("background false positives 50.0% (one seed)")


def test_runs_that_were_evaluated_without_the_tool_are_told():
    seeds = [summary(AP=0.2), summary(voc_AP50=0.2)]
    match = (
        r"has 'AP', but a run was evaluated without pycocotools; expected pip install .* summary"
    )
    with pytest.raises(UserError, match=match):
        table_row(experiment_of("AP"), seeds, command="fgkd")


@pytest.mark.parametrize("name", ["retinanet_birds", "classify_birds"])
def test_a_figure_of_no_evaluation_is_refused_still(name):
    with pytest.raises(UserError, match="has 'APPLES'; expected some of AP, accuracy"):
        table_row(experiment_of("APPLES", name=name), [summary(AP=1, accuracy=1)], command="fgkd")
    if name == "classify_birds":
        with pytest.raises(UserError, match="has 'AP'; expected some of accuracy"):
            table_row(experiment_of("AP", name=name), [summary(accuracy=1)], command="fgkd")
