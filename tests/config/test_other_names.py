"""Names that other programs have for fields and samplers."""

from __future__ import annotations

import pytest

from diffuse.config.groups import group_options, known_keys, sampler_options
from diffuse.config.other_names import field_meant, sampler_meant

SAMPLERS = group_options("scheduler")
KARRAS = "with scheduler.use_karras_sigmas=true"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Euler a", "euler_ancestral"),
        ("k_euler_a", "euler_ancestral"),
        ("DPM++ 2M Karras", f"dpmpp_2m {KARRAS}"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde with scheduler.use_exponential_sigmas=true"),
        ("DPM2 a Karras", f"kdpm2_ancestral {KARRAS}"),
        ("sample_dpm_2_ancestral", "kdpm2_ancestral"),
        ("PLMS", "pndm"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("KDPM2AncestralDiscreteScheduler", "kdpm2_ancestral"),
        ("uni_pc_bh2", "unipc"),
        ("dpmpp_3m_sde", None),
        ("restart", None),
    ],
)
def test_a_sampler_by_another_name(name: str, meant: str | None) -> None:
    assert sampler_meant(name, SAMPLERS) == meant


@pytest.mark.parametrize(
    ("name", "meant"), [("steps", "num_inference_steps"), ("model.CFG", "guidance_scale"), ("x", None)]
)
def test_a_field_by_another_name(name: str, meant: str | None) -> None:
    assert field_meant(name) == meant


def test_what_is_meant_is_there() -> None:
    from diffuse.config import other_names

    options = {f"scheduler.{name}" for name in sampler_options()}
    assert {*other_names._FIELDS.values()} <= {*known_keys(), *options}
    assert {*other_names._SAMPLERS.values()} <= {*SAMPLERS}
    assert {each.partition("=")[0] for each in other_names._SCHEDULES.values()} <= options
