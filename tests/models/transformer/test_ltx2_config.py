"""Settings of LTX-2's transformer that make no model, or one that is not implemented."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoint_files import message

from diffuse.checkpoints.architecture import read_architecture
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_type": "axial"}, "rope_type=axial"),
        ({"patch_size": 2}, "patch_size=2"),
        ({"audio_patch_size_t": 2}, "audio_patch_size_t=2"),
        ({"qk_norm": "rms_norm"}, "qk_norm='rms_norm'"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"_class_name": "LTXVideoTransformer3DModel"}, "_class_name='LTXVideoTransformer3DModel'"),
        ({"use_duration_head": True}, "use_duration_head=True"),
        ({"num_layers": -1}, "num_layers=-1 makes no model"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 makes no model"),
        ({"timestep_scale_multiplier": 0}, "timestep_scale_multiplier=0"),
        ({"vae_scale_factors": [8, 0, 32]}, "vae_scale_factors[1]=0"),
        ({"vae_scale_factors": [8, 32]}, "vae_scale_factors=[8, 32]"),
        ({"attention_head_dim": 127}, "heads of 127 channels"),
        ({"cross_attention_dim": 2048}, "cross_attention_dim=2048 is not the 4096 channels"),
        ({"audio_cross_attention_dim": 4096}, "audio_cross_attention_dim=4096 is not the 2048 channels"),
        (
            {"rope_type": "split", "audio_num_attention_heads": 16, "audio_attention_head_dim": 128},
            "num_attention_heads=16",
        ),
        ({"num_layers": 10**6}, "is more than 1000"),
        ({"base_height": "tall"}, "base_height='tall'"),
    ],
    ids=str,
)
def test_settings_that_make_no_transformer_are_refused(changes: dict[str, Any], named: str) -> None:
    text = message(lambda: read_architecture(LTX2VideoTransformer3DConfig, changes, "transformer/config.json"))
    assert "transformer/config.json" in text and named in text and "\n" not in text


def test_published_settings_are_read() -> None:
    config = read_architecture(
        LTX2VideoTransformer3DConfig,
        {
            "_class_name": "LTX2VideoTransformer3DModel",
            "_diffusers_version": "0.37.0.dev0",
            "patch_size": 1,
            "qk_norm": "rms_norm_across_heads",
            "rope_type": "split",
            "vae_scale_factors": [8, 32, 32],
            "cross_attn_timestep_scale_multiplier": 1000,
        },
        "transformer/config.json",
    )
    assert (config.video.width, config.audio.width, config.video.rows, config.audio.rows) == (4096, 2048, 6, 6)
    assert config.vae_scale_factors == (8, 32, 32) and not config.modulates_text
