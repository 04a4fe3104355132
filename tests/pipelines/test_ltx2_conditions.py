"""Films with frames that they are given, by our pipeline and by diffusers': pictures with a strength, and clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import film_peers
import numpy as np
import pytest
import torch
from film_peers import REQUEST, TinyFilms, assert_same, condition, make, picture

from diffuse.errors import ConfigError

FIRST, LAST = picture(), picture(seed=1)
CLIP = np.stack([picture(seed=seed) for seed in range(9)])
TWO = replace(REQUEST, num_frames=17, num_inference_steps=2)
ALL_TERMS = {"guidance_rescale": 0.7, "audio_guidance_rescale": 0.4, "modality_scale": 3.0, "audio_modality_scale": 2.0}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.3", tmp_path_factory)


@pytest.mark.parametrize(
    ("changes", "images", "conditions"),
    [
        (
            {"input_image": "a", "last_image": "b", "last_image_strength": 0.8, **ALL_TERMS},
            {"image": FIRST, "last_image": LAST},
            [condition(FIRST), condition(LAST, -1, 0.8)],
        ),
        # Of two steps the sigmas are the same at any shift; here it is that of the film's tokens and the picture's.
        (
            {"input_image": "a", "frame_index": 1, "fps": 29.97, "num_inference_steps": 3},
            {"image": FIRST},
            [condition(FIRST, 1)],
        ),
        (
            {"input_video": "c", "num_conditioning_frames": 9, "last_image": "b", "conditioning_strength": 0.9},
            {"image": CLIP, "last_image": LAST},
            [condition(CLIP, 0, 0.9), condition(LAST, -1, 0.9)],
        ),
        (
            {"input_image": "a", "conditioning_strength": 0.6, "sigmas": (0.9, 0.5), "guidance_scale": 1.0},
            {"image": FIRST},
            [condition(FIRST, 0, 0.6)],
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_film_with_given_frames_agrees_with_diffusers(
    films: TinyFilms, changes: dict[str, Any], images: dict[str, np.ndarray], conditions: list[Any]
) -> None:
    request = replace(TWO, **changes)
    kind = film_peers.ShortTexts if request.sigmas is None else film_peers.ShortTextsDistilled
    assert_same(make(films.ours(kind), request, **images), films.film(request, conditions=conditions))


def test_the_first_version_agrees_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    films = film_peers.tiny("2.0", tmp_path_factory)
    request = replace(TWO, input_video="c", num_conditioning_frames=9, last_image="b", last_image_strength=0.6)
    made = make(films.ours(), request, image=CLIP, last_image=LAST)
    assert_same(made, films.film(request, conditions=[condition(CLIP), condition(LAST, -1, 0.6)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_image": "a", "frame_index": 17}, "frame_index=17: a film of num_frames=17 has the frames 0 to 16"),
        ({"input_image": "a", "frame_index": -18}, "frame_index=-18: a film of num_frames=17 has the frames 0 to 16"),
        ({"last_image": "b", "num_frames": 1}, "last_image: is one of several frames, and num_frames=1; make it 9"),
        (
            {"input_video": "c", "num_conditioning_frames": 10},
            "num_conditioning_frames=10: this checkpoint needs a multiple of 8, and one more; try 9, "
            "or with a clip that is long enough 17",
        ),
        (
            {"input_video": "c", "num_conditioning_frames": 17},
            "num_conditioning_frames=17: leaves nothing to make of num_frames=17, which counts them too; make "
            "num_frames 25 at least",
        ),
    ],
    ids=str,
)
def test_frames_that_cannot_be_given(films: TinyFilms, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(films.ours(), replace(TWO, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_given_frames_do_not_depend_on_the_batch(films: TinyFilms) -> None:
    """Nor on whether noise is drawn or given; the tokens that are appended count in the size of a batch."""
    request = replace(TWO, input_image="a", last_image="b", conditioning_strength=0.7, num_inference_steps=1)
    images = {"image": FIRST, "last_image": LAST}
    pipe = films.ours()
    both = make(pipe, replace(request, num_images=2), **images)
    first, second = both.split([1, 1])
    for made, seed in ((first, request.seed), (second, request.seed + 1)):
        alone = make(pipe, replace(request, seed=seed), **images)
        assert np.abs(made.frames.astype(int) - alone.frames).max() <= 1
    with pytest.raises(ConfigError, match="latents are"):
        make(pipe, request, latents=torch.zeros(1, 4, 8), **images)
    noise = torch.randn(1, *pipe.latent_shape(request), generator=torch.Generator().manual_seed(1))
    assert np.abs(make(pipe, request, latents=noise, **images).frames.astype(int) - first.frames).max() > 9
