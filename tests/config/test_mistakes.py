"""What is said of overrides that cannot be used: one line, which suggests the nearest name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_texts import TEXT

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError


def refused(*overrides: str) -> str:
    """The one line that says why."""
    with pytest.raises(ConfigError) as caught:
        draft_requests(compose_config(overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


NEAREST = {
    "promt=x": "prompt",
    "sed=3": "seed",
    "+sed=3": "seed",
    "num_image=2": "num_images",
    "steps=20": "num_inference_steps",
    "cfg_scale=7": "guidance_scale",
    "guidance=7": "guidance_scale",
    "wdith=64": "width",
    "models=tiny": "model",
    "model=tini": "tiny",
    "scheduler=dim": "ddim",
    "memory_profile=full": "full_gpu",
    "tracking=mlfow": "mlflow",
    "experiment=smok": "smoke",
    "format=png": "output.format",
    "name=x": "output.name",
    "output.forma=png": "output.format",
    "output.format=jpeg": "jpg",
    "scheduler.etta=1": "scheduler.eta",
    "eta=1": "scheduler.eta",
    "hardware.detreministic=strict": "hardware.deterministic",
}


@pytest.mark.parametrize("override", NEAREST)
def test_a_name_that_does_not_exist_suggests_the_nearest(override: str) -> None:
    said = refused(override)
    assert said.startswith((override, override.partition("=")[0]))
    assert f"did you mean {NEAREST[override]}?" in said


def test_a_name_like_no_other_suggests_nothing() -> None:
    assert "did you mean" not in refused("zzzzqqqq=1")
    assert "diffuse --help" in refused("zzzzqqqq=1")


KEYS = ["seed", "width", "guidance_scale", "model", "output.format", "scheduler", "output.dir", "x", "", "+seed"]


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(KEYS), value=TEXT)
def test_nothing_but_a_one_line_error_comes_of_any_override(key: str, value: str) -> None:
    try:
        draft_requests(compose_config([f"{key}={value}"]))
    except ConfigError as error:
        assert str(error) and len(str(error).splitlines()) == 1
