"""The components of LTX-2: the folders of its checkpoints, and the networks that they are."""

from __future__ import annotations

from diffuse.models.text_encoder import ltx2_connectors
from diffuse.models.transformer import ltx2_config, transformer_ltx2
from diffuse.models.vae import autoencoder_kl_ltx2_audio, autoencoder_kl_ltx2_video, ltx2_video_config
from diffuse.models.vocoder import ltx2_vocoder
from diffuse.pipelines.components import Component, Components, Role
from diffuse.pipelines.ltx2_text_encoder import COMPONENTS as TEXT_COMPONENTS
from diffuse.pipelines.ltx2_text_encoder import CONNECTORS

TRANSFORMER = "transformer"

COMPONENTS: Components = {
    **TEXT_COMPONENTS,
    CONNECTORS: Component(
        Role.text_connectors, ltx2_connectors.LTX2TextConnectors, ltx2_connectors.LTX2TextConnectorsConfig
    ),
    TRANSFORMER: Component(
        Role.denoiser, transformer_ltx2.LTX2VideoTransformer3DModel, ltx2_config.LTX2VideoTransformer3DConfig
    ),
    "vae": Component(
        Role.video_codec,
        autoencoder_kl_ltx2_video.AutoencoderKLLTX2Video,
        ltx2_video_config.AutoencoderKLLTX2VideoConfig,
    ),
    "audio_vae": Component(
        Role.sound_codec,
        autoencoder_kl_ltx2_audio.AutoencoderKLLTX2Audio,
        autoencoder_kl_ltx2_audio.AutoencoderKLLTX2AudioConfig,
    ),
    "vocoder": Component(
        Role.vocoder,
        ltx2_vocoder.LTX2Vocoder,
        ltx2_vocoder.LTX2VocoderConfig,
        others={
            "LTX2VocoderWithBWE": Component(
                Role.vocoder, ltx2_vocoder.LTX2VocoderWithBWE, ltx2_vocoder.LTX2VocoderWithBWEConfig
            )
        },
    ),
}
