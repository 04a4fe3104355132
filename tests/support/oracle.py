"""Small random Stable Diffusion checkpoints, made by diffusers and transformers, which say what the right answer is.

Random initialisation alone gives a grey picture that no prompt changes. So the weights are drawn to keep the size of
what passes through them, the norms are no identities, and the last layer of each model is scaled until its output has
the size that a trained one's has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers.utils.logging.disable_progress_bar()
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["t h", "th e</w>", "i n", "a n", "an d</w>", "o f</w>", "e r", "in g</w>", "a r", "a s", "as t", "r o", "c a"]


@dataclass(frozen=True)
class Variant:
    """What one checkpoint of the family has of its own. The defaults are SD 2.1 in small."""

    prediction_type: str = "v_prediction"
    channels: tuple[int, ...] = (16, 32, 32, 32)
    heads: int | tuple[int, ...] = (2, 4, 4, 4)
    cross: tuple[bool, ...] = (True, True, True, False)  # attention on which levels
    layers_per_block: int | tuple[int, ...] = 1
    transformer_layers: int | tuple[int, ...] = 1
    linear_projection: bool = True
    upcast_attention: bool = True
    vae_channels: tuple[int, ...] = (8, 16, 16, 16)
    groups: tuple[int, int] = (8, 4)  # of the norms of the U-Net and of the autoencoder
    text_width: int = 32
    text_layers: int = 2
    hidden_act: str = "gelu"
    eos_token_id: int | None = 2  # None: the vocabulary's own
    tokenizer: str = "classic"  # vocab.json and merges.txt, or "fast": tokenizer.json
    pad_token: str = "!"
    text_prefix: bool = True  # whether the text encoder's keys begin with "text_model."
    position_ids: bool = False  # a buffer that old files hold
    old_vae_names: bool = False
    shard_size: str | None = None
    variant: str | None = None
    dtype: torch.dtype = torch.float32
    scheduler: dict[str, Any] = field(default_factory=dict, hash=False)
    inpaints: bool = False  # whether the denoiser is shown a mask and a masked picture
    seed: int = 0

    @property
    def pixels(self) -> int:
        """Pixels a latent covers along one side."""
        return 2 ** (len(self.vae_channels) - 1)


def clip_vocabulary() -> dict[str, int]:
    """The 256 bytes, the same at a word's end, the merges, and the two special tokens last, as in CLIP's own."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(m.replace(" ", "") for m in MERGES), START, END]
    return {token: index for index, token in enumerate(tokens)}


def write_tokenizer(folder: Path, layout: str, pad_token: str) -> Path:
    """A tokenizer in the `classic` or the `fast` layout."""
    if layout == "fast":
        merges = [tuple(merge.split()) for merge in MERGES]
        made = CLIPTokenizer(vocab=clip_vocabulary(), merges=merges, pad_token=pad_token, model_max_length=77)
        made.save_pretrained(folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    # As SD 2.1 publishes it: here the padding token is another, and special_tokens_map.json is right.
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config |= {**special, "pad_token": END, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def unet(v: Variant) -> UNet2DConditionModel:
    """The denoiser, whose output has unit variance for unit noise."""
    torch.manual_seed(v.seed)
    down = tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in v.cross)
    up = tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(v.cross))
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=9 if v.inpaints else 4,
        out_channels=4,
        layers_per_block=v.layers_per_block,
        norm_num_groups=v.groups[0],
        block_out_channels=v.channels,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=v.text_width,
        attention_head_dim=v.heads,
        transformer_layers_per_block=v.transformer_layers,
        use_linear_projection=v.linear_projection,
        upcast_attention=v.upcast_attention,
    ).eval()
    randomise(model, v.seed)
    text = torch.randn(2, 77, v.text_width)
    scale_output(model.conv_out, lambda: model(torch.randn(2, model.config.in_channels, 8, 8), 500, text).sample, 1.0)
    return model


def vae(v: Variant) -> AutoencoderKL:
    """The autoencoder, whose pixels fill -1..1 for unit latents."""
    torch.manual_seed(v.seed + 1)
    levels = len(v.vae_channels)
    model = AutoencoderKL(
        layers_per_block=1,
        norm_num_groups=v.groups[1],
        block_out_channels=v.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=64,
        force_upcast=False,
    ).eval()
    randomise(model, v.seed + 1)
    latents = torch.randn(2, 4, 8, 8) / model.config.scaling_factor
    scale_output(model.decoder.conv_out, lambda: model.decode(latents).sample, 0.5)
    pixels = torch.randn(2, 3, 64, 64).clamp(-1, 1)
    scale_output(model.quant_conv, lambda: model.encode(pixels).latent_dist.parameters, 2.0)
    return model


def text_encoder(v: Variant, projection: int | None = None) -> CLIPTextModel | CLIPTextModelWithProjection:
    """The text encoder, with a projected pooled state where `projection` gives its width."""
    torch.manual_seed(v.seed + 2)
    vocabulary = len(clip_vocabulary())
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=v.text_width,
        intermediate_size=v.text_width * 2,
        num_hidden_layers=v.text_layers,
        num_attention_heads=2,
        hidden_act=v.hidden_act,
        projection_dim=projection or 16,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=vocabulary - 1 if v.eos_token_id is None else v.eos_token_id,
        pad_token_id=1,
    )
    model = (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()
    randomise(model, v.seed + 2)
    return model


def scheduler(v: Variant) -> DDIMScheduler:
    """DDIM as SD 2.1 publishes it, with the variant's changes."""
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": v.prediction_type,
    }
    return DDIMScheduler(**(published | v.scheduler))


def randomise(model: nn.Module, seed: int) -> None:
    """Weights that keep their input's variance, biases and norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm) and isinstance(module.weight, nn.Parameter):
                module.weight.copy_(1 + 0.2 * torch.randn(module.weight.shape, generator=generator))
            elif isinstance(module, nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))


@torch.no_grad()
def scale_output(last: nn.Module, output: Callable[[], torch.Tensor], deviation: float) -> None:
    """Scales the `last` layer until what `output` gives has this standard deviation."""
    last.weight.mul_(deviation / output().std())  # type: ignore[operator]


def build(folder: Path, v: Variant) -> Path:
    """Writes the checkpoint of a variant and gives its folder back."""
    pipeline = StableDiffusionPipeline(
        unet=unet(v),
        vae=vae(v),
        text_encoder=text_encoder(v),
        tokenizer=CLIPTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer", v.tokenizer, v.pad_token)),
        scheduler=scheduler(v),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(v.dtype)
    kept = {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}
    size = {} if v.shard_size is None else {"max_shard_size": v.shard_size}
    pipeline.save_pretrained(folder, safe_serialization=True, variant=v.variant, **size)
    for path in (folder / "tokenizer").iterdir():  # saving writes the other layout beside
        path.unlink()
    for name, content in kept.items():
        (folder / "tokenizer" / name).write_bytes(content)
    rewrite_keys(folder, v)
    return folder


def rewrite_keys(folder: Path, v: Variant) -> None:
    """Gives keys the names that other versions of the libraries wrote."""

    def rewrite(component: str, name: Callable[[str], str], extra: dict[str, torch.Tensor] | None = None) -> None:
        for path in (folder / component).glob("*.safetensors"):
            tensors = {name(key): tensor for key, tensor in load_file(path).items()}
            save_file(tensors | (extra or {}), path, metadata={"format": "pt"})

    if v.shard_size is not None:
        return
    prefix = "text_model." if v.text_prefix else ""
    extra = {f"{prefix}embeddings.position_ids": torch.arange(77)[None]} if v.position_ids else None
    rewrite("text_encoder", lambda key: prefix + key.removeprefix("text_model."), extra)
    if v.old_vae_names:
        rewrite("vae", old_vae_name)


def old_vae_name(key: str) -> str:
    """What the key of a mid-block attention layer was called at first."""
    if ".attentions." in key:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{old}.")
    return key


_pipelines: dict[Path, StableDiffusionPipeline] = {}


def picture(
    folder: Path, *, seed: int | list[int] = 0, variant: str | None = None, scheduler: Any = None, **request: Any
) -> np.ndarray:
    """What diffusers makes from the checkpoint, uint8 `[N, H, W, 3]`; one generator a picture, on the CPU.

    `scheduler` replaces the checkpoint's own.
    """
    if folder not in _pipelines:
        loaded = StableDiffusionPipeline.from_pretrained(folder, variant=variant, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        _pipelines[folder] = loaded
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    pipeline = _pipelines[folder]
    own, pipeline.scheduler = pipeline.scheduler, scheduler or pipeline.scheduler
    images = pipeline(generator=generators, num_images_per_prompt=len(seeds), output_type="pil", **request).images
    pipeline.scheduler = own
    return np.stack([np.asarray(image) for image in images])
