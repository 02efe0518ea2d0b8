"""What a user installs and reads first: the wheel, the commands, the configs, the citation."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import fgkd_jax

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def readme_commands() -> ModuleType:
    """The tool with which CI reads the README."""
    spec = importlib.util.spec_from_file_location(
        "readme_commands", ROOT / ".ci" / "readme_commands.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_begins_with_the_two_commands(readme_commands: ModuleType):
    commands = readme_commands.the_two_commands(README)
    assert commands["test"] == "pip install -e '.[test]' && pytest"
    config = re.search(r"--config (\S+)", commands["train"])[1]
    assert (ROOT / config).is_file(), f"the README trains {config}, which does not exist"
    screen = "\n".join(README.splitlines()[:40])
    assert all(command in screen for command in commands.values()), "not on the first screen"


TRAIN = "pip install -e . && fgkd train --config configs/a.py --workdir runs/a"
TEST = "pip install -e '.[test]' && pytest"


def block(*lines: str, language: str = "bash") -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


@pytest.mark.parametrize(
    "readme",
    [
        block(TRAIN, TEST),
        f"# Title\n\n{block('# trains', TRAIN)}\ntext\n{block('pip install no', language='')}"
        f"{block(TEST, language='sh')}{block('fgkd eval')}",
        block(f"$ {TRAIN}", "pip install output", f"$ {TEST}", language="console"),
    ],
)
def test_the_two_commands_are_found(readme_commands: ModuleType, readme: str):
    assert readme_commands.the_two_commands(readme) == {"train": TRAIN, "test": TEST}


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("", "has 0 shell commands"),
        (TRAIN + TEST, "has 0 shell commands"),
        (block(TRAIN), "has 1 shell commands"),
        (block(TEST, TRAIN), "train command is"),
        (block(TRAIN, "cd runs", TEST), "test command is 'cd runs'"),
        (block(TRAIN, "pip install -e '.[test]' && pytest -x"), "test command is"),
        (block("fgkd train --config configs/a.py --workdir runs/a", TEST), "train command is"),
    ],
)
def test_a_readme_without_the_two_commands_is_refused(
    readme_commands: ModuleType, readme: str, message: str
):
    with pytest.raises(ValueError, match=message):
        readme_commands.the_two_commands(readme)


def test_every_config_says_how_it_is_run():
    assert CONFIGS
    for path in CONFIGS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").split("\n")[0]
        command = rf"fgkd train --config configs/{re.escape(path.name)} --workdir runs/[\w/]+"
        command += r"(?: --config\.[\w.]+=\S+)*"
        assert re.fullmatch(command, first), f"{path.name}: the docstring begins with {first!r}"
        assert "get_config" in {getattr(node, "name", "") for node in tree.body}, path.name


def test_the_wheel_has_the_package_and_its_configs_and_nothing_else(tmp_path: Path):
    pytest.importorskip("hatchling", reason="needs hatchling (pip install hatchling)")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "fgkd = fgkd_jax.cli.main:program" in archive.read(entry_points).decode()
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "fgkd_jax").rglob("*.py")}
    configs = {f"fgkd_jax/configs/{path.name}" for path in CONFIGS}
    assert (code | configs) - names == set()
    others = {name for name in names if not name.startswith("fgkd_jax/")}
    assert all(re.match(r"fgkd_jax-[\d.]+\.dist-info/", name) for name in others), others
    assert any(name.endswith("/LICENSE") for name in others)
    assert not [name for name in names if "__pycache__" in name or "/." in name]


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="fgkd")
    assert callable(command.load())


def test_versions_agree():
    version = fgkd_jax.__version__
    installed = importlib.metadata.version("fgkd-jax")
    assert installed == version, "install the package again: pip install -e ."
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [version]), "the newest release is not this version"


def test_the_citation_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    references = citation["references"]
    methods = {reference["notes"] for reference in references}
    assert methods == {"TASN", "PMA", "MSDN", "DeFeat", "MCL", "L-MCL"}
    for reference in references:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        assert all({"family-names", "given-names"} == one.keys() for one in reference["authors"])


def test_the_test_extra_is_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light = " ".join(project["dependencies"] + project["optional-dependencies"]["test"])
    heavy = re.findall(r"\b(?:torch|tensorflow|libtpu|jax\[\w+\])(?![\w-])", light)
    assert not heavy


def test_the_license_is_the_one_stated():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
