"""Films with frames that they are given, by our pipeline and by diffusers': pictures with a strength, and clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import film_peers
import numpy as np
import pytest
from film_peers import REQUEST, TinyFilms, assert_same, condition, make, picture

FIRST, LAST = picture(), picture(seed=1)
CLIP = np.stack([picture(seed=seed) for seed in range(9)])
TWO = replace(REQUEST, num_frames=17, num_inference_steps=2)
ALL_TERMS = {"guidance_rescale": 0.7, "audio_guidance_rescale": 0.4, "modality_scale": 3.0, "audio_modality_scale": 2.0}


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny(request.param, tmp_path_factory)


@pytest.mark.parametrize(
    ("changes", "images", "conditions"),
    [
        ({"input_image": "a", "conditioning_strength": 0.6}, {"image": FIRST}, [condition(FIRST, 0, 0.6)]),
        ({"input_image": "a", "conditioning_strength": 1.0}, {"image": FIRST}, [condition(FIRST)]),
        (
            {"input_image": "a", "last_image": "b", "last_image_strength": 0.8, **ALL_TERMS},
            {"image": FIRST, "last_image": LAST},
            [condition(FIRST), condition(LAST, -1, 0.8)],
        ),
        ({"last_image": "b", "conditioning_strength": 0.7}, {"last_image": LAST}, [condition(LAST, -1, 0.7)]),
        ({"input_image": "a", "frame_index": 1, "fps": 29.97}, {"image": FIRST}, [condition(FIRST, 1)]),
        ({"input_image": "a", "frame_index": -8}, {"image": FIRST}, [condition(FIRST, 2)]),
        ({"input_video": "c", "num_conditioning_frames": 9}, {"image": CLIP}, [condition(CLIP)]),
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
