"""The layers of each network that stay in full precision where `memory_profile.storage` asks for fewer bits.

The first and the last layers, and those that a timestep passes through, have few weights and much influence. Norms,
biases and tables of embeddings are no linear layers, and stay as well. Networks that are not in the table stay whole:
autoencoders and vocoders, whose errors are seen and heard at once, and small ones such as connectors.
"""

from __future__ import annotations

# By the class of a network: the beginnings of its layers' paths.
FULL_PRECISION: dict[str, tuple[str, ...]] = {
    # Stable Diffusion 1.x, 2.x, XL and its refiner
    "UNet2DConditionModel": ("conv_in", "conv_out", "time_embedding", "add_embedding"),
    "CLIPTextModel": (),
    "CLIPTextModelWithProjection": ("text_projection",),
    # LTX-2: all but the blocks
    "LTX2VideoTransformer3DModel": (
        "proj_in",
        "audio_proj_in",
        "caption_projection",
        "audio_caption_projection",
        "time_embed",
        "audio_time_embed",
        "av_cross_attn_video_scale_shift",
        "av_cross_attn_audio_scale_shift",
        "av_cross_attn_video_a2v_gate",
        "av_cross_attn_audio_v2a_gate",
        "prompt_adaln",
        "audio_prompt_adaln",
        "proj_out",
        "audio_proj_out",
    ),
    "Gemma3TextModel": (),
}
