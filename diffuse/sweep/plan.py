"""Which sweep a command asks for: its axes, its number of jobs, its folder, its seed and its identity. No torch.

A sweep is identified by its configuration: the same overrides, in any order, continue it in its folder.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.config.compose import compose_with_hydra, resolve_config
from diffuse.config.groups import compose_quoted, conf_dir, load_yaml
from diffuse.config.hydra_settings import check_hydra_config
from diffuse.config.mistakes import explain_errors
from diffuse.config.own import own_config
from diffuse.config.quoting import quote_overrides, quote_text
from diffuse.config.request import DRAWN_SEEDS, read_prompt_file
from diffuse.config.tracking_settings import check_tracking
from diffuse.errors import ConfigError
from diffuse.paths import user_path
from diffuse.record.values import redact
from diffuse.sweep.folder import Sweep, read_sweep
from diffuse.sweep.globs import expand_globs
from diffuse.sweep.job_folder import job_identity, json_digest
from diffuse.sweep.params import PARAMS, merge_params
from diffuse.sweep.sweeper import axis_values, identity_values, read_zip
from diffuse.terminal import confirm

SWEEPS = Path("outputs", "sweeps")  # the parent of folders without an output.dir
MAX_JOBS_UNASKED = 10_000
_SAME_FOR_ALL = ("output.dir", "report", "tracking", "hydra")  # cannot differ between the jobs of a sweep


@dataclass(frozen=True)
class _Axis:
    key: str
    values: Any  # sorted texts; in Hydra's grammar where there are too many, or only the sweeper can expand them
    count: int | None


def is_sweep(overrides: Sequence[str]) -> bool:
    """Returns whether overrides are a sweep without `-m`, because of `hydra.mode` there or in their files."""
    mode = None
    typed = None
    for name, _, value in (override.lstrip("+").partition("=") for override in overrides):
        if name == "hydra.mode":
            typed = value.strip("'\"")
        file = conf_dir() / "experiment" / f"{value}.yaml"
        if name == "experiment" and file.is_file():
            mode = OmegaConf.select(OmegaConf.load(file), "hydra.mode")
    if typed is not None:
        return typed == "MULTIRUN"
    return mode == "MULTIRUN" or _is_own_sweep(overrides)


def _is_own_sweep(overrides: Sequence[str]) -> bool:
    """Returns whether the user's own files make a sweep, which may have taken `hydra.mode` from others."""
    if not own_config().files:
        return False
    with suppress(ConfigError), explain_errors(overrides):  # the command says what is wrong
        fixed = _fixed(OverridesParser.create().parse_overrides(quote_overrides(overrides)))
        return str(compose_quoted(fixed, hydra=True).hydra.mode).endswith("MULTIRUN")
    return False


def plan_sweep(
    overrides: Sequence[str], command_line: Sequence[str], *, yes: bool = False
) -> tuple[Sweep, DictConfig, list[str]]:
    """Returns the sweep, the configuration that its jobs share, and its overrides.

    A file of prompts becomes an axis of its prompts.

    Args:
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them.
        yes: agrees to any number of jobs.

    Raises:
        ConfigError: the sweep has no job, varies a value that its jobs share, or has too many jobs for a user who
            does not agree.
    """
    parse = OverridesParser.create().parse_overrides
    overrides = expand_globs(overrides)
    base = compose_with_hydra(_fixed(parse(list(overrides))))
    check_hydra_config(base.hydra)
    if base.suite is not None:
        raise ConfigError(
            f"experiment={base.suite.name}: checks many requests of its own, and is no sweep; leave out -m"
        )
    has_file = base.prompt_file is not None or "prompt_file" in str(OmegaConf.select(base, "hydra.sweeper.zip"))
    hydra_overrides, base = _compose_prompts(list(overrides), base)
    typed = base
    merged, replaced = merge_params(hydra_overrides, base)
    if merged != hydra_overrides:
        merged = expand_globs(merged)
        hydra_overrides, base = _compose_prompts(merged, compose_with_hydra(_fixed(parse(merged))))
    sweep_overrides = [override for override in parse(hydra_overrides) if override.is_sweep_override()]
    axis_overrides = {override.key_or_group: override for override in sweep_overrides}
    is_basic = str(base.hydra.sweeper._target_).endswith((".BasicSweeper", ".GridSweeper"))
    if (swept := axis_overrides.get("experiment")) is not None:
        _check_experiments(swept, _fixed(parse(hydra_overrides)))
    axes = [_axis(override, is_basic) for override in axis_overrides.values()]
    zipped = read_zip(OmegaConf.select(base, "hydra.sweeper.zip"))
    counts = _check_zip(zipped, axes, "prompt_file" if has_file else "prompt")
    jobs = math.prod(counts) if is_basic else None
    if jobs is not None and jobs > MAX_JOBS_UNASKED and not yes:
        _ask(jobs)

    # Axes that were replaced stay in the identity, in which earlier versions had them.
    identified = [*axes, *(_axis(override, is_basic) for override in replaced)]
    values = sorted(([axis.key, axis.values] for axis in identified), key=str)
    sweeper = None if is_basic else OmegaConf.to_container(typed.hydra.sweeper, resolve=True)
    resolved = resolve_config(base)
    check_tracking(resolved.tracking, in_sweep=True)
    config = job_identity(resolved if is_basic else resolve_config(typed))  # of another sweeper, `sweeper` has the rest
    parts = {"config": config, "sweep": values, "sweeper": sweeper}
    if zipped:  # sweeps without keep the identity that they had before there was one
        parts["zip"] = sorted((_zip_identity(keys, axes, axis_overrides) for keys in zipped), key=str)
    identity = json_digest(parts)
    folder = _folder(base, identity)
    earlier = read_sweep(folder)
    is_resumed = earlier is not None and earlier.identity == identity
    seed = None
    if base.seed is None and "seed" not in axis_overrides:
        seed = earlier.seed if earlier is not None and is_resumed else None
        seed = secrets.randbelow(DRAWN_SEEDS) if seed is None else seed
        hydra_overrides.append(f"seed={seed}")
    experiment = next((text.partition("=")[2] for text in command_line if text.startswith("experiment=")), "")
    sweep = Sweep(
        identity,
        experiment or _name(list(axis_overrides), zipped) or "one job",
        folder,
        redact(list(command_line), "overrides"),
        [axis.key for axis in axes],
        seed,
        jobs,
        is_resumed,
    )
    return sweep, base, hydra_overrides


def _fixed(parsed: Sequence[Override]) -> list[str]:
    return [override.input_line or "" for override in parsed if not override.is_sweep_override()]


def _compose_prompts(overrides: list[str], base: DictConfig) -> tuple[list[str], DictConfig]:
    """Replaces a file of prompts by an axis of its prompts. Returns the overrides and what they compose."""
    if base.prompt_file is None:
        return overrides, base
    if base.prompt is not None or any(override.startswith("prompt=") for override in overrides):
        raise ConfigError("prompt and prompt_file are both set: leave one of them out")
    prompts = ",".join(quote_text(prompt) for prompt in read_prompt_file(base.prompt_file))
    rest = [override for override in overrides if not override.startswith("prompt_file=")]
    overrides = [*rest, f"prompt={prompts}"]
    base = compose_with_hydra(_fixed(OverridesParser.create().parse_overrides(overrides)))
    if base.prompt_file is not None:  # from an experiment
        overrides.append("prompt_file=null")
        base.prompt_file = None
    return overrides, base


def _check_experiments(override: Override, others: Sequence[str]) -> None:
    """Raises ConfigError for experiments swept over of which one is a sweep itself: its own values would be lost."""
    for name in axis_values(override):
        with suppress(HydraException, OmegaConfBaseException, ValueError):  # the job says what is wrong
            hydra = compose_quoted([*others, f"experiment={name}"], hydra=True).hydra
            if OmegaConf.select(hydra, "sweeper.params"):
                raise ConfigError(
                    f"experiment={name}: is a sweep itself, and cannot be one value of another; "
                    "make it by a command of its own"
                )


def _axis(override: Override, is_basic: bool) -> _Axis:
    key = override.key_or_group
    if any(key == shared or key.startswith(f"{shared}.") for shared in _SAME_FOR_ALL):
        name = key.removeprefix(f"{PARAMS}.")
        advice = "give one value" if name == key else f"write {name}={override.get_value_string()}, without {PARAMS}"
        raise ConfigError(f"{override.input_line}: is the same for all jobs of a sweep; {advice}")
    if key == "prompt_file":
        raise ConfigError(f"{override.input_line}: the prompts of a file are a sweep already; give one file")
    value: Any = override.value()
    if not is_basic:
        return _Axis(key, override.get_value_string(), None)
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: has no steps to go in, such as range(1,2,0.1) has")
    is_range = isinstance(value, RangeSweep)
    count = _range_length(override, value) if is_range else len(list(override.sweep_iterator()))
    if not count:
        raise ConfigError(f"{override.input_line}: is empty, and so would be the sweep; give it a value")
    is_short = count <= MAX_JOBS_UNASKED
    return _Axis(key, sorted(identity_values(override)) if is_short else override.get_value_string(), count)


def _check_zip(zipped: Sequence[Sequence[str]], axes: Sequence[_Axis], prompts: str) -> list[int]:
    """Returns the number of values of each axis, where those that go together count as one.

    Args:
        prompts: what prompts are given by, `prompt` or `prompt_file`, whose lines they then are.

    Raises:
        ConfigError: they do not have the same number of values, or one of them has a single value.
    """
    counts = {axis.key: axis.count or 0 for axis in axes}
    for keys in zipped:
        shown = {key: prompts if key == "prompt" else key for key in keys}
        if missing := [key for key in keys if key not in counts]:
            raise ConfigError(
                f"hydra.sweeper.zip: {shown[missing[0]]} is not swept; give it as many values as the others"
            )
        if len({counts[key] for key in keys}) > 1:
            numbers = ", ".join(f"{shown[key]} has {counts[key]}" for key in keys)
            raise ConfigError(f"hydra.sweeper.zip: {numbers} values; fields that go together need as many each")
    seconds = {key for keys in zipped for key in keys[1:]}
    return [count for key, count in counts.items() if key not in seconds]


def _zip_identity(keys: Sequence[str], axes: Sequence[_Axis], overrides: Mapping[str, Override]) -> list[Any]:
    """Returns which values go together, in whatever order they were typed."""
    keys = sorted(keys)
    if any(axis.count is not None and axis.count > MAX_JOBS_UNASKED for axis in axes if axis.key in keys):
        return [keys, [overrides[key].get_value_string() for key in keys]]
    values = zip(*(identity_values(overrides[key]) for key in keys), strict=True)
    return [keys, sorted(list(together) for together in values)]


def _name(keys: Sequence[str], zipped: Sequence[Sequence[str]]) -> str:
    groups = {key: group for group in zipped for key in group}
    return " x ".join(dict.fromkeys(" + ".join(groups.get(key, (key,))) for key in keys))


def _range_length(override: Override, values: RangeSweep) -> int:
    """Returns the length of a range without going through it."""
    start, stop, step = (Decimal(str(number)) for number in (values.start, values.stop, values.step))
    if not step:
        raise ConfigError(f"{override.input_line}: never ends; its step should not be 0")
    return max(math.ceil((stop - start) / step), 0)


def _folder(base: DictConfig, identity: str) -> Path:
    """Returns the folder that the user chose, or one named by the sweep's identity."""
    output = OmegaConf.to_container(base.output, resolve=False)
    default = OmegaConf.to_container(load_yaml("config").output, resolve=False)
    assert isinstance(output, dict) and isinstance(default, dict)
    return SWEEPS / identity[:12] if output["dir"] == default["dir"] else user_path(str(base.output.dir), "output.dir")


def _ask(jobs: int) -> None:
    no_terminal = f"the sweep has {jobs:,} jobs, and there is no terminal to ask on; add --yes to agree"
    if not confirm(f"The sweep has {jobs:,} jobs. Go on?", no_terminal):
        raise ConfigError("nothing was made")
