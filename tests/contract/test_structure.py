"""No import circles between files, the command line above everything else, and files of a readable length."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import qinco

SOURCE = Path(qinco.__file__).parent
ROOT = Path(__file__).parents[2]
SCRIPTS = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["qinco", *(part for part in parts if part != "__init__")])


# The package itself imports its public names lazily, so it is part of no circle.
MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
del MODULES["qinco"]


def imported(tree: ast.AST, modules=MODULES) -> set[str]:
    """The modules of the package that a file imports, inside functions and for type checkers too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (full & modules.keys()) or {node.module}
    return names & modules.keys()


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of two or more modules that all reach each other."""
    reached = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return [set(group) for group in groups]


def test_files_import_each_other_in_no_circle():
    graph = {name: imported(tree) for name, tree in MODULES.items()}
    assert not circles(graph)


@pytest.mark.parametrize("name", MODULES)
def test_text_is_read_and_written_as_utf8_whatever_the_locale(name):
    calls = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "encoding")]
            assert any(isinstance(value, ast.Constant) and value.value == "utf-8" for value in given), call.lineno


def test_circles_are_found():
    modules = {
        "qinco.a": ast.parse("from qinco.b import f"),
        "qinco.b": ast.parse("def f():\n    from qinco import c"),
        "qinco.c": ast.parse("import qinco.a"),
        "qinco.d": ast.parse("from qinco import a"),
    }
    graph = {name: imported(tree, modules) for name, tree in modules.items()}
    assert circles(graph) == [{"qinco.a", "qinco.b", "qinco.c"}]


def test_only_the_command_line_imports_the_command_line():
    users = {name for name, tree in MODULES.items() if any(used.startswith("qinco.cli") for used in imported(tree))}
    assert {name for name in users if not name.startswith("qinco.cli")} == {"qinco.__main__"}
    for path in SCRIPTS:
        assert not [name for name in imported(ast.parse(path.read_text())) if name.startswith("qinco.cli")], path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_exists(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "qinco":
            for alias in node.names:
                if f"{node.module}.{alias.name}" not in MODULES:
                    assert hasattr(importlib.import_module(node.module), alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("qinco.cli")])
def test_no_function_of_the_library_takes_the_settings_of_the_command_line(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                words = re.findall(r"\w+", annotation)
                assert "Settings" not in words, f"{name}.{node.name} takes {argument.arg}: {annotation}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_have_a_readable_length(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: split it, 350 is what to aim at"


def test_public_functions_have_docstrings():
    missing = []
    for name in qinco.__all__:
        value = getattr(qinco, name)
        if (inspect.isclass(value) or callable(value)) and not inspect.getdoc(value):
            missing.append(name)
    assert not missing
