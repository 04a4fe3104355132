"""Describes single files of LTX-2 as its authors publish them, and components of it alone in a file.

A whole file holds the transformer with the connectors, both autoencoders and the vocoder, and its header the settings
of all; the text encoder and its tokenizer come from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file import ltx2_names
from diffuse.models.single_file.ltx2_settings import (
    SCHEDULER,
    audio_vae_settings,
    connectors_settings,
    transformer_settings,
    video_vae_settings,
    vocoder_settings,
)
from diffuse.models.single_file.origin import Description, Origin, Origins, Shapes

_DENOISER, _PROJECTION = "model.diffusion_model.", "text_embedding_projection."
_MARK = "av_ca_a2v_gate_adaln_single."
_STATISTICS = "per_channel_statistics."
_SCALES = (".weight_scale", ".input_scale", ".comfy_quant", "scaled_fp8")
FILM_COMPONENTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
"""The components that a whole file holds."""
# A tensor that a component has under its published names, and no other has.
_PUBLISHED = {
    "transformer": "av_cross_attn_video_a2v_gate.linear.weight",
    "connectors": "video_connector.learnable_registers",
    "vae": "latents_mean",
    "audio_vae": "latents_mean",
    "vocoder": "conv_in.weight",
}


_INSIDE = {  # a part of a published key that each component has
    "transformer": "av_cross_attn_video_a2v_gate.",
    "connectors": "video_connector.",
    "vae": "latents_mean",
    "audio_vae": "latents_mean",
    "vocoder": "conv_in.",
}


def is_ltx2(shapes: Shapes) -> bool:
    """Tells whether a file holds LTX-2's transformer under its authors' names."""
    return any(key.startswith(f"{_DENOISER}{_MARK}") for key in shapes)


def is_film_vae(shapes: Shapes) -> bool:
    """Tells whether a file holds an autoencoder of films, under its authors' names or its published ones."""
    marks = ("latents_mean", f"{_STATISTICS}mean-of-means")
    return any(key.removeprefix("vae.") in marks for key in shapes)


def describe_ltx2(shapes: Shapes, metadata: Mapping[str, str], name: str) -> Description:
    """Returns the models in a file of LTX-2.

    Raises:
        CheckpointError: its header has no settings, or one that is not implemented, or it holds what nothing uses.
    """
    _refuse_scales(shapes, name)
    header = _header(metadata, name)
    if header is None:
        raise CheckpointError(f"{name}: its header has no settings of LTX-2; give the file as its authors publish it")
    origins: dict[str, Origins] = {}
    for component in FILM_COMPONENTS:
        if found := _origins(shapes, component):
            origins[component] = found
    configs: dict[str, dict[str, Any]] = {}
    for component, places in origins.items():
        own = {key: shapes[origin.key] for key, origin in places.items()}
        configs[component] = _settings(component, header, own, name)
    used = {origin.key for places in origins.values() for origin in places.values()}
    foreign = sorted(key for key in shapes if key not in used and not _is_known(key))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CheckpointError(f"{name}: has the tensor {foreign[0]:.100}{more}, which no component of its family uses")
    configs["scheduler"] = dict(SCHEDULER)
    index = {"_class_name": "LTX2Pipeline"} | {
        component: ["diffusers", config["_class_name"]] for component, config in configs.items()
    }
    note = "does not say whether it is distilled; use model=ltx2_distilled for a file that is"
    return Description(index, configs, origins, [note])


def describe_film_component(
    shapes: Shapes, component: str, metadata: Mapping[str, str], name: str
) -> tuple[dict[str, Any] | None, Origins]:
    """Returns the settings of one component in a file, None where the header has none, and where its tensors are.

    The file may be a whole one, or hold that component alone, with the prefixes of its keys or without, or under its
    published names.

    Raises:
        CheckpointError: it holds no such component, or something beside it.
    """
    _refuse_scales(shapes, name)
    mark = _PUBLISHED[component]
    if mark in shapes or (f"vocoder.{mark}" in shapes and "vocoder.conv_pre.weight" not in shapes):
        return None, {key: Origin(key) for key in shapes}
    is_bare = component == "vocoder" and any(key.startswith("bwe_generator.") for key in shapes)
    origins = {} if is_bare else _origins(shapes, component)
    if not origins and not is_ltx2(shapes):
        origins = _origins(_prefixed(shapes, component), component, bare=True)
    if not any(_INSIDE[component] in key for key in origins):
        raise CheckpointError(f"{name}: holds no {component} of LTX-2; give a file that does")
    used = {origin.key for origin in origins.values()}
    foreign = [key for key in shapes if key not in used and not _is_known(key)]
    if foreign and not is_ltx2(shapes):
        raise CheckpointError(f"{name}: has the tensor {foreign[0]:.100} beside its {component}; it is another model")
    header = _header(metadata, name)
    own = {key: shapes[origin.key] for key, origin in origins.items()}
    section = {"connectors": "transformer"}.get(component, component)
    return None if header is None or section not in header else _settings(component, header, own, name), origins


def _settings(component: str, header: Mapping[str, Any], shapes: Shapes, name: str) -> dict[str, Any]:
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "transformer": lambda: transformer_settings(header, name),
        "connectors": lambda: connectors_settings(header, shapes, name),
        "vae": lambda: video_vae_settings(header, name),
        "audio_vae": lambda: audio_vae_settings(header, name),
        "vocoder": lambda: vocoder_settings(header, shapes, name),
    }
    try:
        return makers[component]()
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError):
        raise CheckpointError(
            f"{name}: the settings of its {component} in the header cannot be read; copy or download it again"
        ) from None


def _origins(shapes: Shapes, component: str, *, bare: bool = False) -> Origins:
    """Returns where the tensors of a component are, by their published keys; none where the file holds none."""
    keys: dict[str, str | None] = {}
    if component == "transformer":
        inner = _below(shapes, _DENOISER)
        keys = {
            each: ltx2_names.transformer_key(key)
            for each, key in inner.items()
            if not key.startswith(ltx2_names.CONNECTOR_PREFIXES)
        }
    elif component == "connectors":
        inner = _below(shapes, _DENOISER)
        inner = {each: key for each, key in inner.items() if key.startswith(ltx2_names.CONNECTOR_PREFIXES)}
        inner |= _below(shapes, _PROJECTION)
        keys = {each: ltx2_names.connectors_key(key) for each, key in inner.items()}
    elif component == "vae":
        inner = _below(shapes, "vae.")
        published = ltx2_names.video_vae_keys(inner.values())
        keys = {each: published[key] for each, key in inner.items()}
    elif component == "audio_vae":
        keys = {each: ltx2_names.audio_vae_key(key) for each, key in _below(shapes, "audio_vae.").items()}
    else:
        keys = {each: ltx2_names.vocoder_key(key) for each, key in _below(shapes, "vocoder.").items()}
    prefix = _bare_prefix(component) if bare else ""
    return {key: Origin(each.removeprefix(prefix)) for each, key in keys.items() if key is not None}


def _bare_prefix(component: str) -> str:
    return _DENOISER if component in ("transformer", "connectors") else f"{component}."


def _prefixed(shapes: Shapes, component: str) -> Shapes:
    """Returns the shapes of a component alone in a file, whose keys lack their prefix, with it."""
    prefix = _bare_prefix(component)
    return {f"{prefix}{key}": shape for key, shape in shapes.items()}


def _below(shapes: Shapes, prefix: str) -> dict[str, str]:
    """Returns the keys that begin with `prefix`, each with the rest of it."""
    return {key: key[len(prefix) :] for key in shapes if key.startswith(prefix)}


def _is_known(key: str) -> bool:
    """Tells whether a key is known to be of no use: statistics of training."""
    return f".{_STATISTICS}" in f".{key}"


def _refuse_scales(shapes: Shapes, name: str) -> None:
    scaled = next((key for key in shapes if key.endswith(_SCALES)), None)
    if scaled is not None:
        raise CheckpointError(f"{name}: is quantised ({scaled:.100}), which is not read; give the file in bfloat16")


def _header(metadata: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """Returns the settings in a file's header; None where it has none."""
    text = metadata.get("config")
    if text is None:
        return None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{name}: the settings in its header are no JSON object; copy or download it again")
    return header
