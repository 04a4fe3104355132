"""One step of the denoiser, guided (batch 2), against diffusers.

python tests/benchmarks/unet_step.py                    one thread, the tiny and a medium architecture
python tests/benchmarks/unet_step.py --threads 2        as many as torch takes by itself on two cores
python tests/benchmarks/unet_step.py --sizes full --repetitions 3     SD 2.1 and SDXL themselves; up to 30 GB
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Call, module_against_peer
from torch import Tensor


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    config = ours.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator).to(**kind)
    tokens = 77 if config.cross_attention_dim > 128 else 32
    text = torch.randn(2, tokens, config.cross_attention_dim, generator=generator).to(**kind)
    timestep = torch.tensor(481)
    added: dict[str, Tensor] = {}
    if config.addition_embed_type is not None:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = [8.0 * config.sample_size] * 2 + [0.0, 0.0] + [8.0 * config.sample_size] * 2
        added = {
            "text_embeds": torch.randn(2, pooled, generator=generator).to(**kind),
            "time_ids": torch.tensor([sizes, sizes]).to(**kind),
        }
    theirs = partial(peer, latents, timestep, text, added_cond_kwargs=added, return_dict=False)
    return partial(ours, latents, timestep, text, **added), lambda: theirs()[0]


if __name__ == "__main__":
    module_against_peer(__doc__, ["unet", "sdxl/unet"], calls)
