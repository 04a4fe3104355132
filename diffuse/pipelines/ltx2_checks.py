"""Checks of LTX-2: whether the parts of a checkpoint fit together, and whether it can make what a request asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schema import GenerationRequest


def check_film_components(configs: Mapping[str, Any], checkpoint: Checkpoint, vocabulary: int | None) -> None:
    """Checks the components' configurations against one another.

    Args:
        configs: by the component.
        vocabulary: the number of ids that the tokenizer gives; None where no text is encoded here.

    Raises:
        CheckpointError: two do not fit together, or ask for what is not implemented.
    """
    transformer, vae, audio_vae = (configs[name] for name in ("transformer", "vae", "audio_vae"))
    connectors, encoder, vocoder = (configs.get(name) for name in ("connectors", "text_encoder", "vocoder"))
    assert connectors is not None and vocoder is not None
    source = checkpoint.source
    for name, asked in {
        "timestep_conditioning": vae.timestep_conditioning,
        "decoder_inject_noise": vae.draws_noise,
    }.items():
        if asked:
            raise CheckpointError(f"{source}: vae/config.json: {name}=True is not implemented; use another checkpoint")
    film, sound = vae.latent_channels, audio_vae.base_channels
    if film < sound:
        raise CheckpointError(
            f"{source}: the film's latents have {film} channels, and the sound's more, {sound} at a time; that is not "
            "implemented, use another checkpoint"
        )
    text = (
        (transformer.caption_channels,) * 2
        if transformer.use_prompt_embeddings
        else (transformer.video.context_dim, transformer.audio.context_dim)
    )
    given = tuple(stream.heads * stream.head_dim for stream in (connectors.video, connectors.audio))
    channels = transformer.in_channels, transformer.out_channels or transformer.in_channels
    audio_channels = transformer.audio_in_channels, transformer.audio_out_channels or transformer.audio_in_channels
    bins = audio_vae.output_channels * audio_vae.mel_bins
    factors = tuple(transformer.vae_scale_factors)
    texts: tuple[tuple[str, str, str, Any, Any], ...] = ()
    if encoder is not None and vocabulary is not None:
        layers, words = encoder.num_hidden_layers + 1, min(vocabulary, encoder.vocab_size)  # it may have more
        texts = (
            ("connectors", "text_encoder", "channels", connectors.caption_channels, encoder.hidden_size),
            ("connectors", "text_encoder", "states", connectors.text_proj_in_factor, layers),
            ("tokenizer", "text_encoder", "words", vocabulary, words),
        )
    for one, other, what, ours, theirs in (
        ("transformer", "vae", "channels", channels, (film, film)),
        ("transformer", "vae", "frames, rows and columns a latent", factors, (vae.frames, vae.factor, vae.factor)),
        ("transformer", "audio_vae", "channels", audio_channels, (sound, sound)),
        ("transformer", "connectors", "channels of a text", text, given),
        *texts,
        ("vocoder", "audio_vae", "mel bins", vocoder.in_channels, bins),
    ):
        if ours != theirs:
            settings = " or ".join(f"{part.setting}.source" for part in checkpoint.parts.values())
            advice = f"choose another {settings}" if settings else "the folders are of different models"
            raise CheckpointError(
                f"{source}: the {one} and the {other} do not fit together: {what} are {ours} and {theirs}; {advice}"
            )


def check_film(request: GenerationRequest, configs: Mapping[str, Any], *, side: int, frames: int) -> None:
    """Checks a request whose fields are all filled.

    Args:
        side: the pixels that width and height are multiples of.
        frames: those that the number of frames is a multiple of, and one more.

    Raises:
        ConfigError: the checkpoint cannot make this.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    # One latent has nothing that its edge could reflect.
    smallest = side * (2 if vae.decoder_spatial_padding_mode == "reflect" else 1)
    for name, value in (("width", request.width), ("height", request.height)):
        if value % side or value < smallest:
            near = max(smallest, round(value / side) * side)
            raise ConfigError(
                f"{name}={value}: this checkpoint needs a multiple of {side}, and {smallest} at least; try {near}"
            )
    count, fps = request.num_frames, request.fps
    assert count is not None and fps is not None
    if count % frames != 1 % frames:
        near = round((count - 1) / frames) * frames + 1
        raise ConfigError(f"num_frames={count}: this checkpoint needs a multiple of {frames}, and one more; try {near}")
    longest = math.floor(transformer.pos_embed_max_pos * fps)
    if count > longest:
        most = max((longest - 1) // frames * frames + 1, 1)
        raise ConfigError(
            f"num_frames={count}: at fps={fps:g} is a film of {count / fps:.4g} seconds, and this checkpoint makes "
            f"{transformer.pos_embed_max_pos} at most; try {most}"
        )
    _check_stg(request, transformer.num_layers)


def _check_stg(request: GenerationRequest, layers: int) -> None:
    scales = {name: scale for name in ("stg_scale", "audio_stg_scale") if (scale := getattr(request, name))}
    blocks = list(request.stg_blocks or ())
    advice = f"set stg_blocks=[N], with N from 0 to {layers - 1}, or {' and '.join(f'{name}=0' for name in scales)}"
    for name, scale in scales.items():
        if not blocks:
            raise ConfigError(f"{name}={scale:g}: perturbs the attention of stg_blocks, which names none; {advice}")
        if any(not 0 <= block < layers for block in blocks):
            raise ConfigError(f"stg_blocks={blocks}: this model has the blocks 0 to {layers - 1}; {advice}")
