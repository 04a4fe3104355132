"""Encoding one picture to the distribution of its latents, against diffusers.

python tests/benchmarks/vae_encode.py                   one thread, the tiny and a medium architecture
python tests/benchmarks/vae_encode.py --threads 2       as many as torch takes by itself on two cores
python tests/benchmarks/vae_encode.py --sizes full --repetitions 3    SD 2.1's own, 768 x 768 pixels; 8 GB
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Call, module_against_peer
from torch import Tensor


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    side = ours.config.sample_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(**kind)

    def mode(model: Any) -> Tensor:
        return model.encode(pixels).mode() if model is ours else model.encode(pixels).latent_dist.mode()

    return partial(mode, ours), partial(mode, peer)


if __name__ == "__main__":
    module_against_peer(__doc__, ["vae"], calls)
