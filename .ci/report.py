"""Reads pytest's JUnit files: which files to run again, what is still skipped, the totals.

    python .ci/report.py rerun|skipped|totals JUNIT.xml...

Where a test was run twice, its later result counts, unless it was skipped then. Of two skips that
counts whose reason no package cures. That a whole file was skipped counts only where none of its
tests ran.
"""

import argparse
import re
import sys
import xml.etree.ElementTree as ET
from typing import NamedTuple

# What no `pip install` can bring; every other skip must be gone once the extras are installed.
ACCEPTED_REASONS = re.compile(r"needs (the shared data|a GPU|a TPU|kubectl)\b")


class Result(NamedTuple):
    """What came of one test.

    Attributes:
      file: path of the test file, as pytest printed it.
      outcome: `passed`, `failed`, `skipped` or `xfailed`.
      reason: why it was skipped.
    """

    file: str
    outcome: str
    reason: str = ""


def read_results(paths: list[str]) -> list[Result]:
    """Reads and merges JUnit files (pytest's `xunit1` family, which names the test files).

    Args:
      paths: files, oldest first.

    Returns:
      One result per test, and one per file of which nothing ran.
    """
    tests: dict[tuple[str, str, str], Result] = {}
    files: dict[str, Result] = {}
    for path in paths:
        for case in ET.parse(path).getroot().iter("testcase"):
            file = case.get("file", "")
            skip = case.find("skipped")
            outcome, reason = "passed", ""
            if case.find("failure") is not None or case.find("error") is not None:
                outcome = "failed"
            elif skip is not None:
                outcome = "xfailed" if skip.get("type") == "pytest.xfail" else "skipped"
                reason = f"{skip.get('message')} {skip.text or ''}"
            result = Result(file, outcome, reason)
            if not case.get("classname"):  # of a file that could not be imported, or was skipped
                files[file] = result
                continue
            key = (file, case.get("classname", ""), case.get("name", ""))
            skipped_again = key in tests and outcome == "skipped"
            told = skipped_again and tests[key].outcome != "skipped"
            if told or (skipped_again and not ACCEPTED_REASONS.search(reason)):
                continue
            tests[key] = result
    ran = {file for file, _, _ in tests}
    whole = [result for file, result in files.items() if file not in ran]
    return [*tests.values(), *whole]


def curable(results: list[Result]) -> list[Result]:
    """Lists the skipped tests that an installed package would have let run.

    Args:
      results: as `read_results` returns them.

    Returns:
      Those whose reason is none of the accepted ones.
    """
    return [
        result
        for result in results
        if result.outcome == "skipped" and not ACCEPTED_REASONS.search(result.reason)
    ]


def totals(results: list[Result]) -> str:
    """Sums the results up.

    Args:
      results: as `read_results` returns them.

    Returns:
      How many passed and failed, after a line on what was skipped, if anything was.
    """
    outcomes = [result.outcome for result in results]
    skips = outcomes.count("skipped")
    note = f"{skips} skipped\n" if skips else ""
    return f"{note}{outcomes.count('passed')} passed, {outcomes.count('failed')} failed"


def main() -> None:
    """Prints what was asked; `skipped` exits with status 1 where it lists anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rerun", "skipped", "totals"])
    parser.add_argument("junit", nargs="*")
    arguments = parser.parse_args()
    results = read_results(arguments.junit)
    if arguments.what == "totals":
        print(totals(results))
    elif arguments.what == "rerun":
        print("\n".join(sorted({result.file for result in curable(results)})))
    elif left := curable(results):
        sys.exit("\n".join(f"still skipped: {one.file}: {one.reason}" for one in left))


if __name__ == "__main__":
    main()
