"""The layout of a film's latents and of its sound's: how they are packed as one sequence of tokens, the film first.

A token of the film is one value of its latents, columns fastest, and one of the sound is a moment of it. A batch of
films with their sound is one tensor `[B, T + A, C]`. Where a sound's tokens have fewer channels than a film's, zeros
follow them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.sampling.denoise import initial_noise
from diffuse.schema import GenerationRequest


@dataclass(frozen=True)
class FilmLayout:
    """The sizes of the latents of one film with its sound."""

    channels: int  # of the film's latents
    frames: int
    rows: int
    columns: int
    audio_channels: int
    audio_width: int  # channels of the sound's tokens: those of its latents times their bins
    audio_frames: int
    fps: float

    @property
    def video_tokens(self) -> int:
        """The number of the film's tokens."""
        return self.frames * self.rows * self.columns

    @property
    def frame_tokens(self) -> int:
        """The number of tokens of one frame of the latents."""
        return self.rows * self.columns

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a film's tokens with its sound's."""
        return self.video_tokens + self.audio_frames, self.channels

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Splits `[B, T + A, C]` into the film's tokens `[B, T, C]` and the sound's `[B, A, C']`.

        Tokens between them, which conditions append, are left out.
        """
        return tokens[:, : self.video_tokens], tokens[:, -self.audio_frames :, : self.audio_width]

    def join(self, video: Tensor, audio: Tensor) -> Tensor:
        """Returns a film's tokens `[B, T, C]` and its sound's `[B, A, C']` as one sequence `[B, T + A, C]`."""
        return join_tokens(video, audio)

    def pack_video(self, z: Tensor) -> Tensor:
        """Returns latents of a film `[B, C, F, h, w]` as tokens `[B, T, C]`."""
        return z.flatten(2).transpose(1, 2)

    def unpack_video(self, tokens: Tensor) -> Tensor:
        """Returns a film's tokens `[B, T, C]` as latents `[B, C, F, h, w]`."""
        return tokens.transpose(1, 2).unflatten(2, (self.frames, self.rows, self.columns))

    def pack_audio(self, z: Tensor) -> Tensor:
        """Returns latents of a sound `[B, c, A, bins]` as tokens `[B, A, C']`."""
        return z.transpose(1, 2).flatten(2)

    def unpack_audio(self, tokens: Tensor) -> Tensor:
        """Returns a sound's tokens `[B, A, C']` as latents `[B, c, A, bins]`."""
        return tokens.unflatten(2, (self.audio_channels, -1)).transpose(1, 2)

    def join_named(self, latents: Mapping[str, Tensor], count: int) -> Tensor:
        """Returns the latents of `count` films by name, `video` and `audio`, as tokens `[N, T + A, C]`.

        Raises:
            ConfigError: others are given, or one is of another shape.
        """
        shapes = {
            "video": (count, self.channels, self.frames, self.rows, self.columns),
            "audio": (count, *self._audio_shape),
        }
        if set(latents) != set(shapes):
            raise ConfigError(f"latents: hold {', '.join(latents) or 'nothing'}; give those of video and audio")
        for name, shape in shapes.items():
            if tuple(latents[name].shape) != shape:
                raise ConfigError(f"latents: {name} is {tuple(latents[name].shape)}; this request needs {shape}")
        return self.join(self.pack_video(latents["video"]), self.pack_audio(latents["audio"])).contiguous()

    def draw_noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws unit noise `[B, T + A, C]` as the reference does: the film's in the shape of its latents, then the
        sound's in that of its own."""
        return self.join(self.draw_video(generators), self._draw_audio(generators))

    def draw_video(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws the film's noise `[B, T, C]` in the shape of its latents."""
        return self.pack_video(initial_noise((self.channels, self.frames, self.rows, self.columns), generators))

    def _draw_audio(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.pack_audio(initial_noise(self._audio_shape, generators))

    @property
    def _audio_shape(self) -> tuple[int, int, int]:
        return self.audio_channels, self.audio_frames, self.audio_width // self.audio_channels


def join_tokens(video: Tensor, audio: Tensor) -> Tensor:
    """Returns tokens of films `[B, T, C]` and of sounds `[B, A, C']` as `[B, T + A, C]`; zeros follow the latter."""
    missing = video.shape[2] - audio.shape[2]
    return torch.cat((video, F.pad(audio, (0, missing)) if missing else audio), dim=1)


def film_layout(request: GenerationRequest, vae: Any, audio_vae: Any) -> FilmLayout:
    """Returns the layout of a film's latents `[B, T + A, C]`, by the configurations of the autoencoders."""
    frames, fps = request.num_frames, request.fps
    assert frames is not None and fps is not None
    return FilmLayout(
        channels=vae.latent_channels,
        frames=(frames - 1) // vae.frames + 1,
        rows=request.height // vae.factor,
        columns=request.width // vae.factor,
        audio_channels=audio_vae.latent_channels,
        audio_width=audio_vae.base_channels,
        audio_frames=max(round(frames / fps * audio_vae.latents_per_second), 1),
        fps=fps,
    )
