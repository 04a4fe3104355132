"""The layout of the code and its tests: each module has its tests, no import circles, no large files, a short root."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import diffuse

PACKAGE = Path(diffuse.__file__).parent
TESTS = Path(__file__).parent
MODULES = {path: str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))}
ROOT_MODULES = {
    "__init__.py",
    "__main__.py",
    "api.py",
    "arguments.py",
    "errors.py",
    "paths.py",
    "request_schema.py",
    "schema.py",
    "terminal.py",
}
MOST_LINES = 400


def has_code(path: Path) -> bool:
    """Checks that a file holds more than a docstring and imports."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom) for node in nodes)


def has_own_test(path: Path) -> bool:
    """Checks for a module's own test file: `run/open.py` has `tests/run/test_open.py`.

    A package's `__init__.py` has the one of its folder, `sweep/__init__.py` has `tests/sweep/test_sweep.py`. Tests of a
    room within a room lie in a folder of its name, or in that of the outer one.
    """
    *folders, name = path.relative_to(PACKAGE).with_suffix("").parts
    if name == "__init__":
        name = folders[-1] if folders else "diffuse"
    return any(TESTS.joinpath(*each, f"test_{name}.py").exists() for each in (folders, folders[:1]))


def rows() -> dict[str, list[Path]]:
    """Returns the table of `tests/README.md`: module -> the test files that hold it."""
    table: dict[str, list[Path]] = {}
    for line in (TESTS / "README.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| `[\w/]+\.py`", line):
            modules, tests = (re.findall(r"`([\w/]+\.py)`", cell) for cell in line.strip("|").split("|"))
            table |= {module: [TESTS / test for test in tests] for module in modules}
    return table


def test_each_module_has_a_test() -> None:
    table = rows()
    without = {name for path, name in MODULES.items() if has_code(path) and not has_own_test(path)}
    assert sorted(without - set(table)) == [], (
        "these have neither a test file of their own nor a row in tests/README.md"
    )
    assert sorted(set(table) - without) == [], "rows of tests/README.md that are not needed"
    assert [test for tests in table.values() for test in tests if not test.exists()] == []
    assert all(table.values())


def test_the_root_has_few_modules() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} <= ROOT_MODULES


def test_files_are_short() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for path, name in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def imports(body: list[ast.stmt]) -> Iterator[str]:
    """Yields the dotted names that a module imports when it is imported, `a.b` for `from a import b`."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node.orelse)
        else:
            for part in ("body", "orelse", "handlers", "finalbody"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from imports(getattr(node, part, []))


def test_no_circles_among_files() -> None:
    files = {}
    for path in MODULES:
        dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        files[dotted] = path
    graph = {}
    for dotted, path in files.items():
        names = set(imports(ast.parse(path.read_text(encoding="utf-8")).body))
        graph[dotted] = {name if name in files else name.rpartition(".")[0] for name in names} & set(files) - {dotted}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
