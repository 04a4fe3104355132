"""Our models with the settings and weights of diffusers' and transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracle
import torch
from oracle import Variant
from torch import Tensor, nn

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights
from diffuse.models.text_encoder import clip
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "sd21_configs.json").read_text())


MODELS = {
    "unet": (unet2d_condition.UNet2DConditionModel, unet2d_condition.UNet2DConditionConfig, unet2d_condition.rename),
    "vae": (autoencoder_kl.AutoencoderKL, autoencoder_kl.AutoencoderKLConfig, autoencoder_kl.rename),
    "text_encoder": (clip.CLIPTextModel, clip.CLIPTextConfig, clip.rename),
}
PROJECTED = (clip.CLIPTextModelWithProjection, clip.CLIPTextConfig, clip.rename_projected)


def ours(component: str, peer: nn.Module) -> Any:
    """Our module with the peer's settings and weights."""
    settings = json.loads(peer.to_json_string()) if component != "text_encoder" else peer.config.to_diff_dict()
    model, config, rename = PROJECTED if hasattr(peer, "text_projection") else MODELS[component]
    with torch.device("meta"):
        module = model(read_architecture(config, settings, f"{component}/config.json"))  # type: ignore[type-var]
    renamed = {rename(key): tensor for key, tensor in peer.state_dict().items()}
    module.load_state_dict({key: t for key, t in renamed.items() if key is not None}, strict=True, assign=True)
    return module.eval()


def from_file(component: str, folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Our module as the program loads it."""
    model, config, rename = MODELS[component]
    checkpoint = CheckpointFolder.open(folder, variant=variant)
    settings = read_architecture(config, checkpoint.config(component), component)  # type: ignore[type-var]
    return load_weights(lambda: model(settings), checkpoint, component, device="cpu", dtype=dtype, rename=rename)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(batch: int = 2) -> Tensor:
    """Start token, words, end token, padding."""
    size = len(oracle.clip_vocabulary())
    ids = torch.zeros(batch, 77, dtype=torch.int64)
    for row in range(batch):
        length = 5 + 11 * row
        ids[row, :length] = torch.randint(1, size - 2, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, 0], ids[row, length] = size - 2, size - 1
    return ids


TWO_LEVELS = Variant(channels=(16, 32), heads=8, cross=(True, True), vae_channels=(8, 16))


def is_packed(dtype: torch.dtype, kind: str = "linear") -> bool:
    """Whether weights of a dtype are reordered on this processor: bfloat16 and linear layers need AVX-512 or better."""
    if not torch.backends.mkldnn.is_available():
        return False
    if kind == "linear" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
