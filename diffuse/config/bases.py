"""Sets plain values on copies of what Hydra composed of the chosen options: composing takes a hundred times as long."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRA_INTERPOLATION = "${hydra:"  # begins a value that Hydra gives, unless a backslash makes it a text


class Bases:
    """Configurations that Hydra composed, by the overrides that choose options.

    Args:
        is_choice: tells whether an override chooses an option from a group, or sets a value of Hydra's own.
    """

    def __init__(self, is_choice: Callable[[Override], bool]) -> None:
        self._is_choice = is_choice
        self._composed: dict[
            tuple[str, ...], bytes
        ] = {}  # pickled, which is copied five times as fast as by `deepcopy`

    def with_values(
        self,
        lines: Sequence[str],
        overrides: Sequence[Override],
        compose: Callable[[tuple[str, ...]], DictConfig],
    ) -> DictConfig | None:
        """Returns what `compose` makes of those overrides that choose options, with the values of all others set.

        Returns None where Hydra has to compose all of them: some are more than plain values, or depend on Hydra's own,
        or do not fit, which Hydra says in its words.

        Args:
            lines: the overrides in Hydra's grammar.
            overrides: the same, parsed.
        """
        pairs = list(zip(lines, overrides, strict=True))
        choices = tuple(line for line, override in pairs if self._is_choice(override))
        values = [override for override in overrides if not self._is_choice(override)]
        if any(each.type is not OverrideType.CHANGE or each.package is not None for each in values):
            return None
        if any(each.is_sweep_override() for each in values):
            return None
        if any(HYDRA_INTERPOLATION in line.replace("\\", "") for line in lines):
            return None  # Hydra's own values depend on all overrides
        if choices not in self._composed:
            self._composed[choices] = pickle.dumps(compose(choices))
        base = self._composed[choices]
        if HYDRA_INTERPOLATION.encode() in base:
            return None
        cfg: DictConfig = pickle.loads(base)
        try:
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return None
        return cfg
