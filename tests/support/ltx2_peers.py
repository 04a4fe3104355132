"""Tiny random transformers of LTX-2 as diffusers has them, and ours with their settings and weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel as Peer
from gemma_peers import randomise
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.transformer_ltx2 import LTX2VideoTransformer3DModel, Rotations

HEADS, VIDEO, AUDIO, CAPTION = 4, 4 * 12, 4 * 8, 20  # widths; neither is a multiple of six, so that some pairs stay
FRAMES, ROWS, COLUMNS, SOUND, TEXT = 3, 2, 3, 5, 9  # sizes of the latents, and tokens of the texts
TOKENS = FRAMES * ROWS * COLUMNS
LATER = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
VERSIONS: dict[str, dict[str, Any]] = {"2.0": {}, "2.3": LATER}
_TINY: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 6,
    "num_attention_heads": HEADS,
    "attention_head_dim": VIDEO // HEADS,
    "cross_attention_dim": VIDEO,
    "audio_in_channels": 7,
    "audio_out_channels": 5,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO // HEADS,
    "audio_cross_attention_dim": AUDIO,
    "num_layers": 3,
    "caption_channels": CAPTION,
    "rope_type": "split",
}


def peer_transformer(version: str, **changes: Any) -> Any:
    peer = randomise(Peer(**(_TINY | VERSIONS[version] | changes)), seed=2)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "norm_" in name:  # of queries and keys: near zero, attention would be the same everywhere
                parameter.add_(1.5)
    return peer


def our_transformer(peer: Any) -> LTX2VideoTransformer3DModel:
    settings = json.loads(peer.to_json_string())
    with torch.device("meta"):
        module = LTX2VideoTransformer3DModel(
            read_architecture(LTX2VideoTransformer3DConfig, settings, "transformer/config.json")
        )
    module.load_state_dict(peer.state_dict(), strict=True, assign=True)
    return module.eval()


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotations(model: LTX2VideoTransformer3DModel) -> Rotations:
    return model.rotations(*model.coordinates(FRAMES, ROWS, COLUMNS, fps=24.0, audio_frames=SOUND))


def inputs(peer: Any, batch: int = 2) -> dict[str, Tensor]:
    """Latents, texts and timesteps, as both models name them."""
    config = peer.config
    widths = (CAPTION, CAPTION) if config.use_prompt_embeddings else (VIDEO, AUDIO)
    return {
        "hidden_states": noise(batch, TOKENS, config.in_channels, seed=11),
        "audio_hidden_states": noise(batch, SOUND, config.audio_in_channels, seed=12),
        "encoder_hidden_states": noise(batch, TEXT, widths[0], seed=13),
        "audio_encoder_hidden_states": noise(batch, TEXT, widths[1], seed=14),
        "timestep": torch.tensor([700.0, 300.0])[:batch],
    }


def peer_velocities(peer: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    sizes = {"num_frames": FRAMES, "height": ROWS, "width": COLUMNS, "audio_num_frames": SOUND, "fps": 24.0}
    given = {"sigma": given["timestep"]} | sizes | given
    video, audio = peer(**given, return_dict=False)
    return video, audio
