"""Films in two stages, with the latent upsampler between them, by our pipeline and by diffusers'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import film_peers
import numpy as np
import pytest
import torch
from checkpoint_files import message
from film_peers import DISTILLED, REQUEST, ShortTextsTwoStages, TinyFilms, assert_same, edited, make, picture
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.pipelines.ltx2_two_stages import SECOND_SIGMAS

SMALL = replace(REQUEST, guidance_scale=1.0, audio_guidance_scale=1.0, sigmas=DISTILLED[-3:], num_inference_steps=3)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.3", tmp_path_factory)


@pytest.mark.parametrize("image", [None, picture(192, 128)], ids=["prompt", "picture"])
def test_a_film_in_two_stages_agrees_with_diffusers(films: TinyFilms, image: np.ndarray | None) -> None:
    request = replace(SMALL, width=192, height=128, input_image=None if image is None else "x")
    generator = torch.Generator("cpu").manual_seed(request.seed)
    half = None if image is None else np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR))
    video, audio = films.latents(SMALL, half, generator)
    more = {"latents": films.enlarged(video), "audio_latents": audio, "noise_scale": SECOND_SIGMAS[0]}
    second = replace(request, sigmas=SECOND_SIGMAS)
    film = films.film(second, image, generator=generator, **more)
    assert_same(make(films.ours(ShortTextsTwoStages), request, image=image), film)


def test_guidance_is_of_the_first_stage_alone(films: TinyFilms) -> None:
    request = replace(SMALL, width=192, height=128, guidance_scale=3.0)
    pipe = films.ours(ShortTextsTwoStages)
    request = pipe.complete(request)
    (first, second), _ = pipe.stages(request, pipe.plan(request, film_peers.FLOW), None, None)
    assert (len(first.guidance.passes), len(second.guidance.passes)) == (2, 1)
    assert (first.calls, second.calls) == (3, 3)


def test_sizes_are_multiples_of_both_stages(films: TinyFilms) -> None:
    with pytest.raises(ConfigError, match="width=96: this checkpoint needs a multiple of 64, and 64 at least; try 128"):
        make(films.ours(ShortTextsTwoStages), SMALL)


def test_an_upsampler_that_does_not_double_is_refused(films: TinyFilms, tmp_path: Path) -> None:
    folder = edited(films.folder, tmp_path / "other", "latent_upsampler/config.json", rational_spatial_scale=1.5)
    assert "two stages need an upsampler that doubles" in message(
        lambda: film_peers.pipeline(folder, ShortTextsTwoStages)
    )
