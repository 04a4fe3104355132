"""The U-Net in the layout of latent-diffusion and generative-models: from its keys and shapes to ours.

There, blocks are counted through: input block 0 is the first convolution, each level has its resnets and then its
downsampler. With `n` resnets a level on the way down there are `n + 1` on the way up.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, and its published code.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

from diffuse.errors import CheckpointError
from diffuse.models.single_file.origin import Origin, Origins, Shapes

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d{1,6})\.(\d)\.(.+)|(middle_block)\.(\d)\.(.+)")
_PLACE = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_GROUPS = 32  # of every published normalisation
_HEAD_WIDTH = 64  # of every family but the first,
_FIRST_HEADS = 8  # which has as many at every level, and projects with convolutions
_SIZE_WIDTH = 256  # of the embedding of each number that SDXL is told


def unet_origins(shapes: Shapes, name: str) -> Origins:
    """Returns where the tensors of a U-Net are.

    Args:
        shapes: by the file's keys without their prefix.
        name: of the file, for messages.

    Raises:
        CheckpointError: a key is of no U-Net in this layout.
    """
    n = _resnets(shapes, name)
    origins: Origins = {}
    for key in shapes:
        published = _published(key, n, shapes)
        if published is None:
            raise CheckpointError(
                f"{name}: has the tensor {key}, which no U-Net of this layout has; it is another model"
            )
        origins[published] = Origin(key)
    return origins


def unet_config(shapes: Shapes, name: str) -> dict[str, Any]:
    """Returns the settings of a U-Net, as its `config.json` would have them, read from its shapes.

    The number of heads cannot be read: it is that of all published models.

    Raises:
        CheckpointError: the shapes are of no U-Net in this layout.
    """
    n = _resnets(shapes, name)
    levels = 1 + sum(1 for key in shapes if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key))
    firsts = [1 + level * (n + 1) for level in range(levels)]
    try:
        channels = [shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts]
        entry, end = shapes["input_blocks.0.0.weight"], shapes["out.2.weight"]
    except KeyError as error:
        raise CheckpointError(
            f"{name}: lacks the tensor {error.args[0]} of its U-Net; the file is incomplete"
        ) from None
    depths = [_depth(shapes, f"input_blocks.{first}.1") for first in firsts]
    middle = _depth(shapes, "middle_block.1")
    if any(width % _GROUPS for width in channels):
        raise CheckpointError(
            f"{name}: its U-Net has {channels} channels, which no published model has; use a "
            "checkpoint in the diffusers layout"
        )
    contexts = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    projections = [shape for key, shape in shapes.items() if key.endswith(".proj_in.weight")]
    sizes = shapes.get("label_emb.0.0.weight")
    context = next(iter(contexts), 0)
    is_linear = all(len(shape) == 2 for shape in projections)
    attends = [depth > 0 for depth in depths]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": entry[1],
        "out_channels": end[0],
        "block_out_channels": channels,
        "layers_per_block": n,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle or 1],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "cross_attention_dim": context,
        "attention_head_dim": [width // _HEAD_WIDTH for width in channels] if is_linear else _FIRST_HEADS,
        "use_linear_projection": is_linear,
        "sample_size": 64,
    }
    if attends[-1] and depths[-1] != middle:
        raise CheckpointError(
            f"{name}: its U-Net has {depths[-1]} transformer layers at the lowest level and {middle} in the middle, "
            "which is not implemented; use another checkpoint"
        )
    ups = [_depth(shapes, f"output_blocks.{level * (n + 1)}.1") for level in range(levels)]
    if ups != depths[::-1]:
        config["reverse_transformer_layers_per_block"] = [depth or 1 for depth in ups]
    if sizes is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE_WIDTH,
            "projection_class_embeddings_input_dim": sizes[1],
            "sample_size": 128,
        }
    return config


def ldm_layer_names(modules: Iterable[str]) -> dict[str, str]:
    """Returns the name that a U-Net's layers have in this layout, by their paths in our module, such as `conv_in`."""
    modules = list(modules)
    resnets = [int(match[1]) for each in modules if (match := re.match(r"down_blocks\.0\.resnets\.(\d{1,6})\.", each))]
    attending = {match[1] for each in modules if (match := re.match(r"up_blocks\.(\d{1,6})\.attentions\.", each))}
    n = 1 + max(resnets, default=0)
    heads = {ours: theirs for theirs, ours in _ENDS.items()}
    names = {each: heads.get(each) or _layer_name(each, n, attending) for each in modules}
    return {module: name for module, name in names.items() if name is not None}


def _layer_name(module: str, n: int, attending: Container[str]) -> str | None:
    """Returns the name of a layer below a block of a U-Net with `n` resnets a level; None where it has none."""
    match = _PLACE.fullmatch(module)
    if match is None:
        return None
    kind, index, rest = match["kind"], int(match["index"]), match["rest"]
    if kind == "resnets":
        theirs = next((name for name, ours in _RESNET_NAMES.items() if ours == rest), None)
        if theirs is None:
            return None
        rest = theirs
    place = 1 if kind == "attentions" else 0
    if match["side"] is None:
        if place and index:  # there is one
            return None
        return f"middle_block.{place or 2 * index}.{rest}"
    level = int(match["level"])
    if match["side"] == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (n + 1)}.0.op"
        return f"input_blocks.{1 + level * (n + 1) + index}.{place}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (n + 1) + n}.{2 if match['level'] in attending else 1}.conv"
    return f"output_blocks.{level * (n + 1) + index}.{place}.{rest}"


def _resnets(shapes: Iterable[str], name: str) -> int:
    """Returns the number of resnets a level on the way down."""
    downsamplers = [int(match[1]) for key in shapes if (match := re.match(r"input_blocks\.(\d{1,6})\.0\.op\.", key))]
    blocks = [int(match[1]) for key in shapes if (match := re.match(r"input_blocks\.(\d{1,6})\.", key))]
    count = min(downsamplers) - 1 if downsamplers else max(blocks, default=0)
    if count < 1:
        raise CheckpointError(
            f"{name}: has no U-Net in the layout of a single file; it may be of another kind of model"
        )
    return count


def _depth(shapes: Iterable[str], block: str) -> int:
    """Returns the number of transformer layers of a block."""
    start = f"{block}.transformer_blocks."
    found = {key[len(start) :].partition(".")[0] for key in shapes if key.startswith(start)}
    return 1 + max((int(index) for index in found if index.isdecimal() and len(index) < 7), default=-1)


def _published(key: str, n: int, shapes: Shapes) -> str | None:
    """Returns the published key of a key of the file, None where it has none."""
    module, _, last = key.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{last}"
    match = _BLOCK.fullmatch(key)
    if match is None:
        return None
    if match[5]:
        place, rest = int(match[6]), match[7]
        return f"mid_block.attentions.0.{rest}" if place == 1 else _resnet(f"mid_block.resnets.{place // 2}", rest)
    side, block, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input_blocks":
        level, index = divmod(block - 1, n + 1)
        if index == n:
            return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        return _module(f"down_blocks.{level}", index, place, rest)
    level, index = divmod(block, n + 1)
    if rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return _module(f"up_blocks.{level}", index, place, rest)


def _module(level: str, index: int, place: int, rest: str) -> str | None:
    return f"{level}.attentions.{index}.{rest}" if place == 1 else _resnet(f"{level}.resnets.{index}", rest)


def _resnet(resnet: str, rest: str) -> str | None:
    module, _, last = rest.rpartition(".")
    return f"{resnet}.{_RESNET_NAMES[module]}.{last}" if module in _RESNET_NAMES else None
