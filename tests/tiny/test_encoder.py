"""The written encoder computes the principal components of patches."""

from __future__ import annotations

import torch

from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.tiny import layout
from diffuse.tiny.encoder import PATCH, write_encoder


def test_latents_are_coordinates_of_patches() -> None:
    """So they are an affine map of each patch: least squares over the patches leaves next to nothing."""
    torch.manual_seed(0)
    vae = AutoencoderKL(layout.read(AutoencoderKLConfig, layout.VAE))
    pictures = torch.nn.functional.interpolate(torch.rand(8, 3, 8, 8) * 2 - 1, size=64, mode="bicubic").clamp(-1, 1)
    write_encoder(vae, pictures)
    with torch.no_grad():
        encoded = vae.encode(pictures)
    latents = encoded.mean.permute(0, 2, 3, 1).flatten(0, 2).double()  # [patches, C]
    patches = pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    inputs = torch.cat([patches.flatten(1), torch.ones(len(patches), 1)], dim=1).double()
    fitted = inputs @ torch.linalg.lstsq(inputs, latents, driver="gelsd").solution
    assert latents.std(dim=0).min() > 0.01
    assert (fitted - latents).abs().max() < 0.02 * latents.std()
    assert latents.mean(dim=0).abs().max() < 0.02
