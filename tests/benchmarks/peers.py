"""The architectures that are measured, as diffusers and transformers make them.

`tiny` is the checkpoint that ships, with its weights. `medium` has SD 2.1's or SDXL's shape, narrower, with random
weights, so that a run takes a second or so; `full` is the published architecture, with random weights. Components of
SDXL are named `sdxl/unet` and so on; they are medium or full. Those of LTX-2, `ltx2/transformer` and
`ltx2_3/transformer`, are random at each size; tiny is about as large as a model of films that a CPU can train.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))  # where oracle.py is, however this is started

import oracle
from diffusers import AutoencoderKL, LTX2VideoTransformer3DModel, UNet2DConditionModel
from ltx2_peers import LATER
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import diffuse

TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "sd21_configs.json").read_text())
PUBLISHED |= {
    f"sdxl/{component}": settings
    for component, settings in json.loads(
        (Path(__file__).parents[1] / "data" / "sdxl_configs.json").read_text()
    ).items()
}
PUBLISHED |= {"ltx2/transformer": {"rope_type": "split"}, "ltx2_3/transformer": LATER | {"rope_type": "split"}}


def _streams(heads: int, head_dim: int, layers: int, caption: int) -> dict[str, Any]:
    """Two streams of LTX-2, of which the sound's has half the width."""
    settings = {"num_layers": layers, "caption_channels": caption, "in_channels": 32, "out_channels": 32}
    for prefix, width in (("", head_dim), ("audio_", head_dim // 2)):
        settings |= {f"{prefix}num_attention_heads": heads, f"{prefix}attention_head_dim": width}
        settings[f"{prefix}cross_attention_dim"] = heads * width
    return settings


_TINY = {"transformer": _streams(4, 48, 8, 128)}
_NARROWER: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (128, 256, 512, 512),
        "attention_head_dim": (2, 4, 8, 8),
        "sample_size": 32,
    },
    "vae": {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 16, "sample_size": 256},
    "text_encoder": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "vocab_size": 8192,
    },
    "sdxl/unet": {
        "block_out_channels": (128, 256, 512),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 512,
        "projection_class_embeddings_input_dim": 6 * 256 + 320,
        "sample_size": 32,
    },
    "sdxl/text_encoder": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "vocab_size": 8192,
    },
    "sdxl/text_encoder_2": {
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_attention_heads": 10,
        "projection_dim": 640,
        "num_hidden_layers": 16,
        "vocab_size": 8192,
    },
    "ltx2/transformer": _streams(8, 96, 3, 768),
    "ltx2_3/transformer": _streams(8, 96, 3, 768),
}
_MODELS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "transformer": LTX2VideoTransformer3DModel,
}


def sizes(component: str) -> set[str]:
    """What `make` can make of it."""
    return {"medium", "full"} if component.startswith("sdxl/") else {"tiny", "medium", "full"}


def make(component: str, size: str) -> nn.Module:
    """The reference's module, in float32 and evaluation mode; `size` is tiny, medium or full."""
    model: Any = _MODELS[component.rpartition("/")[2]]
    if size == "tiny" and not component.startswith("ltx2"):
        peer: nn.Module = model.from_pretrained(TINY / component)
        return peer.eval()
    settings = {key: value for key, value in PUBLISHED[component].items() if not key.startswith("_")}
    if size != "full":
        settings |= _NARROWER[component] if size == "medium" else _TINY[component.rpartition("/")[2]]
    peer = model(CLIPTextConfig(**settings)) if "text_encoder" in component else model.from_config(settings)
    oracle.randomise(peer, 0)  # activations stay in range, so that no denormal or infinity disturbs a time
    return peer.eval()
