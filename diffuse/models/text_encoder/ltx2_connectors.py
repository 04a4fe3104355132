"""The text connectors of LTX-2 (HaCohen et al., "LTX-2: Efficient Joint Audio-Visual Foundation Model", 2026): from the
hidden states of a text encoder to what the video's and the sound's denoiser attend to.

All hidden states of a text, 49 with the published text encoder, are normalised, stacked and projected. Their stack is
the largest thing that encoding makes, so the projection is a sum to which states are added as they are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError, ConfigError
from diffuse.layers.rotary import GELUFeedForward, RotaryAttention, Rotation, rotation_at

_EPS = 1e-6
_RANGE = 8.0  # over which LTX-2.0 spreads the values of a state
# A state's part of the projection's weight is not contiguous. It is copied for several states and some rows at a time.
_GROUP, _ROWS = 7, 512
_FILE = "connectors/config.json"


@dataclass(frozen=True)
class LTX2TextConnectorsConfig:
    """The architecture, under the names of the published `connectors/config.json`."""

    caption_channels: int = 3840
    text_proj_in_factor: int = 49
    video_connector_num_attention_heads: int = 30
    video_connector_attention_head_dim: int = 128
    video_connector_num_layers: int = 2
    video_connector_num_learnable_registers: int | None = 128
    video_gated_attn: bool = False
    audio_connector_num_attention_heads: int = 30
    audio_connector_attention_head_dim: int = 128
    audio_connector_num_layers: int = 2
    audio_connector_num_learnable_registers: int | None = 128
    audio_gated_attn: bool = False
    connector_rope_base_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_double_precision: bool = True
    rope_type: str = "interleaved"
    per_modality_projections: bool = False
    video_hidden_dim: int = 4096
    audio_hidden_dim: int = 2048
    proj_bias: bool = False

    # Connectors have one axis, of positions in the text, on which it has no effect.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"causal_temporal_positioning"})

    def __post_init__(self) -> None:
        if self.rope_type not in ("interleaved", "split"):
            raise CheckpointError(
                f"{_FILE}: rope_type={self.rope_type} is not implemented, only interleaved or split; "
                "use another checkpoint"
            )
        for stream in (self.video, self.audio):
            if stream.heads < 1 or stream.head_dim % 2 or (stream.registers is not None and stream.registers < 1):
                raise CheckpointError(
                    f"{_FILE}: {stream.heads} heads of {stream.head_dim} and {stream.registers} registers make no "
                    "connector; the file is damaged: copy or download it again"
                )
            if stream.projected != stream.heads * stream.head_dim:
                raise CheckpointError(
                    f"{_FILE}: text is projected to {stream.projected} channels, where the {stream.name} connector "
                    f"has {stream.heads} heads of {stream.head_dim}; the file is damaged: copy or download it again"
                )

    @property
    def video(self) -> _Stream:
        """The settings of the video's connector."""
        return _Stream(
            "video",
            self.video_connector_num_attention_heads,
            self.video_connector_attention_head_dim,
            self.video_connector_num_layers,
            self.video_connector_num_learnable_registers,
            self.video_gated_attn,
            self.video_hidden_dim if self.per_modality_projections else self.caption_channels,
        )

    @property
    def audio(self) -> _Stream:
        """The settings of the sound's connector."""
        return _Stream(
            "audio",
            self.audio_connector_num_attention_heads,
            self.audio_connector_attention_head_dim,
            self.audio_connector_num_layers,
            self.audio_connector_num_learnable_registers,
            self.audio_gated_attn,
            self.audio_hidden_dim if self.per_modality_projections else self.caption_channels,
        )


class _Stream(NamedTuple):
    name: str
    heads: int
    head_dim: int
    layers: int
    registers: int | None
    gated: bool
    projected: int  # the width of its input


class TextEmbeddings(NamedTuple):
    """The tokens that the denoiser attends to: `video` `[B, T, D]` and `audio` `[B, T, D']`. None of them is masked."""

    video: Tensor
    audio: Tensor


class _Block(nn.Module):
    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, stream: _Stream, interleaved: bool) -> None:
        super().__init__()
        width = stream.heads * stream.head_dim
        # Called once a text of up to a thousand tokens: beside their products, reordering a weight costs nothing, and
        # one that is packed would no longer be a page of its file.
        self.attn1 = RotaryAttention(
            width, stream.heads, stream.head_dim, gated=stream.gated, interleaved=interleaved, eps=_EPS
        )
        self.ff = GELUFeedForward(width)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`; `mask` `[B, 1, 1, T]` is true at tokens that are seen."""
        x = x + self.attn1(_normalise(x), rotation=rotation, mask=mask)
        result: Tensor = x + self.ff(_normalise(x))
        return result


def _normalise(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_EPS)


class _Connector(nn.Module):
    """Transformer blocks over the tokens of a text, which learned registers fill up to a fixed length."""

    def __init__(self, stream: _Stream, config: LTX2TextConnectorsConfig) -> None:
        super().__init__()
        self.config, self.stream = config, stream
        width = stream.heads * stream.head_dim
        self.learnable_registers = (
            None if stream.registers is None else nn.Parameter(torch.empty(stream.registers, width))
        )
        interleaved = config.rope_type == "interleaved"
        self.transformer_blocks = nn.ModuleList(_Block(stream, interleaved) for _ in range(stream.layers))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps `[B, T, D]` with `attention_mask` `[B, T]` to `[B, T, D]`.

        The tokens of a text move to the front, and registers take the places behind them; position p has register p
        modulo their number. Nothing is masked then. Without registers, padding stays where it is and is not seen.
        """
        length = x.shape[1]
        mask = None
        if self.learnable_registers is None:
            mask = (attention_mask != 0)[:, None, None, :]
        else:
            padding = attention_mask == 0
            order = padding.int().argsort(dim=1, stable=True)
            x = x.gather(1, order[..., None].expand_as(x))
            registers = self.learnable_registers.repeat(length // len(self.learnable_registers), 1)  # [T, D]
            x = torch.where(padding.gather(1, order)[..., None], registers.to(x.dtype), x)
        rotation = self._rotation(length, x.device)
        for block in self.transformer_blocks:
            x = block(x, rotation, mask)
        return _normalise(x)

    def _rotation(self, length: int, device: torch.device) -> Rotation:
        """Returns the rotation of `length` tokens."""
        place = torch.arange(length, dtype=torch.float32, device=device) / self.config.connector_rope_base_seq_len
        return rotation_at(
            place[:, None],
            heads=self.stream.heads,
            head_dim=self.stream.head_dim,
            theta=self.config.rope_theta,
            double_precision=self.config.rope_double_precision,
        )


class TextProjection:
    """The sum over a text's hidden states of what each contributes to the connectors' inputs.

    Made by `LTX2TextConnectors.project`. Takes each state once, in order, and keeps none of them for long.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], config: LTX2TextConnectorsConfig, mask: Tensor) -> None:
        """Takes the linear layer of each projection by its name, and the texts' mask `[B, T]`."""
        self.layers, self.config, self.mask = layers, config, mask != 0
        self.states = 0
        self._waiting: list[Tensor] = []  # normalised, `[B, T', W]` each
        self._sums: dict[str, Tensor] = {}

    def receive(self, number: int, state: Tensor) -> None:
        """Adds a hidden state `[B, T', W]`, the `number`-th from zero.

        `T'` may be less than `T`: what a text encoder leaves out at the beginning is padding in every row.

        Raises:
            CheckpointError: it is not of the text encoder that the connectors were made for.
        """
        channels, states = self.config.caption_channels, self.config.text_proj_in_factor
        if state.shape[-1] != channels or number >= states:
            raise CheckpointError(
                f"{_FILE}: the connectors take {states} hidden states of {channels} channels, and the text encoder "
                f"gives one of {state.shape[-1]} with the number {number}; use the text encoder of the same checkpoint"
            )
        if number != self.states:
            raise ValueError(f"hidden state {number} came where {self.states} was next")
        weight = next(iter(self.layers.values())).weight
        self._waiting.append(self._normalised(state.to(weight.device)).to(weight.dtype))
        self.states += 1
        if len(self._waiting) == _GROUP:
            self._add()

    def result(self) -> dict[str, Tensor]:
        """Returns each projection `[B, T, D]` by its name, when all states have come.

        Raises:
            CheckpointError: the text encoder had too few layers.
        """
        if self.states != self.config.text_proj_in_factor:
            raise CheckpointError(
                f"{_FILE}: the connectors take {self.config.text_proj_in_factor} hidden states, and the text encoder "
                f"gives {self.states}; use the text encoder of the same checkpoint"
            )
        self._add()
        projected = {}
        for name, layer in self.layers.items():
            total = self._sums.pop(name)
            if self.config.per_modality_projections:
                total *= math.sqrt(layer.out_features / self.config.caption_channels)
            if layer.bias is not None:
                total += layer.bias
            before = self.mask.shape[1] - total.shape[1]
            left = torch.zeros(layer.out_features, device=total.device) if layer.bias is None else layer.bias.float()
            padding = left.expand(len(total), before, -1)
            projected[name] = torch.cat((padding, total), dim=1).to(layer.weight.dtype)
        return projected

    def _normalised(self, state: Tensor) -> Tensor:
        """Returns a state `[B, T', W]` normalised in float32, with zeros at padding."""
        valid = self.mask[:, -state.shape[1] :, None].to(state.device)
        x = state.float()
        if self.config.per_modality_projections:  # LTX-2.3: each token by its root mean square
            return _normalise(x).masked_fill(~valid, 0.0)
        # LTX-2.0: all tokens of a text together, by their mean and range.
        count = valid.sum(dim=1, keepdim=True) * x.shape[-1]
        mean = x.masked_fill(~valid, 0.0).sum(dim=(1, 2), keepdim=True) / (count + _EPS)
        least = x.masked_fill(~valid, math.inf).amin(dim=(1, 2), keepdim=True)
        most = x.masked_fill(~valid, -math.inf).amax(dim=(1, 2), keepdim=True)
        return ((x - mean) / (most - least + _EPS) * _RANGE).masked_fill(~valid, 0.0)

    def _add(self) -> None:
        """Projects the states that wait, and adds them to the sums, which are float32."""
        if not self._waiting:
            return
        first, count = self.states - len(self._waiting), len(self._waiting)
        x = torch.stack(self._waiting, dim=-1).flatten(2)  # [B, T', W * count], the state fastest, as in the weight
        self._waiting.clear()
        for name, layer in self.layers.items():
            weight = layer.weight.unflatten(1, (self.config.caption_channels, -1))[:, :, first : first + count]
            total = self._sums.get(name)
            if total is None:
                total = torch.zeros(*x.shape[:2], layer.out_features, device=x.device)
                self._sums[name] = total
            for row in range(0, layer.out_features, _ROWS):
                rows = slice(row, row + _ROWS)
                total[..., rows] += F.linear(x, weight[rows].flatten(1))


class LTX2TextConnectors(nn.Module):
    """From the hidden states of a text encoder to `TextEmbeddings`.

    `project` comes first; its `receive` is given to the text encoder. Then `forward` takes the result.
    """

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_Block,)

    def __init__(self, config: LTX2TextConnectorsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.caption_channels * config.text_proj_in_factor
        if config.per_modality_projections:
            self.video_text_proj_in = nn.Linear(width, config.video_hidden_dim, bias=config.proj_bias)
            self.audio_text_proj_in = nn.Linear(width, config.audio_hidden_dim, bias=config.proj_bias)
        else:
            self.text_proj_in = nn.Linear(width, config.caption_channels, bias=config.proj_bias)
        self.video_connector = _Connector(config.video, config)
        self.audio_connector = _Connector(config.audio, config)

    def project(self, attention_mask: Tensor) -> TextProjection:
        """Returns the projection, still empty, of texts whose `attention_mask` `[B, T]` is nonzero at their tokens.

        Raises:
            ConfigError: the registers do not fill that length.
        """
        self._check(attention_mask.shape[1])
        layers = (
            {"video": self.video_text_proj_in, "audio": self.audio_text_proj_in}
            if self.config.per_modality_projections
            else {"both": self.text_proj_in}
        )
        return TextProjection(layers, self.config, attention_mask)

    def forward(self, projected: Mapping[str, Tensor], attention_mask: Tensor) -> TextEmbeddings:
        """Maps the result of `project`, `[B, T, D]` each, with `attention_mask` `[B, T]` to `TextEmbeddings`."""
        self._check(attention_mask.shape[1])
        video, audio = (projected.get(name, projected.get("both")) for name in ("video", "audio"))
        return TextEmbeddings(self.video_connector(video, attention_mask), self.audio_connector(audio, attention_mask))

    def _check(self, length: int) -> None:
        for stream in (self.config.video, self.config.audio):
            if stream.registers is not None and length % stream.registers:
                raise ConfigError(
                    f"a text of {length} tokens with its padding cannot be filled by the {stream.registers} registers "
                    f"of the checkpoint; use a multiple of {stream.registers}"
                )
