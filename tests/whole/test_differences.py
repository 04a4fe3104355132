"""What the page of differences from diffusers says of our side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle_sdxl
import pytest

import diffuse

QUICK: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "progress": False, "overrides": ["hardware=cpu"]}


def frames(pipeline: diffuse.Pipeline, **fields: Any) -> np.ndarray:
    return pipeline("a cat", **fields, **QUICK).frames


def test_guidance_between_0_and_1_has_an_effect_and_its_ends_have_none() -> None:
    tiny = diffuse.load_pipeline("tiny")
    off = frames(tiny, guidance_scale=1.0)
    assert np.array_equal(frames(tiny, guidance_scale=0.0), off)
    assert not np.array_equal(frames(tiny, guidance_scale=0.5), off)


@pytest.mark.parametrize("other", [{}, {"negative_prompt": "a blue dog"}])
def test_a_second_negative_prompt_alone_is_read(other: dict[str, Any], tmp_path: Path) -> None:
    sdxl = diffuse.load_pipeline(oracle_sdxl.build(tmp_path, oracle_sdxl.Variant()), width=64, height=64)
    with_second = frames(sdxl, negative_prompt_2="the dog", **other)
    assert not np.array_equal(with_second, frames(sdxl, **other))
    if not other:
        assert np.array_equal(with_second, frames(sdxl, negative_prompt_2="the dog", negative_prompt=""))
