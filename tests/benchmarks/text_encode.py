"""Encoding one prompt, against transformers: with SD 2.1's encoder, and with both of SDXL's.

python tests/benchmarks/text_encode.py                  one thread, the tiny and a medium architecture
python tests/benchmarks/text_encode.py --threads 2      as many as torch takes by itself on two cores
python tests/benchmarks/text_encode.py --sizes full     the published ones; 8 GB
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Call, module_against_peer


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    config = ours.config
    tokens = config.max_position_embeddings
    ids = torch.randint(3, config.vocab_size - 2, (1, tokens), generator=torch.Generator().manual_seed(0))
    ids[0, 12:] = config.vocab_size - 1  # twelve words, then the end token as padding
    ids = ids.to(kind["device"])
    if hasattr(peer, "text_projection"):  # SDXL's pipelines take all states, and the pooled text
        return lambda: ours(ids).pooled, lambda: peer(ids, output_hidden_states=True).text_embeds
    return lambda: ours(ids).last_hidden_state, lambda: peer(ids, return_dict=False)[0]


if __name__ == "__main__":
    module_against_peer(__doc__, ["text_encoder", "sdxl/text_encoder", "sdxl/text_encoder_2"], calls)
