"""The words of the code: one meaning a name, docstrings that begin with a verb, shapes of tensors."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffuse

PACKAGE = Path(diffuse.__file__).parent
ROOMS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if path.suffix == ".py" or (path.is_dir() and path.name not in ("__pycache__", "docs", "conf"))
)
# Where tensors and pixels go in and out.
SHAPED = ("api", "checkpoints", "media", "models", "pipelines", "schedulers")

# Names that stand in several rooms, and mean the same in each.
SHARED_NAMES = {
    "main": "the entry point of a process",
    "read": "reads the file that the module is about",
    "write": "writes the file that the module is about",
    "check": "raises the error for values that cannot be used",
}
# Modules of ours under another name: module -> the file that may do so, because it needs the name itself.
ALIASES: dict[str, str] = {"diffuse.cli.help": "cli/main.py"}  # `help` is a builtin

# Words that are no names of things: participles, adverbs and prepositions by themselves.
NOT_A_NAME = {
    "about",
    "asked",
    "begun",
    "beside",
    "done",
    "found",
    "given",
    "heard",
    "kept",
    "left",
    "made",
    "of",
    "said",
    "seen",
    "shown",
    "told",
    "there",
    "typed",
    "wanted",
}
NOT_A_BEGINNING = re.compile(r"(What|Of|By|Where|Whether|That|Those)\b")
VERB = re.compile(r"[A-Z][a-z]+s\b|See `")  # "Returns", "Builds", "Is"; an override may point to what it overrides
SHAPE = re.compile(r"\[[^\]]+\]|scalar")
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    """The parsed modules of a room, which is a folder or one file."""
    place = PACKAGE / room
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def public(tree: ast.AST) -> Iterator[ast.ClassDef | Definition]:
    """Classes, functions and methods that others may call: neither they nor their owner begin with an underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def decorators(node: Definition) -> set[str]:
    return {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_begin_with_a_verb(room: str) -> None:
    wrong = []
    for path, tree in modules(room):
        if NOT_A_BEGINNING.match(ast.get_docstring(tree) or ""):
            wrong.append(f"{path.relative_to(PACKAGE)}:1")
        for node in public(tree):
            text = ast.get_docstring(node) or ""
            is_called = not isinstance(node, ast.ClassDef) and not decorators(node) & {"property", "cached_property"}
            if NOT_A_BEGINNING.match(text) or (is_called and text and not VERB.match(text)):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {text.splitlines()[0][:60]}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", SHAPED)
def test_public_functions_have_docstrings_with_shapes(room: str) -> None:
    wrong = []
    for path, tree in modules(room):
        for node in public(tree):
            if isinstance(node, ast.ClassDef) or decorators(node) & {"overload"}:
                continue
            text = ast.get_docstring(node) or ""
            where = f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
            if not text:
                wrong.append(f"{where}: no docstring")
                continue
            annotations = [argument.annotation for argument in (*node.args.args, *node.args.kwonlyargs)]
            types = " ".join(ast.unparse(each) for each in (*annotations, node.returns) if each is not None)
            if re.search(r"\b(Tensor|ndarray)\b", types) and not (SHAPE.search(text) or text.startswith("See `")):
                wrong.append(f"{where}: no shape")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_nouns_and_verbs(room: str) -> None:
    wrong = []
    for path, tree in modules(room):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
                names = [node.name, *(field.id for field in fields if isinstance(field, ast.Name))]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                names = [node.name, *(each.arg for each in parameters)]
            else:
                continue
            words = [name for name in names if name.strip("_").lower() in NOT_A_NAME]
            wrong += [f"{path.relative_to(PACKAGE)}:{node.lineno} {name}" for name in words]
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_name_has_one_meaning() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for room in ROOMS:
        for _, tree in modules(room):
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    rooms[node.name].add(room)
    several = {name: places for name, places in rooms.items() if len(places) > 1 and name not in SHARED_NAMES}
    assert not several, "\n" + "\n".join(
        f"{name}: {', '.join(sorted(where))}" for name, where in sorted(several.items())
    )


def test_a_class_has_one_meaning() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for room in ROOMS:
        for path, tree in modules(room):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(PACKAGE)))
    several = {name: files for name, files in places.items() if len(files) > 1}
    assert not several, several


def test_modules_go_by_their_own_name() -> None:
    aliases = []
    for room in ROOMS:
        for path, tree in modules(room):
            file = str(path.relative_to(PACKAGE))
            for node in ast.walk(tree):
                for module, alias in renamed_modules(node):
                    if ALIASES.get(module) != file:
                        aliases.append(f"{file}:{node.lineno} {module} as {alias}")
    assert not aliases, "\n" + "\n".join(aliases)


def renamed_modules(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields the modules of the package that an import gives another name, and that name."""
    if isinstance(node, ast.ImportFrom):
        names = [(f"{node.module}.{each.name}", each.name, each.asname) for each in node.names]
    elif isinstance(node, ast.Import):
        names = [(each.name, each.name.rpartition(".")[2], each.asname) for each in node.names]
    else:
        return
    for module, name, alias in names:
        place = PACKAGE.parent.joinpath(*module.split("."))
        if (
            alias not in (None, name)
            and module.startswith("diffuse.")
            and (place.is_dir() or place.with_suffix(".py").is_file())
        ):
            yield module, str(alias)
