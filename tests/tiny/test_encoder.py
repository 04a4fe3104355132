"""The computed encoder gives the coordinates of a patch along its principal components."""

from __future__ import annotations

import torch

from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.tiny import layout
from diffuse.tiny.encoder import PATCH, _principal_components, set_encoder_weights


@torch.no_grad()
def test_latents_are_coordinates_of_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 4, 4, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    images += 0.05 * torch.randn(images.shape, generator=generator)
    vae = AutoencoderKL(layout.build_config(AutoencoderKLConfig, layout.VAE)).eval()
    set_encoder_weights(vae, images)
    directions, mean = _principal_components(images, vae.config.latent_channels)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = (patches @ directions.T - mean).permute(0, 3, 1, 2)
    latents = vae.encode(images).mean
    assert latents.shape == expected.shape == (16, 8, 8, 8)
    torch.testing.assert_close(latents, expected, rtol=0.02, atol=0.02)
