"""The house rules that a machine can keep, over the syntax trees of the package.

Every rule is one function from a module to what is wrong in it, and comes with a snippet that
breaks it and a snippet that keeps it: a rule that cannot fail is no rule. The rules about
docstrings and signatures are in `test_docstrings.py`.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fgkd_jax"

# Who may import whom inside fgkd_jax: ops <- losses <- models <- methods <- cli. `train`, `data`
# and `evaluation` know no method; what they need of one is in `protocols`. `data` runs in worker
# processes that have no business with jax, so not even `typing` is for it.
ALLOWED = {
    "errors": set(),
    "typing": set(),
    "parts": set(),
    "protocols": {"errors", "typing"},
    "data": {"errors"},
    "ops": {"errors", "typing"},
    "losses": {"errors", "typing", "ops"},
    "models": {"errors", "typing", "ops", "losses"},
    "methods": {"errors", "typing", "parts", "protocols", "ops", "losses", "models"},
    "evaluation": {"errors", "typing", "protocols", "ops", "losses"},
    "train": {"errors", "typing", "parts", "protocols", "ops", "data", "evaluation"},
    "cli": {
        *("", "errors", "typing", "parts", "protocols", "ops", "losses", "models", "methods"),
        *("data", "evaluation", "train"),
    },
}
NOT_IN_DATA = {"jax", "jaxlib", "flax", "optax", "orbax", "jaxtyping", "chex"}
XLA_PADDINGS = {"SAME", "VALID"}  # names of values, not of variants
OPTIONAL = {"torch", "torchvision", "tensorboardX", "tensorflow", "pycocotools"}

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Module(NamedTuple):
    """A parsed source file."""

    name: str
    source: str
    tree: ast.Module
    is_package: bool = False

    @property
    def layer(self) -> str:
        """The first part of the name below fgkd_jax; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""


Rule = Callable[[Module], list[str]]


def parse(name: str, source: str) -> Module:
    return Module(name, source, ast.parse(source))


@cache
def modules() -> list[Module]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        source = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, source, ast.parse(source), is_package))
    return found


def docstring_nodes(tree: ast.AST) -> set[ast.AST]:
    """The string constants that stand alone as statements: docstrings, also of attributes."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, at the top or inside a function."""
    documentation = docstring_nodes(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                cut = node.level - module.is_package
                parents = module.name.split(".")[: -cut or None]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and node not in documentation
            and re.fullmatch(r"fgkd_jax(\.\w+)+(:\w+)?", str(node.value))
        ):  # a module named in a string, for importlib
            yield node.lineno, node.value.replace(":", ".")


def violations_of_import_direction(module: Module) -> list[str]:
    if module.layer and module.layer not in ALLOWED:
        return [f"{module.name}: add the layer '{module.layer}' to the table of allowed imports"]
    allowed = ALLOWED.get(module.layer, set()) | {module.layer, "__version__"}
    found = []
    for line, name in imports(module):
        root, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if root == "fgkd_jax" and target not in allowed:
            found.append(f"{module.name}:{line}: {module.layer or 'the root'} imports {name}")
        elif module.layer == "data" and root in NOT_IN_DATA:
            found.append(f"{module.name}:{line}: data imports {name}")
    return found


def violations_of_optional_imports(module: Module) -> list[str]:
    found = []
    for node in module.tree.body:
        top = Module(module.name, "", ast.Module([node], []), module.is_package)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [
                f"{module.name}:{line}: imports the optional {name} at the top"
                for line, name in imports(top)
                if name.split(".")[0] in OPTIONAL
            ]
    return found


def violations_of_sizes(module: Module) -> list[str]:
    found = []
    if (lines := module.source.count("\n")) > MAX_FILE_LINES:
        found.append(f"{module.name}: {lines} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(module.tree):
        if isinstance(node, FUNCTIONS) and (lines := code_lines(node)) > MAX_FUNCTION_LINES:
            found.append(
                f"{module.name}:{node.lineno}: {node.name} has {lines} lines besides its"
                f" docstring, at most {MAX_FUNCTION_LINES}"
            )
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: documentation is never to be cut for space."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def violations_of_step_size(module: Module) -> list[str]:
    """The step that all methods share is read in a minute: everything counts, docstrings too."""
    return [
        f"{module.name}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for node in ast.walk(module.tree)
        if module.name.startswith("fgkd_jax.train")
        and isinstance(node, FUNCTIONS)
        and re.fullmatch(r"(train_|eval_)?step", node.name)
        and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def violations_of_statements(module: Module) -> list[str]:
    found = []
    for node in ast.walk(module.tree):
        match node:
            case ast.Assert():
                found.append((node.lineno, "assert; raise UserError or state it in a test"))
            case ast.Call(func=ast.Name(id="print")) if module.layer != "cli":
                found.append((node.lineno, "print outside cli"))
            case ast.ImportFrom(module="__future__"):
                found.append((node.lineno, "__future__ import; jaxtyping needs live annotations"))
            case ast.ExceptHandler() if is_swallowing(node):
                found.append((node.lineno, "swallows every exception"))
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for number, text in enumerate(module.source.splitlines(), start=1):
        if word := words.search(text):
            found.append((number, f"{word[0]}; finish it or file an issue"))
    return [f"{module.name}:{line}: {what}" for line, what in sorted(found)]


def is_swallowing(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything and then does nothing."""
    everything = handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
    )
    nothing = all(
        isinstance(node, (ast.Pass, ast.Continue))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in handler.body
    )
    return everything and nothing


def violations_of_kind_strings(module: Module) -> list[str]:
    """Mathematics has one function per variant: no argument is compared with a string."""
    found = []
    if module.layer not in ("ops", "losses"):
        return found
    for function in (node for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS)):
        arguments = function.args
        names = {
            one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Compare):
                subject, values = node.left, node.comparators
            elif isinstance(node, ast.Match):
                subject, values = node.subject, [case.pattern for case in node.cases]
            else:
                continue
            strings = [
                leaf.value
                for value in values
                for leaf in ast.walk(value)
                if isinstance(leaf, ast.Constant)
                and isinstance(leaf.value, str)
                and leaf.value not in XLA_PADDINGS
            ]
            if isinstance(subject, ast.Name) and subject.id in names and strings:
                found.append(
                    f"{module.name}:{node.lineno}: {function.name} branches on"
                    f" {subject.id} == '{strings[0]}'; write one function per variant"
                )
    return found


@cache
def method_names() -> frozenset[str]:
    """The keys of METHODS, the one dict in which methods are registered."""
    for module in modules():
        if module.layer != "methods":
            continue
        for node in module.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            named = any(isinstance(one, ast.Name) and one.id == "METHODS" for one in targets)
            if named and isinstance(node.value, ast.Dict):
                return frozenset(key.value for key in node.value.keys)
    raise LookupError("no dict METHODS in fgkd_jax.methods")


def violations_of_one_registry(module: Module) -> list[str]:
    if module.layer == "methods":
        return []
    documentation = docstring_nodes(module.tree)
    return [
        f"{module.name}:{node.lineno}: names the method '{node.value}'; only METHODS does"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in documentation
        and node.value in method_names()
    ]


RULES: tuple[Rule, ...] = (
    violations_of_import_direction,
    violations_of_optional_imports,
    violations_of_sizes,
    violations_of_step_size,
    violations_of_statements,
    violations_of_kind_strings,
    violations_of_one_registry,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule: Rule):
    found = [violation for module in modules() for violation in rule(module)]
    assert not found, "\n" + "\n".join(found)


def function(name: str, *, code: int, documentation: int = 0) -> str:
    docstring = '    """A.\n' + "    b\n" * documentation + '    """\n' if documentation else ""
    return f"def {name}():\n{docstring}" + "    x = 1\n" * code


SWALLOW = "try:\n    f()\nexcept {}:\n    {}\n"
IN_LOSSES = "from fgkd_jax.ops import resize\nfrom fgkd_jax.losses.b import f\nimport jax"
IN_DATA = (
    '"""fgkd_jax.models"""\nimport numpy\nfrom fgkd_jax.errors import nearest\nfrom . import b'
)

# (rule, name of the module, source that keeps the rule, source that breaks it)
CASES: list[tuple[Rule, str, str, str]] = [
    *(
        (violations_of_import_direction, "fgkd_jax.losses.a", IN_LOSSES, broken)
        for broken in (
            "from fgkd_jax.models import resnet",
            "from fgkd_jax import models",
            "import fgkd_jax.models.resnet",
            "def f():\n    import fgkd_jax.models",
            "import importlib\nimportlib.import_module('fgkd_jax.models.resnet')",
            "OPENERS = {'a': 'fgkd_jax.models.resnet:open'}",
            "from ..models import resnet",
        )
    ),
    *(
        (violations_of_import_direction, "fgkd_jax.data.a", IN_DATA, broken)
        for broken in ("import jax.numpy", "from flax import linen", "import fgkd_jax.typing")
    ),
    *(
        (violations_of_import_direction, name, good, bad)
        for name, good, bad in (
            ("fgkd_jax.train.a", "import fgkd_jax.protocols", "import fgkd_jax.methods"),
            ("fgkd_jax.methods.a", "from ..models import heads", "from ..train import loop"),
            ("fgkd_jax.cli.a", "import fgkd_jax.train", "import fgkd_jax.utilities"),
            ("fgkd_jax.errors", "import difflib", "import fgkd_jax.ops"),
            ("fgkd_jax", "__version__ = '1'", "import fgkd_jax.ops"),
            ("fgkd_jax.cli.b", "from fgkd_jax import __version__", "from fgkd_jax import extra"),
            ("fgkd_jax.ops.a", "", "import fgkd_jax"),
        )
    ),
    (violations_of_import_direction, "fgkd_jax.extra.a", "", ""),
    (violations_of_optional_imports, "fgkd_jax.a", "def f():\n    import torch", "import torch.nn"),
    (violations_of_optional_imports, "fgkd_jax.a", "from jax import nn", "from torch import nn"),
    (
        violations_of_sizes,
        "fgkd_jax.ops.a",
        function("f", code=59, documentation=100),
        function("f", code=60),
    ),
    (violations_of_sizes, "fgkd_jax.ops.a", "x = 1\n" * 400, "x = 1\n" * 401),
    (
        violations_of_step_size,
        "fgkd_jax.train.step",
        function("step", code=40, documentation=15),
        function("step", code=40, documentation=25),
    ),
    *(
        (violations_of_statements, "fgkd_jax.ops.a", good, bad)
        for good, bad in (
            ("x = 1", "assert x"),
            ("tqdm.write('a')", "print('a')"),
            ("import b", "from __future__ import annotations"),
            ("# done", f"# {'TO' + 'DO'}: a"),
            (SWALLOW.format("OSError", "pass"), SWALLOW.format("Exception", "pass")),
            (SWALLOW.format("Exception", "raise"), SWALLOW.format("BaseException", "...")),
            (SWALLOW.format("Exception as e", "log(e)"), SWALLOW.format("Exception as e", "'b'")),
            (SWALLOW.format("", "raise"), SWALLOW.format("", "pass")),
        )
    ),
    (violations_of_statements, "fgkd_jax.cli.a", "print('a')", "assert 'a'"),
    *(
        (violations_of_kind_strings, "fgkd_jax.losses.a", good, bad)
        for good, bad in (
            ("def f(x):\n    return x == 0", "def f(x, *, s):\n    return x if s == 'sum' else -x"),
            ("if s == 'sum':\n    x = 1", "def f(s):\n    if s in ('sum', 'mean'):\n        a()"),
            ("def f(s):\n    return A[s]", "def f(s):\n    match s:\n        case 'sum': a()"),
        )
    ),
]


@pytest.mark.parametrize(("rule", "name", "good", "bad"), CASES)
def test_the_rule_tells_good_from_bad(rule: Rule, name: str, good: str, bad: str):
    if bad != good:
        assert rule(parse(name, good)) == []
    assert len(rule(parse(name, bad))) == 1


def test_the_registry_rule_tells_good_from_bad():
    name = min(method_names())
    good = f"task = 'not {name}'\n'{name}'"
    bad = f"if method == '{name}':\n    pass"
    assert violations_of_one_registry(parse("fgkd_jax.train.a", good)) == []
    assert len(violations_of_one_registry(parse("fgkd_jax.train.a", bad))) == 1
    assert violations_of_one_registry(parse("fgkd_jax.methods.a", bad)) == []


def test_mathematics_alone_may_not_branch_on_strings():
    source = "def f(kind):\n    return kind == 'sum'"
    assert violations_of_kind_strings(parse("fgkd_jax.cli.a", source)) == []
    assert len(violations_of_kind_strings(parse("fgkd_jax.ops.a", source))) == 1


def test_relative_imports_are_resolved_from_modules_and_from_packages():
    tree = ast.parse("from . import a\nfrom .b import c\nfrom ..d import e")
    in_module = [name for _, name in imports(Module("fgkd_jax.data.x", "", tree))]
    assert in_module == ["fgkd_jax.data.a", "fgkd_jax.data.b.c", "fgkd_jax.d.e"]
    in_package = [name for _, name in imports(Module("fgkd_jax.data", "", tree, is_package=True))]
    assert in_package == in_module


def test_the_table_of_imports_has_no_cycle():
    remaining = dict(ALLOWED)
    while remaining:
        free = [name for name, below in remaining.items() if not below & remaining.keys()]
        assert free, f"these layers import each other: {sorted(remaining)}"
        for name in free:
            del remaining[name]
