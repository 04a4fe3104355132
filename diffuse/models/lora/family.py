"""Tells for which family of models a LoRA file was made, from its header, its names and its widths.

The header's names are those of kohya's training scripts and of the "Stability AI Metadata Specification".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Part of a name that only one family has -> the family.
_MARKS = (
    (re.compile(r"double_blocks[._]\d+[._]img_|single_transformer_blocks|single_blocks[._]\d+[._]linear"), "Flux"),
    (
        re.compile(r"joint_blocks|(?:^|[._])transformer_blocks[._]\d+[._](?:attn[._]add_|ff_context)"),
        "Stable Diffusion 3",
    ),
    (re.compile(r"audio_attn|audio_to_video_attn|(?:video|audio)_(?:embeddings_)?connector[._]"), "LTX-2"),
    (re.compile(r"(?:^|[._])blocks[._]\d+[._](?:cross_attn|self_attn)[._]"), "Wan"),
    (re.compile(r"down_blocks.*motion_modules|temporal_transformer"), "AnimateDiff"),
    (re.compile(r"^lora_te2_|^text_encoder_2\.|^lora_unet_label_emb|add_embedding"), "Stable Diffusion XL"),
    (re.compile(r"^(?:transformer|diffusion_model)\.transformer_blocks\.\d+\.attn1\."), "LTX-Video or LTX-2"),
)
_CROSS = re.compile(r"attn2[._]to_[kv]$")
_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
    1280: "SDXL's refiner",
}
_HEADER = (
    ("ss_base_model_version", (("sdxl", "Stable Diffusion XL"), ("sd_v1", "Stable Diffusion 1.x"))),
    ("ss_base_model_version", (("sd_v2", "Stable Diffusion 2.x"), ("flux", "Flux"), ("sd3", "Stable Diffusion 3"))),
    ("modelspec.architecture", (("stable-diffusion-xl", "Stable Diffusion XL"), ("flux", "Flux"))),
    ("modelspec.architecture", (("stable-diffusion-v1", "Stable Diffusion 1.x"), ("ltx", "LTX-Video or LTX-2"))),
    ("modelspec.architecture", (("stable-diffusion-v2", "Stable Diffusion 2.x"), ("wan", "Wan"))),
)


def lora_family(widths: Mapping[str, int | None], metadata: Mapping[str, str]) -> str | None:
    """Returns the family that a file was made for, in words; None where nothing tells it.

    Args:
        widths: by the name of each layer in the file, the width of what the layer takes, where that is known.
        metadata: of the file's header.
    """
    for key, marks in _HEADER:
        value = metadata.get(key, "").lower()
        for mark, family in marks:
            if mark in value:
                return family
    for mark_in_name, family in _MARKS:
        if any(mark_in_name.search(name) for name in widths):
            return family
    found = {width for name, width in widths.items() if _CROSS.search(name)}
    return next((family for width, family in _WIDTHS.items() if width in found), None)


def other_model(names: Iterable[str]) -> str | None:
    """Returns what a file without a LoRA seems to be, in words; None where nothing tells it."""
    names = list(names)
    begins = [
        ("model.diffusion_model.", "a whole checkpoint in a single file"),
        ("first_stage_model.", "a whole checkpoint in a single file"),
        ("conv_in.", "a U-Net or an autoencoder"),
        ("down_blocks.", "a U-Net"),
        ("input_blocks.", "a U-Net"),
        ("control_model.", "a ControlNet"),
        ("decoder.", "an autoencoder"),
        ("encoder.", "an autoencoder"),
        ("text_model.", "a text encoder"),
        ("emb_params", "a textual inversion, which is put on with embedding=FILE"),
        ("clip_l", "a textual inversion, which is put on with embedding=FILE"),
    ]
    return next((what for start, what in begins if any(name.startswith(start) for name in names)), None)
