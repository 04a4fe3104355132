"""Requests that no film can be made of, and checkpoints whose parts do not fit: each is told in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import pytest
import torch
from checkpoint_files import message
from film_peers import FLOW, REQUEST, TinyFilms, edited, make, pipeline

from diffuse.errors import ConfigError
from diffuse.sampling.prompt_embeddings import PromptEmbeddings


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.0", tmp_path_factory)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 31}, "width=31: this checkpoint needs a multiple of 32, and 64 at least; try 64"),
        ({"height": 110}, "height=110: this checkpoint needs a multiple of 32, and 64 at least; try 96"),
        ({"num_frames": 10}, "num_frames=10: this checkpoint needs a multiple of 8, and one more; try 9"),
        ({"num_frames": 16}, "try 17"),
        ({"num_frames": 172_801}, "is a film of 7200 seconds, and this checkpoint makes 20 at most; try 473"),
        ({"num_frames": 25, "fps": 1.0}, "try 17"),
        ({"stg_scale": 1.0}, "stg_scale=1: perturbs the attention of stg_blocks, which names none"),
        ({"stg_scale": 1.0, "stg_blocks": (0, 3)}, "stg_blocks=[0, 3]: this model has the blocks 0 to 2"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_made(films: TinyFilms, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(films.ours(), replace(REQUEST, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_latents_of_another_size_are_refused(films: TinyFilms) -> None:
    with pytest.raises(ConfigError, match=r"latents are \(1, 4, 8\); this request needs \(1, 21, 8\)"):
        make(films.ours(), latents=torch.zeros(1, 4, 8))


def test_what_is_not_implemented_is_refused_by_name(films: TinyFilms) -> None:
    pipe = films.ours()
    with pytest.raises(ConfigError, match=r"scheduler\.stochastic_sampling=true"):
        pipe.plan(pipe.complete(REQUEST), {**FLOW, "stochastic_sampling": True})
    with pytest.raises(ConfigError, match="prompt_embeds: are not implemented for films"):
        pipe.check_prompt_embeddings(REQUEST, PromptEmbeddings(torch.zeros(1, 2, 3)))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("connectors/config.json", {"text_proj_in_factor": 9}, "states are 9 and 8"),
        ("transformer/config.json", {"in_channels": 16}, "the transformer and the vae do not fit together: channels"),
        ("transformer/config.json", {"vae_scale_factors": [8, 16, 16]}, "are (8, 16, 16) and (8, 32, 32)"),
        ("vocoder/config.json", {"in_channels": 64}, "the vocoder and the audio_vae do not fit together: mel bins"),
        ("vae/config.json", {"timestep_conditioning": True}, "timestep_conditioning=True is not implemented"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit(films: TinyFilms, tmp_path: Path, file: str, changes: dict[str, Any], said: str) -> None:
    folder = edited(films.folder, tmp_path / "other", file, **changes)
    assert said in message(lambda: pipeline(folder))


def test_a_text_encoder_of_another_width(films: TinyFilms, tmp_path: Path) -> None:
    folder = edited(films.folder, tmp_path / "other", "text_encoder/config.json", text_config={"hidden_size": 64})
    assert "channels are 32 and 64; the folders are of different models" in message(lambda: pipeline(folder))


def test_missing_connectors_are_named(films: TinyFilms, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(films.folder, folder, ignore=shutil.ignore_patterns("connectors"))
    assert "has no folder connectors" in message(lambda: pipeline(folder))
