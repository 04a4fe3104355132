"""The pipeline on the checkpoint that ships: same seed, same pixels, under every profile, alone or in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import diffuse
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.groups import load_group
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.errors import ConfigError, RunError
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.sampling.results import PipelineOutput, Step
from diffuse.schema import (
    Determinism,
    Device,
    Dtype,
    GenerationRequest,
    HardwareConfig,
    MemoryProfileConfig,
)

TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
PROFILES = ("full_gpu", "balanced", "unet_gpu", "streaming", "cpu_only")
DDIM = {"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}
REQUEST = GenerationRequest(
    prompt="a cactus on a pink background",
    negative_prompt="",
    seed=11,
    num_images=1,
    width=64,
    height=64,
    num_inference_steps=4,
    guidance_scale=3.0,
)


def pipeline(
    profile: MemoryProfileConfig | None = None,
    *,
    deterministic: Determinism = Determinism.relaxed,
    dtype: Dtype = Dtype.auto,
) -> StableDiffusion:
    config = HardwareConfig(name="cpu", device=Device.cpu, deterministic=deterministic, dtype=dtype)
    profile = profile or MemoryProfileConfig(name="full_gpu", on_device=["text_encoder", "unet", "vae"], batch_size=4)
    return StableDiffusion(CheckpointFolder.open(TINY), Memory(profile, hardware.detect(config)))


def make(pipe: StableDiffusion, request: GenerationRequest = REQUEST, **options: object) -> PipelineOutput:
    return pipe(request, pipe.scheduler(DDIM), **options)  # type: ignore[arg-type]


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference anywhere, in levels of 255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_a_seed_gives_its_picture_again() -> None:
    pipe = pipeline(deterministic=Determinism.strict)
    first, second = make(pipe), make(pipe)
    assert np.array_equal(first.frames[:, 0], second.frames[:, 0])
    assert first.frames[:, 0].shape == (1, 64, 64, 3)
    assert levels(first.frames[:, 0], make(pipe, replace(REQUEST, seed=12)).frames[:, 0]) > 2


@pytest.mark.parametrize(("deterministic", "tolerance"), [(Determinism.strict, 0), (Determinism.relaxed, 2)])
def test_alone_and_in_a_batch(deterministic: Determinism, tolerance: int) -> None:
    pipe = pipeline(deterministic=deterministic)
    batch = make(pipe, replace(REQUEST, num_images=4)).frames[:, 0]
    alone = [make(pipe, replace(REQUEST, seed=REQUEST.seed + i)).frames[0, 0] for i in range(4)]
    assert levels(batch, np.stack(alone)) <= tolerance


def test_every_profile_gives_the_same_picture() -> None:
    profiles = load_group("memory_profile")
    for deterministic, tolerance in ((Determinism.strict, 0), (Determinism.relaxed, 2)):
        pictures = [make(pipeline(profiles[name], deterministic=deterministic)).frames[:, 0] for name in PROFILES]
        for picture in pictures[1:]:
            assert levels(picture, pictures[0]) <= tolerance


def test_bfloat16_stays_near_float32() -> None:
    request = replace(REQUEST, num_inference_steps=2)  # a CPU may have to emulate it
    half, full = make(pipeline(dtype=Dtype.bfloat16), request).frames[:, 0], make(pipeline(), request).frames[:, 0]
    assert np.abs(half.astype(int) - full).mean() < 8


def test_given_latents_replace_the_seeds() -> None:
    pipe = pipeline(deterministic=Determinism.strict)
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(REQUEST.seed))
    expected = make(pipe).frames[:, 0]
    assert np.array_equal(make(pipe, replace(REQUEST, seed=0), latents=noise).frames[:, 0], expected)
    with pytest.raises(ConfigError, match="latents"):
        make(pipe, latents=noise[:, :4])


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({}, 8),
        ({"guidance_scale": 1.0}, 4),
        ({"negative_prompt": REQUEST.prompt}, 4),
        ({"guidance_scale": 0.5}, 8),
    ],
)
def test_guidance_is_skipped_where_it_changes_nothing(change: dict[str, object], calls: int) -> None:
    pipe = pipeline(deterministic=Determinism.strict)  # guidance one after the other: a call is a text
    with pipe.memory.use("unet") as unet:
        seen: list[object] = []
        unet.register_forward_hook(lambda *_: seen.append(1))
    make(pipe, replace(REQUEST, **change))  # type: ignore[arg-type]
    assert len(seen) == calls


def test_steps_are_told_in_order_over_all_batches() -> None:
    told: list[Step] = []
    pipe = pipeline(MemoryProfileConfig(name="balanced", on_device=["unet"], batch_size=2))
    result = make(pipe, replace(REQUEST, num_images=3), on_step=told.append)
    assert [step.index for step in told] == list(range(8))
    assert {step.total for step in told} == {8}
    assert len(result.step_seconds) == 8
    assert result.timings["total_s"] >= result.timings["denoise_s"] > 0


def test_not_a_number_is_an_error_and_never_a_black_picture() -> None:
    for component, name in (("unet", "denoiser"), ("vae", "vae")):
        pipe = pipeline()
        with pipe.memory.use(component) as module:
            for parameter in module.parameters():
                parameter.data = torch.full_like(parameter, float("nan"))
        with pytest.raises(RunError, match=f"{name} gave NaN"):
            make(pipe)


def test_what_does_not_fit_in_the_prompt_is_said() -> None:
    result = make(pipeline(), replace(REQUEST, prompt="rocket " * 31 + "umbrella"))
    assert len(result.warnings) == 1
    assert "rocket umbrella" in result.warnings[0]


def test_a_size_the_checkpoint_cannot_make_is_refused() -> None:
    pipe = pipeline()
    factor = pipe.vae_config.factor
    width = 64 + factor // 2
    with pytest.raises(ConfigError, match=rf"width={width}.*multiple of {factor}"):
        pipe.check(replace(REQUEST, width=width))
