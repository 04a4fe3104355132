"""The cases of a smoke run: one small request for each family, each way to start, and each sampler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffuse.config.groups import group_options
from diffuse.errors import ConfigError
from diffuse.smoke.families import FAMILIES

SIDE = 32  # pixels, unless a case says otherwise
_COMMON = ("seed=1", f"width={SIDE}", f"height={SIDE}", "num_inference_steps=2", "prompt=a cactus on a pink background")
SETTINGS = ("output", "hardware", "memory_profile", "tracking")  # groups that the user may set, for all cases
_NAMES = ("experiment", "suite")
_SAMPLERS = {  # overrides that single samplers need; the others take those of every case
    "ddim": ("scheduler.clip_sample=true",),  # as published here, which would be corrected
    "flow_match_euler": ("model.source={sd_flow}",),  # a model that predicts a flow
    "pndm": ("num_inference_steps=4",),
}


@dataclass(frozen=True)
class Case:
    """A request. Its overrides have places for paths in them, see `families.SmokeFamily`."""

    name: str
    overrides: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name in letters that a file's name can have."""
        return re.sub(r"\W+", "_", self.name.lower())


def cases() -> list[Case]:
    """Returns all cases: the families', then one for each sampler in `conf/scheduler`."""
    families = [(name, overrides) for family in FAMILIES for name, overrides in family.cases.items()]
    samplers = [
        (f"scheduler={name}", ("model=sd21", "model.source={sd}", f"scheduler={name}", *_SAMPLERS.get(name, ())))
        for name in group_options("scheduler")
    ]
    return [Case(name, (*_COMMON, *overrides)) for name, overrides in (*families, *samplers)]


def check_overrides(overrides: Sequence[str], junit: Path | None) -> None:
    """Refuses overrides that a smoke run has no use for.

    Raises:
        ConfigError: an override belongs to a request, and the cases make those; or the JUnit file has no folder.
    """
    for override in overrides:
        name = override.partition("=")[0]
        if (name.partition(".")[0] not in SETTINGS and name not in _NAMES) or name == "output.name":
            raise ConfigError(
                f"{override}: experiment=smoke makes requests of its own; it takes output.dir, output.format, "
                "hardware, memory_profile and tracking"
            )
    if junit is not None and (junit.is_dir() or not junit.absolute().parent.is_dir()):
        problem = "is a folder" if junit.is_dir() else "its folder does not exist"
        raise ConfigError(f"--junit {junit}: {problem}; give the name of a file")
