"""The names of LTX-2's authors for what diffusers publishes, both ways: of modules in LoRA files and of keys in files.

Source: the "LTX-2" repository of Lightricks, whose single files and LoRA files have these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Their name -> ours, of what stands at the beginning of a path in the transformer.
_BEGINNINGS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}
_TABLES = {
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
}
_NORMS = {"q_norm": "norm_q", "k_norm": "norm_k"}
_CONNECTOR = {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
    "transformer_1d_blocks": "transformer_blocks",
}
_PROJECTION = {
    "aggregate_embed": "text_proj_in",
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
}
_VOCODER = {
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
}
_STATISTICS = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
_STATISTICS_PREFIX = "per_channel_statistics."
CONNECTOR_PREFIXES = ("video_embeddings_connector.", "audio_embeddings_connector.")
"""What the keys of the connectors begin with, among those of the transformer."""


def transformer_key(key: str) -> str:
    """Returns the published key, or the module, for one of a transformer in the authors' names."""
    first, dot, rest = key.partition(".")
    return _segments(f"{_BEGINNINGS.get(first, first)}{dot}{rest}", _NORMS | _TABLES)


def connectors_key(key: str) -> str:
    """Returns the published key, or the module, for one of the connectors or of the projections in front of them."""
    return _segments(key, _CONNECTOR | _PROJECTION | _NORMS)


def authors_transformer_name(module: str) -> str:
    """Returns the authors' name for a module of the transformer."""
    first, dot, rest = module.partition(".")
    return _segments(f"{_inverse(_BEGINNINGS).get(first, first)}{dot}{rest}", _inverse(_NORMS))


def authors_connectors_name(module: str) -> str:
    """Returns the authors' name for a module of the connectors."""
    return _segments(module, _inverse(_CONNECTOR | _PROJECTION | _NORMS))


def video_vae_keys(keys: Iterable[str]) -> dict[str, str | None]:
    """Returns the published key for each of a video autoencoder's; None for statistics that nothing uses.

    Its blocks are one list in each half, of levels and of what changes the size between them; the middle stands at the
    inner end.
    """
    keys = list(keys)
    found = [int(match[1]) for key in keys if (match := re.match(r"encoder\.down_blocks\.(\d{1,6})\.", key))]
    last = max(found, default=0)
    return {key: _video_vae_key(key, last) for key in keys}


def _video_vae_key(key: str, last: int) -> str | None:
    if key.startswith(_STATISTICS_PREFIX):
        return _STATISTICS.get(key.removeprefix(_STATISTICS_PREFIX))
    if match := re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d{1,6})\.(.+)", key):
        side, index, rest = match[1], int(match[2]), match[3].replace("res_blocks.", "resnets.")
        half, way = side.split(".")
        if index == (last if way == "down" else 0):
            return f"{half}.mid_block.{rest}"
        place = index if way == "down" else index - 1
        level, is_between = place // 2, place % 2 == (1 if way == "down" else 0)
        between = f"{way}samplers.0." if is_between else ""
        return f"{half}.{way}_blocks.{level}.{between}{rest}"
    return re.sub(r"^decoder\.last_(time_embedder|scale_shift_table)", r"decoder.\1", key)


def audio_vae_key(key: str) -> str | None:
    """Returns the published key for one of a sound autoencoder's; None for statistics that nothing uses."""
    if key.startswith(_STATISTICS_PREFIX):
        return _STATISTICS.get(key.removeprefix(_STATISTICS_PREFIX))
    return key


def vocoder_key(key: str) -> str:
    """Returns the published key for one of a vocoder's."""
    return _segments(key, _VOCODER).replace(".downsample.lowpass.filter", ".downsample.filter")


def _segments(name: str, names: dict[str, str]) -> str:
    return ".".join(names.get(each, each) for each in name.split("."))


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
