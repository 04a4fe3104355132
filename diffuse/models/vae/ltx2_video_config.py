"""The architecture of the LTX-2 video autoencoder, as its published configuration gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from diffuse.errors import CheckpointError
from diffuse.models.vae.ltx2_video_blocks import STRIDES, Strides

_DOWN_BLOCK = "LTX2VideoDownBlock3D"
_FILE = "vae/config.json"


class DownLevel(NamedTuple):
    """Residual blocks of the encoder, then a change of resolution, if `sampler` names one."""

    width: int  # after it
    layers: int
    sampler: str | None

    @property
    def strides(self) -> Strides:
        """The strides of time, rows and columns."""
        return (2, 2, 2) if self.sampler == "conv" else STRIDES.get(self.sampler or "", (1, 1, 1))


class UpLevel(NamedTuple):
    """A change of resolution of the decoder, then residual blocks."""

    width: int  # before the sampler divides it by the factor
    layers: int
    kind: str
    scaled: bool
    residual: bool
    factor: int
    inject_noise: bool

    @property
    def strides(self) -> Strides:
        """The strides of time, rows and columns."""
        return STRIDES[self.kind] if self.scaled else (1, 1, 1)


@dataclass(frozen=True)
class AutoencoderKLLTX2VideoConfig:
    """The architecture, under the names of the published `vae/config.json`.

    Settings of the decoder's levels are written from the pixels inwards; `upsample_type` alone is written as they run.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    down_block_types: tuple[str, ...] = (_DOWN_BLOCK,) * 4
    decoder_block_out_channels: tuple[int, ...] = (256, 512, 1024)
    layers_per_block: tuple[int, ...] = (4, 6, 6, 2, 2)
    decoder_layers_per_block: tuple[int, ...] = (5, 5, 5, 5)
    spatio_temporal_scaling: bool | tuple[bool, ...] = True
    decoder_spatio_temporal_scaling: bool | tuple[bool, ...] = True
    decoder_inject_noise: bool | tuple[bool, ...] = False
    downsample_type: tuple[str, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    upsample_type: tuple[str, ...] = ("spatiotemporal",) * 3
    upsample_residual: bool | tuple[bool, ...] = True
    upsample_factor: tuple[int, ...] = (2, 2, 2)
    timestep_conditioning: bool = False
    patch_size: int = 4
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    encoder_causal: bool = True
    decoder_causal: bool = True
    encoder_spatial_padding_mode: str = "zeros"
    decoder_spatial_padding_mode: str = "reflect"
    spatial_compression_ratio: int | None = None  # as the strides give it
    temporal_compression_ratio: int | None = None

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "_class_name": ("AutoencoderKLLTX2Video",),
        "patch_size_t": (1,),
    }

    def __post_init__(self) -> None:
        for name, known in (
            ("down_block_types", (_DOWN_BLOCK,)),
            ("downsample_type", ("conv", *STRIDES)),
            ("upsample_type", tuple(STRIDES)),
            ("encoder_spatial_padding_mode", ("zeros", "reflect")),
            ("decoder_spatial_padding_mode", ("zeros", "reflect")),
        ):
            value = getattr(self, name)
            for item in (value,) if isinstance(value, str) else value:
                if item not in known:
                    raise CheckpointError(
                        f"{_FILE}: {name}={item} is not implemented, only {' or '.join(known)}; use another checkpoint"
                    )
        levels, up_levels = len(self.block_out_channels), len(self.decoder_block_out_channels)
        for names, expected in (
            (("down_block_types", "downsample_type", "spatio_temporal_scaling"), levels),
            (("layers_per_block",), levels + 1),
            (("upsample_type", "upsample_residual", "upsample_factor", "decoder_spatio_temporal_scaling"), up_levels),
            (("decoder_layers_per_block", "decoder_inject_noise"), up_levels + 1),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, bool) and len(value) != expected:
                    _refuse(f"{name} has {len(value)} entries, where the blocks are {expected}")
        numbers = (*self.block_out_channels, *self.decoder_block_out_channels, *self.upsample_factor)
        if min(numbers, default=0) < 1 or min(self.patch_size, self.latent_channels) < 1:
            _refuse("it has no levels, or a width, a factor or a patch of less than one")
        width = self.latent_channels
        for level in self.down_levels:
            factor = math.prod(level.strides)
            plain = level.sampler in (None, "conv")
            if (plain and level.width != width) or level.width % factor or (width * factor) % level.width:
                _refuse(f"downsampling from {width} channels to {level.width} by {level.sampler} makes no model")
            width = level.width
        width = self.decoder_block_out_channels[-1]
        for up in self.up_levels:
            factor, residual = math.prod(up.strides), up.residual and up.scaled
            kept = up.width == width or up.factor == 1
            if not kept or up.width % up.factor or factor % up.factor or (residual and up.width % factor):
                _refuse(f"upsampling from {width} channels to {up.width} by a factor of {up.factor} makes no model")
            if width != up.width and (self.timestep_conditioning or up.inject_noise):
                raise CheckpointError(
                    f"{_FILE}: a change from {width} channels to {up.width} is not implemented with "
                    "timestep_conditioning or decoder_inject_noise; use another checkpoint"
                )
            width = up.width // up.factor
        decoded = tuple(math.prod(side) for side in zip(*(up.strides for up in self.up_levels), strict=True))
        if decoded != (self.frames, self.factor // self.patch_size, self.factor // self.patch_size):
            _refuse("the encoder and the decoder change the size differently")
        for name, given, ratio in (
            ("spatial_compression_ratio", self.spatial_compression_ratio, self.factor),
            ("temporal_compression_ratio", self.temporal_compression_ratio, self.frames),
        ):
            if given not in (None, ratio):
                _refuse(f"{name}={given}, where the blocks make {ratio}")

    @property
    def factor(self) -> int:
        """The number of pixels that a latent covers along one side."""
        return self.patch_size * math.prod(level.strides[1] for level in self.down_levels)

    @property
    def frames(self) -> int:
        """The number of frames that a latent covers, after the first."""
        return math.prod(level.strides[0] for level in self.down_levels)

    @property
    def down_levels(self) -> list[DownLevel]:
        """The encoder's levels, as they run."""
        scaled = _each(self.spatio_temporal_scaling, len(self.block_out_channels))
        settings = zip(self.block_out_channels, self.layers_per_block, self.downsample_type, scaled, strict=False)
        return [DownLevel(width, layers, kind if on else None) for width, layers, kind, on in settings]

    @property
    def up_levels(self) -> list[UpLevel]:
        """The decoder's levels, as they run."""
        levels = len(self.decoder_block_out_channels)
        inwards = zip(
            self.decoder_block_out_channels,
            self.decoder_layers_per_block,
            reversed(self.upsample_type),
            _each(self.decoder_spatio_temporal_scaling, levels),
            _each(self.upsample_residual, levels),
            self.upsample_factor,
            _each(self.decoder_inject_noise, levels + 1),
            strict=False,
        )
        return [UpLevel(*settings) for settings in reversed(list(inwards))]

    @property
    def mid_noise(self) -> bool:
        """Tells whether the decoder's first blocks inject noise."""
        return _each(self.decoder_inject_noise, len(self.decoder_block_out_channels) + 1)[-1]

    @property
    def draws_noise(self) -> bool:
        """Tells whether any block of the decoder injects noise."""
        return self.mid_noise or any(level.inject_noise for level in self.up_levels)


def _refuse(fault: str) -> None:
    raise CheckpointError(f"{_FILE}: {fault}; the file is damaged: copy or download it again")


def _each(value: bool | tuple[bool, ...], count: int) -> tuple[bool, ...]:
    return (value,) * count if isinstance(value, bool) else value
