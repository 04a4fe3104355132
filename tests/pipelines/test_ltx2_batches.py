"""The same film alone and in a batch, under every memory profile, in one call of the denoiser or in several."""

from __future__ import annotations

from dataclasses import replace

import film_peers
import numpy as np
import pytest
import torch
from film_peers import REQUEST, TinyFilms, make, pipeline

from diffuse.config.groups import load_group
from diffuse.errors import ConfigError
from diffuse.sampling.results import PipelineOutput, Step
from diffuse.schema import Dtype, MemoryProfileConfig

ALL_PASSES = replace(REQUEST, modality_scale=2.0, stg_scale=1.0, stg_blocks=(1,))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny("2.0", tmp_path_factory)


def assert_equal(one: PipelineOutput, other: PipelineOutput, levels: int = 0) -> None:
    assert one.sound is not None and other.sound is not None
    assert np.abs(one.frames.astype(int) - other.frames).max() <= levels
    assert np.abs(one.sound - other.sound).max() <= levels * 1e-4


def test_a_film_does_not_depend_on_its_batch(films: TinyFilms) -> None:
    both = make(films.ours(), replace(ALL_PASSES, num_images=2))
    assert both.frames.shape == (2, 9, 64, 96, 3) and both.sound is not None
    first, second = both.split([1, 1])
    assert_equal(first, make(films.ours(), ALL_PASSES), 1)
    assert_equal(second, make(films.ours(), replace(ALL_PASSES, seed=REQUEST.seed + 1)), 1)
    assert np.abs(first.frames.astype(int) - second.frames).max() > 9


def test_every_profile_gives_the_same_film(films: TinyFilms) -> None:
    profiles = load_group("memory_profile")
    expected = make(pipeline(films.folder, strict=True), ALL_PASSES)
    for name in ("streaming", "cpu_only"):
        assert_equal(make(pipeline(films.folder, profile=profiles[name], strict=True), ALL_PASSES), expected)


def test_predictions_in_one_call_or_in_several(films: TinyFilms) -> None:
    calls = []
    made = []
    for pipe in (films.ours(), pipeline(films.folder, sequential=True)):
        with pipe.memory.use("transformer") as transformer:
            seen: list[int] = []
            hook = transformer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        made.append(make(pipe, ALL_PASSES))
        hook.remove()
        calls.append(seen)
    assert_equal(*made, 1)
    assert calls == [[4, 4], [1] * 8]


def test_a_negative_prompt_that_is_the_prompt_changes_nothing(films: TinyFilms) -> None:
    pipe = films.ours()
    same = pipe.complete(replace(REQUEST, negative_prompt=f" {REQUEST.prompt}\n"))
    guidance, _ = pipe.guidance(same, pipe.layout(same))
    assert guidance.negative is None


def test_given_latents_replace_the_seed(films: TinyFilms) -> None:
    pipe = films.ours()
    noise = pipe.layout(REQUEST).draw_noise([torch.Generator().manual_seed(REQUEST.seed)])
    assert noise.shape == (1, *pipe.latent_shape(REQUEST))
    assert_equal(make(pipe, replace(REQUEST, seed=0), latents=noise), make(pipe))
    generator = torch.Generator().manual_seed(REQUEST.seed)
    named = {"video": torch.randn(1, 8, 2, 2, 3, generator=generator)}
    with pytest.raises(ConfigError, match="latents: hold video; give those of video and audio"):
        pipe.join_latents(named, REQUEST)
    named["audio"] = torch.randn(1, 2, 9, 4, generator=generator)
    torch.testing.assert_close(pipe.join_latents(named, REQUEST), noise, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"audio is \(1, 2, 9\); this request needs \(1, 2, 9, 4\)"):
        pipe.join_latents(named | {"audio": named["audio"][..., 0]}, REQUEST)


def test_tiles_of_the_size_of_the_film_change_nothing(films: TinyFilms) -> None:
    profile = MemoryProfileConfig(name="tiles", on_device=["*"], tiled_decode=True)
    whole, pipe = make(films.ours()), pipeline(films.folder, profile=profile)
    assert_equal(make(pipe), whole, 1)
    pipe.memory.step_downs.profile = replace(profile, vae_tile_size=2)
    assert np.abs(make(pipe).frames.astype(int) - whole.frames).max() > 1


def test_half_precision_makes_a_film_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    pipe = pipeline(film_peers.tiny("2.3", tmp_path_factory).folder, dtype=Dtype.bfloat16)
    assert pipe.memory.dtypes["transformer"] == "bfloat16" and pipe.memory.dtypes["vocoder"] == "float32"
    half = make(pipe, replace(REQUEST, num_inference_steps=1))
    assert half.frames.std() > 20 and half.sound is not None and half.sound.dtype == np.float32


def test_steps_are_told_and_can_be_seen(films: TinyFilms) -> None:
    told: list[Step] = []
    previews: list[np.ndarray] = []

    def on_step(step: Step) -> None:
        told.append(step)
        previews.append(step.decode())

    made = make(films.ours(), on_step=on_step)
    assert [step.index for step in told] == [0, 1] and told[0].timestep == 1000
    assert np.abs(previews[1].astype(int) - made.frames).max() <= 1


def test_the_end_of_a_prompt_that_does_not_fit_is_told(films: TinyFilms) -> None:
    made = make(films.ours(), replace(REQUEST, prompt="robot " * 20 + "umbrella", num_inference_steps=1))
    assert len(made.warnings) == 1
    assert made.warnings[0].startswith("the prompt is longer than 16 tokens") and "umbrella" in made.warnings[0]
