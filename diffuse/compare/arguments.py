"""What stands after `diffuse compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from diffuse.compare import Wanted
from diffuse.errors import ConfigError

_VALUED = ("--out", "--x", "--y", "--z", "--reference")
_OPTIONS = (*_VALUED, "--no-sheets")


@dataclass(frozen=True)
class Arguments:
    """The command line, read."""

    names: list[str]  # of what is to be compared
    overrides: list[str]  # of the tracking store
    out: Path
    wanted: Wanted


def read(arguments: Sequence[str]) -> Arguments:
    """Raises ConfigError for an option that does not exist, one without its value, and where nothing is named."""
    names, overrides, values = [], [], []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in _VALUED:
            value = value if equals else next(rest, "")
            if not value:
                raise ConfigError(f"{option}: needs a value; diffuse --help shows what it can be")
            values.append((option, value))
        elif argument == "--no-sheets":
            values.append((argument, ""))
        elif argument.startswith("-") and not Path(argument).exists():
            near = get_close_matches(option, _OPTIONS, 1)
            raise ConfigError(f"{argument}: there is no such option{f'; did you mean {near[0]}?' if near else ' here'}")
        elif option.partition(".")[0] == "tracking" and equals and not Path(argument).exists():
            overrides.append(argument)
        else:
            names.append(argument)
    if not names:
        raise ConfigError(
            "diffuse compare RUN...: names nothing; give run ids, a sweep, an experiment, folders or files"
        )
    given = dict(values)
    axes = {place: given.get(f"--{place}") for place in "xyz"}
    reference = [value for option, value in values if option == "--reference"]
    wanted = Wanted(axes, reference, sheets="--no-sheets" not in given)
    return Arguments(names, overrides, _out(given.get("--out"), names), wanted)


def _out(given: str | None, names: Sequence[str]) -> Path:
    """Where it goes: into the one folder that is compared, otherwise into one of its own."""
    if given:
        return Path(given).expanduser()
    if len(names) == 1 and Path(names[0]).is_dir():
        return Path(names[0], "report")
    return Path("outputs", "compare", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
