"""Sets plain values on copies of what Hydra composed of the chosen options: composing takes a hundred times as long."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_HYDRA_INTERPOLATION = "${hydra:"  # begins a value that Hydra gives, unless a backslash makes it a text


class Bases:
    """Configurations that Hydra composed, by the overrides that choose options.

    Args:
        is_choice: tells whether an override chooses an option from a group, or sets a value of Hydra's own.
    """

    def __init__(self, is_choice: Callable[[Override], bool]) -> None:
        self._is_choice = is_choice
        # Pickled, which is copied five times as fast as by `deepcopy`; None where a value of Hydra's own stands in it.
        self._composed: dict[tuple[str, ...], bytes | None] = {}

    def with_values(self, lines: Sequence[str], compose: Callable[[tuple[str, ...]], DictConfig]) -> DictConfig | None:
        """Returns what `compose` makes of those overrides that choose options, with the values of all others set.

        Returns None where Hydra has to compose all of them: some are more than plain values, or depend on Hydra's own,
        or do not fit, which Hydra says in its words.

        Args:
            lines: the overrides in Hydra's grammar.
        """
        overrides = [_parse(line) for line in lines]
        choices = tuple(line for line, override in zip(lines, overrides, strict=True) if self._is_choice(override))
        values = [override for override in overrides if not self._is_choice(override)]
        if any(each.type is not OverrideType.CHANGE or each.package is not None for each in values):
            return None
        if any(each.is_sweep_override() for each in values):
            return None
        if uses_hydra_values(lines):
            return None
        if choices not in self._composed:
            pickled = pickle.dumps(compose(choices))
            self._composed[choices] = None if _HYDRA_INTERPOLATION.encode() in pickled else pickled
        base = self._composed[choices]
        if base is None:
            return None
        cfg: DictConfig = pickle.loads(base)
        try:
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return None
        return cfg


def uses_hydra_values(lines: Sequence[str]) -> bool:
    """Returns whether values of Hydra's own may stand in overrides, which depend on all of them."""
    return any(_HYDRA_INTERPOLATION in line.replace("\\", "") for line in lines)


@lru_cache(10_000)
def _parse(line: str) -> Override:
    return OverridesParser.create().parse_override(line)
