"""Films by our pipeline and by diffusers' from the same folder and seed, both versions of LTX-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import film_peers
import numpy as np
import pytest
from film_peers import DISTILLED, REQUEST, TinyFilms, assert_same, make, picture

ALL_TERMS = {
    "guidance_rescale": 0.7,
    "audio_guidance_rescale": 0.4,
    "modality_scale": 3.0,
    "audio_modality_scale": 2.0,
    "stg_scale": 1.0,
    "audio_stg_scale": 0.5,
    "stg_blocks": (1,),
}
OFF = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny(request.param, tmp_path_factory)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        OFF,
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7, "audio_guidance_rescale": 0.4},
        {"modality_scale": 3.0, "audio_modality_scale": 2.0},
        {"stg_scale": 1.0, "audio_stg_scale": 0.5, "stg_blocks": (0, 2)},
        ALL_TERMS,
        {**OFF, "modality_scale": 2.0},
        {"num_frames": 17, "fps": 29.97, "num_inference_steps": 3, "width": 64},
    ],
    ids=str,
)
def test_a_prompts_film_agrees_with_diffusers(films: TinyFilms, changes: dict[str, Any]) -> None:
    request = replace(REQUEST, **changes)
    assert_same(make(films.ours(), request), films.film(request))


def test_a_film_from_a_picture_agrees_with_diffusers(films: TinyFilms) -> None:
    request = replace(REQUEST, input_image="x", **ALL_TERMS)
    made = make(films.ours(), request, image=picture())
    assert_same(made, films.film(request, picture()))
    without = make(films.ours(), replace(REQUEST, **ALL_TERMS))
    assert np.abs(made.frames.astype(int) - without.frames).max() > 9


def test_a_distilled_films_sigmas_are_visited_as_they_are(films: TinyFilms) -> None:
    request = replace(REQUEST, **OFF, sigmas=DISTILLED, num_inference_steps=8)
    assert_same(make(films.ours(film_peers.ShortTextsDistilled), request), films.film(request))
