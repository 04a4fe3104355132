"""Films in two stages, with the latent upsampler between them, by our pipeline and by diffusers'."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
import torch
from checkpoint_files import message
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from film_peers import (
    DISTILLED,
    REQUEST,
    Film,
    ShortTextsTwoStages,
    TinyFilms,
    assert_same,
    condition,
    edited,
    make,
    picture,
)
from gemma_peers import randomise
from ltx2_codec_peers import LATENTS
from PIL import Image

from diffuse.errors import ConfigError
from diffuse.pipelines.ltx2_two_stages import SECOND_SIGMAS
from diffuse.schema import GenerationRequest, MemoryProfileConfig

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


def with_upsampler(films: TinyFilms, folder: Path, **settings: Any) -> TinyFilms:
    """The checkpoint with another upsampler, beside it for ours and for diffusers."""
    kernel = films.upsampler.state_dict().get("upsampler.blur_down.kernel")
    upsampler = randomise(LTX2LatentUpsamplerModel(LATENTS, mid_channels=32, num_blocks_per_stage=1, **settings))
    if kernel is not None and "upsampler.blur_down.kernel" in upsampler.state_dict():
        upsampler.upsampler.blur_down.kernel.copy_(kernel)
    shutil.copytree(films.folder, folder, ignore=shutil.ignore_patterns("latent_upsampler"))
    upsampler.save_pretrained(folder / "latent_upsampler")
    return replace(films, folder=folder, upsampler=upsampler, _pipelines={})


def half(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def second_stage(films: TinyFilms, request: GenerationRequest, first: GenerationRequest, *conditions: Any) -> Film:
    """diffusers' film of two stages; `conditions` are those of each stage."""
    generator = torch.Generator("cpu").manual_seed(request.seed)
    small, large = ({"conditions": each} for each in conditions) if conditions else ({}, {})
    video, audio = films.latents(first, None, generator, **small)
    large |= {"latents": films.enlarged(video), "audio_latents": audio, "noise_scale": SECOND_SIGMAS[0]}
    return films.film(replace(request, sigmas=SECOND_SIGMAS), None, generator=generator, **large)


def test_given_frames_are_encoded_anew_for_the_second_stage(films: TinyFilms) -> None:
    """Twice the size, with a last picture whose tokens are appended in both stages."""
    first, last = picture(192, 128), picture(192, 128, seed=1)
    request = replace(SMALL, width=192, height=128, num_frames=17, last_image="b", input_image="a")
    request = replace(request, conditioning_strength=0.9)
    expected = second_stage(
        films,
        request,
        replace(request, width=96, height=64),
        [condition(half(first, 96, 64), 0, 0.9), condition(half(last, 96, 64), -1, 0.9)],
        [condition(first, 0, 0.9), condition(last, -1, 0.9)],
    )
    assert_same(make(films.ours(ShortTextsTwoStages), request, image=first, last_image=last), expected)


def test_an_upsampler_of_frames_doubles_their_rate(films: TinyFilms, tmp_path: Path) -> None:
    """The small film has half the frames a second and the same size; a clip's every second frame is given to it."""
    settings = {"spatial_upsample": False, "temporal_upsample": True}
    films = with_upsampler(films, tmp_path / "other", **settings)
    request = replace(SMALL, num_frames=33, fps=47.0, input_video="c", num_conditioning_frames=17)
    clip = np.stack([picture(seed=seed) for seed in range(17)])
    first = replace(request, num_frames=17, fps=23.5)
    expected = second_stage(films, request, first, [condition(clip[::2])], [condition(clip)])
    made = make(films.ours(ShortTextsTwoStages), request, image=clip)
    assert made.frames.shape == (1, 33, 64, 96, 3) and made.fps == 47
    assert_same(made, expected)
    for changes, said in (
        ({"num_frames": 25}, "num_frames=25: this checkpoint needs a multiple of 16, and one more; try 33"),
        (
            {"num_conditioning_frames": 9},
            "num_conditioning_frames=9: this checkpoint needs a multiple of 16, and one more; try 1, ",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            make(films.ours(ShortTextsTwoStages), replace(request, **changes), image=clip)


def test_an_upsampler_of_one_and_a_half(films: TinyFilms, tmp_path: Path) -> None:
    films = with_upsampler(films, tmp_path / "other", rational_spatial_scale=1.5)
    request = replace(SMALL, width=96, height=96)
    expected = second_stage(films, request, replace(request, width=64, height=64))
    assert_same(make(films.ours(ShortTextsTwoStages), request), expected)
    with pytest.raises(ConfigError, match="width=128: this checkpoint needs a multiple of 96, and 96 at least; try 96"):
        make(films.ours(ShortTextsTwoStages), replace(request, width=128))
    profile = MemoryProfileConfig(name="small", max_film_size=[1280, 704])
    for configured, found in ((32, (1248, 672)), (64, (1152, 576))):  # of both, so that neither refuses it
        limits = films.ours(ShortTextsTwoStages).size_limits(profile, configured)
        largest = limits.largest(replace(request, width=1920, height=1088))
        assert (largest.width, largest.height, limits.frame_multiple) == (*found, 8)


def test_an_upsampler_that_makes_films_smaller_is_refused(films: TinyFilms, tmp_path: Path) -> None:
    folder = edited(films.folder, tmp_path / "other", "latent_upsampler/config.json", rational_spatial_scale=0.75)
    assert "rational_spatial_scale=0.75 makes films smaller" in message(
        lambda: film_peers.pipeline(folder, ShortTextsTwoStages)
    )
