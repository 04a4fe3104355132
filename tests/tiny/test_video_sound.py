"""The sounds that the tiny video checkpoint learns, and their spectrograms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import audio_utils

from diffuse.tiny import video_sound
from diffuse.tiny.video_data import MOTIONS


def _pitches(wave: torch.Tensor, rate: int, parts: int) -> list[int]:
    """The strongest frequency of each part of a sound, in Hz, to a hundred."""
    found = []
    for part in wave.chunk(parts, dim=-1):
        inner = part[len(part) // 6 : -len(part) // 6]  # without the fades
        spectrum = torch.fft.rfft(inner * torch.hann_window(len(inner)), n=rate).abs()
        found.append(round(int(spectrum.argmax()) / 100) * 100)
    return found


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
@pytest.mark.parametrize("rate", [16000, 24000])
def test_the_notes_of_a_sound_are_those_it_is_said_to_have(motion: int, rate: int) -> None:
    wave = video_sound.sound(motion, rate)
    assert wave.shape == (2, round(video_sound.SECONDS * rate)) and float(wave.abs().max()) <= 1
    louder = wave[int(wave.square().sum(dim=1).argmax())]
    assert tuple(_pitches(louder, rate, len(video_sound.notes(motion)))) == video_sound.notes(motion)


def test_motions_differ_in_their_notes_or_their_loudness() -> None:
    assert len({video_sound.notes(motion) for motion in range(len(MOTIONS))}) == len(MOTIONS)
    left = video_sound.sound(MOTIONS.index("moving left"), 16000).abs().amax(dim=1)
    assert left[0] > 4 * left[1]
    growing = video_sound.sound(MOTIONS.index("growing"), 16000)[0].abs()
    assert growing[-2000:].max() > 4 * growing[:2000].max()


def test_spectrograms_are_those_of_another_library() -> None:
    filters = audio_utils.mel_filter_bank(513, 32, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(video_sound.mel_filters().numpy(), filters, atol=1e-6)
    wave = video_sound.sound(0, 16000)
    expected = audio_utils.spectrogram(
        wave[0].numpy().astype(np.float64),
        audio_utils.window_function(1024, "hann"),
        1024,
        160,
        power=1.0,
        mel_filters=filters,
        mel_floor=1e-5,
        log_mel="log",
    )
    np.testing.assert_allclose(video_sound.log_mel(wave)[0].numpy().T, expected, atol=2e-3)
