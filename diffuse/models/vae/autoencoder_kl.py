"""The image autoencoder of Stable Diffusion (Rombach et al., 2022), with the state-dict keys of published checkpoints.

Latents here are the autoencoder's own; a pipeline multiplies them by `scaling_factor` for the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError
from diffuse.layers.attention import Attention
from diffuse.layers.packed import Conv2d
from diffuse.layers.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffuse.models.vae import strips
from diffuse.models.vae.strips import Strips
from diffuse.models.vae.tiles import blend_tiles

_BATCH_LATENTS = 64 * 64 // 2  # decoded at once, if that is more than one image's
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The architecture, under the names of the published `vae/config.json`."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 512  # pixels
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None  # of each channel, over many pictures
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool | None = False  # must compute in float32: activations leave float16's range
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
    }
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            types = getattr(self, name)
            if set(types) != {known} or len(types) != len(self.block_out_channels):
                raise CheckpointError(
                    f"vae/config.json: {name}={list(types)} is not implemented, only {known}, once a level; "
                    "use another checkpoint"
                )
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise CheckpointError(
                    f"vae/config.json: {name} has {len(values)} entries and the latents {self.latent_channels} "
                    "channels, which should be as many; copy or download it again"
                )

    @property
    def factor(self) -> int:
        """Is the number of pixels that a latent covers along one side."""
        return 1 << (len(self.block_out_channels) - 1)


class DiagonalGaussian:
    """The encoder's output: an independent normal distribution for every latent.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(self, moments: Tensor) -> None:
        """`moments` `[B, 2C, h, w]`: means, then logarithms of variances."""
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """Returns the means, `[B, C, h, w]`."""
        return self.mean

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws once for each image, `[B, C, h, w]`, with noise from the image's own CPU generator, in float32."""
        shape = (1, *self.mean.shape[1:])
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)


class _AttentionBlock(Attention):
    """Self-attention of one head over all pixels, normalised and added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, head_dim=channels, qkv_bias=True, upcast=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, H, W]`."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B, H * W, C]
        h = super().forward(tokens).unflatten(1, x.shape[-2:])  # [B, H, W, C]
        return x + h.permute(0, 3, 1, 2)


class _ResnetBlock(ResnetBlock2D):
    """A residual block of a whole map, or of one in strips."""

    def forward(self, x: Any, activated_temb: Tensor | None = None) -> Any:
        """Maps `[B, C, H, W]`, or strips of `[1, C, H, W]`, to `[B, C', H, W]`."""
        return strips.resnet(self, x) if isinstance(x, Strips) else super().forward(x, activated_temb)


class _MidBlock(nn.Module):
    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(config, channels, channels) for _ in range(2))
        self.attentions: nn.ModuleList | None = None
        if config.mid_block_add_attention:
            self.attentions = nn.ModuleList([_AttentionBlock(channels, config.norm_num_groups)])

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C, H, W]`."""
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        result: Tensor = self.resnets[1](x)
        return result


class _Level(nn.Module):
    """Residual blocks, then a change of resolution where `sampler` gives one."""

    def __init__(self, config: AutoencoderKLConfig, channels_in: int, channels_out: int, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(config, channels_in if i == 0 else channels_out, channels_out) for i in range(layers)
        )

    def forward(self, x: Any) -> Any:
        """Maps `[B, C, H, W]`, or strips of `[1, C, H, W]`, to `[B, C', H', W']`."""
        for resnet in self.resnets:
            x = resnet(x)
        for name, samplers in self.named_children():
            if name != "resnets":
                sampler = cast(nn.ModuleList, samplers)[0]
                if not isinstance(x, Strips):
                    x = sampler(x)
                elif isinstance(sampler, Upsample2D):
                    x = strips.upsample(sampler, x)
                else:
                    x = strips.downsample(cast(Downsample2D, sampler), x)
        return x


class Encoder(nn.Module):
    """The encoder, from pixels to the moments of latents; `f` pixels a latent along one side."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = _Level(config, channels[max(i - 1, 0)], width, config.layers_per_block)
            if i < len(channels) - 1:
                level.downsamplers = nn.ModuleList([Downsample2D(width, padding=0)])
            self.down_blocks.append(level)
        self.mid_block = _MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=1e-6)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes pixels `[B, 3, H, W]` as moments `[B, 2C, H / f, W / f]`."""
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        result: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return result

    def encode_strips(self, pixels: Tensor, limit: int, store: torch.device) -> Tensor:
        """Encodes one picture `[1, 3, H, W]` as `forward` does; maps larger than `limit` numbers are in strips."""
        x: Any = strips.convolve_in(self.conv_in, pixels.contiguous(memory_format=torch.channels_last), limit, store)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x.whole())
        result: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return result


class Decoder(nn.Module):
    """The decoder, from latents to pixels; `f` pixels a latent along one side."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = tuple(reversed(config.block_out_channels))
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = _MidBlock(config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = _Level(config, channels[max(i - 1, 0)], width, config.layers_per_block + 1)
            if i < len(channels) - 1:
                level.upsamplers = nn.ModuleList([Upsample2D(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=1e-6)
        self.conv_out = Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decodes latents `[B, C, h, w]` to pixels `[B, 3, h * f, w * f]`."""
        x = self.conv_in(z.contiguous(memory_format=torch.channels_last))
        x = self.mid_block(x)
        for level in self.up_blocks:
            x = level(x)
        result: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return result

    def decode_strips(self, z: Tensor, limit: int, store: torch.device) -> Tensor:
        """Decodes one picture `[1, C, h, w]` as `forward` does; maps larger than `limit` numbers are in strips."""
        x: Any = self.mid_block(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        x = Strips.from_map(x, limit, store)
        for level in self.up_blocks:
            x = level(x)
        return strips.convolve_out(self.conv_norm_out, self.conv_out, x)


class AutoencoderKL(nn.Module):
    """The autoencoder, between pixels in -1..1 and latents."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (ResnetBlock2D,)

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        latents = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * latents, 2 * latents, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(latents, latents, 1) if config.use_post_quant_conv else None

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Encodes pixels `[B, 3, H, W]` in -1..1 as the distribution of latents `[B, C, H / f, W / f]`."""
        return self._distribution(self.encoder(x))

    def encode_tiled(
        self, x: Tensor, tile: int, overlap: int | None = None, store: torch.device | None = None
    ) -> DiagonalGaussian:
        """Encodes pixels `[B, 3, H, W]` like `encode`, in parts; see `decode_tiled`."""
        check_tiles(tile, overlap)
        factor = self.config.factor
        if max(x.shape[-2:]) <= tile * factor:
            return self.encode(x)
        if overlap is None:
            limit, store = self._strip(tile), store or x.device
            return self._distribution(
                torch.cat([self.encoder.encode_strips(each, limit, store) for each in x[:, None]])
            )
        side, shared = tile * factor, overlap * factor
        parts = [blend_tiles(each, side, shared, (1, factor), self.encoder) for each in x[:, None]]
        return self._distribution(torch.cat(parts))

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents `[B, C, h, w]` to pixels `[B, 3, h * f, w * f]`, about -1..1, not clipped.

        Large images are decoded one at a time: a batch of them needs more memory and is no faster. Small ones, which
        leave a processor idle, are decoded together, as many as have half the latents of one of 512 x 512.
        """
        batch = max(_BATCH_LATENTS // z[0, 0].numel(), 1)
        return torch.cat([self._decode(images) for images in z.split(batch)])

    def decode_tiled(
        self, z: Tensor, tile: int, overlap: int | None = None, store: torch.device | None = None
    ) -> Tensor:
        """Decodes `[B, C, h, w]` to `[B, 3, h * f, w * f]` like `decode`, in parts that take less memory.

        Pictures that are no larger than a tile are decoded as `decode` does.

        Args:
            z: latents `[B, C, h, w]`.
            tile: side of a square tile, in latents.
            overlap: latents that neighbouring tiles share. Each tile's norms and attention see only that tile, so the
                result is near that of `decode`; the memory is that of a tile and the picture. None computes each layer
                in strips, of as many numbers as a tile has, with the norms of the whole picture: the result is that of
                `decode` but for rounding.
            store: where strips are while they are not computed with; where they compute unless given.
        """
        check_tiles(tile, overlap)
        if max(z.shape[-2:]) <= tile:
            return self.decode(z)
        if overlap is None:
            limit, store = self._strip(tile), store or z.device
            parts = [self.decoder.decode_strips(self._unquantized(each), limit, store) for each in z[:, None]]
            return torch.cat(parts).contiguous()
        factor = self.config.factor
        return torch.cat([blend_tiles(each, tile, overlap, (factor, 1), self._decode) for each in z[:, None]])

    def _decode(self, z: Tensor) -> Tensor:
        result: Tensor = self.decoder(self._unquantized(z))
        return result.contiguous()

    def _unquantized(self, z: Tensor) -> Tensor:
        result: Tensor = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return result

    def _distribution(self, moments: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(moments if self.quant_conv is None else self.quant_conv(moments))

    def _strip(self, tile: int) -> int:
        """Returns the numbers of a tile's map where that is widest, twice the first level's channels at all pixels."""
        return (tile * self.config.factor) ** 2 * 2 * self.config.block_out_channels[0]


def check_tiles(tile: int, overlap: int | None) -> None:
    """Raises ValueError for tiles that do not advance."""
    if tile < 1:
        raise ValueError(f"a tile of {tile} latents is none")
    if overlap is not None and not 1 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} latents must be at least 1 and less than the tile, {tile}")


def rename(key: str) -> str | None:
    """Maps a published key to the module's: old files name the mid-block attention's layers differently."""
    head, separator, tail = key.partition("attentions.0.")
    name, dot, last = tail.rpartition(".")
    return f"{head}{separator}{_OLD_ATTENTION_NAMES.get(name, name)}{dot}{last}" if separator else key


def _resnet(config: AutoencoderKLConfig, channels_in: int, channels_out: int) -> ResnetBlock2D:
    return _ResnetBlock(channels_in, channels_out, groups=config.norm_num_groups, eps=1e-6)
