"""Tells what a single file holds, from the prefixes of its keys, from shapes, and from what its header says.

The header's names are those of the "Stability AI Metadata Specification" and of kohya's training scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file.clip_names import (
    CLIP_UNUSED,
    clip_config,
    clip_origins,
    is_open_clip_layer,
    open_clip_config,
    open_clip_layers,
    open_clip_origins,
)
from diffuse.models.single_file.ldm_unet import unet_config, unet_origins
from diffuse.models.single_file.ldm_vae import vae_config, vae_origins
from diffuse.models.single_file.ltx2_file import (
    FILM_COMPONENTS,
    describe_film_component,
    describe_ltx2,
    is_film_vae,
    is_ltx2,
)
from diffuse.models.single_file.origin import Description, Origin, Origins, Shapes
from diffuse.models.single_file.published_names import published_keys, unet_names, vae_names

UNKNOWN_PREDICTION = "unknown"
"""The prediction type of a file that does not say whether its U-Net predicts the noise or the velocity."""

PREDICTIONS = ("epsilon", "v_prediction")
"""The prediction types that a single file can say."""

SAID_PREDICTION = "scheduler.prediction_type"
"""The name under which the metadata have what the user says, which comes before what the header does."""

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_OPEN_CLIP_2 = ("cond_stage_model.model.",)
_EMBEDDER = "conditioner.embedders."
_COMFY_ENCODERS = {"text_encoder": ("clip_l.", "clip_h."), "text_encoder_2": ("clip_g.",)}
# Written by training, or the same numbers that a scheduler makes of its settings.
_NEVER_USED = (
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "posterior_",
    "log_one_minus_",
    "lvlb_weights",
    "embedding_manager.",
    "global_step",
    "denoiser.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "v_pred",
    "ztsnr",
    "cond_stage_model.logit_scale",
)
_NOT_IMPLEMENTED = {
    "edm_mean": "is trained in the way of EDM (Playground 2.5)",
    "edm_vpred.sigma_max": "is trained in the way of EDM with velocities",
    "double_blocks.0.img_attn.qkv.weight": "is Flux",
    "joint_blocks.0.x_block.attn.qkv.weight": "is Stable Diffusion 3",
    "control_model.input_blocks.0.0.weight": "is a ControlNet",
    "patchify_proj.weight": "is a model of films without sound (LTX-Video)",
    "blocks.0.self_attn.q.weight": "is a model of films without sound (Wan)",
}
_DEPTH = "starts from a picture and a map of its depth"
_OTHER_INPUTS: dict[tuple[int, ...], str] = {
    (5,): _DEPTH,
    (8,): "changes a picture as an instruction says (InstructPix2Pix)",
}  # of the U-Net
_SCALE, _SCALE_XL = 0.18215, 0.13025  # of the published autoencoders' latents
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def describe_checkpoint(shapes: Shapes, metadata: Mapping[str, str], name: str) -> Description:
    """Returns the models in a single file that holds a whole checkpoint.

    Args:
        shapes: of the file's tensors.
        metadata: of its header.
        name: of the file, for messages.

    Raises:
        CheckpointError: it is of a family that is not implemented, is no checkpoint, or holds what nothing uses.
    """
    if is_ltx2(shapes):
        return describe_ltx2(shapes, metadata, name)
    _check_family(shapes, name)
    unet = _below(shapes, _UNET)
    if not unet:
        raise CheckpointError(f"{name}: {_other_kind(shapes)}")
    configs: dict[str, dict[str, Any]] = {"unet": unet_config(unet, name)}
    origins: dict[str, Origins] = {"unet": _with_prefix(unet_origins(unet, name), _UNET)}
    text = _text_encoders(shapes, configs["unet"], name)
    for component, (config, places) in text.items():
        configs[component], origins[component] = config, places
    is_xl = "addition_embed_type" in configs["unet"]
    if vae := _below(shapes, _VAE):
        vae = {key: shape for key, shape in vae.items() if not key.startswith(("loss.", "model_ema."))}
        configs["vae"] = vae_config(vae, name) | vae_settings(is_xl)
        origins["vae"] = _with_prefix(vae_origins(vae, name), _VAE)
    configs["scheduler"], notes = _scheduler(shapes, metadata, configs["unet"], is_xl, name)
    if configs["scheduler"]["prediction_type"] == "v_prediction" and not is_xl:
        configs["unet"]["sample_size"] = 96
        configs["unet"]["upcast_attention"] = True
    used = {origin.key for places in origins.values() for origin in places.values()}
    _check_used([key for key in shapes if key not in used and not _is_known(key)], name)
    return Description(_index(configs, is_xl), configs, origins, notes)


def _check_used(foreign: Sequence[str], name: str) -> None:
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CheckpointError(
            f"{name}: has the tensor {min(foreign):.100}{more}, which no component of its family uses"
        )


def vae_settings(is_xl: bool) -> dict[str, Any]:
    """Returns the settings of an autoencoder that no tensor tells: those of its family."""
    return {
        "scaling_factor": _SCALE_XL if is_xl else _SCALE,
        "force_upcast": is_xl,
        "sample_size": 1024 if is_xl else 512,
    }


def describe_component(
    shapes: Shapes, component: str, name: str, metadata: Mapping[str, str]
) -> tuple[dict[str, Any] | None, Origins]:
    """Returns the settings of one component in a file, and where its tensors are.

    The file may hold a whole checkpoint, or that component alone, with its keys' prefix or without, or as it was
    exported under its published names. An export of an autoencoder may be its decoder alone, which has no settings.
    They are None where nothing tells them, as of a component of LTX-2 without a header.

    Raises:
        CheckpointError: it holds no such component, or under names that are in no single file.
    """
    if component in FILM_COMPONENTS and (component != "vae" or is_film_vae(shapes)):
        return describe_film_component(shapes, component, metadata, name)
    exported = published_keys(shapes, component, name) if component in ("unet", "vae") else None
    if exported is not None:
        return _exported(exported, shapes, component, name)
    if component == "unet":
        prefix = _prefix_of(shapes, component, name)
        own = _below(shapes, prefix)
        return unet_config(own, name), _with_prefix(unet_origins(own, name), prefix)
    if component == "vae":
        prefix = _prefix_of(shapes, component, name)
        inner = _below(shapes, prefix)
        own = {key: shape for key, shape in inner.items() if not key.startswith(("loss.", "model_ema."))}
        return vae_config(own, name), _with_prefix(vae_origins(own, name), prefix)
    if component in ("text_encoder", "text_encoder_2"):
        return _text_encoder_alone(shapes, component, name)
    raise CheckpointError(f"{name}: holds no {component}; a single file holds unet, transformer, vae and text encoders")


def _prefix_of(shapes: Shapes, component: str, name: str) -> str:
    """Returns what the keys of a component in the layout of the first implementations begin with.

    That is its prefix in a whole checkpoint, or, where it is alone in the file, any, such as ComfyUI's
    `diffusion_model.`.

    Raises:
        CheckpointError: there is something beside it that is no checkpoint's.
    """
    marks = {"unet": (_UNET, "input_blocks.0.0.weight"), "vae": (_VAE, "decoder.mid.block_1.conv1.weight")}
    usual, mark = marks[component]
    if any(key.startswith(usual) for key in shapes):
        return usual
    found = [key[: -len(mark)] for key in shapes if key == mark or key.endswith(f".{mark}")]
    if len(found) != 1:
        return ""
    beside = next((key for key in shapes if not key.startswith(found[0]) and not _is_known(key)), None)
    if beside is not None:
        raise CheckpointError(f"{name}: has the tensor {beside:.100} beside its {component}; it is another model")
    return found[0]


def _exported(keys: Mapping[str, str], shapes: Shapes, component: str, name: str) -> tuple[dict[str, Any], Origins]:
    """Returns settings and origins of a U-Net or autoencoder under its published names."""
    origins = {published: Origin(key) for published, key in keys.items()}
    if component == "vae" and not any(key.startswith("encoder.") for key in keys):
        return {}, origins
    names = (unet_names if component == "unet" else vae_names)(keys, name)
    own = {names[published]: shapes[key] for published, key in keys.items()}
    return (unet_config if component == "unet" else vae_config)(own, name), origins


def _check_family(shapes: Shapes, name: str) -> None:
    for key, what in _NOT_IMPLEMENTED.items():
        if key in shapes or f"{_UNET}{key}" in shapes:
            raise CheckpointError(f"{name}: {what}, which is not implemented; use another checkpoint")
    channels = shapes.get(f"{_UNET}input_blocks.0.0.weight", (0, 0))[1:2]
    latents = shapes.get(f"{_UNET}out.2.weight", (4,))[:1]
    if (channels in _OTHER_INPUTS and channels != latents) or any(key.startswith("depth_model.") for key in shapes):
        what = _OTHER_INPUTS.get(channels, _DEPTH)
        raise CheckpointError(f"{name}: {what}, which is not implemented; use another checkpoint")


def _other_kind(shapes: Shapes) -> str:
    """Returns what a file without a whole checkpoint seems to be, and what to do about it."""
    keys = list(shapes)
    if any(key.endswith((".lora_down.weight", ".lora_A.weight", ".lora_up.weight", ".hada_w1_a")) for key in keys):
        return "is a LoRA and no checkpoint; model.source is a whole checkpoint"
    if "input_blocks.0.0.weight" in shapes or "down_blocks.0.resnets.0.conv1.weight" in shapes:
        return "is a U-Net alone; give model.source a whole checkpoint, and this one as model.unet.source"
    if "audio_patchify_proj.weight" in shapes or "audio_proj_in.weight" in shapes:
        return (
            "is LTX-2's transformer alone; give model.source a whole checkpoint, and this one as "
            "model.transformer.source"
        )
    if "decoder.conv_in.weight" in shapes:
        return "is an autoencoder alone; give model.source a whole checkpoint, and this one as model.vae.source"
    if any(key.startswith("text_model.") for key in keys):
        return (
            "is a text encoder alone; give model.source a whole checkpoint, and this one as model.text_encoder.source"
        )
    return "is no checkpoint of a family that is implemented; give one of Stable Diffusion 1.x, 2.x or XL, or LTX-2"


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the keys that begin with `prefix`, without it."""
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}


def _with_prefix(origins: Origins, prefix: str) -> Origins:
    return {key: replace(origin, key=prefix + origin.key) for key, origin in origins.items()}


def _text_encoders(shapes: Shapes, unet: Mapping[str, Any], name: str) -> dict[str, tuple[dict[str, Any], Origins]]:
    """Returns the settings and origins of the text encoders in a file; none where it has none."""
    found: dict[str, tuple[dict[str, Any], Origins]] = {}
    if any(key.startswith(_EMBEDDER) for key in shapes):
        for number in (0, 1):
            prefix = f"{_EMBEDDER}{number}."
            if own := _below(shapes, f"{prefix}transformer."):
                found["text_encoder"] = clip_config(own, name), _with_prefix(clip_origins(own), f"{prefix}transformer.")
            elif own := _below(shapes, f"{prefix}model."):
                is_second = number == 1 or "addition_embed_type" in unet
                component = "text_encoder_2" if is_second else "text_encoder"
                found[component] = _open_clip(own, f"{prefix}model.", name, projected=is_second)
        return found
    if own := _below(shapes, "cond_stage_model.model."):
        found["text_encoder"] = _open_clip(own, "cond_stage_model.model.", name, projected=False)
    elif own := _below(shapes, "cond_stage_model.transformer."):
        origins = _with_prefix(clip_origins(own), "cond_stage_model.transformer.")
        found["text_encoder"] = clip_config(own, name), origins
    return found


def _text_encoder_alone(shapes: Shapes, component: str, name: str) -> tuple[dict[str, Any], Origins]:
    whole = _text_encoders(shapes, {"addition_embed_type": ""} if component == "text_encoder_2" else {}, name)
    if component in whole:
        return whole[component]
    shapes, prefix = _of_one_encoder(shapes, component)
    if "transformer.resblocks.0.ln_1.weight" in shapes:
        return _open_clip(shapes, prefix, name, projected=component == "text_encoder_2")
    keys = published_keys([key for key in shapes if key not in CLIP_UNUSED], component, name)
    if keys is not None:
        own = {published: shapes[key] for published, key in keys.items()}
        config = clip_config(own, name)
        if component == "text_encoder_2" or config["hidden_size"] != 768:  # the others are trained with plain GELU
            config["hidden_act"] = "gelu"
        origins = {key: replace(origin, key=keys[origin.key]) for key, origin in clip_origins(own).items()}
        return config, _with_prefix(origins, prefix)
    raise CheckpointError(f"{name}: holds no {component}; give a text encoder, or a whole checkpoint that has one")


def _of_one_encoder(shapes: Shapes, component: str) -> tuple[Shapes, str]:
    """Returns the tensors of one text encoder, and what their keys begin with; ComfyUI's files may hold several."""
    for start in ("", "text_encoders.", "cond_stage_model."):
        for prefix in _COMFY_ENCODERS[component]:
            if own := _below(shapes, f"{start}{prefix}"):
                return own, f"{start}{prefix}"
    mark = "transformer.resblocks.0.ln_1.weight"
    found = [key[: -len(mark)] for key in shapes if key.endswith(f".{mark}") and ".visual." not in f".{key}"]
    return (_below(shapes, found[0]), found[0]) if len(found) == 1 else (shapes, "")


def _open_clip(own: Shapes, prefix: str, name: str, *, projected: bool) -> tuple[dict[str, Any], Origins]:
    """Returns settings and origins. Without a projection the last layer is left out: those U-Nets attend to the one
    before."""
    layers = open_clip_layers(own) - (0 if projected else 1)
    origins = open_clip_origins(own, layers, projection=projected)
    used = {origin.key for origin in origins.values()}
    unused = ("visual.", "text_projection", *CLIP_UNUSED)
    _check_used(
        [prefix + key for key in own if key not in used and not is_open_clip_layer(key) and not key.startswith(unused)],
        name,
    )
    return open_clip_config(own, layers, name), _with_prefix(origins, prefix)


def _scheduler(
    shapes: Shapes, metadata: Mapping[str, str], unet: Mapping[str, Any], is_xl: bool, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings of a scheduler, and a line on how the prediction type was found."""
    prediction, reason = _prediction(shapes, metadata, unet, is_xl, name)
    config: dict[str, Any] = {"_class_name": "DDIMScheduler", **_BETAS, "prediction_type": prediction}
    if is_xl:
        config |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    elif not unet["use_linear_projection"]:
        config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    if "ztsnr" in shapes:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config, [reason] if reason else []


def _prediction(
    shapes: Shapes, metadata: Mapping[str, str], unet: Mapping[str, Any], is_xl: bool, name: str
) -> tuple[str, str | None]:
    """Returns the prediction type, and why where it is not the family's only one.

    Raises:
        CheckpointError: the header says another than there are.
    """
    if said := metadata.get(SAID_PREDICTION):
        return said, None
    declared = metadata.get("modelspec.prediction_type", "").lower()
    if declared in ("v", "v_prediction", "v-prediction"):
        return "v_prediction", "the U-Net predicts v: modelspec.prediction_type in the file's header says so"
    if declared in ("epsilon", "eps"):
        return "epsilon", None
    if declared:
        raise CheckpointError(
            f"{name}: modelspec.prediction_type in its header is {declared:.60}, which is not implemented; use another "
            "checkpoint"
        )
    if "v_pred" in shapes:
        return "v_prediction", "the U-Net predicts v: the file has a tensor of the name v_pred"
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-768-v"):
        return "v_prediction", "the U-Net predicts v: modelspec.architecture in the file's header says so"
    if is_xl or not unet["use_linear_projection"] or architecture.startswith("stable-diffusion-v2-512"):
        return "epsilon", None
    if unet["in_channels"] != 4:  # the published ones for inpainting and depth were trained from the smaller model
        return "epsilon", None
    return UNKNOWN_PREDICTION, None


def _index(configs: Mapping[str, Mapping[str, Any]], is_xl: bool) -> dict[str, Any]:
    """Returns the content that `model_index.json` would have."""
    unet = configs["unet"]
    family = "StableDiffusionXL" if is_xl else "StableDiffusion"
    kind = "Inpaint" if unet["in_channels"] == 9 else ""
    classes = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    index: dict[str, Any] = {"_class_name": f"{family}{kind}Pipeline"}
    index |= {name: ["single file", classes[name]] for name in classes if name in configs}
    index |= {
        name.replace("text_encoder", "tokenizer"): ["single file", "CLIPTokenizer"]
        for name in ("text_encoder", "text_encoder_2")
        if name in configs
    }
    index["scheduler"] = ["single file", configs["scheduler"]["_class_name"]]
    if is_xl:
        pooled = configs["text_encoder_2"]["projection_dim"] if "text_encoder_2" in configs else 0
        sizes = (unet["projection_class_embeddings_input_dim"] - pooled) / unet["addition_time_embed_dim"]
        # The refiner is told one number less than the base, which also has the text encoder that it lacks.
        is_refiner = "text_encoder" not in configs and (unet["cross_attention_dim"] == 1280 or sizes == 5)
        index |= {"requires_aesthetics_score": True} if is_refiner else {"force_zeros_for_empty_prompt": True}
    return index


def _is_known(key: str) -> bool:
    """Tells whether a tensor is one that nothing needs."""
    if key.startswith(_NEVER_USED) or key.endswith(CLIP_UNUSED):
        return True
    # The projection and the last layer of encoders whose states before them are taken.
    return key.startswith((*_OPEN_CLIP_2, _EMBEDDER)) and (is_open_clip_layer(key) or key.endswith("text_projection"))
