"""`model=auto` in a sweep: each source is read for what it is, and goes with the option that runs it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from diffuse.config.compose import compose_with_hydra
from diffuse.config.groups import compose_quoted
from diffuse.config.mistakes import explain_errors
from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError
from diffuse.run.model_auto import AUTO, read_option, resolve_model, with_auto
from diffuse.sweep.globs import expand_globs, quote_name
from diffuse.sweep.sweeper import axis_values, read_zip

_MODEL, _SOURCE, _ZIP = "model", "model.source", "hydra.sweeper.zip"
_NAME = AUTO.partition("=")[2]


def resolve_swept_models(overrides: Sequence[str]) -> list[str]:
    """Returns a sweep's overrides with the options that `model=auto` stands for. `model.source` is that of auto alone.

    Raises:
        ConfigError: there is no source, or the sweep cannot have fields that go together.
        CheckpointError: a checkpoint is not there, or of a family that is not implemented.
    """
    source = next((line for line in overrides if line.partition("=")[0] == _SOURCE), None)
    if source is not None:
        with explain_errors(overrides):
            (of_source,) = OverridesParser.create().parse_overrides(expand_globs([source]))
            overrides = with_auto(overrides, _values(of_source))
    typed = {name: line for line in overrides if (name := line.partition("=")[0]) in (_MODEL, _SOURCE)}
    if _NAME not in typed.get(_MODEL, "") and "glob" not in typed.get(_MODEL, ""):
        return list(overrides)
    with explain_errors(overrides):
        parsed = OverridesParser.create().parse_overrides(expand_globs(list(typed.values())))
        swept = {override.key_or_group: override for override in parsed if override.is_sweep_override()}
        if not swept:
            return resolve_model(overrides)
        values = {override.key_or_group: _values(override) for override in parsed}
        models, sources = values[_MODEL], values.get(_SOURCE, [])
        if _NAME not in models:
            return list(overrides)
        if not sources:
            read_option(None, overrides)  # raises
        options = {source: read_option(source, overrides) for source in sources}
        if models == [_NAME] and len(set(options.values())) == 1:
            return [f"{_MODEL}={options[sources[0]]}" if line == typed[_MODEL] else line for line in overrides]
        sweeper = _sweeper(overrides)
        groups = read_zip(sweeper.zip) if "zip" in sweeper else []
    if "zip" not in sweeper:
        raise ConfigError(f"{typed[_MODEL]}: several models that auto reads need hydra/sweeper=basic, which pairs them")
    together = next((group for group in groups if _SOURCE in group), None)
    if any(_MODEL in group for group in groups if group is not together):
        raise ConfigError(f"{_ZIP}: names model, and a source goes with model=auto; name model.source in its place")
    if together is not None and _MODEL in together and len(models) != len(sources):
        counts = f"model has {len(models)}, model.source has {len(sources)}"
        raise ConfigError(f"{_ZIP}: {counts} values; fields that go together need as many each")
    if together is not None and _MODEL in together:
        pairs = [(options[source] if m == _NAME else m, source) for m, source in zip(models, sources, strict=True)]
    else:
        pairs = [pair for model in models for pair in _pairs(model, [(options[each], each) for each in sources])]
    pair = (*(together or (_SOURCE,)), *(() if together and _MODEL in together else (_MODEL,)))
    lists = [group for group in groups if group is not together] + [pair]
    lines = {
        typed[_MODEL]: f"{_MODEL}=choice({','.join(option for option, _ in pairs)})",
        typed[_SOURCE]: f"{_SOURCE}=choice({','.join(quote_name(source) for _, source in pairs)})",
    }
    rest = [lines.get(line, line) for line in overrides if line.partition("=")[0] != _ZIP]
    return [*rest, f"{_ZIP}=[{','.join('[' + ','.join(group) + ']' for group in lists)}]"]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.value())]
    parse = OverridesParser.create().parse_override
    return [str(parse(f"value={text}").value()) for text in axis_values(override)]


def _pairs(model: str, of_auto: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns an option of the group with its own source, or for `auto` those of the sources that it reads."""
    if model == _NAME:
        return of_auto
    own = OmegaConf.to_container(compose_quoted([f"{_MODEL}={model}"]).model, resolve=False)
    assert isinstance(own, dict)
    return [(model, str(own["source"]))]


def _sweeper(overrides: Sequence[str]) -> DictConfig:
    """Returns the settings of the sweeper, which an experiment may have chosen."""
    lines = quote_overrides([line for line in overrides if line.partition("=")[0] not in (_MODEL, _SOURCE)], sweep=True)
    parsed = OverridesParser.create().parse_overrides(lines)
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    sweeper: DictConfig = compose_with_hydra(fixed).hydra.sweeper
    return sweeper
