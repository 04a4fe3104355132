"""The text-conditioned U-Net of Stable Diffusion (Rombach et al., "High-Resolution Image Synthesis with Latent
Diffusion Models", 2022), with the state-dict keys of the published checkpoints.

Everything that SD 1.x, 2.x, SDXL and their relatives configure is implemented; another value is refused by name when
the checkpoint's `config.json` is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError
from diffuse.layers.attention import BasicTransformerBlock, Transformer2DModel
from diffuse.layers.embeddings import TimestepEmbedding, sinusoidal_embedding
from diffuse.layers.packed import Conv2d
from diffuse.layers.resnet import Downsample2D, ResnetBlock2D, Upsample2D

T = TypeVar("T")

_MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
_LEVELS = (
    "unet/config.json: {name} has {count} entries and block_out_channels {levels}, which should be as many; copy or "
    "download it again"
)


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """The architecture, under the names of the published `unet/config.json`."""

    sample_size: int | tuple[int, int] | None = 64  # latent rows and columns the model was trained at
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    # For a level, or for each block of a level; on the way up, first the lowest level, those of `reverse_...` if given.
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    attention_head_dim: int | tuple[int, ...] = 8  # published under this name, it is the NUMBER of heads per level
    num_attention_heads: int | tuple[int, ...] | None = None  # the same under its right name, in newer files
    cross_attention_dim: int | tuple[int, ...] = 1280
    use_linear_projection: bool | None = False
    upcast_attention: bool | None = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: str | None = None  # text_time: SDXL's pooled text and sizes, added to the timestep's embedding
    addition_time_embed_dim: int | None = None  # width of the embedding of each of those sizes
    projection_class_embeddings_input_dim: int | None = None  # width of the pooled text and all sizes together
    time_cond_proj_dim: int | None = None  # width of the embedded guidance scale that a distilled model takes

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_class_name": ("UNet2DConditionModel",),
        "act_fn": ("silu", "swish"),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1, 1.0),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "resnet_out_scale_factor": (1, 1.0),
        "attention_type": ("default",),
    }
    # Read by training, or by settings that are themselves refused unless they are off; or the state of a moving average
    # of the weights, which is saved with the model.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        """
        addition_embed_type_num_heads decay dropout gradient_checkpointing inv_gamma min_decay optimization_step power
        update_after_step use_ema_warmup
        """.split()  # noqa: SIM905
    )

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            types = getattr(self, name)
            if len(types) != levels:
                raise CheckpointError(_LEVELS.format(name=name, count=len(types), levels=levels))
            known = ("DownBlock2D", "CrossAttnDownBlock2D") if name[0] == "d" else ("UpBlock2D", "CrossAttnUpBlock2D")
            for block in types:
                if block not in known:
                    raise CheckpointError(
                        f"unet/config.json: {name}={block} is not implemented, only {' and '.join(known)}; use another "
                        "checkpoint"
                    )
        for name in (
            "layers_per_block",
            "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
            "attention_head_dim",
            "cross_attention_dim",
        ):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise CheckpointError(_LEVELS.format(name=name, count=len(value), levels=levels))
        if self.mid_block_type not in (None, *_MID_BLOCKS):
            raise CheckpointError(
                f"unet/config.json: mid_block_type={self.mid_block_type} is not implemented, only "
                f"{' and '.join(_MID_BLOCKS)}; use another checkpoint"
            )
        for level, blocks in enumerate(self.per_level(self.layers_per_block)):
            down = self.per_level(self.transformer_layers_per_block)[level]
            up = self.depths_up[-1 - level]
            if (isinstance(down, tuple) and len(down) < blocks) or (isinstance(up, tuple) and len(up) <= blocks):
                raise CheckpointError(
                    f"unet/config.json: transformer_layers_per_block gives {down} on the way down and {up} on the way "
                    f"up to a level of {blocks} and {blocks + 1} blocks; copy or download it again"
                )
        if self.addition_embed_type not in (None, "text_time"):
            raise CheckpointError(
                f"unet/config.json: addition_embed_type={self.addition_embed_type} is not implemented, only text_time; "
                "use another checkpoint"
            )
        if self.addition_embed_type and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise CheckpointError(
                "unet/config.json: addition_embed_type=text_time needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim; the file is damaged: copy or download it again"
            )

    def per_level(self, value: int | tuple[T, ...]) -> tuple[int | T, ...]:
        """Returns `value` for every level, first to last."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def depths_up(self) -> tuple[int | tuple[int, ...], ...]:
        """Is the number of transformer layers of every level on the way up, the lowest first."""
        if self.reverse_transformer_layers_per_block is not None:
            return self.reverse_transformer_layers_per_block
        return tuple(reversed(self.per_level(self.transformer_layers_per_block)))

    @property
    def heads(self) -> tuple[int, ...]:
        """Is the number of attention heads of every level."""
        return self.per_level(self.attention_head_dim if self.num_attention_heads is None else self.num_attention_heads)


def _repeat(x: Tensor, batch: int) -> Tensor:
    """Repeats `[B, C, H, W]` as a whole to `[batch, C, H, W]`, channels last in memory if it was."""
    return x if len(x) == batch else torch.cat([x] * (batch // len(x)))


class UNetBlock(nn.Module):
    """One level on the way down or up: residual blocks, each followed by attention where the level has it."""

    def __init__(
        self,
        config: UNet2DConditionConfig,
        resnets: list[tuple[int, int]],
        *,
        level: int,
        depth: int | tuple[int, ...] | None,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        """`resnets` holds (channels in, channels out); `depth` is the transformer layers of a block, or of each."""
        super().__init__()
        channels = resnets[-1][1]
        self.resnets = nn.ModuleList(_resnet(config, *pair) for pair in resnets)
        self.attentions: nn.ModuleList | None = None
        if depth is not None:
            each = depth if isinstance(depth, tuple) else (depth,) * len(resnets)
            self.attentions = nn.ModuleList(
                _transformer(config, channels, level, layers) for layers, _ in zip(each, resnets, strict=False)
            )
        self.downsamplers = nn.ModuleList([Downsample2D(channels)]) if downsample else None
        self.upsamplers = nn.ModuleList([Upsample2D(channels)]) if upsample else None

    def down(self, x: Tensor, temb: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Maps `x` `[B, C, H, W]` to the next level's input, and returns every state that the way up will need.

        `x` may still be without its copies, see `UNet2DConditionModel.forward`.
        """
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb[: len(x)])
            if self.attentions is not None:
                x = self.attentions[i](_repeat(x, len(temb)), text)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips

    def up(self, x: Tensor, temb: Tensor, text: Tensor, skips: list[Tensor]) -> Tensor:
        """Maps `x` `[B, C, H, W]` to the next level's input; takes one state off `skips` for each residual block."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, _repeat(skips.pop(), len(x))], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[i](x, text)
        if self.upsamplers is not None:
            # The next state's size rather than twice this one: odd sizes were rounded up on the way down.
            x = self.upsamplers[0](x, (skips[-1].shape[-2], skips[-1].shape[-1]))
        return x


class UNetMidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution; or the first of them alone."""

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        depth = config.per_level(config.transformer_layers_per_block)[-1]
        attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
        self.resnets = nn.ModuleList(_resnet(config, channels, channels) for _ in range(2 if attends else 1))
        self.attentions = nn.ModuleList()
        if attends:
            depth = depth[0] if isinstance(depth, tuple) else depth
            self.attentions.append(_transformer(config, channels, -1, depth))

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, H, W]`."""
        x = self.resnets[0](x, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, text), temb)
        return x


class UNet2DConditionModel(nn.Module):
    """Predicts the noise, the sample or the velocity of latents at a timestep, given the text's hidden states."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (ResnetBlock2D, BasicTransformerBlock)

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        layers = config.per_level(config.layers_per_block)
        depths = config.per_level(config.transformer_layers_per_block)
        last = len(channels) - 1

        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], channels[0] * 4, config.time_cond_proj_dim)
        self.add_embedding: TimestepEmbedding | None = None
        if config.addition_embed_type is not None and config.projection_class_embeddings_input_dim is not None:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, channels[0] * 4)

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for level, kind in enumerate(config.down_block_types):
            before = channels[max(level - 1, 0)]
            pairs = [(before if i == 0 else channels[level], channels[level]) for i in range(layers[level])]
            depth = depths[level] if kind == "CrossAttnDownBlock2D" else None
            self.down_blocks.append(UNetBlock(config, pairs, level=level, depth=depth, downsample=level < last))
            skip_channels += [channels[level]] * (layers[level] + (level < last))

        self.mid_block = UNetMidBlock(config) if config.mid_block_type is not None else None

        self.up_blocks = nn.ModuleList()
        before = channels[-1]
        for level, kind in zip(range(last, -1, -1), config.up_block_types, strict=True):
            pairs = []
            for _ in range(layers[level] + 1):
                pairs.append((before + skip_channels.pop(), channels[level]))
                before = channels[level]
            depth = config.depths_up[last - level] if kind == "CrossAttnUpBlock2D" else None
            self.up_blocks.append(UNetBlock(config, pairs, level=level, depth=depth, upsample=level > 0))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        copies: int = 1,
    ) -> Tensor:
        """Predicts the noise, the sample or the velocity, `[B, C', H, W]`. Each of `G` texts is for `B / G` neighbours.

        Args:
            sample: latents `[B / copies, C, H, W]`.
            timestep: one for all, or `[B]`.
            encoder_hidden_states: the text, `[G, T, D]`.
            text_embeds: SDXL's pooled text, `[G, D']`; needed where the configuration says `text_time`.
            time_ids: SDXL's sizes, `[G, N]`; likewise.
            timestep_cond: an embedded guidance scale, `[G, time_cond_proj_dim]`, if the configuration has that width.
            copies: how often `sample` stands in the batch, as a whole. The layers before the text has an effect then
                compute it once.
        """
        batch = copies * sample.shape[0]
        each = batch // encoder_hidden_states.shape[0]
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0]).repeat(copies)
        if timestep_cond is not None:
            timestep_cond = timestep_cond.repeat_interleave(each, 0)
        temb = self.time_embedding(
            self._sinusoidal(timesteps, self.config.block_out_channels[0], sample), timestep_cond
        )
        if self.add_embedding is not None:
            assert text_embeds is not None and time_ids is not None and self.config.addition_time_embed_dim is not None
            sizes = self._sinusoidal(time_ids.flatten(), self.config.addition_time_embed_dim, sample)
            added = torch.cat([text_embeds, sizes.view(len(time_ids), -1)], dim=-1)  # [G, D' + N * dim]
            temb = temb + self.add_embedding(added).repeat_interleave(each, 0)
        temb = F.silu(temb)  # [B, 4C], activated once for all blocks

        # Channels last: convolutions run faster, and a map becomes tokens without a copy.
        x = self.conv_in(sample.contiguous(memory_format=torch.channels_last))
        if timestep_cond is not None or self.add_embedding is not None:
            x = _repeat(x, batch)
        skips = [x]
        for block in cast(Iterable[UNetBlock], self.down_blocks):
            x, states = block.down(x, temb, encoder_hidden_states)
            skips += states
        x = _repeat(x, batch)
        if self.mid_block is not None:
            x = self.mid_block(x, temb, encoder_hidden_states)
        for block in cast(Iterable[UNetBlock], self.up_blocks):
            x = block.up(x, temb, encoder_hidden_states, skips)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x.contiguous()

    def _sinusoidal(self, values: Tensor, dim: int, like: Tensor) -> Tensor:
        """Embeds `values` `[B]` as `[B, dim]`, in the precision of `like`."""
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        return sinusoidal_embedding(values, dim, flip_sin_to_cos=flip, freq_shift=shift).to(like.dtype)


def rename(key: str) -> str | None:
    """Returns the module's key for a published key: the same."""
    return key


def _resnet(config: UNet2DConditionConfig, channels_in: int, channels_out: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        channels_in,
        channels_out,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        temb_channels=config.block_out_channels[0] * 4,
    )


def _transformer(config: UNet2DConditionConfig, channels: int, level: int, depth: int) -> Transformer2DModel:
    return Transformer2DModel(
        channels,
        heads=config.heads[level],
        depth=depth,
        context_dim=config.per_level(config.cross_attention_dim)[level],
        norm_groups=config.norm_num_groups,
        linear_projection=bool(config.use_linear_projection),
        upcast=bool(config.upcast_attention),
    )
