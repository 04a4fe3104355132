"""The choice of a memory profile: by its name, or by what is free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from memory_profiles import BALANCED, CPU, FULL, NEEDS, PROFILES, UNET
from omegaconf import OmegaConf
from torch import nn

from diffuse.config.compose import compose_config
from diffuse.config.groups import conf_dir, load_group
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.profile import (
    auto_profile,
    choose_profile,
    goes_by_prediction,
    includes,
    lighter_profile,
    without_components,
)
from diffuse.errors import ConfigError
from diffuse.schema import Cleanup, GuidanceMode, MemoryProfileConfig, Storage

ACCELERATOR = Hardware("meta", name="Card", vram_free_gib=24.0, vram_total_gib=24.0)


def named(name: str, **fields: Any) -> MemoryProfileConfig:
    return replace(PROFILES[name], **fields)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (None, "cpu_only"),
        (24.0, "full_gpu"),
        (16.0, "full_gpu"),
        (15.9, "balanced"),
        (10.0, "balanced"),
        (9.99, "unet_gpu"),
        (6.0, "unet_gpu"),
        (5.0, "cpu_only"),
    ],
)
def test_auto_goes_by_free_memory(free: float | None, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    hw = Hardware("cpu" if free is None else "cuda", name="Card", vram_free_gib=free)
    caplog.set_level("DEBUG")
    assert choose_profile(PROFILES["auto"], PROFILES, NEEDS, hw) == PROFILES[expected]
    assert f"auto chose {expected}" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_a_named_profile_that_needs_more_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Where the weights are stored as they are: of fewer bits the thresholds say nothing."""
    small = Hardware("cuda", name="Card", vram_free_gib=8.0)
    for storage in Storage:
        caplog.clear()
        choose_profile(named("full_gpu", storage=storage), PROFILES, NEEDS, small)
        assert ("asks for 16 GiB" in caplog.text) == (storage is Storage.full)


def test_auto_keeps_what_the_user_set() -> None:
    chosen = choose_profile(named("auto", tiled_decode=True, batch_size=3), PROFILES, NEEDS, ACCELERATOR)
    assert chosen == replace(FULL, tiled_decode=True, batch_size=3)


def test_auto_reads_a_composed_configuration() -> None:
    config = OmegaConf.structured(PROFILES["auto"])
    chosen = choose_profile(config, PROFILES, NEEDS, ACCELERATOR)
    assert chosen == FULL and isinstance(chosen, MemoryProfileConfig)


def test_auto_keeps_what_the_user_set_to_values_of_its_own() -> None:
    """The advice about a picture that is too large is one of these: memory_profile.max_side=null."""
    settings = "guidance=batched", "max_side=null", "streamed=[]", "half=true", "tiled_decode=false"
    small = Hardware("cuda", name="Card", vram_free_gib=6.0)
    config = compose_config([f"memory_profile.{each}" for each in settings]).memory_profile
    assert choose_profile(config, PROFILES, NEEDS, small) == replace(
        UNET, guidance=GuidanceMode.batched, max_side=None, tiled_decode=False
    )
    assert choose_profile(compose_config().memory_profile, PROFILES, NEEDS, small) == UNET
    assert OmegaConf.to_object(config) == OmegaConf.to_object(compose_config().memory_profile) == PROFILES["auto"]


def test_a_planned_card_counts_on_a_cpu() -> None:
    """So that a profile can be tried without the card it is for."""
    hw = Hardware("cpu", vram_free_gib=8.0, vram_total_gib=8.0, planned=True)
    assert choose_profile(PROFILES["auto"], PROFILES, NEEDS, hw).name == "unet_gpu"


def test_a_named_profile_is_obeyed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    hw = Hardware("cuda", name="NVIDIA T4", vram_free_gib=7.5)
    assert choose_profile(FULL, PROFILES, NEEDS, hw) == FULL
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "\n" not in line and "16 GiB" in line and "7.5" in line and "auto" in line
    caplog.clear()
    choose_profile(UNET, PROFILES, NEEDS, hw)
    choose_profile(FULL, PROFILES, NEEDS, Hardware("cpu"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("free", "overrides", "expected"),
    [
        (24.0, [], False),
        (0.5, [], False),
        (0.49, [], True),
        (None, [], False),
        (0.3, ["memory_profile=unet_gpu"], False),
        (24.0, ["prompt=no thresholds"], True),
        (24.0, ["memory_profile.budget_gib=6"], True),
        (24.0, ["memory_profile=unet_gpu", "memory_profile.budget_gib=6"], True),
        (None, ["hardware.vram_gb=6"], True),
    ],
)
def test_what_goes_by_prediction(free: float | None, overrides: list[str], expected: bool) -> None:
    cfg = compose_config(["prompt=x", *overrides])
    hw = Hardware("cpu" if free is None else "cuda", vram_free_gib=free)
    if "prompt=no thresholds" in overrides:
        cfg.model.min_vram_gib = {}
    assert goes_by_prediction(cfg, PROFILES, hw) is expected


def test_a_threshold_for_no_profile() -> None:
    with pytest.raises(ConfigError, match=r"ballanced, which does not exist; did you mean balanced?"):
        choose_profile(PROFILES["auto"], PROFILES, {"ballanced": 10.0}, ACCELERATOR)


def test_auto_without_thresholds() -> None:
    with pytest.raises(ConfigError, match="min_vram_gib"):
        choose_profile(PROFILES["auto"], PROFILES, {}, ACCELERATOR)
    assert choose_profile(PROFILES["auto"], PROFILES, {}, Hardware("cpu")).name == "cpu_only"


def test_the_lighter_profile() -> None:
    chain = [lighter_profile(profile, PROFILES, NEEDS) for profile in (FULL, BALANCED, UNET, CPU)]
    assert chain == ["balanced", "unet_gpu", "cpu_only", None]


SHIPPED: dict[str, MemoryProfileConfig] = load_group("memory_profile")
FILMS = {  # as the reference has them: the device's GiB, what computes there, guidance, the largest film
    "high": (16, ["*"], GuidanceMode.batched, [1920, 1080], 121),
    "medium": (12, ["*"], GuidanceMode.batched, [1280, 720], 121),
    "low": (8, ["*"], GuidanceMode.sequential, [854, 480], 61),
    "very_low": (6, ["text_encoder", "connectors", "transformer"], GuidanceMode.sequential, [640, 480], 33),
    "cpu_only": (0, [], GuidanceMode.sequential, [640, 480], 33),
}


@pytest.mark.parametrize("name", FILMS)
def test_the_profiles_of_films(name: str) -> None:
    """Names and thresholds are a contract. All but `cpu_only` have one component on the device at a time."""
    need, on_device, guidance, size, frames = FILMS[name]
    profile = SHIPPED[name]
    assert (profile.on_device, profile.guidance) == (on_device, guidance)
    assert (profile.max_film_size, profile.max_frames) == (size, frames)
    assert profile.half == (name != "cpu_only") == (profile.cleanup is Cleanup.phases) == bool(profile.streamed)
    for model in ("ltx2", "ltx2_3", "ltx2_distilled", "ltx2_two_stages"):
        needs = OmegaConf.load(conf_dir() / "model" / f"{model}.yaml").min_vram_gib
        assert needs[name] == need
        for free in (need, need + 0.5):
            hw = Hardware("cuda", vram_free_gib=free)
            assert auto_profile(SHIPPED, needs, hw).name == name


@pytest.mark.parametrize("components", [("text_encoder", "unet", "vae"), ("text_encoder", "transformer", "vae")])
@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_both_names_of_a_denoiser_mean_the_one_there_is(name: str, components: tuple[str, ...]) -> None:
    profile = MemoryProfileConfig(name="own", on_device=[name], streamed=[name], cleanup=Cleanup.phases)
    memory = Memory(profile, Hardware("cpu"))
    for component in components:
        memory.add(component, lambda device, dtype: nn.Linear(1, 1), blocks=(nn.Linear,))
    memory.check()
    there = {each: memory._components[each] for each in components}
    assert [each for each, it in there.items() if it.on_device] == [components[1]]
    assert [each for each, it in there.items() if it.streamed_blocks] == [components[1]]
    assert not includes(["vae"], name) and not includes([name], "vae")
    assert without_components(profile, ["transformer"]).on_device == []
    assert without_components(profile, ["vae"]) == profile


def test_the_profiles_that_ship() -> None:
    """Their names and thresholds are a contract; the components they name exist in Stable Diffusion."""
    shipped: dict[str, MemoryProfileConfig] = load_group("memory_profile")
    table = {
        "full_gpu": (["*"], True, GuidanceMode.batched, Cleanup.none, 0, 1536),
        "balanced": (["unet", "vae"], True, GuidanceMode.batched, Cleanup.phases, 0, 1024),
        "unet_gpu": (["unet"], True, GuidanceMode.sequential, Cleanup.phases, 10, 1024),
        "streaming": (["*"], True, GuidanceMode.batched, Cleanup.phases, 0, 1024),
        "cpu_only": ([], False, GuidanceMode.sequential, Cleanup.none, 0, 768),
        "sharded": (["*"], True, GuidanceMode.batched, Cleanup.phases, 0, 1920),
    }
    for name, (on_device, half, guidance, cleanup, every, side) in table.items():
        p = shipped[name]
        assert (p.name, p.on_device, p.half, p.guidance) == (name, on_device, half, guidance)
        assert (p.cleanup, p.cleanup_every, p.max_side) == (cleanup, every, side)
        memory = Memory(p, Hardware("cpu", cards=2))
        for component in ("text_encoder", "unet", "vae"):
            memory.add(component, lambda device, dtype: nn.Linear(1, 1), blocks=(nn.Linear,))
        memory.check()
    assert {*shipped} == {"auto", *table, *FILMS}
    needs = OmegaConf.load(conf_dir() / "model" / "sd21.yaml").min_vram_gib
    assert (needs.full_gpu, needs.unet_gpu, needs.cpu_only) == (4, 3, 0)
    for free, expected in ((4.0, "full_gpu"), (3.2, "unet_gpu"), (2.0, "cpu_only")):
        assert auto_profile(shipped, needs, Hardware("cuda", vram_free_gib=free)).name == expected
