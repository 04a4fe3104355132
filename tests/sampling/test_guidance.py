"""Classifier-free guidance: batched and sequential agree, the formula is the published one, and rescaling works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffuse.sampling.guidance import ClassifierFreeGuidance, embedded_scale

POSITIVE, NEGATIVE = {"text": torch.full((1, 2), 3.0)}, {"text": torch.full((1, 2), 1.0)}
LATENTS = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def model(latents: Tensor, timestep: Tensor, /, *, copies: int, text: Tensor) -> Tensor:
    """Returns the latents of each copy, times its text."""
    repeated = latents.repeat(copies, 1, 1, 1)
    return repeated * text.mean(1).repeat_interleave(len(repeated) // len(text))[:, None, None, None]


@pytest.mark.parametrize("batched", [True, False])
def test_the_formula(batched: bool) -> None:
    guidance = ClassifierFreeGuidance(POSITIVE, NEGATIVE, 5.0, batched)
    assert torch.allclose(guidance.predict(model, LATENTS, torch.tensor(1)), LATENTS * (1 + 5 * (3 - 1)))


def test_without_a_negative_prompt_the_model_is_called_once() -> None:
    guidance = ClassifierFreeGuidance(POSITIVE, None, 5.0, True)
    assert torch.equal(guidance.predict(model, LATENTS, torch.tensor(1)), LATENTS * 3)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescaling_restores_the_standard_deviation(share: float) -> None:
    guidance = ClassifierFreeGuidance(POSITIVE, NEGATIVE, 5.0, True, share)
    guided = guidance.predict(model, LATENTS, torch.tensor(1))
    plain, positive = LATENTS * 11, LATENTS * 3
    assert torch.allclose(guided.std((1, 2, 3)), share * positive.std((1, 2, 3)) + (1 - share) * plain.std((1, 2, 3)))


def test_an_embedded_scale_is_one_row_of_its_width() -> None:
    assert embedded_scale(7.5, 256).shape == (1, 256)
    assert not torch.equal(embedded_scale(7.5, 256), embedded_scale(8.5, 256))
