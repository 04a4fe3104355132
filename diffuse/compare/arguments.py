"""The arguments of `diffuse compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from diffuse.compare.report import ReportOptions
from diffuse.errors import ConfigError
from diffuse.paths import user_path

_VALUED = ("--out", "--x", "--y", "--z", "--reference")
_OPTIONS = (*_VALUED, "--no-sheets")


@dataclass(frozen=True)
class CompareArguments:
    """The command line as values."""

    names: list[str]  # runs, sweeps, experiments, folders and files
    overrides: list[str]  # those of `tracking`
    out: Path
    options: ReportOptions


def parse_compare_arguments(arguments: Sequence[str]) -> CompareArguments:
    """Parses the words after `diffuse compare`.

    Raises:
        ConfigError: an option does not exist or has no value, or nothing is named.
    """
    names, overrides, values = [], [], []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in _VALUED:
            value = value if equals else next(rest, "")
            if not value:
                raise ConfigError(f"{option}: needs a value; diffuse compare --help says what it can be")
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
    options = dict(values)
    axes = {place: options.get(f"--{place}") for place in "xyz"}
    reference = [value for option, value in values if option == "--reference"]
    report = ReportOptions(axes, reference, sheets="--no-sheets" not in options)
    return CompareArguments(names, overrides, _output_folder(options.get("--out"), names), report)


def _output_folder(out: str | None, names: Sequence[str]) -> Path:
    """Returns the folder of the report: below the one folder that is compared, otherwise one of its own."""
    if out:
        return user_path(out, "--out")
    if len(names) == 1 and (folder := user_path(names[0])).is_dir():
        return folder / "report"
    return Path("outputs", "compare", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
