"""Published names in a file, and the way back from them to the names of a single file.

A component that was saved or exported alone has its published names, perhaps below those of the modules around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from diffuse.errors import CheckpointError
from diffuse.models.single_file.clip_names import LAYER_NAMES, WHOLE_NAMES
from diffuse.models.single_file.ldm_unet import ldm_layer_names
from diffuse.models.single_file.ldm_vae import ATTENTION_NAMES

_TEXT = "embeddings.token_embedding.weight"
_DECODER = "mid_block.resnets.0.norm1.weight"
_MARKS = {  # of components under their published names: a tensor that each has
    "unet": ("time_embedding.linear_1.weight",),
    "vae": (f"decoder.{_DECODER}", _DECODER),
    "text_encoder": (f"text_model.{_TEXT}", _TEXT),
    "text_encoder_2": (f"text_model.{_TEXT}", _TEXT),
}
_QUANT_CONV = re.compile(r"(?:.+\.)?(post_quant_conv\.(?:weight|bias))")
_OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # before version 0.17 of diffusers


def published_keys(shapes: Iterable[str], component: str, name: str) -> dict[str, str] | None:
    """Returns published key -> key of the file, for a component that was saved or exported alone; None for another.

    Args:
        shapes: the file's keys.
        component: such as `unet`.
        name: of the file, for messages.

    Raises:
        CheckpointError: the file has tensors beside those of the component.
    """
    keys = list(shapes)
    for mark in _MARKS[component]:
        found = [key for key in keys if key == mark or key.endswith(f".{mark}")]
        if len(found) != 1:
            continue
        prefix = found[0][: -len(mark)]
        if component == "vae" and f"{prefix}{_MARKS['unet'][0]}" in keys:
            continue
        inner = "decoder." if component == "vae" and mark == _DECODER else ""
        result: dict[str, str] = {}
        for key in keys:
            quant = _QUANT_CONV.fullmatch(key) if component == "vae" else None
            if quant is None and not key.startswith(prefix):
                raise CheckpointError(f"{name}: has the tensor {key:.100} beside its {component}; it is another model")
            result[quant[1] if quant else inner + key[len(prefix) :]] = key
        return result
    return None


def unet_names(published: Iterable[str], name: str) -> dict[str, str]:
    """Returns published key -> key of a single file, without its prefix, of a U-Net.

    Raises:
        CheckpointError: a key is of no U-Net that a single file can hold.
    """
    keys = list(published)
    layers = ldm_layer_names({key.rpartition(".")[0] for key in keys})

    def rename(key: str) -> str | None:
        module, _, last = key.rpartition(".")
        return f"{layers[module]}.{last}" if module in layers else None

    return _all(keys, rename, "U-Net", name)


def vae_names(published: Iterable[str], name: str) -> dict[str, str]:
    """Returns published key -> key of a single file, without its prefix, of an image autoencoder.

    Raises:
        CheckpointError: a key is of no autoencoder that a single file can hold.
    """
    keys = list(published)
    levels = 1 + max((int(m[1]) for key in keys if (m := re.match(r"decoder\.up_blocks\.(\d{1,6})\.", key))), default=0)
    return _all(keys, lambda key: _vae_name(key, levels), "autoencoder", name)


def open_clip_names(published: Iterable[str], name: str) -> dict[str, tuple[str, ...]]:
    """Returns the keys of an OpenCLIP text encoder, each with its published keys, whose rows follow one another there.

    Raises:
        CheckpointError: a key is of no text encoder.
    """
    whole = {f"text_model.{ours}": theirs for theirs, ours in WHOLE_NAMES.items()}
    layers = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    result: dict[str, tuple[str, ...]] = {}
    for key in published:
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d{1,6})\.(.+)\.(weight|bias)", key)
        if key in whole:
            result[whole[key]] = (key,)
        elif key == "text_projection.weight":
            result["text_projection"] = (key,)
        elif match and match[2] in layers:
            result[f"transformer.resblocks.{match[1]}.{layers[match[2]]}.{match[3]}"] = (key,)
        elif match and re.fullmatch(r"self_attn\.[qkv]_proj", match[2]):
            layer, kind = match[1], match[3]
            parts = tuple(f"text_model.encoder.layers.{layer}.self_attn.{each}_proj.{kind}" for each in "qkv")
            result[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = parts
        else:
            raise _foreign(key, "text encoder", name)
    return result


def _all(keys: Iterable[str], rename: Callable[[str], str | None], kind: str, name: str) -> dict[str, str]:
    result: dict[str, str] = {}
    for key in keys:
        other = rename(key)
        if other is None:
            raise _foreign(key, kind, name)
        result[key] = other
    return result


def _foreign(key: str, kind: str, name: str) -> CheckpointError:
    return CheckpointError(f"{name}: has the tensor {key:.100}, which no {kind} in a single file has")


def _vae_name(key: str, levels: int) -> str | None:
    if re.fullmatch(r"((encoder|decoder)\.conv_(in|out)|(post_)?quant_conv)\.(weight|bias)", key):
        return key
    if match := re.fullmatch(r"(encoder|decoder)\.conv_norm_out\.(weight|bias)", key):
        return f"{match[1]}.norm_out.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d{1,6})\.(.+)\.(\w+)", key):
        side, kind, index, module, last = match[1], match[2], int(match[3]), match[4], match[5]
        if kind == "resnets":
            return f"{side}.mid.block_{index + 1}.{_in_resnet(module)}.{last}"
        names = {ours: theirs for theirs, ours in ATTENTION_NAMES.items()} | _OLD_ATTENTION
        return f"{side}.mid.attn_1.{names[module]}.{last}" if module in names else None
    match = re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d{1,6})\.(resnets\.(\d{1,6})|downsamplers\.0|upsamplers\.0)\.(.+)", key
    )
    if match is None:
        return None
    side, way, level, kind, rest = match[1], match[2], int(match[3]), match[4], match[6]
    block = f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
    if match[5] is not None:
        return f"{block}.block.{match[5]}.{_in_resnet(rest)}"
    return f"{block}.{kind.partition('rs.')[0]}.{rest}"


def _in_resnet(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
