"""Stable Diffusion 1.5 and 2 base run through the code of 2.1: as they are published, against diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import picture_parity
import pytest
import torch
from diffusers import AutoencoderKL as PeerVAE
from diffusers import PNDMScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as PeerUNet
from picture_parity import PROMPT, assert_same
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel as PeerText

from diffuse.checkpoints.architecture import read_architecture
from diffuse.media.load import read_record
from diffuse.models.text_encoder import clip
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl

# Both are published with it, and its own settings.
PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SMALL: dict[str, Any] = {"channels": (16, 32), "cross": (True, True), "prediction_type": "epsilon"}
VARIANTS = {
    # CLIP-L's activation and padding, projections that are convolutions, names of old files
    "sd15": oracle.Variant(
        **SMALL,
        heads=8,
        linear_projection=False,
        upcast_attention=False,
        hidden_act="quick_gelu",
        pad_token=oracle.END,
        position_ids=True,
        old_vae_names=True,
    ),
    "sd2_base": oracle.Variant(**SMALL, heads=(2, 4), upcast_attention=False),
}
# The settings as they are published; the parameters of each are counted below.
UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}


def published(folder: Path, name: str) -> Path:
    """A small checkpoint with all that lies in the published folder beside what makes pictures."""
    oracle.build(folder, VARIANTS[name])
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(PNDM))
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    if name == "sd15":
        index |= {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "requires_safety_checker": True,
        }
        for path in ("safety_checker/config.json", "feature_extractor/preprocessor_config.json"):
            (folder / path).parent.mkdir()
            (folder / path).write_text("{}")
        (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"not read")
        (folder / "v1-5-pruned.ckpt").write_bytes(b"not read")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_pictures_agree_with_diffusers(name: str, tmp_path: Path) -> None:
    folder = published(tmp_path / "checkpoint", name)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"prompt": PROMPT, "negative_prompt": "the dog", "num_inference_steps": 5, "guidance_scale": 7.5}
    made = pipeline(**asked, generator=torch.Generator().manual_seed(0)).images[0]
    ours = picture_parity.made(folder, tmp_path / "out", model=name, **{**asked, "output.name": "x"})
    assert_same(ours, np.asarray(made)[None])
    recorded = read_record(tmp_path / "out" / "x.png")
    assert (recorded["config"]["scheduler"]["name"], recorded["weights"]["source"]) == ("pndm", str(folder))
    auto = picture_parity.made(folder, tmp_path / "auto", model="auto", **asked, scheduler="pndm")
    assert np.array_equal(auto, ours)


@pytest.mark.parametrize(
    ("settings", "peer", "model", "config", "rename", "parameters"),
    [
        (
            UNET,
            PeerUNet.from_config,
            unet2d_condition.UNet2DConditionModel,
            unet2d_condition.UNet2DConditionConfig,
            unet2d_condition.rename,
            859_520_964,
        ),
        (
            VAE,
            PeerVAE.from_config,
            autoencoder_kl.AutoencoderKL,
            autoencoder_kl.AutoencoderKLConfig,
            autoencoder_kl.rename,
            83_653_863,
        ),
        (
            TEXT,
            lambda settings: PeerText(PeerTextConfig(**settings)),
            clip.CLIPTextModel,
            clip.CLIPTextConfig,
            clip.rename,
            123_060_480,
        ),
    ],
    ids=["unet", "vae", "text_encoder"],
)
def test_full_size_modules_of_sd15(
    settings: dict[str, Any], peer: Any, model: Any, config: Any, rename: Any, parameters: int
) -> None:
    with torch.device("meta"):
        module = model(read_architecture(config, settings, "config.json"))
        expected = {rename(key): tensor.shape for key, tensor in peer(settings).state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
