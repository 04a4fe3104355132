"""`clip_skip`: whole pictures against diffusers', and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
from oracle import Variant
from oracle_sdxl import Variant as VariantXL

import diffuse
from diffuse.config.checks import check_known_fields
from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.request import fill_defaults
from diffuse.errors import ConfigError
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL
from diffuse.pipelines.stable_diffusion_xl_refiner import StableDiffusionXLRefiner

LAYERS = 4
PROMPT, NEGATIVE = "the cat and 3 rockets in the ocean", "blurry, the and"
REQUEST: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 5.0}
SKIPS = [None, 0, 1, 2, 3]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
    return oracle.build(tmp_path_factory.mktemp("sd"), Variant(**small, text_layers=LAYERS))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small: dict[str, Any] = {"channels": (16, 32), "heads": (2, 4), "cross": (False, True), "layers": (1, 2)}
    encoders = {"first": (16, LAYERS), "second": (32, LAYERS + 1)}
    return oracle_sdxl.build(tmp_path_factory.mktemp("sdxl"), VariantXL(**small, **encoders, vae_channels=(8, 16)))


def made_by_diffusers(folder: Path, **request: Any) -> np.ndarray:
    """See `oracle.picture`. diffusers looks for the final norm where older versions of transformers have it."""
    oracle.picture(folder, prompt=PROMPT, **REQUEST)
    encoder = oracle._pipelines[folder].text_encoder
    if not hasattr(encoder, "text_model"):
        encoder.__dict__["text_model"] = encoder
    return oracle.picture(folder, **request)


def picture(model: str, folder: Path, clip_skip: int | None, **request: Any) -> np.ndarray:
    """The picture that we make, uint8 `[N, H, W, 3]`."""
    fields = {**REQUEST, "prompt": PROMPT, **request}
    own = ["hardware.threads=1", f"model.source={folder}"]
    made = diffuse.txt2img(
        model=model,
        hardware="cpu",
        tracking="none",
        seed=0,
        clip_skip=clip_skip,
        overrides=own,
        progress=False,
        **fields,
    )
    return np.stack([np.asarray(image) for image in made.images])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and theirs.std() > 10
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("negative", [None, NEGATIVE, PROMPT], ids=["none", "another", "the same"])
@pytest.mark.parametrize("skip", [*SKIPS, LAYERS])
def test_stable_diffusion_agrees_with_diffusers(skip: int | None, negative: str | None, sd: Path) -> None:
    request = {"prompt": PROMPT, "negative_prompt": negative}
    theirs = made_by_diffusers(sd, **REQUEST, **request, clip_skip=skip)
    assert_same(picture("sd21", sd, skip, **request), theirs)


@pytest.mark.parametrize("negative", [None, NEGATIVE, PROMPT], ids=["none", "another", "the same"])
@pytest.mark.parametrize("skip", SKIPS)
def test_sdxl_agrees_with_diffusers(skip: int | None, negative: str | None, sdxl: Path) -> None:
    request = {"prompt": PROMPT, "negative_prompt": negative}
    theirs = oracle_sdxl.picture(sdxl, **REQUEST, **request, clip_skip=skip)
    assert_same(picture("sdxl", sdxl, skip, **request), theirs)


@pytest.mark.parametrize("model", ["sd21", "sdxl"])
def test_each_layer_changes_the_picture_and_none_is_0(model: str, sd: Path, sdxl: Path) -> None:
    """The states of a prompt are kept for the next run, those of each number of layers for themselves."""
    folder = sd if model == "sd21" else sdxl
    pictures = [picture(model, folder, skip) for skip in SKIPS]
    assert np.array_equal(pictures[0], pictures[1])
    assert len({image.tobytes() for image in pictures}) == len(SKIPS) - 1
    weighted = {"prompt": "the (cat:1.4) and 3 rockets", "prompt_syntax": "weighted"}
    assert not np.array_equal(picture(model, folder, 0, **weighted), picture(model, folder, 2, **weighted))


@pytest.mark.parametrize(("model", "most"), [("sd21", LAYERS), ("sdxl", LAYERS - 1)])
def test_more_layers_than_there_are_are_refused_in_a_line(model: str, most: int, sd: Path, sdxl: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^clip_skip={most + 1}: .* have {most} layers to skip$"):
        picture(model, sd if model == "sd21" else sdxl, most + 1)
    with pytest.raises(ConfigError, match=r"clip_skip=-1: should be a whole number of 0 or more"):
        picture(model, sd if model == "sd21" else sdxl, -1)


def test_a_family_that_does_not_know_it_refuses_it_by_name() -> None:
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusionXLRefiner):
        assert "clip_skip" in family.request_fields
    fields = fill_defaults(resolve_config(compose_config(["prompt=x", "clip_skip=1"])))
    check_known_fields(fields, StableDiffusion.request_fields, "sd21")
    with pytest.raises(ConfigError, match="clip_skip=1: model=other knows no clip_skip"):
        check_known_fields(fields, StableDiffusion.request_fields - {"clip_skip"}, "other")
