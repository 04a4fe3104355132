"""The sounds that the tiny video checkpoint learns, one for each motion, and the mel spectrograms that it sees of them.

A sound is a row of notes at multiples of 100 Hz. That is how often a mel frame comes: a vocoder, to which every frame
of a steady note looks the same, can then continue the wave from frame to frame without knowing its phase.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffuse.tiny.video_data import FPS, FRAMES, MOTIONS

SECONDS = FRAMES / FPS
MEL_RATE = 16000  # Hz, of the sound that is seen as a spectrogram
HOP = 160  # samples of it between spectra
BINS = 32
_WINDOW = 1024  # samples of a spectrum
_FLOOR = 1e-5  # under the logarithm

_LOUDNESS = 0.5
_OVERTONE = 0.25  # at twice the frequency, of the note's amplitude
_FADE = 0.01  # seconds from one note to the next

# Notes in hundreds of Hz, each as long as the others; loudness at the beginning and at the end; left and right.
_SOUNDS: dict[str, tuple[tuple[int, ...], tuple[float, float], tuple[float, float]]] = {
    "moving up": ((4, 5, 6, 7, 8, 9, 10, 11, 12), (1, 1), (1, 1)),
    "moving down": ((12, 11, 10, 9, 8, 7, 6, 5, 4), (1, 1), (1, 1)),
    "moving left": ((5,), (1, 1), (1, 0.2)),
    "moving right": ((10,), (1, 1), (0.2, 1)),
    "spinning": ((6, 9) * 4, (1, 1), (1, 1)),
    "growing": ((7,), (0.1, 1), (1, 1)),
}


def notes(motion: int) -> tuple[int, ...]:
    """Returns the frequencies of a motion's notes, in Hz, in the order of time."""
    return tuple(100 * note for note in _SOUNDS[MOTIONS[motion]][0])


def sound(motion: int, rate: int, seconds: float = SECONDS) -> Tensor:
    """Returns the sound of a motion `[2, S]` in -1..1, at `rate` samples a second."""
    frequencies = notes(motion)
    _, (first, last), sides = _SOUNDS[MOTIONS[motion]]
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    length = SECONDS / len(frequencies)
    wave = torch.zeros_like(t)
    for place, frequency in enumerate(frequencies):
        start = -math.inf if place == 0 else place * length
        end = math.inf if place == len(frequencies) - 1 else (place + 1) * length
        weight = ((t - start) / _FADE + 0.5).clamp(0, 1) * ((end - t) / _FADE + 0.5).clamp(0, 1)
        phase = 2 * math.pi * frequency * t
        wave += weight * (phase.sin() + _OVERTONE * (2 * phase).sin())
    wave *= (first + (last - first) * t / SECONDS) * _LOUDNESS / (1 + _OVERTONE)
    return torch.stack([side * wave for side in sides]).float()


def log_mel(wave: Tensor) -> Tensor:
    """Returns logarithms of mel spectra `[C, M, BINS]` of a sound `[C, S]` at `MEL_RATE`; M is `S / HOP + 1`."""
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(wave, _WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    return (spectrum.abs().transpose(1, 2) @ mel_filters()).clamp(min=_FLOOR).log()


def mel_filters() -> Tensor:
    """Returns triangular filters of area one `[WINDOW / 2 + 1, BINS]`, on the mel scale of Slaney (1998)."""
    edges = _hertz(torch.linspace(0, _mel(MEL_RATE / 2), BINS + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, MEL_RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


# Below 1000 Hz the scale is linear, 15 mels; above, 27 mels are a factor of 6.4.
_STEP, _BREAK, _LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27


def _mel(hertz: float) -> float:
    return hertz / _STEP if hertz < _BREAK else _BREAK / _STEP + math.log(hertz / _BREAK) / _LOG_STEP


def _hertz(mel: Tensor) -> Tensor:
    knee = _BREAK / _STEP
    return torch.where(mel < knee, mel * _STEP, _BREAK * ((mel - knee) * _LOG_STEP).exp())
