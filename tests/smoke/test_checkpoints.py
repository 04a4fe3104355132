"""The drawn checkpoints: the same to the bit each time, and as different as their cases need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.run import run
from diffuse.smoke import cases, checkpoints, families, suite


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return suite.write_inputs(tmp_path_factory.mktemp("inputs"))


def test_the_checkpoints_are_the_same_each_time(inputs: dict[str, str], tmp_path: Path) -> None:
    for kind, checkpoint in families.CHECKPOINTS.items():
        again = checkpoints.write_checkpoint(tmp_path / kind, checkpoint)
        for path in sorted(Path(inputs[kind]).rglob("*.*")):
            assert (again / path.relative_to(inputs[kind])).read_bytes() == path.read_bytes()


def test_drawing_weights_needs_no_more_than_whole_numbers() -> None:
    """Each weight is a 24-bit number times one factor: what vectorised logarithms would round differently is not
    there."""
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(3))
    scaled = drawn.double() * 2**24
    assert torch.equal(scaled, scaled.round())


def test_the_distilled_denoiser_is_told_the_scale(inputs: dict[str, str]) -> None:
    """So that the case is of what it says: another scale gives another picture, in as many calls."""
    case = next(case for case in cases.cases() if case.name == "SD 2.x distilled, LCM")
    own = [override.format_map(inputs) for override in case.overrides]
    pictures = []
    for scale in ("guidance_scale=8", "guidance_scale=2"):
        cfg = compose_config([*own, scale, "hardware=cpu", "hardware.threads=1"])
        (made,) = run.generate(cfg, draft_requests(cfg))
        pictures.append(made.frames[:, 0])
    assert not np.array_equal(*pictures)
