"""A checkpoint as one file in the layout of the first implementations, which other programs read too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.single_file import VOCABULARY
from diffuse.config.other_names import sampler_meant
from diffuse.convert.checkpoint_content import CheckpointContent
from diffuse.convert.weights_writer import WrittenTensor, write_weights
from diffuse.errors import ConfigError
from diffuse.models.single_file.describe import PREDICTIONS, describe_checkpoint
from diffuse.models.single_file.published_names import open_clip_names, unet_names, vae_names
from diffuse.models.text_encoder.clip_tokenizer_files import read_tokenizer_files
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig
from diffuse.schedulers.build import published_prediction, samplers_for

# What no tensor tells and what the family sets, or what changes no pixel. What can be lost is told.
_OF_THE_FAMILY = ("sample_size", "force_upcast", "upcast_attention", "eos_token_id", "projection_dim")
_CLASSES = ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler")  # that files stand for: one's models suit all
# Values of a scheduler's settings that ask for nothing: what is taken where a file says nothing. Of others it is false.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("leading",),
    "skip_prk_steps": (True,),
    "clip_sample_range": (1,),
    "dynamic_thresholding_ratio": (0.995,),
    "sample_max_value": (1,),
    "variance_type": ("fixed_small",),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero",),
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh2", "logrho"),
    "algorithm_type": ("dpmsolver++", "deis"),
    "lower_order_final": (True,),
    "lambda_min_clipped": (-math.inf, "-inf"),
    "predict_x0": (True,),
    "predict_epsilon": (True,),
    "original_inference_steps": (50,),
    "timestep_scaling": (10,),
    "flow_shift": (1,),
    "time_shift_type": ("exponential",),
    "timestep_type": ("discrete",),
    "tensor_format": ("pt", "np", "numpy", "torch"),
}
_UPCASTS = (("vae", "force_upcast"), ("unet", "upcast_attention"))
_ZERO_SNR = WrittenTensor("ztsnr", "F32", (0,), lambda: torch.zeros(0))


def ldm_tensors(content: CheckpointContent) -> list[WrittenTensor]:
    """Returns the tensors of the file, under its names.

    Raises:
        CheckpointError: one has no name there.
    """
    source, tensors = content.checkpoint.source, content.tensors
    unet = _renamed(tensors["unet"], unet_names([each.key for each in tensors["unet"]], source))
    vae = _renamed(tensors["vae"], vae_names([each.key for each in tensors["vae"]], source))
    vae = [_as_convolution(each) if ".attn_1." in each.key and len(each.shape) == 2 else each for each in vae]
    parts = {"model.diffusion_model.": unet, "first_stage_model.": vae}
    first, second = tensors.get("text_encoder"), tensors.get("text_encoder_2")
    if second is not None:
        if first is not None:
            parts["conditioner.embedders.0.transformer."] = first
        parts[f"conditioner.embedders.{0 if first is None else 1}.model."] = _open_clip(second, source)
    elif first is not None and content.architectures["unet"].use_linear_projection:
        parts["cond_stage_model.model."] = _with_last_layer(_open_clip(first, source))
    elif first is not None:
        parts["cond_stage_model.transformer."] = first
    scheduler = content.configs["scheduler"]
    zero_snr = scheduler.get("rescale_betas_zero_snr") and scheduler.get("timestep_spacing") == "trailing"
    found = [replace(each, key=prefix + each.key) for prefix, part in parts.items() for each in part]
    return [*found, _ZERO_SNR] if zero_snr else found


def ldm_metadata(content: CheckpointContent) -> dict[str, str]:
    """Returns what the header says of the model, in the words of Stability AI's specification."""
    scheduler, unet = content.configs["scheduler"], content.architectures["unet"]
    velocity = scheduler.get("prediction_type") == "v_prediction"
    if unet.addition_embed_type is not None:
        architecture = "stable-diffusion-xl-v1-" + ("base" if "text_encoder" in content.tensors else "refiner")
    elif unet.use_linear_projection:
        architecture = "stable-diffusion-v2-768-v" if velocity else "stable-diffusion-v2-512"
    else:
        architecture = "stable-diffusion-v1"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }


def check_ldm_file(
    content: CheckpointContent, tensors: Sequence[WrittenTensor], metadata: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Checks that the file says of its models what the checkpoint does.

    Returns:
        The settings that it cannot hold: those that a user can give again, as overrides, and the others.

    Raises:
        ConfigError: an architecture could not be read from the file.
        CheckpointError: as `describe_checkpoint`.
    """
    source = content.checkpoint.source
    prediction = content.configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ConfigError(f"{source}: predicts {prediction}, which one file cannot say; name a folder to write")
    described = describe_checkpoint({each.key: each.shape for each in tensors}, metadata, source)
    for name, ours in content.architectures.items():
        theirs = read_architecture(type(ours), described.configs[name], source)
        for field in vars(ours):
            said, read = _per_level(ours, field), _per_level(theirs, field)
            if field not in _OF_THE_FAMILY and said != read:
                raise ConfigError(
                    f"{source}: {name} has {field}={said}, and one file cannot say so ({read} would be taken); name a "
                    "folder to write"
                )
    others = [
        f"{name}.{field}={said}"
        for name, field in _UPCASTS
        if bool(said := getattr(content.architectures[name], field)) != bool(described.configs[name].get(field))
    ]
    size = content.architectures["unet"].sample_size
    if size is not None and size != described.configs["unet"]["sample_size"]:
        others.append(f"unet.sample_size={size} (of a picture that names none)")
    scheduler = _lost_of_scheduler(content.configs["scheduler"], described.configs["scheduler"])
    return _lost_words(content) + scheduler, others


def _lost_words(content: CheckpointContent) -> list[str]:
    """Returns the sources of tokenizers whose words are not those that every single file is read with."""
    usual = read_tokenizer_files(VOCABULARY / "clip")
    lost = []
    for name, path in content.tokenizers.items():
        own = read_tokenizer_files(path)
        if (own.vocabulary, own.merges) != (usual.vocabulary, usual.merges):
            lost.append(f"model.{name}.source={path}")
    return lost


def _lost_of_scheduler(published: Mapping[str, Any], read_back: Mapping[str, Any]) -> list[str]:
    """Returns the published settings of a scheduler that the file does not say, and that ask for something."""
    lost = []
    kind = published.get("_class_name")
    if kind not in (None, *_CLASSES):
        lost.append(f"scheduler={sampler_meant(str(kind), samplers_for(published_prediction(published))) or kind}")
    for key, value in sorted(published.items()):
        neutral = (read_back[key],) if key in read_back else _DEFAULTS.get(key, (False, "", [], {}))
        if not key.startswith("_") and value is not None and value not in neutral:
            lost.append(f"scheduler.{key}={value}")
    return lost


def write_ldm_file(path: Path, tensors: Sequence[WrittenTensor], metadata: Mapping[str, str]) -> None:
    """Writes the file.

    Raises:
        OSError: it cannot be written.
        CheckpointError: a weight cannot be read.
    """
    write_weights(path, tensors, {"format": "pt", **metadata})


def _per_level(config: Any, field: str) -> Any:
    """Returns a value; one that each level has, for each that attends."""
    value = getattr(config, field)
    if isinstance(config, UNet2DConditionConfig) and field in ("attention_head_dim", "transformer_layers_per_block"):
        attends = ["Cross" in kind for kind in config.down_block_types[:-1]] + [True]
        return [each for each, does in zip(config.per_level(value), attends, strict=True) if does]
    return bool(value) if isinstance(value, bool | None) else value


def _renamed(tensors: Sequence[WrittenTensor], names: Mapping[str, str]) -> list[WrittenTensor]:
    return [replace(tensor, key=names[tensor.key]) for tensor in tensors]


def _as_convolution(tensor: WrittenTensor) -> WrittenTensor:
    return replace(tensor, shape=(*tensor.shape, 1, 1), read=lambda: tensor.read()[:, :, None, None])


def _open_clip(tensors: Sequence[WrittenTensor], name: str) -> list[WrittenTensor]:
    """Returns the tensors of a text encoder as OpenCLIP stores it: query, key and value as one."""
    by_key = {tensor.key: tensor for tensor in tensors}
    found = []
    for key, published in open_clip_names(by_key, name).items():
        parts = [by_key[each] for each in published]
        found.append(_transposed(key, parts[0]) if key == "text_projection" else _joined(key, parts))
    return found


def _joined(key: str, parts: Sequence[WrittenTensor]) -> WrittenTensor:
    first = parts[0]
    if len(parts) == 1:
        return replace(first, key=key)

    def read() -> Tensor:
        return torch.cat([part.read() for part in parts])

    return WrittenTensor(key, first.dtype, (sum(part.shape[0] for part in parts), *first.shape[1:]), read)


def _transposed(key: str, tensor: WrittenTensor) -> WrittenTensor:
    return WrittenTensor(key, tensor.dtype, tensor.shape[::-1], lambda: tensor.read().t())


def _with_last_layer(tensors: Sequence[WrittenTensor]) -> list[WrittenTensor]:
    """Returns the tensors with one more layer, which files of SD 2.x have and nothing uses: the last one again."""
    start = "transformer.resblocks."
    last = max(int(each.key.split(".")[2]) for each in tensors if each.key.startswith(start))
    again = [
        replace(each, key=each.key.replace(f"{start}{last}.", f"{start}{last + 1}.", 1))
        for each in tensors
        if each.key.startswith(f"{start}{last}.")
    ]
    return [*tensors, *again]
