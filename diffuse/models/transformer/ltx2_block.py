"""The repeated block of LTX-2's transformer: a stream of video and one of sound, which attend to one another.

Shapes: `B` batch, `T` tokens of a stream, `T'` of its text, `D` its width. A modulation holds `n` rows for each sample
or each token, `[B, 1 or T, n, D]`; a block adds a table of its own to it. `B` of a modulation may be 1.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.rotary import GELUFeedForward, RotaryAttention, Rotation
from diffuse.models.transformer.ltx2_config import StreamSettings


class StreamContext(NamedTuple):
    """The text, modulation and rotations that a stream's tokens are computed with: the same in every block.

    `rotation` is for the attention among its tokens, and `cross_rotation` for that to the other stream.
    """

    text: Tensor  # [B, T', D]
    text_mask: Tensor | None  # [B, 1, 1, T'], added to the products
    modulation: Tensor  # [B, 1 or T, 6 or 9, D]
    text_modulation: Tensor | None  # [B, 1, 2, D]
    cross_modulation: Tensor  # [B, 1 or T, 4, D]: scale and shift towards the video, then towards the sound
    cross_gate: Tensor  # [B, 1 or T, 1, D]
    rotation: Rotation
    cross_rotation: Rotation
    self_mask: Tensor | None = None  # [B, 1, T, T], added to the products


def normalise(x: Tensor, eps: float) -> Tensor:
    """Divides `[..., D]` by its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)


class LTX2VideoTransformerBlock(nn.Module):
    """Attention of each stream to itself, to its text and to the other stream, then a feed forward.

    Every part is normalised first, modulated by the timestep, and added to its input through a gate (Peebles and Xie,
    "Scalable Diffusion Models with Transformers", 2022; one modulation for all blocks: Chen et al., "PixArt-alpha",
    2023).
    """

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, video: StreamSettings, audio: StreamSettings, *, interleaved: bool, eps: float) -> None:
        super().__init__()
        self.video, self.audio, self.eps = video, audio, eps

        def attention(stream: StreamSettings, inner: StreamSettings, context_dim: int) -> RotaryAttention:
            return RotaryAttention(
                stream.width,
                inner.heads,
                inner.head_dim,
                context_dim,
                gated=stream.gated,
                interleaved=interleaved,
                packed=True,
            )

        self.attn1 = attention(video, video, video.width)
        self.audio_attn1 = attention(audio, audio, audio.width)
        self.attn2 = attention(video, video, video.context_dim)
        self.audio_attn2 = attention(audio, audio, audio.context_dim)
        # Both directions compute in the heads of the sound.
        self.audio_to_video_attn = attention(video, audio, audio.width)
        self.video_to_audio_attn = attention(audio, audio, video.width)
        self.ff = GELUFeedForward(video.width, bias=video.ff_bias, packed=True)
        self.audio_ff = GELUFeedForward(audio.width, bias=audio.ff_bias, packed=True)

        self.scale_shift_table = nn.Parameter(torch.empty(video.rows, video.width))
        self.audio_scale_shift_table = nn.Parameter(torch.empty(audio.rows, audio.width))
        self.prompt_scale_shift_table: nn.Parameter | None = None
        self.audio_prompt_scale_shift_table: nn.Parameter | None = None
        if video.modulated or audio.modulated:  # either one modulates both texts
            self.prompt_scale_shift_table = nn.Parameter(torch.empty(2, video.width))
            self.audio_prompt_scale_shift_table = nn.Parameter(torch.empty(2, audio.width))
        self.video_a2v_cross_attn_scale_shift_table = nn.Parameter(torch.empty(5, video.width))
        self.audio_a2v_cross_attn_scale_shift_table = nn.Parameter(torch.empty(5, audio.width))

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        with_video: StreamContext,
        with_audio: StreamContext,
        perturbed: bool | Tensor = False,
        isolated: bool | Tensor = False,
    ) -> tuple[Tensor, Tensor]:
        """Maps `video` `[B, T, D]` and `audio` `[B, T, D]` to the same shapes.

        `perturbed` takes values in the place of self-attention, and `isolated` leaves out the attention between the
        streams; either is for some of the batch, where it is `[B]`.
        """
        video = self._attend_to_itself(video, self.attn1, self.scale_shift_table, with_video, perturbed)
        audio = self._attend_to_itself(audio, self.audio_attn1, self.audio_scale_shift_table, with_audio, perturbed)
        video = self._attend_to_text(
            video, self.attn2, self.scale_shift_table, self.prompt_scale_shift_table, with_video
        )
        audio = self._attend_to_text(
            audio, self.audio_attn2, self.audio_scale_shift_table, self.audio_prompt_scale_shift_table, with_audio
        )
        if isolated is not True:
            video, audio = self._attend_to_one_another(video, audio, with_video, with_audio, isolated)
        video = self._feed_forward(video, self.ff, self.scale_shift_table, with_video)
        audio = self._feed_forward(audio, self.audio_ff, self.audio_scale_shift_table, with_audio)
        return video, audio

    def _attend_to_itself(
        self, x: Tensor, attention: nn.Module, table: Tensor, using: StreamContext, perturbed: bool | Tensor
    ) -> Tensor:
        shift, scale, gate = _rows(table, using.modulation, 0, 3)
        out = attention(
            _modulate(normalise(x, self.eps), scale, shift),
            rotation=using.rotation,
            mask=using.self_mask,
            perturbed=perturbed,
        )
        return torch.addcmul(x, out, gate)

    def _attend_to_text(
        self, x: Tensor, attention: nn.Module, table: Tensor, text_table: Tensor | None, using: StreamContext
    ) -> Tensor:
        text = using.text
        if text_table is not None:
            shift, scale = (
                text_table[None, None].to(text.dtype).unbind(2)
                if using.text_modulation is None
                else _rows(text_table, using.text_modulation, 0, 2)
            )
            text = _modulate(text, scale, shift)
        normalised = normalise(x, self.eps)
        if len(table) == 6:
            out: Tensor = attention(normalised, text, mask=using.text_mask)
            return out.add_(x)
        shift, scale, gate = _rows(table, using.modulation, 6, 9)
        return torch.addcmul(x, attention(_modulate(normalised, scale, shift), text, mask=using.text_mask), gate)

    def _attend_to_one_another(
        self,
        video: Tensor,
        audio: Tensor,
        with_video: StreamContext,
        with_audio: StreamContext,
        isolated: bool | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adds the attention from each stream to the other as it was before. Here scale stands before shift."""
        tables = (self.video_a2v_cross_attn_scale_shift_table, self.audio_a2v_cross_attn_scale_shift_table)
        streams = (normalise(video, self.eps), normalise(audio, self.eps))
        contexts = (with_video, with_audio)
        rotations = (with_video.cross_rotation, with_audio.cross_rotation)
        added = []
        for to, attention in enumerate((self.audio_to_video_attn, self.video_to_audio_attn)):
            query, answer = (
                _modulate(x, *_rows(table[:4], using.cross_modulation, 2 * to, 2 * to + 2))
                for x, table, using in zip(streams, tables, contexts, strict=True)
            )
            (gate,) = _rows(tables[to][4:], contexts[to].cross_gate, 0, 1)
            if isinstance(isolated, Tensor):
                gate = gate.masked_fill(isolated[:, None, None], 0.0)
            if to == 1:
                query, answer = answer, query
            out = attention(query, answer, rotation=rotations[to], context_rotation=rotations[1 - to])
            added.append(torch.addcmul((video, audio)[to], out, gate))
        return added[0], added[1]

    def _feed_forward(self, x: Tensor, feed_forward: nn.Module, table: Tensor, using: StreamContext) -> Tensor:
        shift, scale, gate = _rows(table, using.modulation, 3, 6)
        return torch.addcmul(x, feed_forward(_modulate(normalise(x, self.eps), scale, shift)), gate)


def _rows(table: Tensor, modulation: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    """Returns some rows of a table `[n, D]` and a modulation together, `[B, 1 or T, D]` each.

    Not all at once: with a timestep for each token, they are larger than the tokens.
    """
    return (table[first:last] + modulation[:, :, first:last]).unbind(2)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)
