"""A sweep as a whole, before its first job: which it is, its folder, its seed, how many jobs it has. No torch.

A sweep is known by its configuration: typed again, in whatever order, it is the same one, and goes on in its folder.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from diffuse.config import compose as configuration
from diffuse.config import request as validation
from diffuse.errors import ConfigError, MediaError
from diffuse.record.record import redact
from diffuse.sweep import job, start
from diffuse.terminal import confirm

log = logging.getLogger(__name__)

FILE = "sweep.json"
FOLDER = Path("outputs", "sweeps")  # of those whose output.dir is not given
ASKED_ABOVE = 10_000  # jobs
_VERSION = 1
_UNSAID = ("folder", "again")  # of a sweep, in its file
_HYDRAS = "multirun.yaml"  # which Hydra writes into the folder
_SHARED = ("output.dir", "report", "tracking", "hydra")  # what cannot differ between the jobs of a sweep


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` says of a sweep; its jobs read it there, wherever they run."""

    identity: str
    name: str
    folder: Path
    overrides: list[str]  # as they were typed
    axes: list[str]  # the keys that differ between jobs
    seed: int | None = None  # drawn for those who gave none
    jobs: int | None = None  # None where the sweeper finds them as it goes
    again: bool = True  # it may have been begun before


@dataclass(frozen=True)
class _Axis:
    key: str
    values: Any  # sorted texts; in Hydra's grammar where there are too many, or a sweeper knows what they mean
    count: int | None


def by_itself(overrides: Sequence[str]) -> bool:
    """Whether these are a sweep without `-m`, as experiments are whose `hydra.mode` says so."""
    mode = None
    for name, _, value in (override.partition("=") for override in overrides):
        if name == "hydra.mode":
            return value == "MULTIRUN"
        file = configuration.conf_dir() / "experiment" / f"{value}.yaml"
        if name == "experiment" and file.is_file():
            mode = OmegaConf.select(OmegaConf.load(file), "hydra.mode")
    return mode == "MULTIRUN"


def plan(overrides: Sequence[str], typed: Sequence[str], *, yes: bool = False) -> tuple[Sweep, DictConfig, list[str]]:
    """The sweep of `overrides`, which are those `typed` in Hydra's grammar; the configuration that its jobs have in
    common; and what Hydra is to be given for it.

    A file of prompts becomes a sweep over its prompts. Raises ConfigError for a sweep without a job, for one over what
    its jobs share, and for more jobs than anyone means, unless the user agrees or has said `yes`.
    """
    parse = OverridesParser.create().parse_overrides
    base = configuration.composed(_fixed(parse(list(overrides))))
    if base.suite is not None:
        raise ConfigError(
            f"experiment={base.suite.name}: checks many requests of its own, and is no sweep; leave out -m"
        )
    given = _with_prompts(overrides, base)
    if given != list(overrides):
        base = configuration.composed(_fixed(parse(given)))
        if base.prompt_file is not None:  # of an experiment
            given.append("prompt_file=null")
    swept = [override for override in parse([*_params(base), *given]) if override.is_sweep_override()]
    axes = {override.key_or_group: override for override in swept}  # the command line goes before the sweeper's own
    basic = str(base.hydra.sweeper._target_).endswith(".BasicSweeper")
    found = [_axis(override, basic) for override in axes.values()]
    jobs = math.prod(axis.count or 0 for axis in found) if basic else None
    if jobs is not None and jobs > ASKED_ABOVE and not yes:
        _ask(jobs)

    sweeper = None if basic else OmegaConf.to_container(base.hydra.sweeper, resolve=True)
    varied = sorted(([axis.key, axis.values] for axis in found), key=str)
    identity = job.digest({"config": job.identity(configuration.resolved(base)), "sweep": varied, "sweeper": sweeper})
    folder = _folder(base, identity)
    seed = _seed(folder, identity) if base.seed is None and "seed" not in axes else None
    name = next((text.partition("=")[2] for text in typed if text.startswith("experiment=")), "") or " x ".join(axes)
    kept = redact(list(typed), "overrides")
    earlier = read(folder)
    again = earlier is not None and earlier.identity == identity
    sweep = Sweep(identity, name or "one job", folder, kept, [axis.key for axis in found], seed, jobs, again)
    seeded = [] if seed is None else [f"seed={seed}"]
    return sweep, base, [*given, *seeded, f"hydra.sweep.dir={configuration.quoted(str(folder))}"]


def read(folder: Path) -> Sweep | None:
    """What `folder` says of the sweep in it; None where it says nothing that can be read."""
    said = job.read_json(folder / FILE)
    try:
        names = ("identity", "name", "overrides", "axes", "seed", "jobs")
        return None if said is None else Sweep(folder=folder, **{name: said[name] for name in names})
    except KeyError:
        return None


def as_json(sweep: Sweep) -> dict[str, Any]:
    """What `sweep.json` says, but for when the sweep was begun."""
    return {"version": _VERSION, **{name: value for name, value in asdict(sweep).items() if name not in _UNSAID}}


@contextmanager
def opened(sweep: Sweep) -> Iterator[None]:
    """The sweep's folder, with `sweep.json` in it. If nothing comes of the jobs, what was made for them goes again.

    Raises MediaError where the folder cannot be written, and ConfigError while another process is at work in it.
    """
    folder = sweep.folder
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    new = [name for name in (FILE, _HYDRAS) if not (folder / name).exists()]
    earlier = job.read_json(folder / FILE) or {}
    created = earlier.get("created") if earlier.get("identity") == sweep.identity else None
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            job.write_json(folder / FILE, as_json(sweep) | {"created": created})
            start.begin(folder)
            try:
                yield
            finally:
                start.end(folder)
    except OSError as error:
        if error.filename is None:
            raise
        reason = f"{error.filename} cannot be written: {error.strerror}"
        raise MediaError(f"output.dir: {reason}; choose another folder") from error
    finally:
        with suppress(OSError):
            if {path.name for path in folder.iterdir()} <= set(new):
                for name in new:
                    (folder / name).unlink(missing_ok=True)
            for path in made:
                path.rmdir()  # refuses one that is not empty


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two processes would make the same jobs. The lock is the folder's own, and goes with the process, however it ends;
    a file system that has no locks has none."""
    if sys.platform == "win32":
        yield
        return

    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another process makes a sweep in it; wait for it to end, or stop it") from None
    except OSError:
        log.debug("%s cannot be locked", folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _fixed(parsed: Sequence[Override]) -> list[str]:
    return [override.input_line or "" for override in parsed if not override.is_sweep_override()]


def _with_prompts(overrides: Sequence[str], base: DictConfig) -> list[str]:
    """`overrides` with the prompts that a file holds in the place of the file."""
    if base.prompt_file is None:
        return list(overrides)
    if base.prompt is not None or any(override.startswith("prompt=") for override in overrides):
        raise ConfigError("prompt and prompt_file are both set: leave one of them out")
    prompts = ",".join(configuration.literal(prompt) for prompt in validation.prompts_in(base.prompt_file))
    rest = [override for override in overrides if not override.startswith("prompt_file=")]
    return [*rest, f"prompt={prompts}"]


def _params(base: DictConfig) -> list[str]:
    """What the sweeper has of its own, as an experiment that is a sweep by itself."""
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _axis(override: Override, basic: bool) -> _Axis:
    key = override.key_or_group
    if any(key == shared or key.startswith(f"{shared}.") for shared in _SHARED):
        raise ConfigError(f"{override.input_line}: is the same for all jobs of a sweep; give one value")
    value: Any = override.value()
    if not basic:
        return _Axis(key, override.get_value_string(), None)
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: has no steps to go in, such as range(1,2,0.1) has")
    if isinstance(value, RangeSweep):
        count = _length(override, value)
    elif isinstance(value, Glob):
        names = value.filter(configuration.options(key))
        return _Axis(key, names, len(names))
    else:
        count = len(list(override.sweep_iterator()))
    if not count:
        raise ConfigError(f"{override.input_line}: is empty, and so would be the sweep; give it a value")
    texts = count <= ASKED_ABOVE
    return _Axis(key, sorted(override.sweep_string_iterator()) if texts else override.get_value_string(), count)


def _length(override: Override, values: RangeSweep) -> int:
    """Of a range, without going through it."""
    start, stop, step = (Decimal(str(number)) for number in (values.start, values.stop, values.step))
    if not step:
        raise ConfigError(f"{override.input_line}: never ends; its step should not be 0")
    return max(math.ceil((stop - start) / step), 0)


def _folder(base: DictConfig, identity: str) -> Path:
    """The folder that was given, or one by the sweep's identity."""
    asked = OmegaConf.to_container(base.output, resolve=False)
    default = OmegaConf.to_container(configuration.file("config").output, resolve=False)
    assert isinstance(asked, dict) and isinstance(default, dict)
    return FOLDER / identity[:12] if asked["dir"] == default["dir"] else Path(str(base.output.dir))


def _seed(folder: Path, identity: str) -> int:
    """The seed of all jobs, where none is given: the one that was drawn when the sweep was begun."""
    earlier = read(folder)
    if earlier is not None and earlier.identity == identity and earlier.seed is not None:
        return earlier.seed
    return secrets.randbelow(validation.DRAWN_BELOW)


def _ask(jobs: int) -> None:
    nobody = f"the sweep has {jobs:,} jobs, and there is no terminal to ask on; add --yes to agree"
    if not confirm(f"The sweep has {jobs:,} jobs. Go on?", nobody):
        raise ConfigError("nothing was made")
