"""The values that an experiment sets in `hydra.sweeper.params`, as overrides: what is typed wins. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.mistakes import own_place
from diffuse.config.quoting import quote_overrides, quote_value
from diffuse.errors import ConfigError

PARAMS = "hydra.sweeper.params"


def merge_params(overrides: Sequence[str], base: DictConfig) -> tuple[list[str], list[Override]]:
    """Returns the sweeper's own values and `overrides` together, and those axes of the sweeper's that they make one
    value.

    A field keeps the place that the sweeper gives it, so that the order of jobs is the same whoever sets its values.

    Args:
        overrides: as they were typed, in Hydra's grammar.
        base: the configuration that they give, with Hydra's settings under `hydra`.
    """
    params = OmegaConf.select(base, PARAMS)
    if not params:
        return list(overrides), []
    parse = OverridesParser.create().parse_override
    for name in map(str, params):
        if name.startswith(("+", "~")):  # refused as somebody would be who types it
            quote_overrides([f"{name}={params[name]}"], sweep=True)
    own = [parse(_param_override(str(name), value, base)) for name, value in params.items()]
    given = [parse(line) for line in overrides]
    typed = {override.key_or_group: override for override in given}  # the last of two
    names = {each.key_or_group for each in own}
    lines = [str((typed.get(each.key_or_group) or each).input_line) for each in own]
    lines += [str(each.input_line) for each in given if each.key_or_group not in names]
    fixed = {name for name, override in typed.items() if not override.is_sweep_override()}
    replaced = [each for each in own if each.is_sweep_override() and each.key_or_group in fixed]
    # Whatever the sweeper is, it has the values from here, those that were replaced left out.
    return [*lines, f"{PARAMS}=null"], replaced


def _param_override(name: str, value: Any, base: DictConfig) -> str:
    if isinstance(value, ListConfig):
        items = [_text(item) for item in value]
        text = f"[{','.join(items)}]" if _takes_list(name, value, base) else f"choice({','.join(items)})"
    elif isinstance(value, str):  # in Hydra's grammar, as in any experiment of Hydra's
        text = value
    else:
        text = _text(value)
    line = f"{name}={text}"
    try:
        OverridesParser.create().parse_override(line)
    except HydraException:  # a text with marks that the grammar has no place for, as somebody would type it
        (line,) = quote_overrides([line], sweep=True)
        try:
            OverridesParser.create().parse_override(line)
        except HydraException:
            raise ConfigError(
                f"{own_place(f'{PARAMS}.{name}', False)}{PARAMS}.{name}={value}: cannot be read; write its values as a "
                "list, such as [1,2]"
            ) from None
    return line


def _text(value: Any) -> str:
    """Returns a value of YAML in Hydra's grammar."""
    if isinstance(value, str):
        return quote_value(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, DictConfig):
        return "{" + ",".join(f"{key!s}:{_text(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value)


def _takes_list(name: str, value: ListConfig, base: DictConfig) -> bool:
    """Returns whether a list is one value of a field; of any other field, it is the values to sweep over."""
    if isinstance(OmegaConf.select(base, name), DictConfig) or any(isinstance(item, ListConfig) for item in value):
        return False  # a group; or lists, of which none is in another
    tried = base.copy()
    try:
        OmegaConf.update(tried, name, value, merge=False)
    except OmegaConfBaseException:
        return False
    return True
