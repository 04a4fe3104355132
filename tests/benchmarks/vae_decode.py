"""Decoding one picture's latents to pixels, against diffusers.

python tests/benchmarks/vae_decode.py                   one thread, the tiny and a medium architecture
python tests/benchmarks/vae_decode.py --threads 2       as many as torch takes by itself on two cores
python tests/benchmarks/vae_decode.py --sizes full --repetitions 3    SD 2.1's own, 768 x 768 pixels; 8 GB
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Call, module_against_peer


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    config = ours.config
    side = config.sample_size // config.factor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.latent_channels, side, side, generator=generator).to(**kind)
    return partial(ours.decode, latents), lambda: peer.decode(latents, return_dict=False)[0]


if __name__ == "__main__":
    module_against_peer(__doc__, ["vae"], calls)
