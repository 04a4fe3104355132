"""The image autoencoder in the layout of latent-diffusion. Its levels count from the pixels in both halves."""

from __future__ import annotations

import re
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file.origin import Origin, Origins, Shapes

_GROUPS = 32  # of every published normalisation
ATTENTION_NAMES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d{1,6})\.(block\.(\d{1,6})|downsample|upsample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_(\d)|attn_1)\.(.+)")


def vae_origins(shapes: Shapes, name: str) -> Origins:
    """Returns where the tensors of an autoencoder are.

    Args:
        shapes: by the file's keys without their prefix.
        name: of the file, for messages.

    Raises:
        CheckpointError: a key is of no autoencoder in this layout.
    """
    levels = _levels(shapes, name)
    origins: Origins = {}
    for key, shape in shapes.items():
        published = _published(key, levels)
        if published is None:
            raise CheckpointError(
                f"{name}: has the tensor {key}, which no autoencoder of this layout has; it is another model"
            )
        is_linear = ".attentions." in published and key.endswith(".weight") and ".norm." not in key
        origins[published] = Origin(key, drop_axes=is_linear and len(shape) == 4)
    return origins


def vae_config(shapes: Shapes, name: str) -> dict[str, Any]:
    """Returns the settings of an autoencoder that its shapes tell; the scale of its latents is not among them.

    Raises:
        CheckpointError: the shapes are of no autoencoder in this layout.
    """
    levels = _levels(shapes, name)
    try:
        channels = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
        pixels, latents = shapes["encoder.conv_in.weight"][1], shapes["decoder.conv_in.weight"][1]
    except KeyError as error:
        raise CheckpointError(
            f"{name}: lacks the tensor {error.args[0]} of its autoencoder; the file is incomplete"
        ) from None
    if any(width % _GROUPS for width in channels):
        raise CheckpointError(
            f"{name}: its autoencoder has {channels} channels, which no published model has; use a "
            "checkpoint in the diffusers layout"
        )
    blocks = {key.split(".")[4] for key in shapes if key.startswith("encoder.down.0.block.")}
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": pixels,
        "out_channels": shapes.get("decoder.conv_out.weight", (pixels,))[0],
        "latent_channels": latents,
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": len(blocks),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _levels(shapes: Shapes, name: str) -> int:
    found = [int(match[1]) for key in shapes if (match := re.match(r"encoder\.down\.(\d{1,6})\.", key))]
    if not found:
        raise CheckpointError(f"{name}: has no autoencoder in the layout of a single file; it may be of another kind")
    return 1 + max(found)


def _published(key: str, levels: int) -> str | None:
    """Returns the published key of a key of the file, None where it has none."""
    if re.fullmatch(r"((encoder|decoder)\.conv_(in|out)|(post_)?quant_conv)\.(weight|bias)", key):
        return key
    if match := re.fullmatch(r"(encoder|decoder)\.norm_out\.(weight|bias)", key):
        return f"{match[1]}.conv_norm_out.{match[2]}"
    if match := _LEVEL.fullmatch(key):
        side, down, level, kind, block, rest = match[1], match[2] == "down", int(match[3]), match[4], match[5], match[6]
        blocks = f"{side}.down_blocks.{level}" if down else f"{side}.up_blocks.{levels - 1 - level}"
        if block is None:
            return f"{blocks}.{kind}rs.0.{rest}"
        return f"{blocks}.resnets.{block}.{_in_resnet(rest)}"
    if match := _MIDDLE.fullmatch(key):
        side, block, rest = match[1], match[3], match[4]
        if block is not None:
            return f"{side}.mid_block.resnets.{int(block) - 1}.{_in_resnet(rest)}"
        module, _, last = rest.rpartition(".")
        return f"{side}.mid_block.attentions.0.{ATTENTION_NAMES[module]}.{last}" if module in ATTENTION_NAMES else None
    return None


def _in_resnet(rest: str) -> str:
    return rest.replace("nin_shortcut", "conv_shortcut")
