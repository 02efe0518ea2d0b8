"""Rules about the public interface: what a docstring says, and the order of arguments.

As in `test_house_rules.py`, every rule is a function from a syntax tree to what is wrong in it,
tried on sources that break it and that keep it.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example")
NUMERICAL = ("fgkd_jax.ops.", "fgkd_jax.losses.")  # where Source is due, and the order of arguments
ARRAY = re.compile(r"\b(Array|ArrayLike|PyTree|Float|Int|Int32|Bool|Num|Shaped|UInt8|Key)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, ast.Module], list[str]]

# Outside the numerical part, a function as short as this may leave it at one sentence.
SHORT = 15


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module of the package, by dotted name."""
    found = {}
    for path in sorted((ROOT / "fgkd_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_public(name: str) -> bool:
    return not name.startswith("_")


def is_numerical(name: str) -> bool:
    return f"{name}.".startswith(NUMERICAL)


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """The functions of a module that others may call."""
    for node in tree.body:
        if isinstance(node, Function) and is_public(node.name):
            yield node


def public_methods(tree: ast.Module) -> Iterator[Function]:
    """The methods of a module's public classes that others may call; properties are not calls."""
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef) and is_public(owner.name):
            for node in owner.body:
                decorators = " ".join(map(ast.unparse, getattr(node, "decorator_list", [])))
                if (
                    isinstance(node, Function)
                    and is_public(node.name)
                    and not re.search(r"property|\boverride\b|overload", decorators)
                ):
                    yield node


def public_classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield node


def parameters(function: Function) -> list[ast.arg]:
    """Every parameter but `self` and `cls`, in order, the starred ones included."""
    known = function.args
    every = [*known.posonlyargs, *known.args, known.vararg, *known.kwonlyargs, known.kwarg]
    return [one for one in every if one is not None and one.arg not in ("self", "cls")]


def sections(docstring: str) -> dict[str, str]:
    """The bodies of the sections by header, in the order in which they stand."""
    pieces = re.split(r"^([A-Z]\w*):$", docstring, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def returns_something(function: Function) -> bool:
    """Whether a caller gets a value; a context manager that yields None gives none."""
    kind = ast.unparse(function.returns) if function.returns else "None"
    return kind not in ("None", "NoReturn", "Never", "Iterator[None]", "Generator[None]")


def violations_of_summaries(name: str, tree: ast.Module) -> list[str]:
    """Everything public says in one line what it is."""
    documented = [tree, *public_functions(tree), *public_methods(tree), *public_classes(tree)]
    found = []
    for node in documented:
        where = f"{name}:{getattr(node, 'lineno', 1)}: {getattr(node, 'name', 'the module')}"
        lines = (ast.get_docstring(node) or "").splitlines()
        if not lines:
            found.append(f"{where} has no docstring")
        elif not lines[0].endswith((".", "?", "!")):
            found.append(f"{where}: the first line is to be one sentence: '{lines[0]}'")
        elif lines[1:2] not in ([], [""]):
            found.append(f"{where}: a blank line is to follow the first line")
    return found


def violations_of_sections(name: str, tree: ast.Module) -> list[str]:
    """Every parameter is explained, and what comes back, under the house's headers."""
    found = []
    for node in (*public_functions(tree), *public_methods(tree)):
        where = f"{name}:{node.lineno}: {node.name}"
        present = sections(ast.get_docstring(node) or "")
        if is_short(node) and not present and not is_numerical(name):
            continue
        due = []
        if parameters(node):
            due.append("Args")
        if returns_something(node) and (parameters(node) or is_numerical(name)):
            due.append("Yields" if "Yields" in present else "Returns")
        if is_numerical(name) and node in tree.body:
            due.append("Source")
        found += [f"{where} has no section {one}" for one in due if one not in present]
        if "Args" in present:
            found += [
                f"{where} does not explain the argument {one.arg}"
                for one in parameters(node)
                if not explains(present["Args"], one.arg)
            ]
    return found


def is_short(function: Function) -> bool:
    """Whether there is little between the docstring and the end."""
    return function.end_lineno - function.body[0].end_lineno <= SHORT


def explains(section: str, argument: str) -> bool:
    """Whether a line of the section starts with the argument, alone or in a list of names."""
    heads = re.findall(r"^ *([\w*, ]+?)(?: \([^)]*\))?:", section, flags=re.MULTILINE)
    return any(argument in re.split(r"[,* ]+", head) for head in heads)


def violations_of_section_order(name: str, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (*Function.__args__, ast.ClassDef)):
            continue
        where = f"{name}:{node.lineno}: {node.name}"
        present = list(sections(ast.get_docstring(node) or ""))
        known = [one for one in present if one in SECTIONS]
        found += [
            f"{where} has the section {one}, not one of {', '.join(SECTIONS)}"
            for one in present
            if one not in SECTIONS
        ]
        if known != sorted(known, key=SECTIONS.index):
            found.append(f"{where} has its sections in the order {', '.join(known)}")
    return found


def violations_of_argument_order(name: str, tree: ast.Module) -> list[str]:
    """Arrays are positional, `key` before them; everything else goes by its name."""
    found = []
    if not is_numerical(name):
        return found
    for node in public_functions(tree):
        where = f"{name}:{node.lineno}: {node.name}"
        positional = [*node.args.posonlyargs, *node.args.args]
        for index, one in enumerate(positional):
            kind = annotation(one)
            if not ARRAY.search(kind):
                found.append(f"{where}: {one.arg} is no array, so keyword-only")
            if ("Key[" in kind or one.arg == "key") and index > 0:
                found.append(f"{where}: {one.arg} is to be the first argument")
            if "Key[" in kind and one.arg != "key":
                found.append(f"{where}: call {one.arg} 'key'")
        if node.args.defaults:
            found.append(f"{where}: what has a default is keyword-only")
        for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            kind = annotation(one)  # masks and optional arrays may go by their names
            if default is None and ARRAY.search(kind) and not re.match(r"Bool\b", kind):
                found.append(f"{where}: {one.arg} is an array, so positional")
    return found


def annotation(argument: ast.arg) -> str:
    return ast.unparse(argument.annotation) if argument.annotation else ""


def violations_of_annotations(name: str, tree: ast.Module) -> list[str]:
    found = []
    for node in (*public_functions(tree), *public_methods(tree)):
        where = f"{name}:{node.lineno}: {node.name}"
        found += [
            f"{where}: {one.arg} has no type" for one in parameters(node) if one.annotation is None
        ]
        if node.returns is None:
            found.append(f"{where} has no return type")
    return found


def violations_of_defaults(name: str, tree: ast.Module) -> list[str]:
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (*Function.__args__, ast.Lambda)):
            continue
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            called = ast.unparse(default.func) if isinstance(default, ast.Call) else ""
            if isinstance(default, mutable) or re.search(r"^(list|dict|set)$|\barray$", called):
                found.append(f"{name}:{node.lineno}: the default {ast.unparse(default)} is mutable")
    return found


RULES: tuple[Rule, ...] = (
    violations_of_summaries,
    violations_of_sections,
    violations_of_section_order,
    violations_of_argument_order,
    violations_of_annotations,
    violations_of_defaults,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule: Rule):
    found = [violation for name, tree in trees().items() for violation in rule(name, tree)]
    assert not found, "\n" + "\n".join(found)


GOOD = '''"""A module of losses."""

def loss(key: Key[Array, ""], scores: Float[Array, "b k"], *, temperature: float = 1.0,
         valid: Bool[Array, "b"], where: Float[Array, "b"] | None = None) -> Float[Array, "b"]:
    """Computes a loss.

    Args:
      key: a typed PRNG key.
      scores: [b k], in nats.
      temperature, valid: what they are: of course.
      where: [b], 1 where it counts.

    Returns:
      Per example.

    Raises:
      UserError: a wrong shape.

    Source:
      Nobody, equation 1.
    """

class Pair:
    """Two things."""

    size: int = 0

    @property
    def area(self) -> int:
        """Their product."""

    def scale(self, by: float) -> "Pair":
        """Scales both.

        Args:
          by: the factor.

        Returns:
          A new pair.
        """

    def _helper(self, anything):
        return [anything]

def _private(a, b=()):
    return a
'''


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_accepts_what_is_good(rule: Rule):
    assert rule("fgkd_jax.losses.a", ast.parse(GOOD)) == []


BROKEN: list[tuple[Rule, str, str]] = [
    (violations_of_summaries, '"""A module of losses."""', ""),
    (violations_of_summaries, "Computes a loss.", "Computes a loss"),
    (violations_of_summaries, "Computes a loss.", "Computes a loss.\n    And more."),
    (violations_of_summaries, '"""Two things."""', ""),
    (violations_of_summaries, "Scales both.", ""),
    (violations_of_sections, "      temperature, valid: what", "      valid: what"),
    (violations_of_sections, "      temperature, valid: what", "      temperatures, valid: what"),
    (violations_of_sections, "          by: the factor.", "          It: the factor."),
    (violations_of_sections, "    Returns:\n      Per", "    Gives:\n      Per"),
    (violations_of_sections, "        Returns:\n          A new", "        A new"),
    (violations_of_sections, "Source:", "Sources:"),
    (violations_of_sections, "    Args:\n      key", "    Arguments:\n      key"),
    (violations_of_section_order, "Source:", "Sources:"),
    (violations_of_section_order, "    Returns:\n      Per", "    Source:\n      Per"),
    (violations_of_section_order, "    Args:\n      key", "    Raises:\n      key"),
    (violations_of_argument_order, 'key: Key[Array, ""], ', 'keys: Key[Array, ""], '),
    (violations_of_argument_order, 'def loss(key: Key[Array, ""], ', "def loss(size: int, "),
    (violations_of_argument_order, "*, temperature: float = 1.0,", "temperature: float = 1.0, *,"),
    (violations_of_argument_order, '"b k"], *', '"b k"] = 0, *'),
    (violations_of_argument_order, 'valid: Bool[Array, "b"]', 'valid: Float[Array, "b"]'),
    (violations_of_argument_order, 'valid: Bool[Array, "b"]', "valid: Array"),
    (
        violations_of_argument_order,
        'key: Key[Array, ""], scores: Float[Array, "b k"]',
        'scores: Float[Array, "b k"], key: Key[Array, ""]',
    ),
    (violations_of_annotations, "temperature: float", "temperature"),
    (violations_of_annotations, "by: float", "by"),
    (violations_of_annotations, ' -> Float[Array, "b"]:', ":"),
    (violations_of_defaults, "float = 1.0", "float = []"),
    (violations_of_defaults, "b=()", "b=dict()"),
    (violations_of_defaults, "b=()", "b=np.array(1)"),
]


@pytest.mark.parametrize(("rule", "old", "new"), BROKEN)
def test_the_rule_catches_what_is_bad(rule: Rule, old: str, new: str):
    assert GOOD.count(old) == 1
    assert rule("fgkd_jax.losses.a", ast.parse(GOOD.replace(old, new)))


@pytest.mark.parametrize("name", ["fgkd_jax.cli.a", "fgkd_jax.ops.a"])
def test_only_short_functions_outside_the_numerical_part_go_without_sections(name: str):
    head = 'def f(x: int) -> None:\n    """One sentence."""\n'
    short, long = (ast.parse(head + "    x = 1\n" * lines) for lines in (SHORT, SHORT + 1))
    assert bool(violations_of_sections(name, short)) == is_numerical(name)
    assert violations_of_sections(name, long)
