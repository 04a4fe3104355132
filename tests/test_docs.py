"""The pages: their links lead somewhere, their commands are right, the files and functions that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import command
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from PIL import Image

import diffuse
from diffuse.cli.main import COMMANDS
from diffuse.cli.options import OUT, take_value
from diffuse.compare import arguments
from diffuse.config.compose import compose_config, own_configuration
from diffuse.config.hydra_settings import check_hydra_overrides
from diffuse.config.quoting import quote_overrides
from diffuse.convert.arguments import parse_convert_arguments
from diffuse.run import model_auto
from diffuse.service.settings import parse_service_arguments
from diffuse.sweep.globs import expand_globs

PACKAGE = Path(diffuse.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((PACKAGE / "docs").glob("*.md"))]
MODEL_CARD = PACKAGE / "tiny" / "MODEL_CARD.md"
SOURCES = ("diffuse/", "tests/", "conf/", ".ci/")
FLAGS = {"-m", "--multirun", "-y", "--yes", "-h", "--help", "--version", "--no-sheets", "--dry-run", "--hydra-help"}
FLAGS |= {"--json", "--measure"}
VALUED_FLAGS = {"--junit", "--cfg", "-p", "--config-dir", "--config-name", "--card"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """Returns the text of a page without its fenced code, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Returns the anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[str, str]]:
    """Returns the relative links and images of a page: path, and anchor or ""."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    parts = [target.partition("#") for target in targets if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in parts]


@pytest.mark.parametrize("page", [*PAGES, MODEL_CARD], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for path, anchor in links(page):
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [(page.parent / path).resolve() for path, _ in links(page) if path.endswith(".md")]
    assert {name_of(page) for page in PAGES} <= {name_of(page) for page in reached}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\s]+)`", prose(page))
    paths = [span for span in spans if span.startswith(SOURCES) and not re.search(r"[A-Z]{3,}(?!\w*\.md)|[<*]", span)]
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_functions_that_a_page_places_in_a_file_are_there(page: Path) -> None:
    """The pages write: `name` in `path/of/the/file.py`."""
    places = re.findall(r"`([\w.]+)(?:\(\))?`\s+in\s+`(diffuse/[\w/]+\.py)`", prose(page))
    assert not [f"{name} in {path}" for name, path in places if name not in definitions(path)]


@cache
def definitions(path: str) -> set[str]:
    """Returns the functions, classes, methods (as `Class.method`) and constants that a file defines."""
    names: set[str] = set()
    if not (ROOT / path).is_file():
        return names
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
            fields = [inner.target for inner in node.body if isinstance(inner, ast.AnnAssign)]
            names |= {f"{node.name}.{field.id}" for field in fields if isinstance(field, ast.Name)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_map_of_rooms_is_the_import_contract() -> None:
    text = (PACKAGE / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE):
        floors |= dict.fromkeys(re.findall(r"`(\w+)`", rooms), int(floor))
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" | ")) for layer in contracts[0]["layers"]]
    layers = [layer for layer in layers if "__main__" not in layer]
    by_floor = [{room for room, floor in floors.items() if floor == number} for number in sorted({*floors.values()})]
    assert layers == by_floor[::-1]


def commands(page: Path) -> list[str]:
    """Returns the lines of a page that begin with `diffuse`: those of indented code, and whole spans of inline code."""
    lines = re.sub(r"\\\n\s*", "", prose(page)).splitlines()
    indented = [line.strip() for line in lines if re.match(r"(    |\t)\s*diffuse(\s|$)", line)]
    spans = re.findall(r"`(diffuse [^`]*)`", prose(page))
    return indented + [span for span in spans if not re.search(r"\[|\.\.\.", span)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files that the pages' commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    (tmp_path / "FOLDER").symlink_to(PACKAGE / "tiny" / "checkpoint")
    (tmp_path / "photos").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(PACKAGE / "tiny" / "checkpoint")
    for name in ("photos/1.jpg", "photo.jpg", "photo.png", "picture.png", "mask.png", "many_steps.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    for page in PAGES:
        for name, text in yaml_files(page).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)


def yaml_files(page: Path) -> dict[str, str]:
    """Returns the YAML files that a page shows: each named at the end of the paragraph before."""
    pattern = r"`([\w/]+\.yaml)`:\n\n```yaml\n(.*?)```"
    return dict(re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL))


def check_command(line: str) -> None:
    """Raises what the command line would be refused with before anything runs."""
    words = shlex.split(line, comments=True)[1:]
    name = words.pop(0) if words and words[0] in COMMANDS else "generate"
    if name == "compare":
        if words:
            compose_config(arguments.parse_compare_arguments(words).overrides)
        return
    if name == "convert":  # its source is not there
        parse_convert_arguments(words)
        return
    if name == "serve-text":
        _, words = parse_service_arguments(words)
    if name == "encode":
        _, words = take_value(words, (OUT,), "FILE")
    if name == "reproduce":
        words = words[1:]
    overrides = []
    values: dict[str, str] = {}
    if "-sc" in words:
        assert re.fullmatch(r"-sc (un)?install=(bash|zsh|fish)( \| source)?", " ".join(words))
        return
    rest = iter(words)
    for word in rest:
        if word in VALUED_FLAGS:
            values[word] = next(rest, "")
            assert values[word], f"{word} has no value"
        elif word.startswith("-"):
            assert word in FLAGS, f"{word} is no option"
        else:
            overrides.append(word)
    with own_configuration(overrides, values.get("--config-dir"), values.get("--config-name")):
        if {"-m", "--multirun"} & {*words}:
            check_hydra_overrides(overrides, sweep=True)
            compose_config(model_auto.resolve_model([first_value(override) for override in overrides]))
        else:
            model_auto.compose_model(overrides)


def first_value(override: str) -> str:
    """Returns a sweep's override with the first of its values."""
    (quoted,) = expand_globs(quote_overrides([override], sweep=True))
    parsed = OverridesParser.create().parse_override(quoted)
    if not parsed.is_sweep_override():
        return override
    if isinstance(parsed.value(), Glob):
        return f"{parsed.key_or_group}={parsed.value().include[0]}"
    if not parsed.is_discrete_sweep():  # interval(1,12): for a sweeper that looks for the best value
        return f"{parsed.key_or_group}={parsed.value().start}"
    return f"{parsed.key_or_group}={str(next(parsed.sweep_string_iterator())).strip(chr(34))}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
@pytest.mark.usefixtures("files")
def test_commands_are_right(page: Path) -> None:
    wrong = []
    for line in commands(page):
        try:
            check_command(line)
        except Exception as error:
            wrong.append(f"{line}\n    {error}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.usefixtures("files")
def test_the_page_of_own_configuration_shows_files_that_run(tmp_path: Path) -> None:
    page = PACKAGE / "docs" / "own-configuration.md"
    assert {Path(name).parent.name for name in yaml_files(page)} >= {
        "model",
        "memory_profile",
        "tracking",
        "experiment",
    }
    swept = command.diffuse("--config-dir", "lamps", "--dry-run", "experiment=guidance", cwd=tmp_path)
    assert swept.out.count("make ") == 3, swept.err
    own = ["--config-dir", "lamps", "--config-name", "studio", "hardware=cpu", "num_inference_steps=1"]
    done = command.diffuse(*own, "prompt=a lamp", "seed=1", "memory_profile=lean", cwd=tmp_path)
    assert done.out == "studio/a_lamp_1.jpg\n", done.err


@pytest.mark.usefixtures("files")
def test_wrong_commands_are_noticed() -> None:
    for line in (
        "diffuse --config-dir lamps model=quik",
        "diffuse --config-dir lamp model=quick",
        "diffuse promt=x",
        "diffuse -m sede=1,2",
        "diffuse scheduler=eulr",
        "diffuse sync --all",
        "diffuse compare x --wide",
        "diffuse -m num_inference_steps=a,b",
    ):
        with pytest.raises((diffuse.DiffuseError, AssertionError)):
            check_command(line)
