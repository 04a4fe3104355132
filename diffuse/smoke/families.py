"""The families of a smoke run: for each its checkpoint, drawn anew each time, and the requests that are made of it.

The cases, the checkpoints and their tests come from this table. Samplers are not in it: each has a case of its own,
from `conf/scheduler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse.config.groups import SHIPPED, TINY

LATENT_CHANNELS = 4
TEXT_WIDTH = 16  # of a text encoder
PROJECTION = 24  # the width of the pooled text
SIZE_WIDTH = 8  # of each embedded size

_SCHEDULE = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


@dataclass(frozen=True)
class SmokeCheckpoint:
    """A small checkpoint in the diffusers layout.

    Attributes:
        seed: of its weights; 10 apart, because each component adds its number.
        unet: the entries of the U-Net's configuration that differ from those of SD 2.x.
        index: the entries of `model_index.json` apart from the components.
    """

    seed: int
    text_encoders: tuple[str, ...] = ("text_encoder",)
    unet: Mapping[str, Any] = field(default_factory=dict)
    scaling_factor: float = 0.18215
    scheduler: Mapping[str, Any] = field(default_factory=lambda: _SCHEDULE)
    index: Mapping[str, Any] = field(default_factory=lambda: {"_class_name": "StableDiffusionPipeline"})


@dataclass(frozen=True)
class SmokeFamily:
    """A family: its checkpoint, None for one that ships, and the overrides of its requests by the name of the case.

    In overrides, `{name}` is the folder of that family's checkpoint; `{picture}` and `{mask}` are files.
    """

    name: str
    checkpoint: SmokeCheckpoint | None = None
    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _xl_unet(sizes: int) -> dict[str, Any]:
    """Returns the U-Net of SDXL, which takes the pooled text and `sizes` numbers."""
    return {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": sizes * SIZE_WIDTH + PROJECTION,
    }


_PICTURE, _MASK = "input_image={picture}", "mask_image={mask}"

FAMILIES = (
    SmokeFamily(
        "tiny",
        cases={
            "tiny, text to image": ("model=tiny", "width=64", "height=64"),
            "tiny, two pictures": ("model=tiny", "num_images=2"),
            "tiny, image to image": ("model=tiny", _PICTURE, "strength=0.6"),
            "tiny, inpainting": ("model=tiny", _PICTURE, _MASK, "keep_unmasked=true"),
            "tiny, model=auto": ("model=auto", f"model.source={TINY}"),
        },
    ),
    SmokeFamily(
        "tiny_video",
        cases={
            "tiny_video, text to film": ("model=tiny_video", "num_frames=9"),
            "tiny_video, image to film": ("model=tiny_video", "num_frames=9", _PICTURE),
            "tiny_video, model=auto": ("model=auto", f"model.source={SHIPPED['tiny_video']}", "num_frames=9"),
        },
    ),
    SmokeFamily("sd", SmokeCheckpoint(0)),  # for the samplers
    SmokeFamily("sd_flow", SmokeCheckpoint(10, scheduler=_FLOW)),  # for samplers of models that predict a flow
    SmokeFamily(
        "sd_inpaint",
        SmokeCheckpoint(20, unet={"in_channels": 2 * LATENT_CHANNELS + 1}),
        {"SD 2.x inpainting checkpoint": ("model=sd21", "model.source={sd_inpaint}", _PICTURE, _MASK)},
    ),
    SmokeFamily(
        "sd_distilled",
        SmokeCheckpoint(30, unet={"time_cond_proj_dim": 16}),
        {"SD 2.x distilled, LCM": ("model=sd21", "model.source={sd_distilled}", "scheduler=lcm", "guidance_scale=8")},
    ),
    SmokeFamily(
        "sdxl",
        SmokeCheckpoint(
            40,
            text_encoders=("text_encoder", "text_encoder_2"),
            unet=_xl_unet(6),
            scaling_factor=0.13025,
            index={"_class_name": "StableDiffusionXLPipeline"},
        ),
        {
            "SDXL, text to image": (
                "model=sdxl",
                "model.source={sdxl}",
                "prompt_2=oil on canvas",
                "negative_prompt=grey",
            ),
            "SDXL, image to image": ("model=sdxl", "model.source={sdxl}", _PICTURE, "strength=0.6"),
            "SDXL turbo": ("model=sdxl_turbo", "model.source={sdxl}", "num_inference_steps=1"),
        },
    ),
    SmokeFamily(
        "sdxl_refiner",
        SmokeCheckpoint(
            50,
            text_encoders=("text_encoder_2",),
            unet=_xl_unet(5),
            scaling_factor=0.13025,
            index={
                "_class_name": "StableDiffusionXLImg2ImgPipeline",
                "requires_aesthetics_score": True,
                "force_zeros_for_empty_prompt": False,
            },
        ),
        {
            "SDXL and refiner": (
                "model=sdxl",
                "model.source={sdxl}",
                "refiner=sdxl",
                "refiner.source={sdxl_refiner}",
                "denoising_end=0.5",
            ),
            "SDXL refiner alone": ("model=sdxl_refiner", "model.source={sdxl_refiner}", _PICTURE, "strength=0.6"),
        },
    ),
)

CHECKPOINTS = {family.name: family.checkpoint for family in FAMILIES if family.checkpoint is not None}
