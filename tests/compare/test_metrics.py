"""PSNR and SSIM are scikit-image's, FLIP is what its authors' evaluator says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffuse.compare import metrics


@given(
    st.integers(7, 40),
    st.integers(7, 40),
    st.sampled_from([0, 1, 7, 60, 255]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_psnr_and_ssim_are_scikit_images(height: int, width: int, noise: int, flat: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    reference = np.full((height, width, 3), draw.integers(256), np.uint8)
    if not flat:
        reference = draw.integers(0, 256, (height, width, 3), np.uint8)
    picture = np.clip(reference + draw.integers(-noise, noise + 1, reference.shape), 0, 255).astype(np.uint8)

    ssim = structural_similarity(picture, reference, channel_axis=2, data_range=255)
    assert metrics.ssim(picture, reference) == pytest.approx(ssim, abs=1e-12)
    if (picture != reference).any():
        psnr = peak_signal_noise_ratio(reference, picture, data_range=255)
        assert metrics.psnr(picture, reference) == pytest.approx(psnr, abs=1e-9)


def test_a_picture_and_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    same = metrics.measure_difference(picture, picture)
    assert same == metrics.Difference(math.inf, 1.0, 0.0)


def test_flip_grows_with_what_is_seen() -> None:
    picture = np.full((32, 32, 3), 128, np.uint8)
    little, much = picture.copy(), picture.copy()
    little[8:24, 8:24] += 4
    much[8:24, 8:24] = (255, 0, 0)
    assert 0 < metrics.flip(little, picture) < 0.1 < metrics.flip(much, picture) <= 1
    black, white = np.zeros_like(picture), np.full_like(picture, 255)
    assert metrics.flip(white, black) == pytest.approx(0.967, abs=0.02)  # of the colour metric's own worst case


def test_sizes() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    assert metrics.measure_difference(picture, np.zeros((16, 17, 3), np.uint8)) is None
    narrow = metrics.measure_difference(picture[:6], picture[:6])
    assert narrow is not None and narrow.ssim is None and narrow.psnr == math.inf


def test_videos_are_compared_frame_by_frame() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    changed = frames.copy()
    changed[1] = 255 - changed[1]
    whole, one = metrics.measure_difference(changed, frames), metrics.measure_difference(changed[1], frames[1])
    assert whole is not None and one is not None and whole.ssim is not None and one.ssim is not None
    assert whole.ssim == pytest.approx((3 + one.ssim) / 4)
    assert whole.flip == pytest.approx(one.flip / 4)
    assert whole.psnr == pytest.approx(one.psnr + 10 * math.log10(4))
    assert metrics.measure_difference(changed[:3], frames) == metrics.measure_difference(
        changed[:3], frames[:3]
    )  # one frame fewer
