"""Films under memory profiles: the same bits under each, no two large components on the device, and limits of size."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
import torch
from film_peers import REQUEST, ShortTexts, TinyFilms

import diffuse
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.compose import compose_config
from diffuse.config.groups import load_group
from diffuse.config.request import draft_requests
from diffuse.device import streaming
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.errors import ConfigError
from diffuse.plan.make_plan import make_plan, open_setting
from diffuse.plan.report import _component_line
from diffuse.sampling.results import PipelineOutput
from diffuse.schema import Determinism, MemoryProfileConfig

STRICT = Hardware("cpu", deterministic=Determinism.strict, cards=2)
PROFILES = load_group("memory_profile")
ONE_AT_A_TIME = ("high", "medium", "low", "very_low")  # of the large ones: text encoder, transformer and autoencoder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.0", tmp_path_factory)


def make(films: TinyFilms, profile: MemoryProfileConfig) -> tuple[PipelineOutput, Memory]:
    memory = Memory(profile, STRICT)
    return film_peers.make(ShortTexts(CheckpointFolder.open(films.folder), memory), replace(REQUEST)), memory


@pytest.fixture(scope="module")
def expected(films: TinyFilms) -> PipelineOutput:
    return make(films, PROFILES["full_gpu"])[0]


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in ("auto", "full_gpu")])
def test_the_film_is_the_same_under_every_profile(name: str, films: TinyFilms, expected: PipelineOutput) -> None:
    made, memory = make(films, PROFILES[name])
    assert np.array_equal(made.frames, expected.frames) and np.array_equal(made.sound, expected.sound)
    for kind, latents in expected.latents.items():
        assert torch.equal(made.latents[kind], latents)
    there = {full for full, component in memory._components.items() if component.on_device}
    named = set(PROFILES[name].on_device) - {"*"}
    if named:  # a denoiser by either of its names
        assert there == {"transformer" if each == "unet" else each for each in named}
    sharded = [full for full, component in memory._components.items() if component.cards]
    assert sharded == (["transformer"] if name == "sharded" else [])


class Copies:
    """Has streamed weights copied as for a card, and counts by component those whose storages are alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory: Memory | None = None
        self._owners: dict[int, str] = {}  # of parts of modules
        self.alive: dict[int, tuple[str, int]] = {}
        self.together: set[frozenset[str]] = set()
        self.peak: dict[str, int] = {}
        copy_to = streaming._Weights.copy_to
        monkeypatch.setattr(streaming, "transfer_to", streaming.CopyingTransfer)

        def counted(weights: Any, device: torch.device, *, non_blocking: bool) -> None:
            copy_to(weights, device, non_blocking=non_blocking)
            for module, name, _ in weights.host:
                self._see(self._component(module), getattr(module, name))

        monkeypatch.setattr(streaming._Weights, "copy_to", counted)

    def _component(self, part: torch.nn.Module) -> str:
        if id(part) not in self._owners:
            assert self.memory is not None
            for name, each in self.memory._components.items():
                if each.module is not None:
                    self._owners |= {id(inner): name for inner in each.module.modules()}
        return self._owners[id(part)]

    def _see(self, component: str, copy: torch.Tensor) -> None:
        storage = copy.untyped_storage()
        key = storage._cdata
        self.alive[key] = component, storage.nbytes()
        weakref.finalize(storage, self.alive.pop, key, None)
        self.together.add(frozenset(name for name, _ in self.alive.values()))
        now = sum(size for name, size in self.alive.values() if name == component)
        self.peak[component] = max(self.peak.get(component, 0), now)


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_large_components_are_never_together(name: str, films: TinyFilms, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(monkeypatch)
    copies.memory = memory = Memory(PROFILES[name], STRICT)
    made = film_peers.make(ShortTexts(CheckpointFolder.open(films.folder), memory))
    large = {"text_encoder", "transformer", "vae"}
    assert all(len(each & large) <= 1 for each in copies.together)
    assert {"text_encoder", "transformer"} <= set(copies.peak) and ("vae" in copies.peak) == (name != "very_low")
    assert not copies.alive or len({each for each, _ in copies.alive.values()}) == 1  # the last phase's
    for component, peak in copies.peak.items():
        managed = memory._components[component]
        assert managed.stream is not None
        blocks = sorted((block.nbytes for block in managed.stream._blocks), reverse=True)
        # Resident blocks, the one that computes, and the one that comes next, which may stay from the call before.
        assert peak <= managed.stream._rest.nbytes + sum(blocks[: managed.resident_blocks + 2])
    assert made.frames.std() > 0


@contextmanager
def refused(*said: str) -> Iterator[None]:
    with pytest.raises(ConfigError) as caught:
        yield
    line = str(caught.value)
    assert all(each in line for each in said) and "\n" not in line, line


def plan(films: TinyFilms, *overrides: str, hw: Hardware | None = None) -> Any:
    words = [f"model.source={films.folder}", "hardware=cpu", "prompt=x", "stg_blocks=[1]", *overrides]
    cfg = compose_config(["model=ltx2", *words])
    setting = open_setting(cfg)
    if hw is not None:
        setting = replace(setting, hw=hw)
        return setting.predict(setting.request(draft_requests(cfg)[0]))
    return make_plan(setting, draft_requests(cfg)[0])


def test_a_film_beyond_the_profile_is_refused_or_shrunk(films: TinyFilms, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": films.folder, "hardware": "cpu", "progress": False, "stg_blocks": [1]}
    with refused("1280 x 704, 121 frames", "memory_profile=low", "width=832 height=480 num_frames=57; give"):
        diffuse.txt2vid("x", **options, width=1280, height=704, num_frames=121, memory_profile="low")
    with refused("memory_profile=cpu_only is meant for, 640 x 480 and 33 frames", "num_frames=33"):
        diffuse.txt2vid("x", **options, width=640, height=480, num_frames=121)
    film = {"width": 96, "height": 64, "num_frames": 9, "num_inference_steps": 1, "seed": 3}
    asked = {**film, "width": 192, "height": 128, "num_frames": 25}
    small = ["memory_profile.max_film_size=[100,90]", "memory_profile.max_frames=16"]
    made = diffuse.txt2vid("x", **options, **asked, fit="shrink", overrides=small)
    assert made.frames.shape == (1, 9, 64, 96, 3)
    assert made.record["shrunk_from"] == {"width": 192, "height": 128, "num_frames": 25}
    request, config = made.record["request"], made.record["config"]
    assert (request["width"], request["num_frames"], config["height"]) == (96, 9, 64)
    same = diffuse.txt2vid("x", **options, **film)
    assert np.array_equal(same.frames, made.frames) and "shrunk_from" not in same.record


def test_a_plan_says_what_is_refused_and_what_is_shrunk(films: TinyFilms) -> None:
    large = ("width=192", "height=128", "num_frames=9", "memory_profile=very_low", "num_inference_steps=1")
    large += ("memory_profile.max_film_size=[96,64]", "guidance_scale=1", "modality_scale=1", "stg_scale=0")
    found = plan(films, *large)
    assert found.fits is None and "width=96 height=64; give that, or fit=shrink" in found.oversize
    assert any(line.startswith("refused      192 x 128, 9 frames is more than") for line in found.lines())
    shrunk = plan(films, *large, "fit=shrink")
    assert shrunk.oversize is None and (shrunk.request.width, shrunk.request.height) == (96, 64)
    assert shrunk.as_json()["shrunk_from"] == {"width": 192, "height": 128, "num_frames": 9}
    assert shrunk.as_json()["request"]["num_frames"] == 9
    first, second = shrunk.lines()[:2]
    assert "1 film, 96 x 64, 9 frames at 24 a second, 1 step, memory_profile=very_low" in first
    assert second == "fit=shrink: 96 x 64, 9 frames, for memory_profile=very_low; 192 x 128, 9 frames was asked for"


def test_a_plan_for_several_cards(films: TinyFilms) -> None:
    small = ("width=96", "height=64", "num_frames=9", "num_inference_steps=1", "memory_profile=sharded")
    with refused("needs two cards or more, and there is none; choose another memory_profile"):
        plan(films, *small)
    cards = replace(STRICT, device="cuda", vram_total_gib=8.0, vram_free_gib=8.0, planned=True)
    both = plan(films, *small, hw=cards)
    (transformer,) = [each for each in both.components if each.name == "transformer"]
    assert transformer.cards == 2 and not transformer.blocks
    assert "2 cards, " in _component_line(transformer)
    one = plan(films, *small, "memory_profile.sharded=[]", hw=replace(cards, cards=1))
    peaks = [next(phase.device_bytes for phase in each.phases if phase.name == "denoise") for each in (one, both)]
    assert peaks[0] - peaks[1] == transformer.nbytes // 2
