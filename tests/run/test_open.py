"""Opening pipelines: the last ones are kept, one that is closed is not, and a family is a pipeline class or refused."""

from __future__ import annotations

import pytest

from diffuse.errors import ConfigError
from diffuse.run import open as opening
from diffuse.run.model_auto import compose_model
from diffuse.run.open import close_pipeline, component_names, load_family, open_pipeline


def test_the_last_pipelines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_pipelines", type(opening._pipelines)())
    profiles = ("full_gpu", "balanced", "unet_gpu")
    first, second, third = (compose_model([f"memory_profile={name}", "hardware=cpu"]) for name in profiles)
    kept = open_pipeline(first).pipeline
    assert open_pipeline(first).pipeline is kept
    open_pipeline(second)
    assert open_pipeline(first).pipeline is kept, "one that was used meanwhile stays"
    open_pipeline(third)
    assert open_pipeline(first).pipeline is kept and len(opening._pipelines) == opening.MAX_PIPELINES
    close_pipeline(kept)
    assert open_pipeline(first).pipeline is not kept


def test_the_folders_that_a_model_needs() -> None:
    cfg = compose_model(["model=sdxl", "refiner=sdxl", "denoising_end=0.8"])
    names = component_names(cfg)
    assert set(names) == {"model", "refiner"}
    assert {"text_encoder", "text_encoder_2", "unet", "vae", "scheduler"} <= set(names["model"])
    assert "text_encoder" not in names["refiner"]


@pytest.mark.parametrize(
    "target",
    [
        "diffuse.pipelines.stable_diffusion.Nothing",
        "diffuse.pipelines.nothing.StableDiffusion",
        "diffuse.pipelines.latent_diffusion.LatentDiffusion",
        "diffuse.pipelines.stable_diffusion.CLIPTextOutput",
    ],
)
def test_what_is_no_family_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="there is no such pipeline"):
        load_family(target)
