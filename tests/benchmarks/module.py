"""Our modules with a peer's settings and weights, laid out as `diffuse.checkpoints.weights.load` lays them out."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.text_encoder import clip
from diffuse.models.transformer import ltx2_config, transformer_ltx2
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl

MODELS = {
    "unet": (unet2d_condition.UNet2DConditionModel, unet2d_condition.UNet2DConditionConfig, unet2d_condition.rename),
    "vae": (autoencoder_kl.AutoencoderKL, autoencoder_kl.AutoencoderKLConfig, autoencoder_kl.rename),
    "text_encoder": (clip.CLIPTextModel, clip.CLIPTextConfig, clip.rename),
    "transformer": (
        transformer_ltx2.LTX2VideoTransformer3DModel,
        ltx2_config.LTX2VideoTransformer3DConfig,
        transformer_ltx2.rename,
    ),
    "projected": (clip.CLIPTextModelWithProjection, clip.CLIPTextConfig, clip.rename_projected),
}


def from_peer(component: str, peer: Any) -> Any:
    """Our module, filled with a copy of the peer's weights."""
    kind = component.rpartition("/")[2].removesuffix("_2")
    model, config, rename = MODELS["projected" if hasattr(peer, "text_projection") else kind]
    settings = peer.config.to_diff_dict() if "text_encoder" in component else json.loads(peer.to_json_string())
    with torch.device("meta"):
        module = model(read_architecture(config, settings, f"{component}/config.json"))
    state = {rename(key): copy.deepcopy(tensor) for key, tensor in peer.state_dict().items()}
    module.load_state_dict({key: tensor for key, tensor in state.items() if key is not None}, assign=True)
    return module.eval().requires_grad_(False)
