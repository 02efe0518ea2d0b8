"""The project runs elsewhere: no file knows one machine, no import needs what is optional."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Text that ties a file to one machine or one package index. Written so as not to find itself.
UNPORTABLE = re.compile(
    r"(?<![\w.\-~})])/(?:work|root|tmp|opt)(?![\w\-])"
    r"|\bpypi\.org|\bpythonhosted\.org|download\.pytorch\.org"
    r"|--(?:extra-)?index-url|--find[-]links"
)
# Tests may make up a home, and look for the shared folder beside the checkout; nothing else may.
UNPORTABLE_BESIDES_TESTS = re.compile(r"(?<![\w.\-~})])/(?:home|Users)/\w+|\.\./shared")


def violations_of_portability(path: str, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        hit = UNPORTABLE.search(line)
        if not path.startswith("tests/"):
            hit = hit or UNPORTABLE_BESIDES_TESTS.search(line)
        if hit:
            found.append(f"{path}:{number}: '{hit[0]}' belongs to one machine")
    return found


def text_files() -> Iterator[tuple[str, str]]:
    """Path and text of every file that is or would be committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


def test_no_file_names_a_machine_or_a_package_index():
    found = [one for name, text in text_files() for one in violations_of_portability(name, text)]
    assert not found, "\n" + "\n".join(found)


SLASH, DOT = "/", "."


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("runs/tmp/x, $SCRATCH/tmp, ~/tmp", f"cd {SLASH}tmp/x"),
        ("https://example.org/work/of/art", f"open('{SLASH}work/data')"),
        ("/workspace/a and /optional", f"prefix={SLASH}opt"),
        ("/home", f"{SLASH}home/someone"),
        ("pip install torch", f"pip install --{'index'}-url x torch"),
        ("the package index", f"https:{SLASH}/pypi{DOT}org/simple"),
        ("the folder 'shared'", f"..{SLASH}shared/data"),
    ],
)
def test_the_portability_rule_tells_good_from_bad(good: str, bad: str):
    assert violations_of_portability("README.md", good) == []
    assert len(violations_of_portability("README.md", bad)) == 1
    in_tests = violations_of_portability("tests/test_a.py", bad)
    assert bool(in_tests) != bool(UNPORTABLE_BESIDES_TESTS.search(bad))


IMPORT_DATA_ALONE = """
import sys
import fgkd_jax.data

sys.exit('jax' in sys.modules)
"""

# Grain imports jax by itself, so it is stood in for: what is tested is our own code.
IMPORT_DATA_WITHOUT_JAX = """
import importlib, pkgutil, sys, types

class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})

    def __getitem__(cls, key):
        return cls

stub = types.ModuleType("grain")
stub.__getattr__ = lambda name: Anything(name, (), {})
stub.__path__ = []
names = ("grain", "grain.python", "grain.transforms", "grain.sources", "grain.experimental")
sys.modules.update(dict.fromkeys(names, stub))
sys.modules["jax"] = None
import fgkd_jax.data
for found in pkgutil.walk_packages(fgkd_jax.data.__path__, "fgkd_jax.data."):
    importlib.import_module(found.name)
"""

IMPORT_ALL_WITHOUT_OPTIONAL = """
import importlib, pkgutil, sys

class Absent:  # as if not installed; None in sys.modules would look like an imported module
    names = {"torch", "tensorboardX", "tensorflow", "beartype", "pytest", "hypothesis"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import fgkd_jax
for found in pkgutil.walk_packages(fgkd_jax.__path__, "fgkd_jax."):
    importlib.import_module(found.name)
"""


@pytest.mark.parametrize(
    "script", [IMPORT_DATA_ALONE, IMPORT_DATA_WITHOUT_JAX, IMPORT_ALL_WITHOUT_OPTIONAL]
)
def test_imports_at_run_time(script: str):
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
