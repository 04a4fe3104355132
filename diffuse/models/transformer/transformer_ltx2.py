"""The transformer of LTX-2 (HaCohen et al., "LTX-2: Efficient Joint Audio-Visual Foundation Model", 2026), which
denoises a film and its sound together.

Shapes: `B` batch, `T` tokens of the film, `A` of its sound, `T'` of a text, `C` channels, `D` width of a stream.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import ConfigError
from diffuse.layers.embeddings import TimestepEmbedding, sinusoidal_embedding
from diffuse.layers.packed import Linear
from diffuse.layers.rotary import Rotation, rotation_at
from diffuse.models.transformer.ltx2_block import LTX2VideoTransformerBlock, StreamContext
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig, StreamSettings
from diffuse.models.transformer.ltx2_coordinates import audio_coordinates, video_coordinates

_FREQUENCIES = 256  # of a timestep
_EPS_OUT = 1e-6
_HIDDEN = -10000.0  # added to the products of a token that is not seen


class Rotations(NamedTuple):
    """The rotary embeddings of all tokens: among those of a stream, and between the streams."""

    video: Rotation
    audio: Rotation
    cross_video: Rotation
    cross_audio: Rotation


class AudioVideoVelocity(NamedTuple):
    """The velocities of the film's latents, `video` `[B, T, C]`, and of the sound's, `audio` `[B, A, C]`."""

    video: Tensor
    audio: Tensor


class _AdaLayerNormSingle(nn.Module):
    """From timesteps to the rows of a modulation (Chen et al., "PixArt-alpha", 2023)."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(_FREQUENCIES, width)})
        self.linear = Linear(width, rows * width)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `timestep` `[B]` or `[B, T]` to rows `[B, 1 or T, rows, D]` and the embedding `[B, 1 or T, D]`."""
        waves = sinusoidal_embedding(timestep.flatten(), _FREQUENCIES).to(self.linear.weight.dtype)
        embedded = self.emb["timestep_embedder"](waves).unflatten(0, (len(timestep), -1))
        return self.linear(F.silu(embedded)).unflatten(-1, (self.rows, -1)), embedded


class _TextProjection(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(channels, width)
        self.linear_2 = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T', channels]` to `[B, T', D]`."""
        result: Tensor = self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))
        return result


class LTX2VideoTransformer3DModel(nn.Module):
    """Predicts the velocity of a film's latents and of its sound's at a timestep, given their texts."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (LTX2VideoTransformerBlock,)

    def __init__(self, config: LTX2VideoTransformer3DConfig) -> None:
        super().__init__()
        self.config = config
        video, audio = config.video, config.audio
        self.proj_in = Linear(config.in_channels, video.width)
        self.audio_proj_in = Linear(config.audio_in_channels, audio.width)
        self.keyframes_abs_pos_embedding: nn.Parameter | None = None
        if config.use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.empty(1, video.width))
        self.caption_projection: _TextProjection | None = None
        self.audio_caption_projection: _TextProjection | None = None
        if config.use_prompt_embeddings:
            self.caption_projection = _TextProjection(config.caption_channels, video.width)
            self.audio_caption_projection = _TextProjection(config.caption_channels, audio.width)

        self.time_embed = _AdaLayerNormSingle(video.width, video.rows)
        self.audio_time_embed = _AdaLayerNormSingle(audio.width, audio.rows)
        self.av_cross_attn_video_scale_shift = _AdaLayerNormSingle(video.width, 4)
        self.av_cross_attn_audio_scale_shift = _AdaLayerNormSingle(audio.width, 4)
        self.av_cross_attn_video_a2v_gate = _AdaLayerNormSingle(video.width, 1)
        self.av_cross_attn_audio_v2a_gate = _AdaLayerNormSingle(audio.width, 1)
        self.prompt_adaln: _AdaLayerNormSingle | None = None
        self.audio_prompt_adaln: _AdaLayerNormSingle | None = None
        if config.modulates_text and config.use_prompt_adaln_single:
            self.prompt_adaln = _AdaLayerNormSingle(video.width, 2)
            self.audio_prompt_adaln = _AdaLayerNormSingle(audio.width, 2)
        self.scale_shift_table = nn.Parameter(torch.empty(2, video.width))
        self.audio_scale_shift_table = nn.Parameter(torch.empty(2, audio.width))

        interleaved = config.rope_type == "interleaved"
        self.transformer_blocks = nn.ModuleList(
            LTX2VideoTransformerBlock(video, audio, interleaved=interleaved, eps=config.norm_eps)
            for _ in range(config.num_layers)
        )
        self.proj_out = Linear(video.width, config.out_channels or config.in_channels)
        self.audio_proj_out = Linear(audio.width, config.audio_out_channels or config.audio_in_channels)

    def coordinates(
        self, frames: int, height: int, width: int, *, fps: float, audio_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the places of a film's tokens `[T, 3]` and of its sound's `[A, 1]`, on the CPU.

        Sizes are those of the latents: frames, rows and columns of the film's, and frames of the sound's.
        """
        config = self.config
        film = video_coordinates(
            frames,
            height,
            width,
            fps=fps,
            scale_factors=config.vae_scale_factors,
            causal_offset=config.causal_offset,
        )
        sound = audio_coordinates(
            audio_frames,
            scale_factor=config.audio_scale_factor,
            hop_length=config.audio_hop_length,
            sampling_rate=config.audio_sampling_rate,
            causal_offset=config.causal_offset,
        )
        return film, sound

    def rotations(
        self, video_coordinates: Tensor, audio_coordinates: Tensor, device: torch.device | str | None = None
    ) -> Rotations:
        """Returns the rotary embeddings of tokens at these places, `[T, 3]` and `[A, 1]`, or one of both a sample,
        `[B, T, 3]` and `[B, A, 1]`. They are the same at every step. `device` is where they are used.
        """
        config = self.config
        film, sound = video_coordinates.float().to(device), audio_coordinates.float().to(device)
        both = max(config.pos_embed_max_pos, config.audio_pos_embed_max_pos)
        # Divided one by one: a tensor of the three would have to come from the host each time.
        parts = (config.pos_embed_max_pos, config.base_height, config.base_width)
        place = torch.stack([film[..., axis] / part for axis, part in enumerate(parts)], dim=-1)
        return Rotations(
            self._rotation(place, config.video),
            self._rotation(sound / config.audio_pos_embed_max_pos, config.audio),
            self._rotation(film[..., :1] / both, config.audio),
            self._rotation(sound / both, config.audio),
        )

    def _rotation(self, place: Tensor, stream: StreamSettings) -> Rotation:
        return rotation_at(
            place,
            heads=stream.heads,
            head_dim=stream.head_dim,
            theta=self.config.rope_theta,
            double_precision=self.config.rope_double_precision,
        )

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        audio_encoder_hidden_states: Tensor,
        timestep: Tensor,
        rotations: Rotations,
        *,
        audio_timestep: Tensor | None = None,
        sigma: Tensor | None = None,
        audio_sigma: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        audio_encoder_attention_mask: Tensor | None = None,
        video_self_attention_mask: Tensor | None = None,
        video_keyframes_mask: Tensor | None = None,
        stg_blocks: Collection[int] = (),
        stg_samples: Tensor | None = None,
        isolate_modalities: bool | Tensor = False,
        use_cross_timestep: bool = False,
    ) -> AudioVideoVelocity:
        """Predicts the velocities of `hidden_states` `[B, T, C]` and `audio_hidden_states` `[B, A, C]`.

        Timesteps and sigmas are noise levels times `timestep_scale_multiplier`, 1000; one for all, `[1]`, or `[B]`.

        Args:
            hidden_states: the film's latents, a token each, columns fastest.
            audio_hidden_states: the sound's latents, a token for each frame.
            encoder_hidden_states: the film's text, `[B, T', caption_channels or D]`.
            audio_encoder_hidden_states: the sound's text, `[B, T', caption_channels or D]`.
            timestep: that of the film; `[B, T]` where some tokens are less noisy than others.
            rotations: see there.
            audio_timestep: that of the sound, `audio_sigma` if not given; or `[B, A]`.
            sigma: the noise level of the film as a whole, `timestep` if not given.
            audio_sigma: that of the sound, `sigma` if not given.
            encoder_attention_mask: `[B, T']`, zero at tokens that are not seen. Without it all of them are.
            audio_encoder_attention_mask: likewise, for the sound's text.
            video_self_attention_mask: `[B, T, T]`, from 1 where a token sees another to 0 where it does not.
            video_keyframes_mask: `[B, T, 1]`, nonzero at tokens that are one frame of the pixels. Counts only with
                `use_keyframes_abs_pos_embedding`.
            stg_blocks: the numbers of the blocks whose self-attention is perturbed.
            stg_samples: `[B]`, true where it is. Without it, everywhere.
            isolate_modalities: leaves out the attention between film and sound; for some of the batch, if it is `[B]`.
            use_cross_timestep: whether that attention is modulated by the noise level of the other stream, as in 2.3,
                or by the stream's own timesteps, as in 2.0.

        Raises:
            ConfigError: `stg_blocks` names a block that is not there.
        """
        beyond = sorted(set(stg_blocks) - set(range(len(self.transformer_blocks))))
        if beyond:
            raise ConfigError(
                f"stg_blocks={list(stg_blocks)}: the model has the blocks 0 to {len(self.transformer_blocks) - 1}, and "
                f"no block {beyond[0]}"
            )
        sigma = timestep if sigma is None else sigma
        if sigma.ndim != 1:
            raise ValueError("a timestep for each token needs sigma, one for each sample")
        audio_sigma = sigma if audio_sigma is None else audio_sigma
        audio_timestep = audio_sigma if audio_timestep is None else audio_timestep

        video, audio = self.proj_in(hidden_states), self.audio_proj_in(audio_hidden_states)
        if self.keyframes_abs_pos_embedding is not None and video_keyframes_mask is not None:
            video = video + (video_keyframes_mask > 0).to(video.dtype) * self.keyframes_abs_pos_embedding
        text, audio_text = encoder_hidden_states, audio_encoder_hidden_states
        if self.caption_projection is not None and self.audio_caption_projection is not None:
            text, audio_text = self.caption_projection(text), self.audio_caption_projection(audio_text)

        modulation, embedded = self.time_embed(timestep)
        audio_modulation, audio_embedded = self.audio_time_embed(audio_timestep)
        cross = audio_sigma if use_cross_timestep else timestep
        audio_cross = sigma if use_cross_timestep else audio_timestep
        factor = self.config.cross_attn_timestep_scale_multiplier / self.config.timestep_scale_multiplier
        with_video = StreamContext(
            text=text,
            text_mask=_bias(encoder_attention_mask, video.dtype),
            modulation=modulation,
            text_modulation=None if self.prompt_adaln is None else self.prompt_adaln(sigma)[0],
            cross_modulation=self.av_cross_attn_video_scale_shift(cross)[0],
            cross_gate=self.av_cross_attn_video_a2v_gate(cross * factor)[0],
            rotation=rotations.video,
            cross_rotation=rotations.cross_video,
            self_mask=_bias(video_self_attention_mask, video.dtype),
        )
        with_audio = StreamContext(
            text=audio_text,
            text_mask=_bias(audio_encoder_attention_mask, audio.dtype),
            modulation=audio_modulation,
            text_modulation=None if self.audio_prompt_adaln is None else self.audio_prompt_adaln(audio_sigma)[0],
            cross_modulation=self.av_cross_attn_audio_scale_shift(audio_cross)[0],
            cross_gate=self.av_cross_attn_audio_v2a_gate(audio_cross * factor)[0],
            rotation=rotations.audio,
            cross_rotation=rotations.cross_audio,
        )
        for number, block in enumerate(self.transformer_blocks):
            perturbed = (True if stg_samples is None else stg_samples) if number in stg_blocks else False
            video, audio = block(video, audio, with_video, with_audio, perturbed, isolate_modalities)
        return AudioVideoVelocity(
            self.proj_out(_final(video, self.scale_shift_table, embedded)),
            self.audio_proj_out(_final(audio, self.audio_scale_shift_table, audio_embedded)),
        )


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns what a mask `[B, T']` or `[B, T, T']` adds to the products, `[B, 1, 1 or T, T']`."""
    if mask is None:
        return None
    bias = (1 - mask.to(dtype)) * _HIDDEN
    return bias[:, None, None] if mask.ndim == 2 else bias[:, None]


def _final(x: Tensor, table: Tensor, embedded: Tensor) -> Tensor:
    """Scales and shifts `[B, T, D]`, normalised, by a table `[2, D]` and the timestep's embedding `[B, 1 or T, D]`."""
    shift, scale = (table[:, None, None] + embedded).unbind(0)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_EPS_OUT), 1 + scale)


def rename(key: str) -> str | None:
    """Returns the module's key for a published key: the same."""
    return key
