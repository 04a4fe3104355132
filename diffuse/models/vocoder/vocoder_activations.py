"""Periodic activations and the filters that keep them free of aliases, as BigVGAN has them (Lee et al., 2023).

Sequences `[B, C, T]` lie channels last in memory, as convolutions of a processor are the fastest.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-9  # of an amplitude
_RUN = 64  # values at least that lie together when a sequence is scaled channel by channel


def channels_last(x: Tensor) -> Tensor:
    """Returns `[B, C, T]` with each moment's channels side by side in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def kaiser_sinc(cutoff: float, half_width: float, taps: int) -> Tensor:
    """Returns a low-pass filter `[taps]`, the sinc function under a Kaiser window, whose sum is one.

    Args:
        cutoff: the first frequency that is to be stopped, in units of the sampling rate.
        half_width: half the width of the transition.
        taps: the length of the filter.
    """
    half = taps // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * half_width + 7.95  # in decibel (Kaiser, 1974)
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    time = torch.arange(taps) - half + (0.5 if taps % 2 == 0 else 0.0)
    kernel = torch.kaiser_window(taps, periodic=False, beta=beta) * torch.sinc(2 * cutoff * time)
    return kernel / kernel.sum()


def hann_sinc(ratio: int, device: torch.device) -> Tensor:
    """Returns a filter `[2 * 7 * ratio + 1]` that raises the sampling rate `ratio`-fold, as torchaudio resamples."""
    zeros, rolloff = 6, 0.99
    width = math.ceil(zeros / rolloff)
    time = (torch.arange(2 * width * ratio + 1, device=device) / ratio - width) * rolloff
    window = torch.cos(time.clamp(-zeros, zeros) * math.pi / zeros / 2) ** 2
    return torch.sinc(time) * window * rolloff / ratio


def _replicated(x: Tensor, front: int, back: int) -> Tensor:
    """Repeats the first and the last of `[B, T, C]`."""
    return torch.cat((x[:, :1].expand(-1, front, -1), x, x[:, -1:].expand(-1, back, -1)), dim=1)


def _filtered(x: Tensor, taps: Tensor, stride: int = 1) -> Tensor:
    """Correlates `[B, T, C]` with `taps` `[K]`, or each channel with its own of `[C, K]`, along T.

    The result is `[B, (T - K) / stride + 1, C]`.
    """
    channels = x.shape[2]
    kernel = taps.to(x.dtype).expand(channels, -1)[:, None, None]
    rows = x.transpose(1, 2).unsqueeze(2)  # maps of one row: their convolution has the better kernels
    return F.conv2d(rows, kernel, stride=(1, stride), groups=channels).squeeze(2).transpose(1, 2)


def upsampled(x: Tensor, taps: Tensor, ratio: int, pad: int, first: int) -> Tensor:
    """Raises the rate of `[B, C, T]` `ratio`-fold, to `[B, C, ratio * T]`, by a transposed convolution with `taps`.

    Its values are computed phase by phase, so that none is multiplied with a zero; the phases are channels of one
    convolution.

    Args:
        x: the sequence.
        taps: the filter `[K]`.
        ratio: how many values come for one.
        pad: how often the first and the last value are repeated.
        first: the first value of the convolution's result that is wanted.
    """
    channels, length = x.shape[1:]
    padded = _replicated(x.transpose(1, 2), pad, pad)
    reach = -(-len(taps) // ratio)
    inputs, kernels = [], []
    for phase in range(ratio):
        last, offset = divmod(phase + first, ratio)
        part = taps[offset::ratio]
        inputs.append(padded[:, last - reach + 1 : last + length])
        kernels.append(F.pad(part, (0, reach - len(part))).flip(0).expand(channels, -1) * ratio)
    result = _filtered(torch.cat(inputs, dim=2), torch.cat(kernels))
    return result.unflatten(2, (ratio, channels)).flatten(1, 2).transpose(1, 2)


class _Resample1d(nn.Module):
    """Holds the stored filter of a rate that changes by `ratio`."""

    filter: Tensor

    def __init__(self, ratio: int, taps: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("filter", kaiser_sinc(0.5 / ratio, 0.6 / ratio, taps).view(1, 1, -1))


class Upsample1d(_Resample1d):
    """Raises the rate `ratio`-fold, with a stored filter."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, ratio * T]`."""
        taps = self.filter.flatten()
        pad = len(taps) // self.ratio - 1
        return upsampled(x, taps, self.ratio, pad, pad * self.ratio + (len(taps) - self.ratio) // 2)


class Downsample1d(_Resample1d):
    """Lowers the rate `ratio`-fold, with a stored filter."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, T / ratio]`."""
        taps = self.filter.flatten()
        half = len(taps) // 2
        padded = _replicated(x.transpose(1, 2), half + len(taps) % 2 - 1, half)
        return _filtered(padded, taps, self.ratio).transpose(1, 2)


class SnakeBeta(nn.Module):
    """Adds the square of a sine, of a trained frequency and amplitude for each channel.

    `alpha` and `beta` are the logarithms of both; without `beta`, the amplitude is the frequency's inverse.
    Source: Ziyin et al., "Neural Networks Fail to Learn Periodic Functions and How to Fix It", 2020.
    """

    def __init__(self, channels: int, *, beta: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels)) if beta else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, T]`."""
        batch, channels, length = x.shape
        frequency = self.alpha.exp()
        height = 1.0 / ((frequency if self.beta is None else self.beta.exp()) + _EPS)
        # A few channels make a short row, over which a processor's vectors are hardly worth starting.
        joined = math.gcd(batch * length, _RUN) if channels < _RUN else 1
        rows = x.transpose(1, 2).reshape(-1, joined * channels)
        frequency, height = (each.expand(joined, -1).flatten() for each in (frequency, height))
        sines = (rows * frequency).sin_()
        rows = torch.addcmul(rows, sines, sines * height)
        return rows.view(batch, length, channels).transpose(1, 2)


class AntiAliasedActivation(nn.Module):
    """An activation at a higher rate, so that what it adds above the band can be filtered off."""

    def __init__(self, activation: nn.Module, ratio: int, taps: int) -> None:
        super().__init__()
        self.upsample = Upsample1d(ratio, taps)
        self.act = activation
        self.downsample = Downsample1d(ratio, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, T]`."""
        result: Tensor = self.downsample(self.act(self.upsample(x)))
        return result
