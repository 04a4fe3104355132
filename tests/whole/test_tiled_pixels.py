"""Pictures whose autoencoder works in tiles have the pixels of those that it decodes and encodes whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle_sdxl
import pytest
from picture_parity import photograph, stencil

import diffuse
from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError
from diffuse.reproduce.recorded_config import restore_config
from diffuse.sweep.job_folder import job_identity

PROMPT = "a rocket on a blue background"
TILED = ["memory_profile.tiled_decode=true", "memory_profile.tiled_encode=true", "memory_profile.vae_tile_size=3"]
BLENDED = [*TILED, "memory_profile.vae_tile_overlap=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    oracle_sdxl.build(folder / "sdxl", oracle_sdxl.Variant())
    photograph(folder / "photo.png", 40, 56)
    stencil(folder / "mask.png", 40, 56)
    return folder


def frames(kind: str, root: Path, overrides: list[str]) -> np.ndarray:
    fields: dict[str, Any] = {"hardware": "cpu", "num_inference_steps": 2, "seed": 5, "overrides": overrides}
    if kind == "sdxl":
        fields["model"] = root / "sdxl"
    if kind == "inpaint":
        made = diffuse.inpaint(PROMPT, root / "photo.png", root / "mask.png", **fields)
    elif kind == "img2img":
        made = diffuse.img2img(PROMPT, root / "photo.png", **fields)
    else:
        made = diffuse.txt2img(PROMPT, width=32, height=40, num_images=2 if kind == "tiny" else 1, **fields)
    return np.asarray(made.frames).astype(int)


@pytest.mark.parametrize("kind", ["tiny", "sdxl", "img2img", "inpaint"])
def test_tiled_pictures_are_within_two_levels(kind: str, root: Path) -> None:
    expected = frames(kind, root, [])
    ways = [[], ["memory_profile=streaming"]] if kind == "tiny" else [[]]
    for way in ways:
        assert np.abs(frames(kind, root, [*way, *TILED]) - expected).max() <= 2
    if kind == "tiny":
        assert np.abs(frames(kind, root, BLENDED) - expected).max() > 2  # the fields have an effect


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("vae_tile_size=0", "1 or more"),
        ("vae_tile_size=-8", "1 or more"),
        ("vae_tile_overlap=0", "1 or more"),
        ("vae_tile_overlap=-1", "1 or more"),
        ("vae_tile_overlap=32", "less than memory_profile.vae_tile_size=32"),
        ("vae_tile_overlap=40", "less than memory_profile.vae_tile_size=32"),
        ("vae_tile_frames=1", "2 or more"),
        ("max_frames=0", "1 or more"),
        ("max_film_size=[640]", "should be the longer and the shorter side"),
        ("max_film_size=[640,0]", "should be the longer and the shorter side"),
    ],
)
def test_tiles_that_cannot_be_are_refused(setting: str, said: str) -> None:
    cfg = compose_config([f"memory_profile.{setting}", "prompt=a cat"])
    with pytest.raises(ConfigError, match=said):
        draft_requests(cfg)


def test_a_record_of_the_first_version_has_its_tiles(tmp_path: Path) -> None:
    made = diffuse.txt2img(PROMPT, hardware="cpu", num_inference_steps=1, overrides=TILED, width=32, height=32)
    record: Any = made.record
    own = compose_config([])
    for part in (record["config"], record["hardware"]):
        assert part["memory_profile"]["vae_tile_size"] == 3
    cfg, _ = restore_config(record, own, set())
    assert (cfg.memory_profile.vae_tile_size, cfg.memory_profile.vae_tile_overlap) == (3, None)
    for part in (record["config"], record["hardware"]):
        for name in ("vae_tile_size", "vae_tile_overlap", "tiled_encode"):
            del part["memory_profile"][name]
    cfg, _ = restore_config(record, own, set())
    assert (cfg.memory_profile.vae_tile_size, cfg.memory_profile.vae_tile_overlap) == (64, 16)
    assert (cfg.memory_profile.tiled_decode, cfg.memory_profile.tiled_encode) == (True, False)


def test_jobs_of_earlier_sweeps_are_known_and_others_are_not() -> None:
    def tiles(*overrides: str) -> set[str]:
        values = job_identity(resolve_config(compose_config([f"memory_profile.{each}" for each in overrides])))
        return {name for name in values["memory_profile"] if "vae_tile" in name or name == "tiled_encode"}

    assert not tiles()
    assert not tiles("tiled_decode=true", "vae_tile_size=64", "vae_tile_overlap=16")
    assert len(tiles("tiled_decode=true")) == 3
    assert len(tiles("tiled_encode=true")) == 3
