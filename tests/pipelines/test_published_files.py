"""Whole pictures from files as others publish them: drawn as diffusers draws them, or refused for the true reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import oracle
import oracle_sdxl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import diffuse
from diffuse.errors import CheckpointError, ConfigError

PROMPT = "a cat, the dog (oil) and 3 rockets"
SMALL: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
SD = oracle.Variant(**SMALL, prediction_type="epsilon", upcast_attention=False)
XL = oracle_sdxl.Variant(channels=(16, 32), heads=(2, 4), cross=(True, True), layers=(1, 1), vae_channels=(8, 8, 16))
SIZE = {"width": 32, "height": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {"sd21": oracle.build(folder / "sd", SD), "sdxl": oracle_sdxl.build(folder / "xl", XL)}


@pytest.fixture
def edited(plain: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of links, some of its settings changed; `component__key` names one."""

    def edit(model: str, folder: str = "edited", **settings: Any) -> Path:
        made = tmp_path / folder
        for path in plain[model].rglob("*"):
            target = made / path.relative_to(plain[model])
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
        for name, value in settings.items():
            component, key = name.split("__", 1)
            file = made / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
            content = json.loads(file.read_text())
            file.unlink()
            file.write_text(json.dumps({**content, key: value}))
        return made

    return edit


def opened(folder: Path, model: str) -> diffuse.Pipeline:
    return diffuse.load_pipeline(model, overrides=[f"model.source={folder}"], hardware="cpu", tracking="none")


def picture(pipeline: diffuse.Pipeline, **request: Any) -> np.ndarray:
    """Ours, `[H, W, 3]`, of two steps."""
    images = [request.pop(name) for name in ("image", "mask_image") if name in request]
    options = {"num_inference_steps": 2, "guidance_scale": 7.5, "seed": 0, **({} if images else SIZE), **request}
    call = (pipeline.txt2img, pipeline.img2img, pipeline.inpaint)[len(images)]
    return call(PROMPT, *images, progress=False, **options).frames[0, 0]


def theirs(folder: Path, *requests: dict[str, Any], kinds: Sequence[str] = ("StableDiffusionPipeline",)) -> list[Any]:
    """What diffusers' pipelines make of it, `[H, W, 3]` each."""
    loaded = getattr(diffusers, kinds[0]).from_pretrained(folder, torch_dtype=torch.float32)
    made = []
    for kind, request in zip(kinds, requests, strict=True):
        pipeline = getattr(diffusers, kind)(**loaded.components)
        pipeline.set_progress_bar_config(disable=True)
        options = {"prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 7.5, **request}
        if "image" not in request:
            options |= SIZE
        made.append(np.asarray(pipeline(generator=torch.Generator().manual_seed(0), **options).images[0]))
    return made


def assert_same(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.shape == expected.shape and expected.std() > 10
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1


NEUTRAL: dict[str, Any] = {
    "scheduler__tensor_format": "pt",
    "scheduler__predict_epsilon": True,
    "scheduler__//": "as it was trained",
    "text_encoder__architectures": None,
    "text_encoder__return_dict": True,
    "unet__dropout": 0.1,
    "unet__act_fn": "swish",
    "unet__sample_size": None,
    "vae__latents_mean": [0.5, -0.5, 0.25, 1.0],  # the reference has no use for them in this family
    "vae__latents_std": [2.0, 0.5, 1.0, 3.0],
}


def test_what_asks_for_nothing_changes_no_pixel(plain: dict[str, Path], edited: Callable[..., Path]) -> None:
    folder = edited("sd21", **NEUTRAL)
    weights = folder / "text_encoder" / "model.safetensors"
    found = load_file(weights)
    weights.unlink()
    extra = {"text_projection.weight": torch.ones(16, 32), "logit_scale": torch.ones(())}
    save_file({**found, **extra, "vision_model.post_layernorm.bias": torch.ones(3)}, weights)
    (expected,) = theirs(plain["sd21"], {})
    assert_same(picture(opened(folder, "sd21")), expected)


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
MASK = Image.fromarray(np.pad(np.full((16, 32), 255, np.uint8), ((16, 0), (0, 0))))
STATISTICS = {"vae__latents_mean": [0.5, -0.5, 0.25, 1.0], "vae__latents_std": [2.0, 0.5, 1.0, 3.0]}


def test_latent_statistics_of_sdxl(edited: Callable[..., Path]) -> None:
    folder = edited("sdxl", **STATISTICS)
    requests: list[dict[str, Any]] = [{}, {"image": IMAGE, "strength": 0.9}]
    requests.append({**requests[1], "mask_image": MASK})
    kinds = [f"StableDiffusionXL{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint")]
    pipeline = opened(folder, "sdxl")
    for request, expected in zip(requests, theirs(folder, *requests, kinds=kinds), strict=True):
        assert_same(picture(pipeline, **request), expected)
    half = edited("sdxl", "half", vae__latents_mean=STATISTICS["vae__latents_mean"])  # alone it is not used
    (expected,) = theirs(half, {}, kinds=kinds[:1])
    assert_same(picture(opened(half, "sdxl")), expected)


def test_a_checkpoint_that_does_not_say_its_size(edited: Callable[..., Path]) -> None:
    pipeline = opened(edited("sd21", unet__sample_size=None), "sd21")
    for size in ({"width": None}, {"height": None}, {"width": None, "height": None}):
        with pytest.raises(ConfigError, match=r"^width and height: this checkpoint does not say its size; give both"):
            picture(pipeline, **size)
    assert picture(pipeline, image=IMAGE).shape == (32, 32, 3)  # a picture says it


def test_the_pipeline_says_what_a_text_encoder_is_for(plain: dict[str, Path], edited: Callable[..., Path]) -> None:
    """And not the class that saved it, which may be the other one."""
    sister, own = ["CLIPTextModelWithProjection"], ["CLIPTextModel"]
    swapped = edited("sdxl", text_encoder__architectures=sister, text_encoder_2__architectures=own)
    ours, expected = (opened(each, "sdxl").encode(PROMPT) for each in (swapped, plain["sdxl"]))
    assert ours.pooled_prompt_embeds is not None
    assert torch.equal(ours.pooled_prompt_embeds, expected.pooled_prompt_embeds)


def test_a_smaller_sdxl_as_ssd_1b_is_published(edited: Callable[..., Path]) -> None:
    folder = edited("sdxl")
    settings = json.loads((folder / "unet" / "config.json").read_text())
    settings |= {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2]]}
    settings |= {"reverse_transformer_layers_per_block": [[2, 1], 1]}
    unet = diffusers.UNet2DConditionModel(**{key: value for key, value in settings.items() if key[0] != "_"})
    oracle.randomise(unet, 5)
    for path in (folder / "unet").iterdir():
        path.unlink()
    unet.save_pretrained(folder / "unet")
    (expected,) = theirs(folder, {}, kinds=["StableDiffusionXLPipeline"])
    assert_same(picture(opened(folder, "sdxl")), expected)


@pytest.mark.parametrize(
    ("model", "other", "settings", "says"),
    [
        ("sd21", "sd21", {"unet__in_channels": 8}, "StableDiffusionInstructPix2PixPipeline gives them; that is not"),
        ("sdxl", "sdxl", {"unet__in_channels": 8}, "StableDiffusionInstructPix2PixPipeline gives them; that is not"),
        ("sd21", "sd21", {"unet__in_channels": 5}, "a map of a picture's depth"),
        ("sd21", "sd21", {"unet__in_channels": 7}, "a small picture to enlarge"),
        ("sd21", "sdxl", {}, "the unet takes sizes and a pooled text too, .* choose model=sdxl$"),
        ("sdxl_refiner", "sdxl", {}, "added conditioning is .* choose model=sdxl$"),
        ("sd21", "sd21", {"unet__in_channels": 6}, "these should be equal.* different models"),
    ],
)
def test_a_refusal_says_the_true_reason(
    model: str, other: str, settings: dict[str, Any], says: str, edited: Callable[..., Path]
) -> None:
    folder = edited(other, **settings)
    with pytest.raises(CheckpointError, match=says) as caught:
        opened(folder, model)
    assert ("different models" in str(caught.value)) == ("different models" in says)
