"""Small random SDXL checkpoints, made by diffusers and transformers, which say what the right answer is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import oracle
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Variant:
    """What one checkpoint has of its own. The defaults are SDXL base 1.0 in small."""

    channels: tuple[int, ...] = (16, 32, 32)
    heads: tuple[int, ...] = (2, 4, 4)
    cross: tuple[bool, ...] = (False, True, True)  # attention on which levels
    layers: int | tuple[int, ...] = (1, 2, 3)  # of each transformer
    size_dim: int = 8  # width of each embedded size
    sizes: int = 6
    time_cond_proj_dim: int | None = None
    inpaints: bool = False  # whether the denoiser is shown a mask and a masked picture
    first: tuple[int, int] = (16, 3)  # the text encoders' width and layers
    second: tuple[int, int] = (32, 3)
    projection: int = 24
    vae_channels: tuple[int, ...] = (8, 16, 16, 16)
    groups: tuple[int, int] = (8, 4)  # of the norms of the U-Net and of the autoencoder
    force_zeros: bool = True
    scheduler: str = "EulerDiscreteScheduler"
    schedule: dict[str, Any] = field(default_factory=lambda: {"timestep_spacing": "leading"}, hash=False)
    seed: int = 0


REFINER = Variant(  # four levels, five values beside the pooled text, one text encoder
    channels=(16, 16, 32, 32),
    heads=(2, 2, 4, 4),
    cross=(False, True, True, False),
    layers=2,
    sizes=5,
    first=(0, 0),
    force_zeros=False,
    seed=7,
)


def unet(v: Variant) -> UNet2DConditionModel:
    """The denoiser, whose output has unit variance for unit noise."""
    torch.manual_seed(v.seed)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=9 if v.inpaints else 4,
        out_channels=4,
        layers_per_block=1,
        norm_num_groups=v.groups[0],
        block_out_channels=v.channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in v.cross),
        up_block_types=tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(v.cross)),
        cross_attention_dim=v.first[0] + v.second[0],
        attention_head_dim=v.heads,
        transformer_layers_per_block=v.layers,
        use_linear_projection=True,
        upcast_attention=None,  # as it is published
        addition_embed_type="text_time",
        addition_time_embed_dim=v.size_dim,
        projection_class_embeddings_input_dim=v.sizes * v.size_dim + v.projection,
        time_cond_proj_dim=v.time_cond_proj_dim,
    ).eval()
    oracle.randomise(model, v.seed)
    text = torch.randn(2, 77, v.first[0] + v.second[0])
    added = {"text_embeds": torch.randn(2, v.projection), "time_ids": torch.full((2, v.sizes), 64.0)}
    shape = 2, model.config.in_channels, 8, 8
    oracle.scale_output(
        model.conv_out, lambda: model(torch.randn(shape), 500, text, added_cond_kwargs=added).sample, 1.0
    )
    return model


def vae(v: Variant) -> AutoencoderKL:
    """The autoencoder, whose pixels fill -1..1 for unit latents."""
    torch.manual_seed(v.seed + 1)
    levels = len(v.vae_channels)
    model = AutoencoderKL(
        norm_num_groups=v.groups[1],
        block_out_channels=v.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=64,
        scaling_factor=0.13025,
        force_upcast=True,
    ).eval()
    oracle.randomise(model, v.seed + 1)
    latents = torch.randn(2, 4, 8, 8) / model.config.scaling_factor
    oracle.scale_output(model.decoder.conv_out, lambda: model.decode(latents).sample, 0.5)
    return model


def text_encoder(
    size: tuple[int, int], act: str, projection: int | None, seed: int
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP-L's kind, or the second encoder's where `projection` gives the pooled text's width."""
    torch.manual_seed(seed)
    width, layers = size
    config = CLIPTextConfig(
        vocab_size=len(oracle.clip_vocabulary()),
        hidden_size=width,
        intermediate_size=width * 2,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()
    oracle.randomise(model, seed)
    return model


def build(folder: Path, v: Variant) -> Path:
    """Writes the checkpoint of a variant and gives its folder back."""
    tokenizers = {
        name: oracle.write_tokenizer(folder / name, "classic", pad)
        for name, pad in (("tokenizer", oracle.END), ("tokenizer_2", "!"))
    }
    pipeline = StableDiffusionXLPipeline(
        unet=unet(v),
        vae=vae(v),
        text_encoder=text_encoder(v.first, "quick_gelu", None, v.seed + 2),
        text_encoder_2=text_encoder(v.second, "gelu", v.projection, v.seed + 3),
        scheduler=getattr(diffusers, v.scheduler)(**SCHEDULE, **v.schedule),
        **{name: CLIPTokenizer.from_pretrained(path) for name, path in tokenizers.items()},
        force_zeros_for_empty_prompt=v.force_zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name, pad in (("tokenizer", oracle.END), ("tokenizer_2", "!")):
        for path in (folder / name).iterdir():  # saving writes the other layout beside
            path.unlink()
        oracle.write_tokenizer(folder / name, "classic", pad)
    return folder


def build_refiner(folder: Path, v: Variant = REFINER) -> Path:
    """Writes a refiner's checkpoint, in the layout in which it is published."""
    path = oracle.write_tokenizer(folder / "tokenizer_2", "classic", "!")
    StableDiffusionXLImg2ImgPipeline(
        unet=unet(v),
        vae=vae(v),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=text_encoder(v.second, "gelu", v.projection, v.seed + 3),
        tokenizer_2=CLIPTokenizer.from_pretrained(path),
        scheduler=getattr(diffusers, v.scheduler)(**SCHEDULE, **v.schedule),
        force_zeros_for_empty_prompt=v.force_zeros,
        requires_aesthetics_score=True,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    for file in path.iterdir():  # saving writes the other layout beside
        file.unlink()
    oracle.write_tokenizer(path, "classic", "!")
    return folder


_pipelines: dict[Path, StableDiffusionXLPipeline] = {}


def picture(folder: Path, *, seed: int | list[int] = 0, **request: Any) -> np.ndarray:
    """What diffusers makes from the checkpoint, uint8 `[N, H, W, 3]`; one generator a picture, on the CPU."""
    if folder not in _pipelines:
        loaded = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
        loaded.set_progress_bar_config(disable=True)
        _pipelines[folder] = loaded
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    images = _pipelines[folder](
        generator=generators, num_images_per_prompt=len(seeds), output_type="pil", **request
    ).images
    return np.stack([np.asarray(image) for image in images])
