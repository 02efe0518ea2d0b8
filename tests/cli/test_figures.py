"""Which figures are told in percent."""

import pytest

from fgkd_jax.cli.figures import is_share
from fgkd_jax.cli.reproduce import table_row
from fgkd_jax.cli.results import results_table


@pytest.mark.parametrize(
    "name",
    [
        *("accuracy", "genus_accuracy", "accuracy_without_text", "best_harmonic_mean", "ausuc"),
        *("pointing", "AP", "AP50", "AP_small", "AR_100", "voc_AP50", "voc07_AP50"),
        "background_false_positives",
    ],
)
def test_shares(name):
    assert is_share(name)
    entry = {"split": "test", "checkpoint": "last", "step": 3, "figures": {name: 0.1234}}
    assert "12.3%" in results_table([entry])


@pytest.mark.parametrize("name", ["pointing_gain", "block_gain", "best_offset", "loss", "APPLES"])
def test_other_figures(name):
    assert not is_share(name)
    entry = {"split": "test", "checkpoint": "last", "step": 3, "figures": {name: 2.5}}
    assert "2.5000" in results_table([entry])


def test_a_row_has_both_kinds():
    class Report:
        title, paper, split, checkpoint = "row", "none", "test", "last"
        figures = ("harmonic_mean", "pointing_gain")

    class Experiment:
        report = Report

    def summary(value):
        figures = {"harmonic_mean": value, "pointing_gain": 10 * value, "examples": 7}
        result = {"split": "test", "checkpoint": "last", "step": 3, "figures": figures}
        return {"results": [result], "data": {"name": "birds"}}

    row = table_row(Experiment, [summary(0.2), summary(0.4)], command="fgkd")
    assert row["ours"] == "harmonic mean 30.0 ± 14.1%, pointing gain 3.00 ± 1.41"
