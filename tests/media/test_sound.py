"""The digest of sound, and how far two sounds are apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from diffuse.media.sound import sound_sha256, sound_snr

SOUND = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)


def test_the_digest_is_of_shape_rate_and_samples() -> None:
    digest = sound_sha256(SOUND, 24000)
    assert digest == hashlib.sha256(b"2x50@24000\0" + SOUND.astype("<f4").tobytes()).hexdigest()
    assert digest == sound_sha256(np.asfortranarray(SOUND), 24000)
    others = [sound_sha256(SOUND, 48000), sound_sha256(SOUND.reshape(1, 100), 24000), sound_sha256(-SOUND, 24000)]
    assert len({digest, *others}) == 4


def test_the_ratio_of_signal_to_noise() -> None:
    assert sound_snr(SOUND, SOUND) == sound_snr(SOUND[:, :20], SOUND) == math.inf
    assert sound_snr(SOUND * np.float32(1.1), SOUND) == pytest.approx(20, abs=1e-3)
    assert sound_snr(0 * SOUND, SOUND) == pytest.approx(0) and sound_snr(0 * SOUND, 0 * SOUND) == math.inf
    assert sound_snr(SOUND, 0 * SOUND) is None and sound_snr(SOUND[:1], SOUND) is None
