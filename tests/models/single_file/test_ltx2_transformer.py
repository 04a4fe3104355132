"""The names of LTX-2's transformer, in single files and alone."""

from __future__ import annotations

import re

import pytest

from diffuse.checkpoints.weights import skeleton
from diffuse.errors import CheckpointError
from diffuse.models.single_file.ltx2_transformer import ltx2_transformer_origins
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.transformer_ltx2 import LTX2VideoTransformer3DModel

# Published beginning -> that of Lightricks, as the conversion script of diffusers lists them.
LIGHTRICKS = (
    ("audio_proj_in.", "audio_patchify_proj."),
    ("proj_in.", "patchify_proj."),
    ("audio_time_embed.", "audio_adaln_single."),
    ("time_embed.", "adaln_single."),
    ("audio_prompt_adaln.", "audio_prompt_adaln_single."),
    ("prompt_adaln.", "prompt_adaln_single."),
    ("av_cross_attn_video_scale_shift.", "av_ca_video_scale_shift_adaln_single."),
    ("av_cross_attn_audio_scale_shift.", "av_ca_audio_scale_shift_adaln_single."),
    ("av_cross_attn_video_a2v_gate.", "av_ca_a2v_gate_adaln_single."),
    ("av_cross_attn_audio_v2a_gate.", "av_ca_v2a_gate_adaln_single."),
)


def lightricks(key: str) -> str:
    key = next((old + key[len(new) :] for new, old in LIGHTRICKS if key.startswith(new)), key)
    key = re.sub(r"(video|audio)_a2v_cross_attn_scale_shift_table", r"scale_shift_table_a2v_ca_\1", key)
    return re.sub(r"\.norm_([qk])\.", r".\1_norm.", key)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_every_tensor_is_found(version: str, prefix: str) -> None:
    own = {"gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True}
    later = {"use_prompt_embeddings": False, **own}
    config = LTX2VideoTransformer3DConfig(num_layers=2, **(later if version == "2.3" else {}))
    keys = list(skeleton(lambda: LTX2VideoTransformer3DModel(config)).state_dict())
    shapes = {f"{prefix}{lightricks(key)}": (1,) for key in keys}
    assert len(shapes) == len(keys)
    others = [
        f"{prefix}video_embeddings_connector.learnable_registers",
        *(["vae.encoder.conv_in.weight"] if prefix else []),
    ]
    origins = ltx2_transformer_origins(shapes | dict.fromkeys(others, (1,)), "a.gguf")
    assert {published: origin.key for published, origin in origins.items()} == {
        key: f"{prefix}{lightricks(key)}" for key in keys
    }
    published = ltx2_transformer_origins(dict.fromkeys(keys, (1,)), "a")
    assert published.keys() == set(keys)


def test_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds no transformer of LTX-2"):
        ltx2_transformer_origins({"patchify_proj.weight": (1,)}, "a.gguf")
