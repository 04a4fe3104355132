"""Writes GGUF files with the package of ggml, as tools for pictures write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], kinds: Mapping[str, str], architecture: str) -> dict[str, Tensor]:
    """Writes tensors, those of `kinds` in these types. Returns what they stand for, as the package reads them.

    Rows that are no whole blocks are stored in another shape, which stands beside.
    """
    writer = GGUFWriter(path, architecture)
    expected = {}
    for key, tensor in tensors.items():
        values = tensor.float().numpy()
        kind = GGMLQuantizationType[kinds.get(key, "F32")]
        if key in kinds and kind not in (GGMLQuantizationType.F16, GGMLQuantizationType.F32):
            if values.shape[-1] % 32:
                writer.add_array(f"comfy.gguf.orig_shape.{key}", [int(size) for size in values.shape])
                values = values.reshape(-1, 32)
            data = quants.quantize(values, kind)
            values = quants.dequantize(data, kind)
        else:
            data = values.astype(np.float16) if kind == GGMLQuantizationType.F16 else values
        writer.add_tensor(key, data, raw_dtype=kind)
        expected[key] = torch.from_numpy(np.ascontiguousarray(values.astype(np.float32))).view(tensor.shape)
        if kind == GGMLQuantizationType.F16:
            expected[key] = expected[key].half().float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


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


def lightricks_name(key: str) -> str:
    """The name that Lightricks' own implementation has for a published tensor of LTX-2's transformer."""
    key = next((old + key[len(new) :] for new, old in LIGHTRICKS if key.startswith(new)), key)
    key = re.sub(r"(video|audio)_a2v_cross_attn_scale_shift_table", r"scale_shift_table_a2v_ca_\1", key)
    return re.sub(r"\.norm_([qk])\.", r".\1_norm.", key)
