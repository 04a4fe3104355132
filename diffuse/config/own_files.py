"""The user's own YAML files: reads them before Hydra does, and says of a mistake in which file and line it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from diffuse.errors import ConfigError
from diffuse.schema import PROMPT_FIELDS

_PACKAGE = re.compile(r"\s*#\s*@\s*package\b(.*)")
_HEADER = re.compile(r"\s*#\s*@")
_OPTION = re.compile(r"[\w./-]+")
_PRIMARY = "config"  # the package's own primary configuration
# A text of a configuration, wherever a file may say it.
_TEXT = re.compile(
    r"((hydra\.sweeper\.params|model\.request_defaults|refiner\.request_defaults)\.)?"
    rf"({'|'.join(PROMPT_FIELDS)}|output\.name|tracking\.run_name)"
)
_GLOBAL, _GROUP = "_global_", "_group_"
# `tracking.name` says how runs are kept, not which option was chosen: everything that tracks asks for one of these.
_TRACKING = ("mlflow", "none")
_NEEDS_GLOBAL = "begin it with the line `# @package _global_`, so that its values are those of the whole configuration"


@dataclass(frozen=True)
class Default:
    """An entry of a file's defaults."""

    group: str  # absolute; empty for a configuration of the root
    option: str | None  # None for `null` and `???`
    line: int
    text: str


@dataclass(frozen=True)
class OwnFile:
    """A file of the user's, as a tree of nodes that know their lines."""

    path: Path
    group: str
    package: str  # the dotted name under which its values stand; empty for the root
    root: yaml.MappingNode

    def line(self, key: str) -> int | None:
        """Returns the line in which the file sets a field, given by its dotted name in the whole configuration."""
        if self.package and not f"{key}.".startswith(f"{self.package}."):
            return None
        node, line = self.root, 1
        for part in filter(None, key[len(self.package) :].lstrip(".").split(".")):
            found = [each for each in _items(node) if each[0].value == part]
            if not found:
                return None
            line, node = _line(found[0][0]), found[0][1]
        return line

    def entries(self) -> Iterator[tuple[str, yaml.Node, int]]:
        """Yields the dotted name in the whole configuration, the node and the line of each value, outer ones first."""
        waiting = [(self.package, self.root)]
        while waiting:
            prefix, node = waiting.pop(0)
            for key, value in _items(node):
                if node is not self.root or key.value != "defaults":
                    name = f"{prefix}.{key.value}".lstrip(".")
                    yield name, value, _line(key)
                    waiting.append((name, value))

    def defaults(self) -> list[Default]:
        """Returns the entries of the defaults, other than `_self_`.

        Raises:
            ConfigError: they are no list of names.
        """
        entries = next((each for each in _items(self.root) if each[0].value == "defaults"), None)
        if entries is None:
            return []
        if not isinstance(entries[1], yaml.SequenceNode):
            raise ConfigError(
                f"{self.path}:{_line(entries[0])}: defaults should be a list, a line `- GROUP: OPTION` each"
            )
        return [default for node in entries[1].value for default in self._default(node)]

    def _default(self, node: yaml.Node) -> Iterator[Default]:
        line = _line(node)
        if isinstance(node, yaml.ScalarNode):
            if node.value != "_self_":
                group, _, option = self._absolute(node.value.partition("@")[0]).rpartition("/")
                yield Default(group, option, line, node.value)
            return
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            raise ConfigError(f"{self.path}:{line}: an entry of defaults should be a name, or GROUP: OPTION")
        ((key, value),) = node.value
        words = str(key.value).split()
        group = self._absolute(words[-1].partition("@")[0] if words else "")
        options = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for option in options:
            if not isinstance(option, yaml.ScalarNode):
                raise ConfigError(f"{self.path}:{line}: the option of a default should be a name, as in GROUP: OPTION")
            name = None if option.value in ("null", "~", "", "???") else option.value
            yield Default(group, name, line, f"{key.value}: {option.value}")

    def _absolute(self, name: str) -> str:
        return name.lstrip("/") if name.startswith("/") or not self.group else f"{self.group}/{name}"


def read_own_file(path: Path, group: str, needs_package: bool) -> OwnFile:
    """Reads a YAML file of the user's.

    Args:
        path: the file.
        group: its group, such as `model`; empty for one of the root.
        needs_package: whether its values are of no use but for the whole configuration.

    Raises:
        ConfigError: it cannot be read, or is no mapping in YAML; the message has the file and the line.
    """
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(path, error)) from None
    if root is None:
        raise ConfigError(f"{path}: is empty; write NAME: VALUE lines, or leave it out")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {str(root.value)[:40]!r}"
        raise ConfigError(f"{path}:{_line(root)}: holds {kind} where NAME: VALUE lines should be")
    _check_names(path, root, [])
    package = _package(path, text, group)
    if needs_package and package == group.replace("/", ".") and any(key.value != "defaults" for key, _ in _items(root)):
        raise ConfigError(f"{path}:1: {_NEEDS_GLOBAL}")
    file = OwnFile(path, group, package, root)
    for key, node, line in file.entries():
        if key == "tracking.name" and node.value not in _TRACKING:
            raise ConfigError(
                f"{path}:{line}: tracking.name={node.value}: says where runs are kept, and should be mlflow or none; "
                "leave it to the defaults"
            )
    return file


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: holds bytes that are not UTF-8 text; save it as that") from None
    if text.startswith("\ufeff"):
        raise ConfigError(f"{path}:1: begins with a byte-order mark; save it as UTF-8 without one")
    return text


def _syntax_message(path: Path, error: yaml.YAMLError) -> str:
    """Returns a line about an error of YAML's syntax."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "is no YAML")
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"{path}: holds the control character U+{code:04X}; leave it out"
    if mark is None:
        return f"{path}: is no YAML: {problem}"
    where = f"{path}:{mark.line + 1}"
    if r"'\t'" in problem:
        return f"{where}: a tab stands where a space should; YAML is indented by spaces alone"
    context = getattr(error, "context", None)
    hint = "; check the indentation, and put a value that holds `: ` into quotes" if "mapping" in problem else ""
    return f"{where}: is no YAML: {f'{context}, ' if context else ''}{problem}{hint}"


def marked_message(error: yaml.YAMLError) -> str:
    """Returns a line about an error of YAML's in a file that the error itself names."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return _syntax_message(Path(getattr(mark, "name", None) or getattr(error, "name", None) or "a file"), error)


def _check_names(path: Path, node: yaml.Node, ancestors: Sequence[yaml.Node]) -> None:
    """Raises ConfigError for a name that is set twice, is no name, or holds itself."""
    if any(node is each for each in ancestors):
        raise ConfigError(f"{path}:{_line(node)}: holds itself, by an alias")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_names(path, item, [*ancestors, node])
    if isinstance(node, yaml.ScalarNode) and "${" in node.value:
        try:
            OmegaConf.create([node.value])
        except GrammarParseError:
            raise ConfigError(
                f"{path}:{_line(node)}: {node.value}: cannot be read as ${{FIELD}} or ${{oc.env:NAME}}; a backslash "
                "before the ${ makes it a text"
            ) from None
    lines: dict[str, int] = {}
    for key, value in _items(node):
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(
                f"{path}:{_line(key)}: a name should be text; put braces and brackets of a value into quotes"
            )
        if key.value in lines and key.value != "<<":
            first = lines[key.value]
            raise ConfigError(
                f"{path}:{_line(key)}: {key.value} is set twice, first in line {first}; leave one of them out"
            )
        lines[key.value] = _line(key)
        _check_names(path, value, [*ancestors, node])


def _package(path: Path, text: str, group: str) -> str:
    """Returns the dotted name that `# @package` gives to the values of a file, or its group's."""
    package, is_header = group.replace("/", "."), True
    for number, line in enumerate(text.splitlines(), 1):
        is_header = is_header and (not line.strip() or _HEADER.match(line) is not None)
        if (match := _PACKAGE.fullmatch(line)) is None:
            continue
        if not is_header:
            raise ConfigError(f"{path}:{number}: Hydra reads `# @package` only in the first line; move it there")
        words = match[1].split()
        if len(words) != 1:
            raise ConfigError(
                f"{path}:{number}: should be `# @package NAME` and nothing more, such as `# @package {_GLOBAL}`"
            )
        if words[0] != _GROUP:
            package = "" if words[0] == _GLOBAL else words[0].removeprefix(f"{_GLOBAL}.")
    return package


def _items(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def find_own_file(folders: Sequence[Path], name: str) -> Path | None:
    """Returns the first of `folders`' files that is the configuration `name`, such as `model/mine`."""
    paths = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def read_own_files(
    folders: Sequence[Path], primary: str | None, overrides: Sequence[str], shipped: Path, groups: Sequence[str]
) -> Mapping[str, OwnFile]:
    """Reads the files of the user's that a command takes in: those that it names, and what these have as defaults.

    Args:
        folders: of the user's files.
        primary: the name of the primary configuration, where it may be one of them.
        overrides: of the command.
        shipped: the package's own folder, which Hydra searches first.
        groups: those of the package.

    Raises:
        ConfigError: as `read_own_file`; or a file has the name of one of the package's, which is read instead.
    """
    waiting = ([] if primary is None else [("", primary)]) + list(_chosen(folders, overrides))
    files: dict[str, OwnFile] = {}
    while waiting:
        group, option = waiting.pop()
        name = f"{group}/{option}".lstrip("/").removesuffix(".yaml")
        path = find_own_file(folders, name)
        if path is None or name in files or find_own_file([shipped], name) is not None:
            continue
        first = group.partition("/")[0]
        files[name] = read_own_file(path, group, first == "experiment" or first not in ("", "hydra", *groups))
        waiting += [(each.group, each.option) for each in files[name].defaults() if each.option is not None]
    _check_cycles(files)
    if hidden := hidden_files(folders, shipped):
        _check_hidden(hidden, primary or _PRIMARY, files, overrides, shipped)
    return files


def check_texts_of(files: Sequence[OwnFile]) -> None:
    """Checks that each prompt and name in files of the user's is a text to YAML too, which reads `no` as false.

    Raises:
        ConfigError: one is read as something else; the message says in which line.
    """
    for file in files:
        for name, node, _ in file.entries():
            if _TEXT.fullmatch(name):
                for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                    _check_text(file.path, name, item)


def _check_text(path: Path, name: str, node: yaml.Node) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:  # in quotes, or a block
        return
    values: Any = OmegaConf.to_container(OmegaConf.create(f"text: {node.value}"))
    read = values["text"]
    if read is not None and str(read) != node.value.strip():
        raise ConfigError(
            f"{path}:{_line(node)}: {name}: {node.value} is {str(read).lower()} to YAML; put the text in quotes"
        )


def _check_cycles(files: Mapping[str, OwnFile]) -> None:
    parents = {
        name: [f"{each.group}/{each.option}".lstrip("/") for each in file.defaults() if each.option is not None]
        for name, file in files.items()
    }
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        names = error.args[1]
        raise ConfigError(f"{files[names[0]].path}: its defaults lead back to itself: {' <- '.join(names)}") from None


def _chosen(folders: Sequence[Path], overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields groups and options that overrides may choose among the user's files."""
    for key, _, value in (override.partition("=") for override in overrides):
        group = key.lstrip("+").partition("@")[0].strip("/")
        if not group or ".." in group:
            continue
        for folder in folders:
            if (folder / group).is_dir():
                every = [path.stem for path in (folder / group).glob("*.yaml")] if "glob(" in value else []
                yield from ((group, option) for option in [*_OPTION.findall(value), *every])


def hidden_files(folders: Sequence[Path], shipped: Path) -> dict[str, ConfigError]:
    """Returns by name, such as `model/tiny`, the error of each file of the user's that Hydra would not read.

    The package has another of this name, and Hydra finds that first.
    """
    hidden = {}
    for path in sorted(shipped.rglob("*.yaml")):
        name = path.relative_to(shipped)
        for folder in folders:
            own = folder / name
            if own.is_file() and own.read_bytes() != path.read_bytes():
                how = f"{name.parent}={name.stem}" if name.parent.name else f"primary configuration {name.stem}"
                hidden[name.with_suffix("").as_posix()] = ConfigError(
                    f"{own}: would not be read, because the package has a {how} of its own, which Hydra finds first; "
                    "give the file another name"
                )
    return hidden


def _check_hidden(
    hidden: Mapping[str, ConfigError],
    primary: str,
    files: Mapping[str, OwnFile],
    overrides: Sequence[str],
    shipped: Path,
) -> None:
    """Raises the error of a hidden file that the command would choose: by itself, or by the defaults of any file."""
    typed = {key.lstrip("+").partition("@")[0]: value for key, _, value in (each.partition("=") for each in overrides)}
    waiting = [primary, *files, *(f"{group}/{value}" for group, value in typed.items())]
    waiting += [f"{group}/{option}" for group, value in typed.items() for option in _OPTION.findall(value)]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in hidden:
            raise hidden[name]
        path = find_own_file([shipped], name)
        file = files.get(name) or (None if path is None else read_own_file(path, name.rpartition("/")[0], False))
        defaults = [] if file is None else file.defaults()
        waiting += [f"{each.group}/{each.option}".lstrip("/") for each in defaults if each.group not in typed]
