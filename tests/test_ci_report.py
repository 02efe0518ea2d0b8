"""What counts of a test that several runs of the suite reported."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CURABLE = "the extra `detection` is not installed"
ACCEPTED = "needs the shared data golden/x.npz, which this copy lacks"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("ci_report", ROOT / ".ci" / "report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ci_report"] = module  # its NamedTuple looks its own module up
    spec.loader.exec_module(module)
    return module


def junit(folder, number, outcome, *, name="test_it", classname="tests.test_a"):
    """Writes the report of a run with one test, whose outcome is a reason where it was skipped."""
    inner = {"passed": "", "failed": "<failure/>"}.get(
        outcome, f'<skipped type="pytest.skip" message="{outcome}">{outcome}</skipped>'
    )
    path = folder / f"junit-{number}.xml"
    path.write_text(
        "<testsuites><testsuite>"
        f'<testcase classname="{classname}" name="{name}" file="tests/test_a.py">{inner}</testcase>'
        "</testsuite></testsuites>"
    )
    return str(path)


@pytest.mark.parametrize(
    ("outcomes", "counted", "left"),
    [
        (["passed"], "passed", 0),
        ([CURABLE], "skipped", 1),
        ([ACCEPTED], "skipped", 0),
        ([CURABLE, "passed"], "passed", 0),
        (["passed", CURABLE], "passed", 0),
        (["passed", "failed"], "failed", 0),
        (["failed", CURABLE], "failed", 0),
        ([CURABLE, ACCEPTED], "skipped", 0),
        ([ACCEPTED, CURABLE], "skipped", 0),
        ([CURABLE, CURABLE], "skipped", 1),
    ],
)
def test_of_several_runs(report, tmp_path, outcomes, counted, left):
    paths = [junit(tmp_path, number, outcome) for number, outcome in enumerate(outcomes)]
    results = report.read_results(paths)
    assert [result.outcome for result in results] == [counted]
    assert len(report.curable(results)) == left


def test_a_whole_file_that_was_skipped(report, tmp_path):
    whole = junit(tmp_path, 0, CURABLE, name="tests.test_a", classname="")
    assert [one.file for one in report.curable(report.read_results([whole]))] == ["tests/test_a.py"]
    ran = junit(tmp_path, 1, "passed")
    assert not report.curable(report.read_results([whole, ran]))


def test_totals(report, tmp_path):
    paths = [
        junit(tmp_path, number, outcome, name=f"test_{number}")
        for number, outcome in enumerate(["passed", "failed", ACCEPTED, "passed"])
    ]
    assert report.totals(report.read_results(paths)) == "1 skipped\n2 passed, 1 failed"
