"""Checks whether the parts of a latent diffusion checkpoint fit together: channels, words and widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip import CLIPTextConfig
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig
from diffuse.models.vae.autoencoder_kl import AutoencoderKLConfig

# What denoisers of other pipelines are shown beside the latents, by its channels.
_EXTRA_CHANNELS = {
    1: "a map of a picture's depth, as StableDiffusionDepth2ImgPipeline gives it",
    3: "a small picture to enlarge, as StableDiffusionUpscalePipeline gives it",
    4: "a picture's own, as StableDiffusionInstructPix2PixPipeline gives them",
}


def paints_into(unet: UNet2DConditionConfig, vae: AutoencoderKLConfig) -> bool:
    """Returns whether the denoiser takes the mask and the masked image beside the latents."""
    return unet.in_channels == 1 + 2 * vae.latent_channels


def check_channels(
    source: str, unet: UNet2DConditionConfig, vae: AutoencoderKLConfig, mismatch: Callable[[str], CheckpointError]
) -> None:
    """Checks the U-Net's channels against those of the autoencoder's latents."""
    shown = _EXTRA_CHANNELS.get(unet.in_channels - vae.latent_channels)
    if shown and unet.out_channels == vae.latent_channels:
        taken = f"the unet takes {unet.in_channels} channels: the latents, and {shown}"
        raise CheckpointError(f"{source}: {taken}; that is not implemented, use another checkpoint")
    fits = unet.in_channels == vae.latent_channels or paints_into(unet, vae)
    if unet.out_channels != vae.latent_channels or not fits:
        raise mismatch(
            f"the unet takes {unet.in_channels} channels and gives {unet.out_channels}, "
            f"the vae's latents have {vae.latent_channels}; these should be equal, "
            f"or for inpainting {1 + 2 * vae.latent_channels} be taken"
        )


def check_text(
    unet: UNet2DConditionConfig,
    configs: Sequence[CLIPTextConfig],
    tokenizers: Sequence[CLIPTokenizer],
    mismatch: Callable[[str], CheckpointError],
) -> None:
    """Checks the text encoders against their tokenizers, and their width against the U-Net's cross-attention."""
    for tokenizer, config in zip(tokenizers, configs, strict=True):
        if tokenizer.max_length > config.max_position_embeddings:
            raise mismatch(
                f"the tokenizer makes {tokenizer.max_length} tokens, the text encoder has "
                f"{config.max_position_embeddings} positions"
            )
        words = tokenizer.vocab_size
        if words > config.vocab_size:
            raise mismatch(f"the tokenizer has {words} words, the text encoder knows {config.vocab_size}")
    width = sum(config.hidden_size for config in configs)
    widths = set(unet.per_level(unet.cross_attention_dim))
    if widths != {width}:
        raise mismatch(f"the unet attends to text {sorted(widths)} wide, the text encoder gives {width}")
