"""The vocoders of LTX-2 (HaCohen et al., 2026), with the state-dict keys of published checkpoints.

That of 2.0 is a HiFi-GAN (Kong et al., 2020). That of 2.3 is a BigVGAN (Lee et al., 2023), whose waveform a second one
extends to three times the sampling rate: it reads the waveform's mel spectrogram and adds what is missing above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError
from diffuse.layers.packed import Conv1d
from diffuse.models.vocoder.vocoder_activations import (
    AntiAliasedActivation,
    SnakeBeta,
    channels_last,
    hann_sinc,
    upsampled,
)

_LAST_SLOPE = 0.01  # of the last activation, whatever that of the others is
_FLOOR = 1e-5  # under a logarithm
_FILE = "vocoder/config.json"

Dilations = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LTX2VocoderConfig:
    """The architecture of 2.0, under the names of the published `vocoder/config.json`."""

    in_channels: int = 128  # both channels' mel bins
    hidden_channels: int = 1024
    out_channels: int = 2
    upsample_kernel_sizes: tuple[int, ...] = (16, 15, 8, 4, 4)
    upsample_factors: tuple[int, ...] = (6, 5, 2, 2, 2)
    resnet_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resnet_dilations: Dilations = ((1, 3, 5),) * 3
    act_fn: str = "leaky_relu"
    leaky_relu_negative_slope: float = 0.1
    antialias: bool = False
    antialias_ratio: int = 2
    antialias_kernel_size: int = 12
    final_act_fn: str | None = "tanh"
    final_bias: bool = True
    output_sampling_rate: int = 24000

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"_class_name": ("LTX2Vocoder",)}

    def __post_init__(self) -> None:
        for name, known in (
            ("act_fn", ("leaky_relu", "snake", "snakebeta")),
            ("final_act_fn", ("tanh", "clamp", None)),
        ):
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"{_FILE}: {name}={getattr(self, name)} is not implemented, only "
                    f"{' or '.join(map(str, known))}; use another checkpoint"
                )
        if self.act_fn == "leaky_relu" and self.antialias:
            raise CheckpointError(
                f"{_FILE}: antialias=True is not implemented with act_fn=leaky_relu; use another checkpoint"
            )
        for one, other in (
            ("upsample_kernel_sizes", "upsample_factors"),
            ("resnet_kernel_sizes", "resnet_dilations"),
        ):
            if len(getattr(self, one)) != len(getattr(self, other)) or not getattr(self, one):
                _refuse(f"{one} and {other} have {len(getattr(self, one))} and {len(getattr(self, other))} entries")
        samplers = list(zip(self.upsample_kernel_sizes, self.upsample_factors, strict=True))
        if any(factor < 1 or kernel < factor for kernel, factor in samplers):
            _refuse("an upsampling kernel is shorter than its factor")
        if any(kernel % 2 == 0 for kernel in self.resnet_kernel_sizes) or not all(
            dilations and min(dilations) > 0 for dilations in self.resnet_dilations
        ):
            _refuse("a residual block has an even kernel or no dilation")
        if self.hidden_channels >> len(samplers) < 1 or min(self.antialias_ratio, self.in_channels) < 1:
            _refuse(f"hidden_channels={self.hidden_channels} cannot be halved {len(samplers)} times")
        if self.antialias_kernel_size < 2 * self.antialias_ratio:
            _refuse("antialias_kernel_size is less than twice antialias_ratio")

    @property
    def samples_per_frame(self) -> int:
        """The number of samples that are made of a mel frame."""
        return math.prod(self.upsample_factors)


@dataclass(frozen=True)
class LTX2VocoderWithBWEConfig:
    """The architecture of 2.3, with bandwidth extension, under the names of the published `vocoder/config.json`."""

    in_channels: int = 128
    hidden_channels: int = 1536
    out_channels: int = 2
    upsample_kernel_sizes: tuple[int, ...] = (11, 4, 4, 4, 4, 4)
    upsample_factors: tuple[int, ...] = (5, 2, 2, 2, 2, 2)
    resnet_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resnet_dilations: Dilations = ((1, 3, 5),) * 3
    act_fn: str = "snakebeta"
    leaky_relu_negative_slope: float = 0.1
    antialias: bool = True
    antialias_ratio: int = 2
    antialias_kernel_size: int = 12
    final_act_fn: str | None = None
    final_bias: bool = False
    bwe_in_channels: int = 128
    bwe_hidden_channels: int = 512
    bwe_out_channels: int = 2
    bwe_upsample_kernel_sizes: tuple[int, ...] = (12, 11, 4, 4, 4)
    bwe_upsample_factors: tuple[int, ...] = (6, 5, 2, 2, 2)
    bwe_resnet_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    bwe_resnet_dilations: Dilations = ((1, 3, 5),) * 3
    bwe_act_fn: str = "snakebeta"
    bwe_leaky_relu_negative_slope: float = 0.1
    bwe_antialias: bool = True
    bwe_antialias_ratio: int = 2
    bwe_antialias_kernel_size: int = 12
    bwe_final_act_fn: str | None = None
    bwe_final_bias: bool = False
    filter_length: int = 512
    hop_length: int = 80
    window_length: int = 512
    num_mel_channels: int = 64
    input_sampling_rate: int = 16000
    output_sampling_rate: int = 48000

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"_class_name": ("LTX2VocoderWithBWE",)}

    def __post_init__(self) -> None:
        vocoder, extension = self.vocoder, self.extension
        lengths = (self.filter_length, self.hop_length, self.num_mel_channels, self.input_sampling_rate)
        if min(lengths) < 1 or self.output_sampling_rate % self.input_sampling_rate:
            _refuse(
                f"output_sampling_rate={self.output_sampling_rate} is no multiple of "
                f"input_sampling_rate={self.input_sampling_rate}, or a length is less than one"
            )
        if self.window_length != self.filter_length:
            raise CheckpointError(
                f"{_FILE}: window_length={self.window_length} is not implemented, only filter_length's "
                f"{self.filter_length}; use another checkpoint"
            )
        if extension.samples_per_frame != self.ratio * self.hop_length:
            _refuse(
                f"the extension makes {extension.samples_per_frame} samples of the {self.hop_length} of a frame, at "
                f"{self.ratio} times their rate"
            )
        if (vocoder.out_channels * self.num_mel_channels, vocoder.out_channels) != (
            extension.in_channels,
            extension.out_channels,
        ):
            _refuse("the extension reads or makes other channels than the vocoder makes")

    @property
    def ratio(self) -> int:
        """How many samples come for one of the first vocoder's."""
        return self.output_sampling_rate // self.input_sampling_rate

    @property
    def samples_per_frame(self) -> int:
        """The number of samples that are made of a mel frame."""
        return self.ratio * self.vocoder.samples_per_frame

    @property
    def vocoder(self) -> LTX2VocoderConfig:
        """The settings of the first vocoder."""
        return self._part("", self.input_sampling_rate)

    @property
    def extension(self) -> LTX2VocoderConfig:
        """The settings of the one that extends its bandwidth."""
        return self._part("bwe_", self.output_sampling_rate)

    def _part(self, prefix: str, rate: int) -> LTX2VocoderConfig:
        names = [field.name for field in fields(LTX2VocoderConfig) if field.name != "output_sampling_rate"]
        settings = {name: getattr(self, prefix + name) for name in names}
        try:
            return LTX2VocoderConfig(**settings, output_sampling_rate=rate)
        except CheckpointError as error:
            if not prefix:
                raise
            text = str(error).replace(f"{_FILE}: ", f"{_FILE}: of the settings that begin with {prefix}, ", 1)
            raise CheckpointError(text) from None


def _refuse(fault: str) -> None:
    raise CheckpointError(f"{_FILE}: {fault}; the file is damaged: copy or download it again")


def _activation(config: LTX2VocoderConfig, channels: int) -> nn.Module:
    if config.act_fn == "leaky_relu":
        return nn.LeakyReLU(config.leaky_relu_negative_slope)
    snake = SnakeBeta(channels, beta=config.act_fn == "snakebeta")
    if not config.antialias:
        return snake
    return AntiAliasedActivation(snake, config.antialias_ratio, config.antialias_kernel_size)


class _ResBlock(nn.Module):
    """Activation, dilated convolution, activation, convolution, added to their input, for each dilation."""

    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, config: LTX2VocoderConfig, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.convs1 = nn.ModuleList(
            Conv1d(channels, channels, kernel_size, dilation=dilation, padding=reach * dilation)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(Conv1d(channels, channels, kernel_size, padding=reach) for _ in dilations)
        self.acts1 = nn.ModuleList(_activation(config, channels) for _ in dilations)
        self.acts2 = nn.ModuleList(_activation(config, channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, T]`."""
        for act1, conv1, act2, conv2 in zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True):
            h = conv2(act2(conv1(act1(x))))
            h += x
            x = h
        return x


class LTX2Vocoder(nn.Module):
    """The vocoder of 2.0, and either of both of 2.3."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_ResBlock,)

    def __init__(self, config: LTX2VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.hidden_channels
        self.conv_in = Conv1d(config.in_channels, channels, 7, padding=3)
        self.upsamplers = nn.ModuleList()
        self.resnets = nn.ModuleList()
        for kernel_size, factor in zip(config.upsample_kernel_sizes, config.upsample_factors, strict=True):
            self.upsamplers.append(
                nn.ConvTranspose1d(
                    channels, channels // 2, kernel_size, stride=factor, padding=(kernel_size - factor) // 2
                )
            )
            channels //= 2
            for size, dilations in zip(config.resnet_kernel_sizes, config.resnet_dilations, strict=True):
                self.resnets.append(_ResBlock(config, channels, size, dilations))
        self.act_out: nn.Module = nn.LeakyReLU(_LAST_SLOPE)
        if config.act_fn != "leaky_relu":
            self.act_out = AntiAliasedActivation(
                SnakeBeta(channels), config.antialias_ratio, config.antialias_kernel_size
            )
        self.conv_out = Conv1d(channels, config.out_channels, 7, padding=3, bias=config.final_bias)

    def forward(self, mel: Tensor) -> Tensor:
        """Makes the waveform `[B, C, T * samples_per_frame]` of logarithmic mel spectrograms `[B, C, T, bins]`."""
        x = self.conv_in(mel.permute(0, 2, 1, 3).flatten(2).transpose(1, 2))
        parallel = len(self.config.resnet_kernel_sizes)
        for i, upsampler in enumerate(self.upsamplers):
            if self.config.act_fn == "leaky_relu":
                x = F.leaky_relu(x, self.config.leaky_relu_negative_slope)
            x = channels_last(upsampler(x))
            first, *others = self.resnets[i * parallel : (i + 1) * parallel]
            total = first(x)
            for resnet in others:
                total = total + resnet(x)
            x = total / parallel
        x = self.conv_out(self.act_out(x)).contiguous()
        if self.config.final_act_fn == "tanh":
            return torch.tanh(x)
        return x.clamp(-1, 1) if self.config.final_act_fn == "clamp" else x


class _STFT(nn.Module):
    """The magnitudes of a short-time Fourier transform that sees no later sample, by stored bases."""

    forward_basis: Tensor
    inverse_basis: Tensor

    def __init__(self, config: LTX2VocoderWithBWEConfig) -> None:
        super().__init__()
        self.hop = config.hop_length
        self.front = max(config.window_length - config.hop_length, 0)
        for name in ("forward_basis", "inverse_basis"):  # a checkpoint has both, the second of which nothing reads
            self.register_buffer(name, torch.zeros(2 * (config.filter_length // 2 + 1), 1, config.filter_length))

    def forward(self, waveform: Tensor) -> Tensor:
        """Maps `[B, N]` to `[B, frequencies, N / hop]`."""
        x = F.pad(waveform, (self.front, 0))[:, None]
        real, imaginary = F.conv1d(x, self.forward_basis, stride=self.hop).chunk(2, dim=1)
        return torch.sqrt(real.square() + imaginary.square())


class _MelSTFT(nn.Module):
    mel_basis: Tensor

    def __init__(self, config: LTX2VocoderWithBWEConfig) -> None:
        super().__init__()
        self.stft_fn = _STFT(config)
        self.register_buffer("mel_basis", torch.zeros(config.num_mel_channels, config.filter_length // 2 + 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """Returns the logarithmic mel spectrogram `[B, bins, N / hop]` of `[B, N]`."""
        return torch.matmul(self.mel_basis, self.stft_fn(waveform)).clamp(min=_FLOOR).log()


class LTX2VocoderWithBWE(nn.Module):
    """The vocoder of 2.3. It is to run in float32: in half precision its spectrum is audibly another."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_ResBlock,)

    def __init__(self, config: LTX2VocoderWithBWEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocoder = LTX2Vocoder(config.vocoder)
        self.bwe_generator = LTX2Vocoder(config.extension)
        self.mel_stft = _MelSTFT(config)

    def forward(self, mel: Tensor) -> Tensor:
        """Makes the waveform `[B, C, T * samples_per_frame]`, in -1..1, of mel spectrograms `[B, C, T, bins]`."""
        low = self.vocoder(mel)  # [B, C, N]
        samples = low.shape[2]
        low = F.pad(low, (0, -samples % self.config.hop_length))
        bins = self.mel_stft(low.flatten(0, 1)).unflatten(0, low.shape[:2])  # [B, C, bins, N / hop]
        high = self.bwe_generator(bins.transpose(2, 3))
        ratio = self.config.ratio
        taps = hann_sinc(ratio, low.device)
        width = len(taps) // ratio // 2
        # In float32: of two channels in bfloat16, a processor's convolution with so long a filter does not end.
        high += upsampled(low.float(), taps, ratio, width, 2 * width * ratio)
        return high.clamp_(-1, 1)[..., : samples * ratio]
