"""The computed video autoencoder is linear, exact where its coordinates tell all, and its latents are half whitened."""

from __future__ import annotations

import pytest
import torch

from diffuse.models.vae.autoencoder_kl_ltx2_video import AutoencoderKLLTX2Video
from diffuse.tiny import train_video
from diffuse.tiny.video_encoder import set_video_autoencoder_weights


def films(count: int) -> torch.Tensor:
    """Films of few degrees of freedom: a drifting sum of three waves, each with a colour."""
    generator = torch.Generator().manual_seed(count)
    t, y, x = torch.meshgrid(torch.arange(17.0), torch.arange(64.0), torch.arange(64.0), indexing="ij")
    made = torch.zeros(count, 3, 17, 64, 64)
    for k in range(3):
        phase = (0.05 + 0.01 * k) * x + (0.08 - 0.01 * k) * y + 0.1 * t + k
        made += 0.3 * torch.randn(count, 3, 1, 1, 1, generator=generator) * phase.sin()
    return made


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLLTX2Video:
    torch.manual_seed(0)
    vae: AutoencoderKLLTX2Video = train_video.build("vae")
    set_video_autoencoder_weights(vae.eval(), films(64))
    return vae


@torch.no_grad()
def test_films_come_back(vae: AutoencoderKLLTX2Video) -> None:
    seen = films(32)
    error = (vae.decode(vae.encode(seen).mean) - seen).square().mean()
    assert error < 5e-3 * seen.square().mean()


@torch.no_grad()
def test_it_is_linear_and_its_weights_fit_half_precision(vae: AutoencoderKLLTX2Video) -> None:
    one, other = films(1), films(2)[:1]
    latents = [vae.encode(each).mean for each in (one, other, 0.5 * one + 0.5 * other)]
    torch.testing.assert_close(latents[2], (latents[0] + latents[1]) / 2, rtol=0.02, atol=0.05)
    assert max(float(weight.abs().max()) for weight in vae.parameters()) < torch.finfo(torch.float16).max


@torch.no_grad()
def test_normalized_latents_are_half_whitened(vae: AutoencoderKLLTX2Video) -> None:
    z = vae.encode(films(64)).mean
    raw, normalized = (each.std(dim=(0, 2, 3, 4)) for each in (z, vae.normalized(z)))
    torch.testing.assert_close(normalized, raw.sqrt() / raw.mean().sqrt(), rtol=1e-3, atol=1e-3)
