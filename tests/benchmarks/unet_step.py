"""One step of the denoiser, guided (batch 2), against diffusers.

python tests/benchmarks/unet_step.py                    one thread, the tiny and a medium architecture
python tests/benchmarks/unet_step.py --threads 2        as many as torch takes by itself on two cores
python tests/benchmarks/unet_step.py --sizes full --repetitions 3     SD 2.1 itself, 768 x 768 pixels; 12 GB
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Call, module_against_peer


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    config = ours.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator).to(**kind)
    tokens = 77 if config.cross_attention_dim > 128 else 32
    text = torch.randn(2, tokens, config.cross_attention_dim, generator=generator).to(**kind)
    timestep = torch.tensor(481)
    return partial(ours, latents, timestep, text), lambda: peer(latents, timestep, text, return_dict=False)[0]


if __name__ == "__main__":
    module_against_peer(__doc__, "unet", calls)
