"""What predictions imply, whichever of the three a model predicts; the samplers' own tests hold the timesteps."""

from __future__ import annotations

import pytest
import torch

from diffuse.errors import ConfigError
from diffuse.schedulers import noise_schedule


@pytest.mark.parametrize("alpha", [0.9, 0.3])
def test_the_three_predictions_imply_the_same_original_and_noise(alpha: float) -> None:
    original, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sample = noise_schedule.add_noise(original, noise, alpha)
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * original
    for kind, output in (("epsilon", noise), ("sample", original), ("v_prediction", velocity)):
        torch.testing.assert_close(noise_schedule.to_original(kind, output, sample, alpha), original)
        torch.testing.assert_close(noise_schedule.to_noise(kind, output, sample, alpha), noise)
    for convert in (noise_schedule.to_original, noise_schedule.to_noise):
        with pytest.raises(ConfigError, match="prediction_type=x0 is not implemented"):
            convert("x0", noise, sample, alpha)


def test_nothing_of_the_signal_is_left_after_rescaling() -> None:
    betas = noise_schedule.betas("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
    left = (1 - betas).cumprod(0)
    assert float(left[-1]) == 0
    assert float(left[0]) == pytest.approx(1 - 0.00085, rel=1e-6)
