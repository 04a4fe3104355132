"""Outdated published settings are corrected as the constructors of diffusers' pipelines correct them."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

from diffuse.config.compose import compose_config
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.outdated import correction_note, corrections

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "as it should be": {"clip_sample": False, "steps_offset": 1, "skip_prk_steps": True},
    "clipping": {"clip_sample": True, "steps_offset": 1},
    "offset 0": {"clip_sample": False, "steps_offset": 0},
    "offset 2": {"clip_sample": False, "steps_offset": 2},
    "Runge-Kutta": {"skip_prk_steps": False, "steps_offset": 1},
    "not leading": {"timestep_spacing": "trailing", "steps_offset": 0},
    "leading": {"timestep_spacing": "leading"},
}
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lcm": "LCMScheduler",
}
PIPELINES = (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)


@cache
def target(name: str) -> str:
    return str(compose_config([f"scheduler={name}"]).scheduler._target_)


def options(name: str, **more: Any) -> dict[str, Any]:
    return {"_target_": target(name), "name": name, **more}


def corrected_by_diffusers(pipeline: type[Any], scheduler: Any) -> Any:
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    return pipeline(**parts, scheduler=scheduler, requires_safety_checker=False).scheduler.config


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.__name__)
@pytest.mark.parametrize("published", PUBLISHED)
@pytest.mark.parametrize("name", SAMPLERS)
def test_as_diffusers_corrects_them(name: str, published: str, pipeline: type[Any]) -> None:
    settings = TRAINED | PUBLISHED[published]
    theirs = corrected_by_diffusers(pipeline, getattr(diffusers, SAMPLERS[name]).from_config(settings))
    plain = build_sampler(options(name), settings)
    changes = corrections(plain, options(name), inpaints=pipeline is StableDiffusionInpaintPipeline)
    ours = build_sampler(options(name, **changes), settings)
    for setting in ("clip_sample", "skip_prk_steps"):
        if hasattr(ours, setting):
            assert getattr(ours, setting) == theirs[setting]
    if ours.timestep_spacing == "leading":  # nothing else reads the offset
        assert ours.steps_offset == theirs.steps_offset


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ddim", {"clip_sample": True, "steps_offset": 0}),
        ("ddim", {"steps_offset": 3, "clip_sample": False}),
        ("heun", {"clip_sample": True}),
        ("euler", {"timestep_spacing": "leading", "steps_offset": 0}),
        ("pndm", {"skip_prk_steps": False, "steps_offset": 0}),
    ],
)
def test_the_users_own_values_win(name: str, given: dict[str, Any]) -> None:
    chosen = options(name, **given)
    for inpaints in (False, True):
        assert corrections(build_sampler(chosen, TRAINED), chosen, inpaints) == {}


def test_the_note_says_what_and_how_to_keep_it() -> None:
    sampler = build_sampler(options("ddim"), TRAINED)
    note = correction_note(sampler, corrections(sampler, options("ddim"), inpaints=False))
    assert "clip_sample=true is taken as false and steps_offset=0 is taken as 1" in note
    assert note.endswith("to keep: scheduler.clip_sample=true scheduler.steps_offset=0")
