"""Text encoders in single files: CLIP-L under its published names, and the OpenCLIP models under their own.

Source: Ilharco et al., "OpenCLIP", 2021, for the names; in it query, key and value lie in one matrix, in this order.
"""

from __future__ import annotations

import re
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file.origin import Origin, Origins, Shapes

_HEAD_WIDTH = 64  # of all published text encoders
_BLOCK = re.compile(r"transformer\.resblocks\.(\d{1,6})\.(.+)")
LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
WHOLE_NAMES = {
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
}
CLIP_UNUSED = ("logit_scale", "embeddings.position_ids", "text_model.embeddings.position_ids", "attn_mask")
"""Keys of text encoders that nothing is computed from."""


def clip_origins(shapes: Shapes) -> Origins:
    """Returns where the tensors of a CLIP under its published names are, by the file's keys without their prefix."""
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": Origin(key)
        for key in shapes
        if key not in CLIP_UNUSED
    }


def clip_config(shapes: Shapes, name: str) -> dict[str, Any]:
    """Returns the settings of a CLIP under its published names, read from its shapes.

    Raises:
        CheckpointError: a tensor is missing that tells them.
    """
    published = {origin: shapes[each.key] for origin, each in clip_origins(shapes).items()}
    layers = [
        int(match[1]) for key in published if (match := re.match(r"text_model\.encoder\.layers\.(\d{1,6})\.", key))
    ]
    embeddings = "text_model.embeddings"
    try:
        vocabulary, width = published[f"{embeddings}.token_embedding.weight"]
        length = published[f"{embeddings}.position_embedding.weight"][0]
        inner = published["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise _missing(name, error) from None
    projection = published.get("text_projection.weight", (width,))[0]
    return _config(vocabulary, width, length, inner, 1 + max(layers), projection, "quick_gelu")


def open_clip_origins(shapes: Shapes, layers: int, *, projection: bool) -> Origins:
    """Returns where the tensors of an OpenCLIP text encoder are.

    Args:
        shapes: by the file's keys without their prefix.
        layers: that are read; files of SD 2.x hold one more.
        projection: whether the projection of the pooled text is read.
    """
    origins: Origins = {}
    for key in shapes:
        if key in WHOLE_NAMES:
            origins[f"text_model.{WHOLE_NAMES[key]}"] = Origin(key)
        elif key == "text_projection" and projection:
            origins["text_projection.weight"] = Origin(key, transposed=True)
        elif key == "text_projection.weight" and projection:
            origins[key] = Origin(key)
        elif match := _BLOCK.fullmatch(key):
            layer, rest = int(match[1]), match[2]
            if layer >= layers:
                continue
            start = f"text_model.encoder.layers.{layer}"
            if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
                for third, each in enumerate("qkv"):
                    origins[f"{start}.self_attn.{each}_proj.{fused[1]}"] = Origin(key, third=third)
            else:
                module, _, last = rest.rpartition(".")
                if module in LAYER_NAMES:
                    origins[f"{start}.{LAYER_NAMES[module]}.{last}"] = Origin(key)
    return origins


def is_open_clip_layer(key: str) -> bool:
    """Tells whether a key, behind any prefix, is that of a weight of a layer of OpenCLIP."""
    match = _BLOCK.fullmatch(key[max(key.find("transformer.resblocks."), 0) :])
    module, _, last = match[2].rpartition(".") if match else ("", "", "")
    return (module in LAYER_NAMES and last in ("weight", "bias")) or (
        module == "attn" and last in ("in_proj_weight", "in_proj_bias")
    )


def open_clip_layers(shapes: Shapes) -> int:
    """Returns the number of layers of an OpenCLIP text encoder in a file."""
    return 1 + max((int(match[1]) for key in shapes if (match := _BLOCK.fullmatch(key))), default=-1)


def open_clip_config(shapes: Shapes, layers: int, name: str) -> dict[str, Any]:
    """Returns the settings of an OpenCLIP text encoder of which `layers` are read.

    Raises:
        CheckpointError: a tensor is missing that tells them.
    """
    try:
        vocabulary, width = shapes["token_embedding.weight"]
        length = shapes["positional_embedding"][0]
        inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    except KeyError as error:
        raise _missing(name, error) from None
    projection = shapes.get("text_projection", (0, width))[-1]
    return _config(vocabulary, width, length, inner, layers, projection, "gelu")


def _config(
    vocabulary: int, width: int, length: int, inner: int, layers: int, projection: int, activation: str
) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": length,
        "hidden_act": activation,
        "projection_dim": projection,
        "eos_token_id": 2,  # as published files say; the end is then found as the largest number
    }


def _missing(name: str, error: KeyError) -> CheckpointError:
    return CheckpointError(f"{name}: lacks the tensor {error.args[0]} of its text encoder; the file is incomplete")
