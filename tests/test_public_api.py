"""The shape of the public interface, recorded in `public_api.json`: names, arguments, defaults.

A change to it is a change for users: look at it, then record it, and mention it in CHANGELOG.md:

    python tests/test_public_api.py --update
"""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_name("public_api.json")
INTERFACES = (
    *("errors", "parts", "protocols", "typing"),
    *("ops", "losses", "models", "methods", "data", "evaluation", "train"),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Interface = dict[str, dict[str, str]]


def source_of(root: Path, module: str) -> ast.Module:
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def top_level(tree: ast.Module) -> dict[str, ast.stmt]:
    """The statement that gives each name of a module its meaning."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (*Function.__args__, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {one.id: node for one in node.targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def exported(root: Path, module: str) -> list[str]:
    """The names in `__all__`, or else those defined here; a package also hands on its own."""
    names = top_level(source_of(root, module))
    if "__all__" in names:
        return list(ast.literal_eval(names["__all__"].value))
    is_package = root.joinpath(*module.split(".")).is_dir()
    return [
        name
        for name, node in names.items()
        if not name.startswith("_")
        and not (
            isinstance(node, ast.ImportFrom)
            and not (is_package and (node.module or "").startswith("fgkd_jax"))
        )
    ]


def describe(root: Path, module: str, name: str) -> dict[str, str]:
    """What a user sees of one name; a class is described by its fields and methods too."""
    node = top_level(source_of(root, module)).get(name)
    match node:
        case None:
            return {name: "module"}
        case ast.ImportFrom(module=origin) if (origin or "").startswith("fgkd_jax"):
            before = next(a.name for a in node.names if (a.asname or a.name) == name)
            found = describe(root, origin, before)
            return {name + key.removeprefix(before): value for key, value in found.items()}
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return {name: signature(node)}
        case ast.ClassDef():
            return describe_class(node, name)
        case ast.Assign(value=ast.Dict() as table) | ast.AnnAssign(value=ast.Dict() as table):
            return {name: f"{{{', '.join(ast.unparse(key) for key in table.keys)}}}"}
        case ast.AnnAssign(annotation=kind):
            return {name: f"constant: {ast.unparse(kind)}"}
    return {name: "constant"}


def signature(function: Function) -> str:
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(function.args)}){result}"


def describe_class(node: ast.ClassDef, name: str) -> dict[str, str]:
    bases = [ast.unparse(one) for one in (*node.bases, *node.keywords)]
    decorators = [f"@{ast.unparse(one)} " for one in node.decorator_list]
    found = {name: f"{''.join(decorators)}class({', '.join(bases)})"}
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            default = f" = {ast.unparse(part.value)}" if part.value else ""
            key = f"{name}.{ast.unparse(part.target)}"
            found[key] = f"{ast.unparse(part.annotation)}{default}"
        elif isinstance(part, Function) and (
            not part.name.startswith("_") or part.name in ("__init__", "__call__")
        ):
            found[f"{name}.{part.name}"] = signature(part)
    return found


def interface(root: Path, parts: tuple[str, ...] = INTERFACES) -> Interface:
    """Everything public, by module and name."""
    found: Interface = {}
    for module in (f"fgkd_jax.{part}" for part in parts):
        described: dict[str, str] = {}
        for name in exported(root, module):
            described |= describe(root, module, name)
        found[module] = dict(sorted(described.items()))
    return found


def differences(recorded: Interface, present: Interface) -> list[str]:
    found = []
    for module in sorted(recorded.keys() | present.keys()):
        before, now = recorded.get(module, {}), present.get(module, {})
        for name in sorted(before.keys() | now.keys()):
            if name not in now:
                found.append(f"removed  {module}.{name}{before[name]}")
            elif name not in before:
                found.append(f"added    {module}.{name}{now[name]}")
            elif before[name] != now[name]:
                found.append(f"changed  {module}.{name}{before[name]}\n      to {now[name]}")
    return found


def test_the_public_interface_is_the_recorded_one():
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    found = differences(recorded, interface(ROOT))
    hint = "if this is meant: python tests/test_public_api.py --update, and CHANGELOG.md"
    assert not found, "\n".join(["", *found, hint])


OPS = """
import jax
from fgkd_jax.ops.color import tint as color_tint, Pair
from numpy import pi
_private = 1
TABLE = {"a": 1}
"""
COLOR = """
def tint(image: Float[Array, "h w"], *, by: float = 1.0) -> Array:
    return image

@dataclass(frozen=True)
class Pair(Base):
    left: int = 0
    _hidden: int = 1
    def area(self, *, scale) -> int: ...
    def _helper(self): ...
"""


def record_of(folder: Path, ops: str, color: str) -> Interface:
    package = folder / "fgkd_jax" / "ops"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(ops)
    (package / "color.py").write_text(color)
    return interface(folder, ("ops",))


def test_what_is_recorded(tmp_path: Path):
    assert record_of(tmp_path, OPS, COLOR) == {
        "fgkd_jax.ops": {
            "Pair": "@dataclass(frozen=True) class(Base)",
            "Pair.area": "(self, *, scale) -> int",
            "Pair.left": "int = 0",
            "TABLE": "{'a'}",
            "color_tint": "(image: Float[Array, 'h w'], *, by: float=1.0) -> Array",
        }
    }
    assert list(record_of(tmp_path, OPS + "__all__ = ['TABLE']", COLOR)["fgkd_jax.ops"]) == [
        "TABLE"
    ]


def test_every_change_is_told(tmp_path: Path):
    before = record_of(tmp_path, OPS, COLOR)
    assert differences(before, before) == []
    for old, new, told in (
        ("*, by", "by", "changed  fgkd_jax.ops.color_tint"),
        ("= 1.0", "= 2.0", "changed  fgkd_jax.ops.color_tint"),
        ("left: int", "right: int", "added    fgkd_jax.ops.Pair.right"),
        ("scale", "size", "changed  fgkd_jax.ops.Pair.area"),
    ):
        after = record_of(tmp_path, OPS, COLOR.replace(old, new))
        assert any(line.startswith(told) for line in differences(before, after)), told
    after = record_of(tmp_path, OPS.replace(", Pair", ""), COLOR)
    assert len(differences(before, after)) == 3
    assert all(line.startswith("removed") for line in differences(before, after))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_public_api.py --update")
    RECORD.write_text(json.dumps(interface(ROOT), indent=2) + "\n", encoding="utf-8")
    print(f"recorded in {RECORD.relative_to(ROOT)}")
