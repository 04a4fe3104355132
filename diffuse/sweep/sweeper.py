"""The sweeper of this package: every combination of the values given, except for fields whose values go together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from diffuse.config.quoting import quote_value
from diffuse.errors import ConfigError

_CONFIG_FILE = "multirun.yaml"  # the name under which every sweeper of Hydra's leaves the configuration


class GridSweeper(Sweeper):
    """`hydra/sweeper=basic`, in the place of Hydra's own: what that does, and `hydra.sweeper.zip`."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None = None, zip: Any = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}
        self.zipped = read_zip(zip)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Sets the sweeper up for Hydra."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launches the jobs. Returns what each batch of them returned."""
        assert self.hydra_context is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.batches(arguments, parser)
        save_config(self.config, Path(self.config.hydra.sweep.dir))
        returns = []
        for first, batch in batches:
            self.validate_batch_is_legal(batch)
            assert self.launcher is not None
            results = self.launcher.launch(batch, initial_job_idx=first)
            for result in results:
                result.return_value  # noqa: B018 - raises what a job has raised
            returns.append(results)
        return returns

    def batches(self, arguments: Sequence[str], parser: OverridesParser) -> list[tuple[int, list[list[str]]]]:
        """Returns the overrides of the jobs, in batches, each with the number of its first job.

        Raises:
            ConfigError: `max_batch_size` is wrong.
        """
        size: Any = self.max_batch_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ConfigError(f"hydra.sweeper.max_batch_size={size}: should be a whole number of 1 or more")
        lines = [f"{key}={value}" for key, value in self.params.items()]
        jobs = list(combine(parser.parse_overrides([*lines, *arguments]), self.zipped))
        size = size or len(jobs)
        return [(first, jobs[first : first + size]) for first in range(0, len(jobs), size)]


def save_config(config: DictConfig, folder: Path) -> None:
    """Leaves the configuration of a sweep in its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / _CONFIG_FILE)


def read_zip(value: Any) -> list[tuple[str, ...]]:
    """Returns the groups of fields that go together: a list of names is one, a list of such lists several.

    Raises:
        ConfigError: it is something else, or a field is named twice.
    """
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value)
    if not value:
        return []
    groups = value if isinstance(value, list) and all(isinstance(group, list) for group in value) else [value]
    for group in groups:
        if not isinstance(group, list) or len(group) < 2 or not all(isinstance(name, str) for name in group):
            raise ConfigError(
                f"hydra.sweeper.zip={value}: should name two fields or more, such as [seed,num_inference_steps]"
            )
    names = [_swept_name(name) for group in groups for name in group]
    written = {_swept_name(name): name for group in groups for name in group}
    if {"prompt", "prompt_file"} <= {name for group in groups for name in group}:
        raise ConfigError("hydra.sweeper.zip: prompt and prompt_file are one field; leave one of them out")
    if twice := [written[name] for name in names if names.count(name) > 1]:
        raise ConfigError(f"hydra.sweeper.zip: {twice[0]} is named twice; a field goes together with one group")
    return [tuple(_swept_name(name) for name in group) for group in groups]


def _swept_name(name: str) -> str:
    return "prompt" if name == "prompt_file" else name  # whose lines become prompts


def axis_values(override: Override) -> list[str]:
    """Returns the values of a swept override in Hydra's grammar, in the order typed.

    Hydra forgets which texts of a `choice(...)` were in quotes. A text that would be read as something else without
    them, or could not be read, gets them again.
    """
    return [str(value) for value in override.sweep_iterator(_value_in_grammar)]


def _value_in_grammar(value: Any) -> str:
    bare: str = Transformer.str(value)
    if not isinstance(value, str):
        return bare
    read = _read_bare(bare)
    return bare if isinstance(read, str) and read == value else quote_value(value)


def identity_values(override: Override) -> list[str]:
    """Returns the values of a swept override as the identity of a sweep has them, in the order typed.

    Earlier versions had every text of a `choice(...)` without quotes there. It stays so where they drew that text, such
    as `12`.
    """
    return [str(value) for value in override.sweep_iterator(_identity_value)]


def _identity_value(value: Any) -> str:
    bare: str = Transformer.str(value)
    return bare if isinstance(value, str) and str(_read_bare(bare)) == value else _value_in_grammar(value)


def _read_bare(text: str) -> Any:
    """Returns what Hydra's grammar reads in a text; None where it cannot."""
    try:
        parsed = OverridesParser.create().parse_override(f"value={text}")
    except HydraException:
        return None
    return None if parsed.is_sweep_override() else parsed.value()


def combine(overrides: Sequence[Override], zipped: Sequence[Sequence[str]] = ()) -> Iterator[list[str]]:
    """Yields the overrides of each job in Hydra's grammar, the last field varying fastest. The last of two wins.

    Args:
        zipped: groups of fields that go together, with as many values each.
    """
    lines: dict[str, list[str]] = {}
    names: dict[str, str] = {}  # the field of each key, which may have a sign and a package
    for override in overrides:
        key = override.get_key_element()
        values = axis_values(override) if override.is_sweep_override() else [override.get_value_element_as_str()]
        lines[key] = [f"{key}={value}" for value in values]
        names[key] = override.key_or_group
    groups = {name: tuple(group) for group in zipped for name in group}
    columns: dict[Any, list[str]] = {}  # the keys that go together, each group where its first one is
    for key in lines:
        columns.setdefault(groups.get(names[key], key), []).append(key)
    order = {key: place for place, key in enumerate(lines)}
    keys = [key for column in columns.values() for key in column]
    together = [list(zip(*(lines[key] for key in column), strict=True)) for column in columns.values()]
    for job in itertools.product(*together):
        chosen = dict(zip(keys, itertools.chain(*job), strict=True))
        yield [chosen[key] for key in sorted(chosen, key=order.__getitem__)]
