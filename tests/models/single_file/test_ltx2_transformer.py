"""The names of LTX-2's transformer, in single files and alone."""

from __future__ import annotations

import pytest
from gguf_files import lightricks_name

from diffuse.checkpoints.weights import skeleton
from diffuse.errors import CheckpointError
from diffuse.models.single_file.ltx2_transformer import ltx2_transformer_origins
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.transformer_ltx2 import LTX2VideoTransformer3DModel


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_every_tensor_is_found(version: str, prefix: str) -> None:
    own = {"gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True}
    later = {"use_prompt_embeddings": False, **own}
    config = LTX2VideoTransformer3DConfig(num_layers=2, **(later if version == "2.3" else {}))
    keys = list(skeleton(lambda: LTX2VideoTransformer3DModel(config)).state_dict())
    shapes = {f"{prefix}{lightricks_name(key)}": (1,) for key in keys}
    assert len(shapes) == len(keys)
    others = [
        f"{prefix}video_embeddings_connector.learnable_registers",
        *(["vae.encoder.conv_in.weight"] if prefix else []),
    ]
    origins = ltx2_transformer_origins(shapes | dict.fromkeys(others, (1,)), "a.gguf")
    assert {published: origin.key for published, origin in origins.items()} == {
        key: f"{prefix}{lightricks_name(key)}" for key in keys
    }
    published = ltx2_transformer_origins(dict.fromkeys(keys, (1,)), "a")
    assert published.keys() == set(keys)


def test_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds no transformer of LTX-2"):
        ltx2_transformer_origins({"patchify_proj.weight": (1,)}, "a.gguf")
