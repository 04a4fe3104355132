"""The settings of LTX-2's transformer, and of each of its two streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from diffuse.errors import CheckpointError

_FILE = "transformer/config.json"
_DAMAGED = f"{_FILE}: {{text}}; the file is damaged: copy or download it again"


class StreamSettings(NamedTuple):
    """The architecture of one stream."""

    heads: int
    head_dim: int
    context_dim: int  # width of its text
    gated: bool  # every attention whose queries are its tokens
    modulated: bool  # the attention to the text
    ff_bias: bool

    @property
    def width(self) -> int:
        """The width of its tokens."""
        return self.heads * self.head_dim

    @property
    def rows(self) -> int:
        """The number of rows in its modulation: shift, scale and gate of each part."""
        return 9 if self.modulated else 6


@dataclass(frozen=True)
class LTX2VideoTransformer3DConfig:
    """The architecture, under the names of the published `transformer/config.json`."""

    in_channels: int = 128
    out_channels: int | None = 128
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    cross_attention_dim: int = 4096
    vae_scale_factors: tuple[int, int, int] = (8, 32, 32)
    pos_embed_max_pos: int = 20
    base_height: int = 2048
    base_width: int = 2048
    gated_attn: bool = False
    cross_attn_mod: bool = False
    audio_in_channels: int = 128
    audio_out_channels: int | None = 128
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_cross_attention_dim: int = 2048
    audio_scale_factor: int = 4
    audio_pos_embed_max_pos: int = 20
    audio_sampling_rate: int = 16000
    audio_hop_length: int = 160
    audio_gated_attn: bool = False
    audio_cross_attn_mod: bool = False
    num_layers: int = 48
    norm_eps: float = 1e-6
    caption_channels: int = 3840
    rope_theta: float = 10000.0
    rope_double_precision: bool = True
    causal_offset: int = 1
    timestep_scale_multiplier: float = 1000
    cross_attn_timestep_scale_multiplier: float = 1000
    rope_type: str = "interleaved"
    use_prompt_embeddings: bool = True
    perturbed_attn: bool = False  # trained for guidance by perturbed self-attention; the model can do it in any case
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_prompt_adaln_single: bool = True
    use_keyframes_abs_pos_embedding: bool = False

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_class_name": ("LTX2VideoTransformer3DModel",),
        "patch_size": (1,),
        "patch_size_t": (1,),
        "audio_patch_size": (1,),
        "audio_patch_size_t": (1,),
        "activation_fn": ("gelu-approximate",),
        "qk_norm": ("rms_norm_across_heads",),
        "norm_elementwise_affine": (False,),
        "attention_bias": (True,),
        "attention_out_bias": (True,),
    }

    def __post_init__(self) -> None:
        if self.rope_type not in ("interleaved", "split"):
            raise CheckpointError(
                f"{_FILE}: rope_type={self.rope_type} is not implemented, only interleaved or split; "
                "use another checkpoint"
            )
        numbers = {name: value for name, value in vars(self).items() if type(value) in (int, float)}
        numbers |= {f"vae_scale_factors[{axis}]": value for axis, value in enumerate(self.vae_scale_factors)}
        for name, value in numbers.items():
            if value < 0 or (value == 0 and name not in ("num_layers", "causal_offset")):
                raise CheckpointError(_DAMAGED.format(text=f"{name}={value} makes no model"))
        for stream in (self.video, self.audio):
            if stream.head_dim % 2:
                raise CheckpointError(
                    _DAMAGED.format(text=f"heads of {stream.head_dim} channels cannot be rotated in pairs")
                )
        # The text and the sound reach a stream at that stream's own width.
        widths = {"audio_cross_attention_dim": (self.audio_cross_attention_dim, self.audio.width)}
        if self.use_prompt_embeddings or self.modulates_text:
            widths["cross_attention_dim"] = (self.cross_attention_dim, self.video.width)
        for name, (found, needed) in widths.items():
            if found != needed:
                raise CheckpointError(
                    _DAMAGED.format(text=f"{name}={found} is not the {needed} channels of its heads together")
                )
        if self.rope_type == "split" and self.num_attention_heads != self.audio_num_attention_heads:
            raise CheckpointError(
                f"{_FILE}: rope_type=split with num_attention_heads={self.num_attention_heads} and "
                f"audio_num_attention_heads={self.audio_num_attention_heads} is not implemented, only as many heads "
                "for the sound as for the video; use another checkpoint"
            )

    @property
    def video(self) -> StreamSettings:
        """The settings of the video's stream."""
        return StreamSettings(
            self.num_attention_heads,
            self.attention_head_dim,
            self.cross_attention_dim,
            self.gated_attn,
            self.cross_attn_mod,
            self.ff_bias,
        )

    @property
    def audio(self) -> StreamSettings:
        """The settings of the sound's stream."""
        return StreamSettings(
            self.audio_num_attention_heads,
            self.audio_attention_head_dim,
            self.audio_cross_attention_dim,
            self.audio_gated_attn,
            self.audio_cross_attn_mod,
            self.audio_ff_bias,
        )

    @property
    def modulates_text(self) -> bool:
        """Tells whether what the streams attend to of their texts is scaled and shifted."""
        return self.cross_attn_mod or self.audio_cross_attn_mod
