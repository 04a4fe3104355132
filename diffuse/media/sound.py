"""Decoded sound: its digest, and how far two sounds are apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def sound_sha256(sound: np.ndarray, sample_rate: int | None) -> str:
    """Returns the SHA-256 of sound, float32 `[C, S]`, at `sample_rate` samples a second.

    It is taken of shape and rate as text (`2x48000@24000`), a zero byte, and the samples as little-endian float32, one
    channel after the other.
    """
    digest = hashlib.sha256(f"{'x'.join(map(str, sound.shape))}@{sample_rate}".encode() + b"\0")
    digest.update(np.ascontiguousarray(sound, "<f4").data)
    return digest.hexdigest()


def sound_snr(sound: np.ndarray, reference: np.ndarray) -> float | None:
    """Returns the signal-to-noise ratio in decibels of sound `[C, S]` to its reference, over the shorter length.

    It is infinite where they are equal, and negative where they differ by more than there is. None where the
    reference is silent and the sound is not, or the numbers of channels differ.
    """
    if len(sound) != len(reference):
        return None
    length = min(sound.shape[1], reference.shape[1])
    ours, theirs = sound[:, :length].astype(np.float64), reference[:, :length].astype(np.float64)
    noise, signal = float(np.sum(np.square(ours - theirs))), float(np.sum(np.square(theirs)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else None
