"""Decoding of LTX-2's latents to frames and to sound, one film after the other, and encoding of frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffuse.device.memory import Memory
from diffuse.models.vae.tiled_video import VideoTiling, decoded_frames, encode_tiled
from diffuse.pipelines.ltx2_layout import FilmLayout
from diffuse.sampling.denoise import require_finite

VAE, AUDIO_VAE, VOCODER = "vae", "audio_vae", "vocoder"  # the components that are used here
_RUN = 8  # frames whose pixels are rounded at once


class FilmCodec:
    """The autoencoders and the vocoder of a checkpoint."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def frames(self, tokens: Tensor, layout: FilmLayout) -> np.ndarray:
        """Decodes a denoiser's tokens of films `[B, T, C]` to uint8 frames `[B, F, H, W, 3]`."""
        self.memory.reach()
        return np.stack([self._decode_film(film, layout) for film in tokens.split(1)])

    def sound(self, tokens: Tensor, layout: FilmLayout) -> np.ndarray:
        """Decodes a denoiser's tokens of sounds `[B, A, C]` to waveforms `[B, 2, S]`, float32 from -1 to 1."""
        memory = self.memory
        memory.reach()

        def decode_mel() -> Tensor:
            device, dtype = memory.device(AUDIO_VAE), memory.dtype(AUDIO_VAE)
            with memory.use(AUDIO_VAE) as audio_vae:
                z = layout.unpack_audio(audio_vae.denormalized(tokens.float().to(device)))
                mel: Tensor = audio_vae.decode(z.to(dtype))
            require_finite(mel, AUDIO_VAE, dtype)
            return mel

        mel = memory.attempt(AUDIO_VAE, decode_mel, phase="decode")

        def decode_waveform() -> np.ndarray:
            device, dtype = memory.device(VOCODER), memory.dtype(VOCODER)
            with memory.use(VOCODER) as vocoder:
                waveform = vocoder(mel.to(device, dtype))
            require_finite(waveform, VOCODER, dtype)
            samples: np.ndarray = waveform.float().clamp(-1, 1).cpu().numpy()
            return samples

        return memory.attempt(VOCODER, decode_waveform, phase="decode")

    def encode(self, pixels: Tensor, layout: FilmLayout) -> Tensor:
        """Encodes frames `[1, 3, F, H, W]` in -1..1 as the denoiser's tokens `[1, K, C]`, in float32."""
        memory = self.memory

        def encode() -> Tensor:
            device, dtype = memory.device(VAE), memory.dtype(VAE)
            film = pixels.to(device, dtype)
            with memory.use(VAE) as vae:
                tiled = memory.profile.tiled_encode
                mean = encode_tiled(vae, film, _tiling(memory)) if tiled else vae.encode(film).mode()
                z: Tensor = vae.normalized(mean.float())
            require_finite(z, VAE, dtype)
            return layout.pack_video(z)

        return memory.attempt(VAE, encode, phase="encode")

    def named(self, tokens: Tensor, layout: FilmLayout) -> dict[str, Tensor]:
        """Returns a denoiser's tokens `[N, T + A, C]` as the autoencoders' own latents: `video` `[N, C, F, h, w]` and
        `audio` `[N, c, A, bins]`, as the reference gives them."""
        video, audio = layout.split(tokens)
        with self.memory.use(VAE) as vae:
            films = vae.denormalized(layout.unpack_video(video.to(self.memory.device(VAE)))).cpu()
        with self.memory.use(AUDIO_VAE) as audio_vae:
            sounds = audio_vae.denormalized(audio.to(self.memory.device(AUDIO_VAE))).cpu()
        return {"video": films, "audio": layout.unpack_audio(sounds).contiguous()}

    def _decode_film(self, tokens: Tensor, layout: FilmLayout) -> np.ndarray:
        """Decodes tokens of one film `[1, T, C]` to uint8 frames `[F, H, W, 3]`."""
        memory = self.memory

        def decode() -> np.ndarray:
            device, dtype = memory.device(VAE), memory.dtype(VAE)
            with memory.use(VAE) as vae:
                z = vae.denormalized(layout.unpack_video(tokens.float().to(device))).to(dtype)
                if not memory.tiled_decode:
                    return _frames(vae.decode(z), dtype)
                runs = [_frames(run, dtype) for run in decoded_frames(vae, z, _tiling(memory))]
            return np.concatenate(runs)

        return memory.attempt(VAE, decode, phase="decode")


def _frames(pixels: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Returns pixels `[1, 3, F, H, W]` in -1..1 as uint8 `[F, H, W, 3]`."""
    require_finite(pixels, VAE, dtype)
    parts = []
    for run in pixels[0].split(_RUN, dim=1):  # all at once would take as much memory as the decoder
        unit = (run.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
        parts.append((unit * 255).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


def _tiling(memory: Memory) -> VideoTiling:
    """Returns the tiles of the memory profile, whose overlap may be that of pictures: none."""
    side = memory.profile.vae_tile_size
    overlap = memory.profile.vae_tile_overlap or max(side // 8, 1)
    frames = memory.profile.vae_tile_frames
    return VideoTiling(side, min(overlap, side - 1), frames, max(round(frames / 4), 1))
