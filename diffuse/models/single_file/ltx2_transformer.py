"""The names of LTX-2's transformer in single files, which are those of Lightricks' own implementation."""

from __future__ import annotations

import re

from diffuse.errors import CheckpointError
from diffuse.models.single_file.origin import Origin, Origins, Shapes

_PREFIX = "model.diffusion_model."
# What a name begins with -> its published beginning.
_BEGINNINGS = {
    "patchify_proj.": "proj_in.",
    "audio_patchify_proj.": "audio_proj_in.",
    "adaln_single.": "time_embed.",
    "audio_adaln_single.": "audio_time_embed.",
    "prompt_adaln_single.": "prompt_adaln.",
    "audio_prompt_adaln_single.": "audio_prompt_adaln.",
    "av_ca_video_scale_shift_adaln_single.": "av_cross_attn_video_scale_shift.",
    "av_ca_audio_scale_shift_adaln_single.": "av_cross_attn_audio_scale_shift.",
    "av_ca_a2v_gate_adaln_single.": "av_cross_attn_video_a2v_gate.",
    "av_ca_v2a_gate_adaln_single.": "av_cross_attn_audio_v2a_gate.",
}
_TABLES = {
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
}
_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")  # which are another component
_MARKS = ("av_ca_a2v_gate_adaln_single.linear.weight", "av_cross_attn_video_a2v_gate.linear.weight")


def ltx2_transformer_origins(shapes: Shapes, name: str) -> Origins:
    """Returns where the transformer's tensors are in a file, of the transformer alone or with other models.

    Raises:
        CheckpointError: it holds no transformer of LTX-2.
    """
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in shapes) else ""
    own = [key.removeprefix(prefix) for key in shapes if key.startswith(prefix)]
    if not set(_MARKS) & set(own):
        raise CheckpointError(f"{name}: holds no transformer of LTX-2; give a file that does")
    return {_published(key): Origin(prefix + key) for key in own if not key.startswith(_CONNECTORS)}


def _published(key: str) -> str:
    for beginning, published in _BEGINNINGS.items():
        if key.startswith(beginning):
            return published + key[len(beginning) :]
    head, _, leaf = key.rpartition(".")
    if leaf in _TABLES:
        return f"{head}.{_TABLES[leaf]}"
    return re.sub(r"\.([qk])_norm\.", r".norm_\1.", key)
