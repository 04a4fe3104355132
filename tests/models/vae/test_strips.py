"""The autoencoder in strips: what it computes whole, but for rounding, in less memory."""

from __future__ import annotations

from collections.abc import Iterator

import oracle
import pytest
import torch
from model_peers import noise, ours
from oracle import Variant
from real_bytes import RealBytes

from diffuse.models.vae.autoencoder_kl import AutoencoderKL
from diffuse.plan.live_bytes import Ledger, LiveBytes

CHANNELS = {"four levels": (8, 8, 16, 16), "two levels": (8, 16), "one level": (16,)}
SIZES = [(9, 13), (3, 14), (11, 4)]  # latents; no multiple of a tile


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def build(name: str) -> AutoencoderKL:
    model = ours("vae", oracle.vae(Variant(vae_channels=CHANNELS[name])))
    assert isinstance(model, AutoencoderKL)
    return model


@pytest.mark.parametrize("name", CHANNELS)
def test_strips_are_the_whole_but_for_rounding(name: str) -> None:
    model = build(name)
    for size in SIZES:
        latents = noise(2, 4, *size) * 5
        factor = model.config.factor
        pixels = noise(2, 3, size[0] * factor + factor // 2, size[1] * factor + factor - 1)
        decoded, moments = model.decode(latents), model.encode(pixels)
        assert decoded.std() > 0.2
        for tile in (3, 8):
            torch.testing.assert_close(model.decode_tiled(latents, tile), decoded, rtol=0, atol=1e-4)
            encoded = model.encode_tiled(pixels, tile)
            torch.testing.assert_close(encoded.mean, moments.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(encoded.logvar, moments.logvar, rtol=0, atol=1e-4)


def test_strips_of_a_map_far_from_zero() -> None:
    model = build("two levels")
    model.decoder.conv_in.bias.data += 300  # norms of a map whose mean is far larger than its deviation
    latents = noise(1, 4, 12, 12)
    torch.testing.assert_close(model.decode_tiled(latents, 4), model.decode(latents), rtol=0, atol=1e-3)


def test_bfloat16_in_strips_is_as_near_to_float32_as_the_whole() -> None:
    model = build("four levels")
    latents = noise(1, 4, 9, 13)
    pixels = noise(1, 3, 72, 104).clamp(-1, 1)
    exact = model.decode(latents), model.encode(pixels).mean
    model.bfloat16()
    z, x = latents.bfloat16(), pixels.bfloat16()
    for want, whole, tiled in zip(
        exact,
        (model.decode(z), model.encode(x).mean),
        (model.decode_tiled(z, 4), model.encode_tiled(x, 4).mean),
        strict=True,
    ):
        assert tiled.dtype == torch.bfloat16
        assert (tiled - want).abs().mean() < 1.3 * (whole - want).abs().mean()


def test_smaller_tiles_take_less_memory() -> None:
    model = build("four levels")
    latents, pixels = noise(1, 4, 24, 24), noise(1, 3, 192, 192)
    model.decode(latents[..., :4, :4])
    model.encode(pixels[..., :32, :32])

    def peaks(tile: int) -> tuple[int, int]:
        found = []
        for call in (lambda: model.decode_tiled(latents, tile), lambda: model.encode_tiled(pixels, tile)):
            with RealBytes() as mode:
                call()
            found.append(mode.peak)
        return found[0], found[1]

    whole, half, small = peaks(24), peaks(12), peaks(4)
    for i in range(2):
        assert small[i] < half[i] < whole[i]
    assert small[0] < 0.6 * whole[0]
    assert small[1] < 0.8 * whole[1]


def test_strips_wait_where_they_are_told_to() -> None:
    model = build("four levels").to("meta")
    z = torch.empty(1, 4, 12, 12, device="meta")
    peaks = []
    for store in (None, torch.device("cpu")):
        device, host = Ledger(), Ledger()
        with LiveBytes(device, host, rounded=False):
            result = model.decode_tiled(z, 4, store=store)
        assert result.is_meta and result.shape == (1, 3, 96, 96)
        peaks.append((device.peak, host.peak))
    (here, none), (less, there) = peaks
    assert less < 0.8 * here
    assert none < 0.01 * there < 0.01 * here


@pytest.mark.parametrize("tile", [0, -1])
def test_a_tile_has_at_least_one_latent(tile: int) -> None:
    model = build("one level")
    for call in (model.decode_tiled, model.encode_tiled):
        with pytest.raises(ValueError, match="tile"):
            call(noise(1, 4, 8, 8), tile)
