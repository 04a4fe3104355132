"""The ways to space sigmas: against scipy, and falling from the largest to the smallest."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from diffuse.schedulers import sigmas


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999])
def test_the_beta_distribution_agrees_with_scipy(steps: int) -> None:
    p = 1 - np.linspace(0, 1, steps)
    np.testing.assert_allclose(sigmas.beta_quantiles(p), scipy.stats.beta.ppf(p, 0.6, 0.6), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spacing", sigmas.SPACINGS.values())
def test_every_spacing_falls_from_the_largest_to_the_smallest(spacing: sigmas.Spacing) -> None:
    spaced = spacing(12, 14.6, 0.03)
    assert (np.diff(spaced) < 0).all()
    np.testing.assert_allclose(spaced[[0, -1]], [14.6, 0.03], rtol=1e-7)  # Lu's are of logarithms in float32
