"""The cases of diffusers' own tests of these pipelines that our options can express, with diffusers as the judge.

Checkpoints and requests are those of `tests/pipelines/stable_diffusion*` and `latent_consistency_models` there. The
numbers recorded there are of a tokenizer that has to be fetched, so each case is run by diffusers again, with ours. A
case agrees where no value is more than one level in 255 away; the recorded tolerance is 2.5 levels. Their SDXL with
both text encoders and an aesthetic score, which nobody publishes, has SDXL's time ids here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers as peer
import numpy as np
import oracle
import pytest
import torch
from diffusers.schedulers import AysSchedules
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import diffuse

PROMPT = "A painting of a squirrel eating a burger"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Checkpoint:
    """The components of one of their `get_dummy_components`."""

    pipeline: str = "StableDiffusionPipeline"
    width: int = 32  # of the U-Net's first level, and twice that of the second
    groups: int = 32
    layers: int = 2
    vae_width: int = 32
    text_width: int = 32
    context: int = 32  # cross-attention's width
    channels: int = 4  # of the U-Net's input
    distilled: int | None = None  # width of the embedded guidance scale
    scheduler: str = "DDIMScheduler"
    sd2: bool = False
    xl: str = ""  # "base", or "refiner", which has an aesthetic score and no first text encoder


def build(case: Checkpoint, folder: Path) -> Path:
    more: dict[str, Any] = {}
    if case.sd2 or case.xl:
        more |= {"attention_head_dim": (2, 4), "use_linear_projection": True}
    if case.xl:
        more |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        more |= {"transformer_layers_per_block": (1, 2)}
        more |= {"projection_class_embeddings_input_dim": 32 + (48 if case.xl == "base" else 40)}
    torch.manual_seed(0)
    unet = peer.UNet2DConditionModel(
        block_out_channels=(case.width, 2 * case.width),
        layers_per_block=case.layers,
        sample_size=32,
        time_cond_proj_dim=case.distilled,
        in_channels=case.channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=case.context,
        norm_num_groups=case.groups,
        **more,
    )
    torch.manual_seed(0)
    vae = peer.AutoencoderKL(
        block_out_channels=(case.vae_width, 2 * case.vae_width),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=min(case.vae_width // 2, 32),
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=case.text_width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        pad_token_id=1,
        vocab_size=1000,
        projection_dim=32 if case.xl else 512,
        **({"hidden_act": "gelu"} if case.sd2 or case.xl else {}),
    )
    encoders: dict[str, Any] = {"text_encoder": CLIPTextModel(config)}
    if case.xl:
        encoders["text_encoder_2"] = CLIPTextModelWithProjection(config)
    for name in ("tokenizer", "tokenizer_2")[: len(encoders)]:
        encoders[name] = CLIPTokenizer.from_pretrained(oracle.write_tokenizer(folder / name, "classic", "!"))
    if case.xl == "refiner":
        encoders |= {"text_encoder": None, "tokenizer": None}
    published = dict(SD) if case.scheduler != "PNDMScheduler" else {"skip_prk_steps": True}
    if case.scheduler == "DDIMScheduler":
        published |= {"clip_sample": False, "set_alpha_to_one": False}
    if case.xl:
        published |= {"steps_offset": 1, "timestep_spacing": "leading"}
    if case.xl:
        others: dict[str, Any] = {"requires_aesthetics_score": True} if case.xl == "refiner" else {}
    else:
        others = {"safety_checker": None, "feature_extractor": None}
    if "XLI" in case.pipeline and case.xl == "base":
        others = {"requires_aesthetics_score": False}
    made = getattr(peer, case.pipeline)(
        unet=unet, vae=vae, scheduler=getattr(peer, case.scheduler)(**published), **encoders, **others
    )
    made.save_pretrained(folder)
    return folder


SMALL = Checkpoint(width=4, groups=2, layers=1, vae_width=4, text_width=8, context=8)
SD2 = Checkpoint(sd2=True)
IMAGE = Checkpoint("StableDiffusionImg2ImgPipeline", scheduler="PNDMScheduler")
INPAINT = Checkpoint("StableDiffusionInpaintPipeline", channels=9, scheduler="PNDMScheduler")
PLAIN_INPAINT = Checkpoint("StableDiffusionInpaintPipeline", scheduler="PNDMScheduler")
LCM = Checkpoint(width=4, groups=2, layers=1, vae_width=4, distilled=32, scheduler="LCMScheduler")
XL = Checkpoint(
    "StableDiffusionXLPipeline", width=2, groups=1, context=64, scheduler="EulerDiscreteScheduler", xl="base"
)
XL_IMAGE = Checkpoint("StableDiffusionXLImg2ImgPipeline", context=64, scheduler="EulerDiscreteScheduler", xl="base")
XL_INPAINT = Checkpoint("StableDiffusionXLInpaintPipeline", context=64, scheduler="EulerDiscreteScheduler", xl="base")
REFINER = Checkpoint("StableDiffusionXLImg2ImgPipeline", scheduler="EulerDiscreteScheduler", xl="refiner")
REFINER_INPAINT = Checkpoint("StableDiffusionXLInpaintPipeline", scheduler="EulerDiscreteScheduler", xl="refiner")


def distilled(case: Checkpoint) -> Checkpoint:
    return Checkpoint(**{**vars(case), "distilled": 256})


SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


@dataclass(frozen=True)
class Case:
    """One of their tests: the checkpoint, the sampler, and what the request has of its own."""

    checkpoint: Checkpoint
    sampler: str
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)  # where it is called otherwise there
    both: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # of the sampler


SKIP = {"skip_prk_steps": True}
FRIES = {"negative_prompt": "french fries"}
AT = {"timesteps": [999, 499]}
LONG = {"prompt": "@" * 100 + " hey"}  # cut at 77 tokens
CASES = {
    "sd ddim": Case(SMALL, "ddim"),
    "sd lcm": Case(distilled(SMALL), "lcm"),
    "sd lcm, custom timesteps": Case(distilled(SMALL), "lcm", both=AT),
    "sd ays timesteps": Case(SMALL, "euler", both={"timesteps": AysSchedules["StableDiffusionTimesteps"]}),
    "sd ays sigmas": Case(SMALL, "euler", both={"sigmas": AysSchedules["StableDiffusionSigmas"]}),
    "sd size": Case(SMALL, "ddim", both={"width": 136, "height": 136}),
    "sd pndm": Case(SMALL, "pndm", settings=SKIP),
    "sd lms": Case(SMALL, "lms"),
    "sd euler ancestral": Case(SMALL, "euler_ancestral"),
    "sd euler": Case(SMALL, "euler"),
    "sd negative prompt": Case(SMALL, "pndm", both=FRIES, settings=SKIP),
    "sd long prompt": Case(SMALL, "lms", both=LONG),
    "sd prompt three times": Case(SMALL, "lms", both={"prompt": " ".join([PROMPT] * 25)}),
    "sd2 ddim": Case(SD2, "ddim"),
    "sd2 pndm": Case(SD2, "pndm", settings=SKIP),
    "sd2 lms": Case(SD2, "lms"),
    "sd2 euler ancestral": Case(SD2, "euler_ancestral"),
    "sd2 euler": Case(SD2, "euler"),
    "sd2 unflawed": Case(
        SD2,
        "ddim",
        both={"guidance_rescale": 0.7, "num_inference_steps": 10},
        settings={"timestep_spacing": "trailing"},
    ),
    "sd2 dpm karras": Case(SD2, "dpmpp_2m", settings={"use_karras_sigmas": True}),
    "img2img": Case(IMAGE, "ddim"),
    "img2img lcm": Case(distilled(IMAGE), "lcm"),
    "img2img lcm, custom timesteps": Case(distilled(IMAGE), "lcm", both=AT),
    "img2img negative prompt": Case(IMAGE, "ddim", both=FRIES),
    "img2img lms": Case(IMAGE, "lms"),
    "img2img two results": Case(IMAGE, "euler", ours={"num_images": 2}, theirs={"num_images_per_prompt": 2}),
    "inpaint": Case(INPAINT, "ddim"),
    "inpaint lcm": Case(distilled(INPAINT), "lcm"),
    "inpaint lcm, custom timesteps": Case(distilled(INPAINT), "lcm", both=AT),
    "inpaint, no model for it": Case(PLAIN_INPAINT, "ddim"),
    "inpaint lcm, no model for it": Case(distilled(PLAIN_INPAINT), "lcm"),
    "inpaint euler ancestral, no model for it": Case(
        distilled(PLAIN_INPAINT), "euler_ancestral", both={"num_inference_steps": 4}
    ),
    "lcm, one step": Case(LCM, "lcm", both={"num_inference_steps": 1}),
    "lcm, two steps": Case(LCM, "lcm"),
    "lcm, custom timesteps": Case(LCM, "lcm", both=AT),
    "xl euler": Case(XL, "euler", both={"guidance_scale": 5.0}),
    "xl lcm": Case(distilled(XL), "lcm", both={"guidance_scale": 5.0}),
    "xl lcm, custom timesteps": Case(distilled(XL), "lcm", both={**AT, "guidance_scale": 5.0}),
    "xl ays timesteps": Case(XL, "euler", both={"timesteps": AysSchedules["StableDiffusionXLTimesteps"]}),
    "xl ays sigmas": Case(XL, "euler", both={"sigmas": AysSchedules["StableDiffusionXLSigmas"]}),
    "xl two prompts": Case(XL, "euler", both={"prompt_2": "different prompt"}),
    "xl two negative prompts": Case(
        XL, "euler", both={"negative_prompt": "negative prompt", "negative_prompt_2": "different negative prompt"}
    ),
    "xl sizes": Case(
        XL,
        "euler",
        ours={"original_width": 512, "original_height": 512, "target_width": 1024, "target_height": 1024},
        theirs={"original_size": (512, 512), "target_size": (1024, 1024)},
    ),
    "xl img2img": Case(XL_IMAGE, "euler", both={"strength": 0.8, "guidance_scale": 5.0}),
    "xl img2img lcm": Case(distilled(XL_IMAGE), "lcm", both={"strength": 0.8, "guidance_scale": 5.0}),
    "xl img2img lcm, custom timesteps": Case(distilled(XL_IMAGE), "lcm", both={**AT, "strength": 0.8}),
    "xl img2img two prompts": Case(XL_IMAGE, "euler", both={"strength": 0.8, "prompt_2": "different prompt"}),
    "refiner img2img": Case(REFINER, "euler", both={"strength": 0.8, "guidance_scale": 5.0}),
    "xl inpaint": Case(XL_INPAINT, "euler", both={"strength": 1.0}),
    "xl inpaint lcm": Case(distilled(XL_INPAINT), "lcm", both={"strength": 1.0}),
    "xl inpaint lcm, custom timesteps": Case(distilled(XL_INPAINT), "lcm", both={**AT, "strength": 1.0}),
    "refiner inpaint": Case(REFINER_INPAINT, "euler", both={"strength": 1.0}),
}


def inputs(case: Case) -> dict[str, Any]:
    """The pictures of their `get_dummy_inputs`, as 8-bit pixels for both."""
    kind = case.checkpoint.pipeline
    if "Img2Img" not in kind and "Inpaint" not in kind:
        return {}
    generator = random.Random(0)
    values = np.array([generator.random() for _ in range(3 * 32 * 32)], np.float32).reshape(3, 32, 32)
    image = Image.fromarray((255 * values.transpose(1, 2, 0)).astype(np.uint8))
    if "Img2Img" in kind:
        return {"image": image}
    mask = np.full((64, 64), 255, np.uint8)
    if case.checkpoint.channels == 4:
        mask[:32, :32] = 0
    return {"image": image.resize((64, 64)), "mask_image": Image.fromarray(mask)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Checkpoint], tuple[Path, Any]]:
    made: dict[Checkpoint, tuple[Path, Any]] = {}

    def get(checkpoint: Checkpoint) -> tuple[Path, Any]:
        if checkpoint not in made:
            folder = build(checkpoint, tmp_path_factory.mktemp("peer"))
            pipeline = getattr(peer, checkpoint.pipeline).from_pretrained(folder)
            pipeline.set_progress_bar_config(disable=True)
            made[checkpoint] = folder, pipeline
        return made[checkpoint]

    return get


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_diffusers(name: str, built: Callable[[Checkpoint], tuple[Path, Any]]) -> None:
    case = CASES[name]
    (folder, theirs), pictures = built(case.checkpoint), inputs(case)
    request = {"prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 6.0, **case.both}
    if {"timesteps", "sigmas"} & set(request):
        del request["num_inference_steps"]

    published = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    theirs.scheduler = getattr(peer, SAMPLERS[case.sampler]).from_config(published, **case.settings)
    seeds = range(case.ours.get("num_images", 1))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = theirs(**request, **pictures, **case.theirs, generator=generators, output_type="np").images

    settings = [f"scheduler.{name}={value}" for name, value in case.settings.items()]
    kept = {"model": folder, "scheduler": case.sampler, "hardware": "cpu", "tracking": "none", "overrides": settings}
    given = [pictures[name] for name in ("image", "mask_image") if name in pictures]
    call = (diffuse.txt2img, diffuse.img2img, diffuse.inpaint)[len(given)]
    size = {} if given else {"width": 64, "height": 64}
    made = call(request.pop("prompt"), *given, **{**size, **request, **case.ours, **kept}, seed=0, progress=False)
    assert np.abs(made.frames[:, 0] - 255 * expected).max() <= 1.01


def test_a_latent_consistency_model_is_drawn_as_it_is(built: Callable[[Checkpoint], tuple[Path, Any]]) -> None:
    """Nothing is said but its folder: the sampler, the steps and the guidance are those of its pipeline."""
    folder, theirs = built(replace(LCM, pipeline="LatentConsistencyModelPipeline"))
    expected = theirs(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np").images
    made = diffuse.txt2img(
        PROMPT, model=folder, seed=0, width=64, height=64, hardware="cpu", tracking="none", progress=False
    )
    assert np.abs(made.frames[:, 0] - 255 * expected).max() <= 1.01
