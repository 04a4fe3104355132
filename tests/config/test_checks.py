"""Targets: only classes in the rooms of this package that the groups' classes are in are ever imported."""

from __future__ import annotations

from typing import Any

import pytest

from diffuse.config.checks import TARGET_ROOMS, check_number, check_target, check_targets
from diffuse.config.compose import compose_config, config_from_data
from diffuse.config.groups import load_group
from diffuse.errors import ConfigError
from diffuse.run.open import load_family
from diffuse.schema import REQUEST_FIELDS

ELSEWHERE = [
    "os.system",
    "builtins.eval",
    "",
    "None",
    "diffuse.pipelines",
    "diffuse.pipelinesx.A",
    "diffuse.pipelines..A",
    "diffuse.pipelines.a b.C",
    "diffuse.run.open.load_family",
    "xdiffuse.pipelines.A",
    "diffuse.pipelines.../os.system",
]


@pytest.mark.parametrize("group", TARGET_ROOMS)
@pytest.mark.parametrize("target", ELSEWHERE)
def test_what_is_no_class_of_the_groups_room_is_refused(group: str, target: str) -> None:
    with pytest.raises(ConfigError, match=f"{group}._target_="):
        check_target(group, target)


def test_what_the_groups_have_is_allowed() -> None:
    for model in load_group("model").values():
        check_target("model", model._target_)
    check_targets(compose_config(["prompt=x", "refiner=sdxl"]))


@pytest.mark.parametrize("target", ["os.system", "antigravity.x", "diffuse.run.open.load_family"])
def test_nothing_is_imported_before_the_check(target: str) -> None:
    with pytest.raises(ConfigError, match=r"should be a class in diffuse\.pipelines"):
        load_family(target)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"name": "x", "_target_": "os.system", "source": "y"}}, "model._target_=os.system"),
        ({"scheduler": "euler"}, "scheduler=euler: there is no such scheduler; there are ddim"),
        ({"scheduler": {"_target_": "os.system"}}, "scheduler._target_=os.system"),
        ({"refiner": {"name": "x", "_target_": "subprocess.run"}}, "refiner._target_=subprocess.run"),
    ],
)
def test_targets_of_a_record_are_checked_too(values: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "model": {"name": "x", "_target_": "diffuse.pipelines.stable_diffusion.StableDiffusion", "source": "y"},
        "refiner": {"name": "none"},
        "scheduler": {"_target_": "diffuse.schedulers.ddim.DDIM"},
    }
    check_targets(config_from_data(good))
    with pytest.raises(ConfigError, match=message):
        check_targets(config_from_data({**good, **values}))


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("guidance_scale", -1, "0 and 1 switch guidance off"),
        ("guidance_scale", -0.5, "0 and 1 switch guidance off"),
        ("strength", 2, "1 forgets the input picture"),
        ("strength", 0, "1 forgets the input picture"),
        ("guidance_rescale", 2, "0 leaves the contrast"),
        ("clip_skip", -2, "0 or null leaves out none"),
    ],
)
def test_a_refusal_says_what_the_ends_of_the_range_do(name: str, value: float, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}: should be .*; {hint}"):
        check_number(REQUEST_FIELDS[name], value)
