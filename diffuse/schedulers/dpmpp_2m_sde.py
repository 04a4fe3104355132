"""SDE-DPM-Solver++, multistep (Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models", 2022, appendix on stochastic sampling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from diffuse.schedulers.dpmpp_2m import STOCHASTIC, DPMpp2M


@dataclass(kw_only=True)
class DPMpp2MSDE(DPMpp2M):
    """DPM++ 2M with new noise in every step, whatever form the checkpoint publishes."""

    label: ClassVar[str] = "DPM++ 2M SDE"

    algorithm_type: str = field(default=STOCHASTIC, init=False)

    refused: ClassVar[Mapping[str, tuple[str, ...]]] = {"variance_type": ("learned", "learned_range")}
