"""The video autoencoder of LTX-2 (HaCohen et al., 2026), with the state-dict keys of published checkpoints.

One latent holds `f x f` pixels of `t` frames, and at the beginning of the first frame alone: `t * k + 1` frames have
`k + 1` latents in time. Latents here are the autoencoder's own; a denoiser's are `normalized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.models.vae.autoencoder_kl import DiagonalGaussian
from diffuse.models.vae.ltx2_video_blocks import (
    CausalConv3d,
    Downsampler,
    FilmTimestepEmbedding,
    ResnetBlock3D,
    Upsampler,
    modulated,
    pixel_norm,
)
from diffuse.models.vae.ltx2_video_config import AutoencoderKLLTX2VideoConfig, DownLevel, UpLevel

_BATCH_LATENTS = 256  # of films that are decoded at once, if that is more than one film's


class _DownBlock(nn.Module):
    def __init__(self, width: int, level: DownLevel, *, causal: bool, reflect: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock3D(width, width, causal=causal, reflect=reflect) for _ in range(level.layers)
        )
        self.downsamplers: nn.ModuleList | None = None
        if level.sampler == "conv":
            conv = CausalConv3d(width, width, causal=causal, reflect=reflect, stride=level.strides)
            self.downsamplers = nn.ModuleList([conv])
        elif level.sampler is not None:
            sampler = Downsampler(width, level.width, stride=level.strides, causal=causal, reflect=reflect)
            self.downsamplers = nn.ModuleList([sampler])

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, F, H, W]` to `[B, C', F', H', W']`."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class _MidBlock(nn.Module):
    def __init__(
        self, width: int, layers: int, *, causal: bool, reflect: bool, timestep: bool = False, noise: bool = False
    ) -> None:
        super().__init__()
        self.time_embedder = FilmTimestepEmbedding(4 * width) if timestep else None
        self.resnets = nn.ModuleList(
            ResnetBlock3D(
                width, width, causal=causal, reflect=reflect, timestep_conditioning=timestep, inject_noise=noise
            )
            for _ in range(layers)
        )

    def forward(
        self, x: Tensor, timestep: Tensor | None = None, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Maps `[B, C, F, H, W]` with `timestep` `[B]` to `[B, C, F, H, W]`."""
        temb = None
        if self.time_embedder is not None and timestep is not None:
            temb = self.time_embedder(timestep, x.dtype)
        for resnet in self.resnets:
            x = resnet(x, temb, generators)
        return x


class _UpBlock(_MidBlock):
    def __init__(self, width: int, level: UpLevel, *, eps: float, causal: bool, reflect: bool, timestep: bool) -> None:
        channels = level.width // level.factor
        super().__init__(
            channels, level.layers, causal=causal, reflect=reflect, timestep=timestep, noise=level.inject_noise
        )
        self.conv_in: ResnetBlock3D | None = None
        if width != level.width:
            self.conv_in = ResnetBlock3D(width, level.width, causal=causal, reflect=reflect, eps=eps)
        self.upsamplers: nn.ModuleList | None = None
        if level.scaled:
            sampler = Upsampler(
                level.width,
                stride=level.strides,
                factor=level.factor,
                residual=level.residual,
                causal=causal,
                reflect=reflect,
            )
            self.upsamplers = nn.ModuleList([sampler])

    def forward(
        self, x: Tensor, timestep: Tensor | None = None, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Maps `[B, C, F, H, W]` with `timestep` `[B]` to `[B, C', F', H', W']`."""
        if self.conv_in is not None:
            x = self.conv_in(x)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x)
        return super().forward(x, timestep, generators)


class VideoEncoder(nn.Module):
    """The encoder, from pixels to the moments of latents; `f x f` pixels of `t` frames a latent."""

    def __init__(self, config: AutoencoderKLLTX2VideoConfig) -> None:
        super().__init__()
        causal, reflect = config.encoder_causal, config.encoder_spatial_padding_mode == "reflect"
        self.patch = config.patch_size
        width = config.latent_channels
        self.conv_in = CausalConv3d(config.in_channels * self.patch**2, width, causal=causal, reflect=reflect)
        self.down_blocks = nn.ModuleList()
        for level in config.down_levels:
            self.down_blocks.append(_DownBlock(width, level, causal=causal, reflect=reflect))
            width = level.width
        self.mid_block = _MidBlock(width, config.layers_per_block[-1], causal=causal, reflect=reflect)
        self.conv_out = CausalConv3d(width, config.latent_channels + 1, causal=causal, reflect=reflect)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes pixels `[B, 3, t * k + 1, H, W]` as moments `[B, C + 1, k + 1, H / f, W / f]`.

        These are `C` means, and the one logarithm of a variance that all channels have.
        """
        x = self.conv_in(to_patches(x, self.patch))
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        result: Tensor = self.conv_out(F.silu(pixel_norm(x), inplace=True))
        return result


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Returns pixels `[B, 3, F, H, W]` as the encoder sees them, `[B, 3 * p * p, F, H / p, W / p]`, channels last."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # [B, 3, F, H / p, p, W / p, p]
    return x.permute(0, 2, 3, 5, 1, 6, 4).flatten(4).permute(0, 4, 1, 2, 3)


class VideoDecoder(nn.Module):
    """The decoder, from latents to pixels; `f x f` pixels of `t` frames a latent."""

    def __init__(self, config: AutoencoderKLLTX2VideoConfig) -> None:
        super().__init__()
        causal, reflect = config.decoder_causal, config.decoder_spatial_padding_mode == "reflect"
        timestep = config.timestep_conditioning
        self.patch = config.patch_size
        width = config.decoder_block_out_channels[-1]
        self.conv_in = CausalConv3d(config.latent_channels, width, causal=causal, reflect=reflect)
        self.mid_block = _MidBlock(
            width,
            config.decoder_layers_per_block[-1],
            causal=causal,
            reflect=reflect,
            timestep=timestep,
            noise=config.mid_noise,
        )
        self.up_blocks = nn.ModuleList()
        for level in config.up_levels:
            self.up_blocks.append(
                _UpBlock(width, level, eps=config.resnet_norm_eps, causal=causal, reflect=reflect, timestep=timestep)
            )
            width = level.width // level.factor
        self.conv_out = CausalConv3d(width, config.out_channels * self.patch**2, causal=causal, reflect=reflect)
        self.timestep_scale_multiplier = self.time_embedder = self.scale_shift_table = None
        if timestep:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.time_embedder = FilmTimestepEmbedding(2 * width)
            self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(
        self, z: Tensor, timestep: Tensor | None = None, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Decodes latents `[B, C, k + 1, h, w]` to pixels `[B, 3, t * k + 1, h * f, w * f]`."""
        if self.timestep_scale_multiplier is not None and timestep is not None:
            timestep = timestep * self.timestep_scale_multiplier
        x = self.conv_in(z)
        x = self.mid_block(x, timestep, generators)
        for level in self.up_blocks:
            x = level(x, timestep, generators)
        x = pixel_norm(x)
        if self.time_embedder is not None and self.scale_shift_table is not None and timestep is not None:
            temb = self.time_embedder(timestep, x.dtype).unflatten(1, (2, -1)) + self.scale_shift_table
            x = modulated(x, *temb.unbind(dim=1))
        x = self.conv_out(F.silu(x, inplace=True))
        x = x.unflatten(1, (-1, self.patch, self.patch))  # [B, 3, p (column), p (row), F, H / p, W / p]
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5).flatten(3, 4)


class AutoencoderKLLTX2Video(nn.Module):
    """The autoencoder, between pixels in -1..1 and latents."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (ResnetBlock3D,)
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderKLLTX2VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoEncoder(config)
        self.decoder = VideoDecoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Encodes pixels `[B, 3, t * k + 1, H, W]` in -1..1 as the distribution of `[B, C, k + 1, H / f, W / f]`.

        Films that are long or large are encoded one at a time: a batch of them needs more memory and is no faster.
        """
        frames, height, width = x.shape[2:]
        factor, step = self.config.factor, self.config.frames
        if height % factor or width % factor or frames % step != 1 % step:
            raise ValueError(
                f"{frames} frames of {width} x {height} are no whole latents: take a multiple of {step} frames and one "
                f"more, and sides that {factor} divides"
            )
        self._check_sides(self.config.encoder_spatial_padding_mode, height, width)
        batch = self._batch((frames // step + 1) * (height // factor) * (width // factor))
        moments = torch.cat([self.encoder(films) for films in x.split(batch)])
        mean, logvar = moments[:, :-1], moments[:, -1:]
        return DiagonalGaussian(torch.cat((mean, logvar.expand_as(mean)), dim=1))

    def decode(
        self, z: Tensor, timestep: Tensor | None = None, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Decodes latents `[B, C, k + 1, h, w]` to pixels `[B, 3, t * k + 1, h * f, w * f]`, about -1..1, not clipped.

        Films that are long or large are decoded one at a time, as they are encoded.

        Args:
            z: the latents.
            timestep: the noise that is left in each film's latents, `[B]` in 0..1, where the checkpoint asks for it.
            generators: a CPU generator for each film, where the checkpoint injects noise.
        """
        config = self.config
        for needed, given, name in (
            (config.timestep_conditioning, timestep, "timestep"),
            (config.draws_noise, generators, "generators"),
        ):
            if needed and given is None:
                raise ValueError(f"this autoencoder's decoder needs {name}")
        self._check_sides(config.decoder_spatial_padding_mode, z.shape[-2] * config.factor, z.shape[-1] * config.factor)
        batch = self._batch(z[0, 0].numel())
        films = []
        for i in range(0, len(z), batch):
            part = slice(i, i + batch)
            films.append(
                self.decoder(
                    z[part],
                    None if timestep is None else timestep[part],
                    None if generators is None else generators[part],
                )
            )
        return films[0] if len(films) == 1 else torch.cat(films)

    def normalized(self, z: Tensor) -> Tensor:
        """Returns the autoencoder's latents `[B, C, F, h, w]` with the mean and deviation that a denoiser expects."""
        mean, std = self._statistics(z)
        return (z - mean) * self.config.scaling_factor / std

    def denormalized(self, z: Tensor) -> Tensor:
        """Returns a denoiser's latents `[B, C, F, h, w]` as the autoencoder's own."""
        mean, std = self._statistics(z)
        return z * std / self.config.scaling_factor + mean

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (t.to(z)[:, None, None, None] for t in (self.latents_mean, self.latents_std))
        return mean, std

    def _check_sides(self, padding: str, height: int, width: int) -> None:
        smallest = (
            2 if padding == "reflect" else 1
        ) * self.config.factor  # one latent has nothing that it could reflect
        if min(height, width) < smallest:
            raise ValueError(
                f"this autoencoder takes films of at least {smallest} pixels a side, not {width} x {height}"
            )

    @staticmethod
    def _batch(latents: int) -> int:
        return max(_BATCH_LATENTS // latents, 1)
