"""What is set on a copy of what Hydra composed is what Hydra would have composed."""

from __future__ import annotations

import pytest
from command import until
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffuse.config import groups
from diffuse.config.bases import Bases
from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError

PLAIN = (
    ["seed=3", "width=72", "scheduler=euler", "model=sd21", "memory_profile=low"],
    ["prompt=a cat, with {brackets} and $", "seed=null", "scheduler.timestep_spacing=trailing"],
    ["lora=[{source: a.safetensors, weight: 0.5}]", "timesteps=[9,5]", "model.request_defaults={height: 72}"],
    ["hardware=cpu", "hardware.threads=1", "tracking=none", "memory_profile.release_to=disk", "sigmas=[1.0,0.5]"],
    ["model.source=${oc.env:HOME}/x", "output.name=${seed}", "output.dir='${seed}'"],
    ["experiment=seeds_by_steps", "seed=4"],
    ["hydra.searchpath=[]", "seed=5"],
)
MORE = (
    ["+model.request_defaults.strength=0.5"],
    ["++seed=2"],
    ["~model.request_defaults.width"],
    ["output.dir=${hydra:runtime.cwd}"],
    ["seed=1,2"],
    ["width=wide"],
    ["sede=1"],
)


@pytest.mark.parametrize("lines", PLAIN, ids=" ".join)
def test_plain_values(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = quote_overrides(lines)
    expected = groups._compose(quoted)
    bases = Bases(groups._is_choice)
    for _ in range(2):
        found = bases.with_values(quoted, groups._compose)
        assert found is not None
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)  # in the same order, and unresolved
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
        for name in expected:
            if OmegaConf.is_config(expected[name]):
                assert OmegaConf.get_type(found[name]) == OmegaConf.get_type(expected[name])
        with pytest.raises(OmegaConfBaseException):
            found.width = "wide"
        found.height = 8  # which the next one does not have
    monkeypatch.setattr(groups, "_bases", bases)
    assert OmegaConf.to_yaml(compose_config(lines)) == OmegaConf.to_yaml(expected)


@pytest.mark.parametrize("lines", MORE, ids=" ".join)
def test_what_is_more_is_left_to_hydra(lines: list[str]) -> None:
    assert Bases(groups._is_choice).with_values(lines, groups._compose) is None


def test_options_are_composed_once() -> None:
    composed: list[tuple[str, ...]] = []

    def compose(choices: tuple[str, ...]) -> DictConfig:
        composed.append(choices)
        return groups._compose(choices)

    bases = Bases(groups._is_choice)
    for lines in (["seed=1", "scheduler=euler"], ["scheduler=euler", "width=72"], ["scheduler=ddim"], ["seed=2"]):
        assert bases.with_values(lines, compose) is not None
    assert composed == [("scheduler=euler",), ("scheduler=ddim",), ()]


def test_each_composition_has_its_own_time() -> None:
    cfg = compose_config([])
    first = cfg.output.dir
    until(lambda: compose_config([]).output.dir != first)
    assert cfg.output.dir == resolve_config(cfg).output.dir == first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sede=1", "sede=1: there is no field or group sede; did you mean seed"),
        ("width=wide", "width=wide: 'wide' is not a whole number"),
        ("scheduler=elder", "scheduler=elder: "),
    ],
)
def test_a_mistake_is_told_as_before(line: str, said: str) -> None:
    compose_config([])
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^{said}"):
            compose_config([line])
