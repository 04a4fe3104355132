"""Composes the configuration from `conf/` and overrides, and says in one line what is wrong with them. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffuse.errors import ConfigError
from diffuse.schema import (
    COMPONENTS,
    Config,
    HardwareConfig,
    MemoryProfileConfig,
    ModelConfig,
    RefinerConfig,
    TrackingConfig,
)

PACKAGE = Path(__file__).resolve().parents[1]
NAME = "config"
TINY = PACKAGE / "tiny" / "checkpoint"  # which ships with the package

ConfigStore.instance().store(name="schema", node=Config)
# The shipped checkpoint is found beside the code, wherever that is installed.
OmegaConf.register_new_resolver("diffuse_tiny", lambda: str(TINY), replace=True)
# A preset's commit is that of its own source; another source has it only where model.revision says so.
OmegaConf.register_new_resolver(
    "diffuse_pin", lambda source, preset, commit: commit if source == preset else None, replace=True
)
_MARKS = "???"  # a text like any other, which OmegaConf however takes for a value that is missing
OmegaConf.register_new_resolver("diffuse_marks", lambda: _MARKS, replace=True)

_GROUPS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "refiner": RefinerConfig,
    "memory_profile": MemoryProfileConfig,
    "hardware": HardwareConfig,
    "tracking": TrackingConfig,
}
_GROUPED = (*_GROUPS, "scheduler", "experiment")
_TEXTS = frozenset({"prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_file", "output.name"})
_PATHS = frozenset(
    {
        "output.dir",
        "model.source",
        "refiner.source",
        *(f"{group}.{component}.source" for group in ("model", "refiner") for component in COMPONENTS),
        "tracking.uri",
        "tracking.artifact_location",
        "tracking.journal",
        "input_image",
        "mask_image",
        "objective.reference",
    }
)
_ONE = ("output.dir", "tracking.uri", "tracking.artifact_location", "tracking.journal")  # for all jobs of a sweep
_SWEEP = re.compile(r"\s*(choice|range|interval|glob|shuffle|sort|tag)\s*\(.*\)\s*", re.DOTALL)
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=]*)(?P<value>=.*)?", re.DOTALL)
HYDRAS = "${hydra:"  # begins a value that Hydra gives, unless a backslash makes it a text
_HYDRAS = re.compile(r"(?<!\\)(?:\\\\)*\$\{hydra:([^}]*)\}")
_NOT_SAID = "a job of a sweep has no {}: it is known by its values, in whatever order; use one of those, as ${{FIELD}}"
_OPEN = ("hydra", "model.request_defaults", "model.min_vram_gib", "refiner.request_defaults")  # keys may be added here


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if (packaged / f"{NAME}.yaml").is_file() else PACKAGE.parent / "conf"


def _forget_plugins() -> None:
    """Drops what installed plugins of Hydra say of launchers and sweepers that `conf/hydra` has too: it would be an
    error there."""
    Plugins.instance()  # has them say it
    stored = ConfigStore.instance().repo["hydra"]
    for group in ("launcher", "sweeper"):
        for file in (conf_dir() / "hydra" / group).iterdir():
            stored[group].pop(file.name, None)


def options(group: str) -> list[str]:
    """The names that a config group offers, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


_forget_plugins()


def load_group(group: str) -> dict[str, Any]:
    """Option -> the group's dataclass (MemoryProfileConfig for `memory_profile`), for each option of a group, but for
    `model=auto`, which stands for the others."""
    loaded = {}
    for name in options(group):
        raw = cast(DictConfig, OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
        raw.pop("defaults", None)
        merged = OmegaConf.merge(OmegaConf.structured(_GROUPS[group]), raw)
        if not OmegaConf.is_missing(merged, "_target_"):
            loaded[name] = OmegaConf.to_object(merged)
    return loaded


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `diffuse OVERRIDES` would run; texts need no quoting.

    Raises:
        ConfigError: an override names or sets what does not exist or does not fit.
    """
    with explained(overrides):
        return _compose(quote(overrides))


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that overrides in Hydra's own grammar give, with Hydra's settings under `hydra`."""
    cfg = _compose(overrides, hydra=True)
    settle(cfg)
    return cfg


def settle(cfg: DictConfig) -> None:
    """Puts what Hydra says of a job in the place of each `${hydra:...}` in its configuration, outside Hydra's own part.

    Raises:
        ConfigError: there is no such thing of a sweep's job, such as its number, which would change with the order.
    """
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    wanted = list(_said_by_hydra({name: value for name, value in values.items() if name != "hydra"}))
    if not wanted:
        return
    setup_globals()
    outer = HydraConfig.instance().cfg  # of a running job
    HydraConfig.instance().set_config(cfg)
    try:
        for name, value in wanted:
            for path in _HYDRAS.findall(value):
                if OmegaConf.select(cfg.hydra, path) is None:
                    raise ConfigError(f"{name}={value}: {_NOT_SAID.format(path)}")
            OmegaConf.update(cfg, name, OmegaConf.select(cfg, name))
    finally:
        HydraConfig.instance().cfg = outer


def _said_by_hydra(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted names of values in which `${hydra:...}` stands, and the values."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _said_by_hydra(value, f"{prefix}{name}.")
        elif isinstance(value, str) and _HYDRAS.search(value):
            yield f"{prefix}{name}", value


class Values(dict[str, Any]):
    """Plain values by name, which are attributes too, as in a DictConfig; to read one takes a hundredth of the time."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def resolved(cfg: DictConfig) -> Values:
    """The configuration, without Hydra's own part, as plain values: each interpolation replaced by what it stands for,
    each enumeration by its name.

    Raises:
        ConfigError: a value is missing, or an interpolation leads nowhere.
    """
    if "hydra" in cfg:  # whose interpolations hold inside a job only
        cfg = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0].rstrip(".")
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{line}") from None
    return cast(Values, _by_attribute(values))


def _by_attribute(value: Any) -> Any:
    return Values({name: _by_attribute(item) for name, item in value.items()}) if isinstance(value, dict) else value


def file(name: str) -> DictConfig:
    """`conf/NAME.yaml` as it stands there."""
    return cast(DictConfig, OmegaConf.load(conf_dir() / f"{name}.yaml"))


def _compose(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    instance = GlobalHydra.instance()
    outer = instance.hydra  # inside a running job
    instance.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(NAME, overrides=list(overrides), return_hydra_config=hydra)
    finally:
        instance.hydra = outer


def quote(overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """Overrides for Hydra's grammar, in which prompts and paths would need quotes and escapes.

    A prompt, a file of prompts and a name are taken literally, whatever they hold; in a `sweep`, unless they are an
    explicit one such as `choice(a, b)`. A folder is quoted too, but `null` and `${...}` keep their meaning in it, and
    in a sweep a comma does, unless the folder is one for all jobs.

    Raises:
        ConfigError: an override adds (`+`) or removes (`~`) a field.
    """
    found = []
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        assert match is not None
        sign, key, value = match["sign"], match["key"].strip(), match["value"]
        if sign and not key.startswith(_OPEN):
            raise _signed(sign, key, value)
        if value is None or sign:
            found.append(override)
        elif key in _TEXTS and not (sweep and _SWEEP.fullmatch(value[1:])):
            found.append(f"{key}={literal(value[1:])}")
        elif key in _PATHS and not (sweep and key not in _ONE) and value != "=null" and value[1:2] not in ("'", '"'):
            found.append(f"{key}={quoted(value[1:])}")
        else:
            found.append(override)
    return found


def literal(text: str) -> str:
    """Quoted for Hydra, and text to OmegaConf."""
    return quoted(_harmless(text))


def _harmless(text: str) -> str:
    r"""As OmegaConf takes it for this very text: `\${` stands for `${`, before which backslashes count twice."""
    if text == _MARKS:
        return "${diffuse_marks:}"
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def from_data(values: Mapping[str, Any]) -> DictConfig:
    """The configuration that a record holds, with the types of the schema. Each text in it is that text, whatever
    OmegaConf would make of `${...}`: nothing of it is looked up, here or in the environment.

    Raises:
        ConfigError: a name does not exist, or a value is of another type.
    """

    def text(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: text(item) for name, item in value.items()}
        if isinstance(value, list):
            return [text(item) for item in value]
        return _harmless(value) if isinstance(value, str) else value

    try:
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text(values))))
    except OmegaConfBaseException as error:
        where = error.full_key or ""
        if isinstance(error, ConfigKeyError):
            raise ConfigError(f"{where}: there is no such field") from None
        raise ConfigError(f"{where}: {_plain(str(error))}") from None


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where a backslash counts twice before a quote and at the end, and once elsewhere."""
    return '"' + re.sub(r'(\\*)("|$(?!\n))', lambda m: m[1] * 2 + (r"\"" if m[2] else ""), text) + '"'


def typed(overrides: Sequence[str]) -> list[str]:
    """Hydra's overrides as a command line takes them: the inverse of `quote`."""
    return [_typed(override) for override in overrides]


@lru_cache(1000)  # the jobs of a sweep have most in common
def _typed(override: str) -> str:
    if override.partition("=")[0] not in _TEXTS | _PATHS:
        return override
    parsed = OverridesParser.create().parse_override(override)
    value = parsed.value()
    if not isinstance(value, str):
        return override
    if parsed.key_or_group in _TEXTS:
        value = _MARKS if value == "${diffuse_marks:}" else re.sub(r"(\\*)\\\$\{", lambda m: m[1][::2] + "${", value)
    return f"{parsed.key_or_group}={value}"


def _signed(sign: str, key: str, value: str | None) -> ConfigError:
    if key in known_keys():
        if sign == "~":
            return ConfigError(f"~{key}: a field cannot be removed; {key}=null leaves it to the model")
        return ConfigError(f"{sign}{key}{value or ''}: the field exists; write {key}{value or '=VALUE'}")
    return _unknown(key, f"{sign}{key}{value or ''}")


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted name of the default configuration, the groups themselves among them."""
    config = _compose([])

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name in node if isinstance(node, dict) else ():
            yield prefix + name
            yield from walk(node[name], f"{prefix}{name}.")

    return ("experiment", *walk(OmegaConf.to_container(config), ""))


def _unknown(key: str, shown: str) -> ConfigError:
    # What an option calls itself is not for the user to set.
    names = [known for known in known_keys() if known == "output.name" or not known.endswith((".name", "._target_"))]
    return ConfigError(f"{shown}: there is no field or group {key}{nearest(key, names, 'diffuse --help lists them')}")


def nearest(name: str, names: Sequence[str], otherwise: str = "") -> str:
    """A clause that suggests the nearest of `names`, or says `otherwise`. Fields at the root go before others."""
    last = name.rpartition(".")[2]
    tails = {known.rpartition(".")[2]: known for known in reversed(names)}
    near = (
        get_close_matches(name, names, 1, 0.75)
        or [known for known in names if name in known.split("_")][:1]
        or get_close_matches(name, [known for known in names if "." not in known], 1, 0.55)
        or [known for tail, known in tails.items() if len(last) > 2 and last in tail][-1:]
        or [tails[tail] for tail in get_close_matches(last, list(tails), 1)]
    )
    return f"; did you mean {near[0]}?" if near else (f"; {otherwise}" if otherwise else "")


@contextmanager
def explained(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise in the block into a ConfigError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, overrides) from error


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.replace("\\", "/").rpartition("/")
        known = list(error.options or options(group))
        return ConfigError(
            f"{group}={name}: there is no such {group}{nearest(name, known)} (there are {', '.join(known)})"
        )
    said = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{_shown(error.override)}: cannot be read; write NAME=VALUE, and quote a VALUE that has special characters"
        )
    if match := re.search(r"Ambiguous value for argument '(.*?)'\n", said, re.DOTALL):
        return ConfigError(f"{_shown(match[1])}: has several values; diffuse -m makes a sweep over them")
    if match := re.search(r"Sweep parameters '(.*?)' requires", said, re.DOTALL):
        return ConfigError(f"{_shown(match[1])}: is a sweep; diffuse -m makes it")
    if match := re.search(r"Key '([^']*)' (?:is )?not in '?[A-Za-z]*'?", said):
        key = re.search(r"full_key: (\S+)", said)
        named = re.search(r"Could not override '([^']*)'", said)
        full = named[1] if named else key[1] if key else match[1]
        if full in known_keys():  # a mapping was given, and a key in it is wrong
            full = f"{full}.{match[1]}"
        return _unknown(full, next((_shown(o) for o in overrides if o.startswith(f"{full}=")), full))
    if isinstance(error, ValueError):  # a group was set to what is no name
        wrong = [o for o in overrides if o.partition("=")[0] in _GROUPED] or [*overrides]
        return ConfigError(f"{_shown(wrong[0] if wrong else None)}: should be NAME=VALUE, or GROUP=OPTION")
    if match := re.search(r"Error merging override (.*?)\n.*is not Optional", said, re.DOTALL):
        return ConfigError(f"{_shown(match[1])}: cannot be null")
    if match := re.search(r"Error merging override (([^=]*)=.*)", said):
        fields = [known for known in known_keys() if known.startswith(f"{match[2]}.")]
        if fields:
            return ConfigError(f"{_shown(match[1])}: {match[2]} has fields; set one of them, such as {fields[0]}=VALUE")
    if match := re.search(r"(Value|Invalid value|Cannot convert|Incompatible|Object of unsupported)[^\n]*", said):
        merging = re.search(r"Error merging override (.*?)(\n|$)", said)
        key = re.search(r"full_key: (\S+)", said)
        where = _shown(merging[1]) if merging else key[1] if key else ""
        return ConfigError(f"{where}: {_plain(match[0])}" if where else _plain(match[0]))
    if match := re.search(r"Could not (?:append|override)[^\n]*", said):
        return ConfigError(_plain(match[0]))
    return ConfigError(_plain(said))


_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def _plain(message: str) -> str:
    line = message.strip().splitlines()[0].rstrip(". ")
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", line):
        return f"{match[1]!r} is not {_KINDS.get(match[2], match[2])}"
    if match := re.search(r"Value '(.*)' is not a valid bool", line):
        return f"{match[1]!r} is not true or false"
    if "is not a ListConfig, list or tuple" in line:
        return "should be a list, such as [A,B]"
    if match := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", line):
        return f"{match[1]!r} is none of {match[2]}{nearest(match[1], match[2].split(', '))}"
    return line


def _shown(override: str | None) -> str:
    text = " ".join((override or "").split())
    return text if len(text) <= 80 else f"{text[:77]}..."
