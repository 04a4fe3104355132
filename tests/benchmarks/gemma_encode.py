"""Encoding two prompts with Gemma 3 and LTX-2's connectors, against transformers and diffusers: time and memory.

python tests/benchmarks/gemma_encode.py                 one thread, a tiny and a medium architecture
python tests/benchmarks/gemma_encode.py --threads 2     as many as torch takes by itself on two cores

`memory` is the peak of the bytes of the tensors that a call makes, weights not among them, as a ratio to theirs. They
keep the states of all layers, 49 of the published model, until the projection; here each is projected as it comes.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from pathlib import Path
from typing import Any

import harness
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors as PeerConnectors
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.text_encoder.ltx2_connectors import LTX2TextConnectors, LTX2TextConnectorsConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from gemma_peers import our_text_model, randomise, text_peer
from storage_peak import storage_peak

# Width, layers, heads of keys and values, the width of the feed-forward, and tokens.
SIZES = {"tiny": (96, 12, 2, 384, 64), "medium": (640, 24, 2, 2560, 256), "full": (3840, 48, 8, 15360, 1024)}
WORDS = 40  # of the first prompt; the second one has a quarter


def models(size: str) -> tuple[Any, Any, Any, Any]:
    """Text encoder and connectors of theirs, and ours with the same weights."""
    width, layers, groups, inner, tokens = SIZES[size]
    heads, head_dim = 2 * groups, 64 if size != "full" else 256
    changes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": head_dim}
    changes |= {"num_attention_heads": heads, "num_key_value_heads": groups, "query_pre_attn_scalar": head_dim}
    theirs = text_peer(**changes, sliding_window=1024)
    connectors = {"caption_channels": width, "text_proj_in_factor": layers + 1, "rope_type": "split"}
    for stream in ("video", "audio"):
        connectors |= {f"{stream}_connector_num_attention_heads": width // 32}
        connectors |= {f"{stream}_connector_attention_head_dim": 32}
        connectors |= {f"{stream}_connector_num_layers": 2, f"{stream}_connector_num_learnable_registers": tokens}
    their_connectors: Any = randomise(PeerConnectors(**connectors), seed=3)
    config = read_architecture(
        LTX2TextConnectorsConfig, json.loads(their_connectors.to_json_string()), "connectors/config.json"
    )
    with torch.device("meta"):
        our_connectors = LTX2TextConnectors(config)
    weights = copy.deepcopy(their_connectors.state_dict())
    our_connectors.load_state_dict(weights, assign=True)
    settings = json.loads(theirs.config.to_json_string())
    ours = our_text_model(settings, copy.deepcopy(theirs.state_dict()))
    return theirs, their_connectors, ours, our_connectors.eval()


def main() -> None:
    options = harness.arguments(__doc__)
    print(harness.COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    for size in options.sizes:
        theirs, their_connectors, ours, our_connectors = models(size)
        tokens = SIZES[size][4]
        mask = (torch.arange(tokens) >= tokens - torch.tensor([[WORDS], [WORDS // 4]])).long().to(options.device)
        ids = torch.randint(3, 290, mask.shape, generator=torch.Generator().manual_seed(0)).to(options.device) * mask

        def mine(ids: Tensor = ids, mask: Tensor = mask, text: Any = ours, connectors: Any = our_connectors) -> Tensor:
            projection = connectors.project(mask)
            text(ids, mask, projection.receive)
            found: Tensor = connectors(projection.result(), mask).video
            return found

        def peer(ids: Tensor = ids, mask: Tensor = mask, text: Any = theirs, last: Any = their_connectors) -> Tensor:
            states = text(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            found: Tensor = last(torch.stack(states, dim=-1).flatten(2), mask)[0]
            return found

        for name in options.dtypes:
            kind = {"device": options.device, "dtype": harness.DTYPES[name]}
            for module in (theirs, their_connectors, ours, our_connectors):
                module.to(**kind)
            harness.compare(f"{size}, {name}", (mine, peer), options.repetitions, options.device)
            one, two = storage_peak(mine)[0], storage_peak(peer)[0]
            print(f"    memory: {one / 2**20:.1f} of {two / 2**20:.1f} MiB, {one / two:.3f}", flush=True)
        del theirs, their_connectors, ours, our_connectors
        gc.collect()


if __name__ == "__main__":
    main()
