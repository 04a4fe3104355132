"""The settings of a sampler in the words of AUTOMATIC1111's web UI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import smoke
from PIL import Image
from viewers import webui_parameters

from diffuse.config.compose import compose_config
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.labels import schedule_settings

# `schedulers` in the web UI's modules/sd_schedulers.py.
WEB_UI = {"Automatic", "Uniform", "Karras", "Exponential", "SGM Uniform", "DDIM", "Beta"}


def settings(name: str, published: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    chosen = dict(compose_config([f"scheduler={name}"]).scheduler) | options
    return schedule_settings(build_sampler(chosen, published or {}))


@pytest.mark.parametrize(
    ("name", "options", "schedule"),
    [
        ("euler", {"use_karras_sigmas": True}, "Karras"),
        ("dpmpp_2m", {"use_karras_sigmas": True}, "Karras"),
        ("dpmpp_2m", {"use_exponential_sigmas": True}, "Exponential"),
        ("heun", {"use_beta_sigmas": True}, "Beta"),
        ("euler", {"timestep_spacing": "linspace"}, "Uniform"),
        ("euler_ancestral", {"timestep_spacing": "trailing"}, "SGM Uniform"),
        ("dpmpp_2m", {"timestep_spacing": "linspace"}, "SGM Uniform"),
        ("euler", {"timestep_spacing": "leading"}, "DDIM"),
        ("ddim", {"timestep_spacing": "leading"}, "Automatic"),
        ("ddim", {"timestep_spacing": "trailing"}, "SGM Uniform"),
        ("pndm", {"timestep_spacing": "leading"}, "Automatic"),
        ("lcm", {}, "Automatic"),
    ],
)
def test_the_schedule_type(name: str, options: dict[str, Any], schedule: str) -> None:
    assert settings(name, **options)["Schedule type"] == schedule
    assert schedule in WEB_UI


def test_what_the_checkpoint_publishes_counts() -> None:
    assert settings("dpmpp_2m", {"use_karras_sigmas": True})["Schedule type"] == "Karras"
    assert settings("euler", {"timestep_spacing": "trailing"})["Schedule type"] == "SGM Uniform"


def test_the_range_of_spaced_sigmas() -> None:
    found = settings("euler", use_karras_sigmas=True, sigma_min=0.1, sigma_max=12.0)
    assert (found["Schedule min sigma"], found["Schedule max sigma"]) == ("0.1", "12")
    assert "Schedule min sigma" not in settings("euler", use_karras_sigmas=True)


def test_eta() -> None:
    assert settings("ddim", eta=0.5)["Eta"] == settings("ddim", eta=0.5)["Eta DDIM"] == "0.5"
    assert settings("euler_ancestral")["Eta"] == settings("dpmpp_2m_sde")["Eta"] == "1"
    assert "Eta" not in settings("euler")


def test_timesteps_that_are_given_have_no_name() -> None:
    sampler = build_sampler(dict(compose_config(["scheduler=euler"]).scheduler), {})
    assert schedule_settings(sampler, given_timesteps=True) == {}


def test_a_picture_says_them(tmp_path: Path) -> None:
    done = smoke("scheduler=ddim", "scheduler.eta=0.25", "clip_skip=1", "seed=5", cwd=tmp_path)
    with Image.open(tmp_path / done.paths[0]) as picture:
        found = webui_parameters(picture)
    assert found["Sampler"] == "DDIM" and found["Schedule type"] in WEB_UI
    assert (found["RNG"], found["Eta"], found["Eta DDIM"], found["Clip skip"]) == ("CPU", "0.25", "0.25", "2")
