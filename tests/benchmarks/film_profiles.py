"""Predicts the peak of LTX-2 in full size, 2.0 and 2.3, for the largest film of each memory profile for films.

    python tests/benchmarks/film_profiles.py [--profiles high medium low very_low]

Settings are the published ones and there are no weights: the pipeline runs without storage, as by `diffuse plan`. One
step is followed, with the published guidance, on a card of compute capability 9.0. CUDA's own 0.5 GiB is added.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from gemma_peers import tokenizer_peer
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.pipelines.families import component_names
from diffuse.plan.configurations import find_configurations
from diffuse.plan.predict import complete_request, predict, reserved_bytes, size_limits
from diffuse.schema import MemoryProfileConfig

CARD = Hardware("cuda", vram_total_gib=80, vram_free_gib=80, capability=(9, 0), planned=True)
MODELS = {"2.0": "ltx2", "2.3": "ltx2_3"}
SETTINGS: dict[str, dict[str, Any]] = {
    "transformer": {"_class_name": "LTX2VideoTransformer3DModel", "rope_type": "split"},
    "text_encoder": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
    },
    "connectors": {"_class_name": "LTX2TextConnectors", "rope_type": "split"},
    "vae": {"_class_name": "AutoencoderKLLTX2Video", "decoder_causal": False},
    "audio_vae": {
        "_class_name": "AutoencoderKLLTX2Audio",
        "norm_type": "pixel",
        "causality_axis": "height",
        "is_causal": True,
        "double_z": True,
    },
    "vocoder": {"_class_name": "LTX2Vocoder"},
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
}
LATER: dict[str, dict[str, Any]] = {
    "transformer": {
        "use_prompt_embeddings": False,
        **dict.fromkeys(("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod"), True),
        "perturbed_attn": True,
    },
    "connectors": {
        **dict.fromkeys(("video_gated_attn", "audio_gated_attn", "per_modality_projections", "proj_bias"), True),
        **{f"{stream}_connector_num_layers": 8 for stream in ("video", "audio")},
        **{f"{stream}_connector_num_attention_heads": 32 for stream in ("video", "audio")},
        "audio_connector_attention_head_dim": 64,
    },
    "vae": {
        "block_out_channels": [256, 512, 1024, 1024],
        "layers_per_block": [4, 6, 4, 2, 2],
        "decoder_block_out_channels": [256, 512, 512, 1024],
        "decoder_layers_per_block": [4, 6, 4, 2, 2],
        "decoder_spatio_temporal_scaling": [True] * 4,
        "decoder_inject_noise": [False] * 5,
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
        "upsample_residual": [False] * 4,
        "upsample_factor": [2, 2, 1, 2],
        "decoder_spatial_padding_mode": "zeros",
    },
    "vocoder": {"_class_name": "LTX2VocoderWithBWE"},
}


def write_settings(folder: Path, version: str) -> Path:
    """Writes the configuration files of a version, without weights."""
    for name, settings in SETTINGS.items():
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        later = LATER.get(name, {}) if version == "2.3" else {}
        (folder / name / file).write_text(json.dumps(settings | later))
    tokenizer_peer().save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "LTX2Pipeline"}))
    return folder


def peak(version: str, folder: Path, name: str) -> tuple[str, float]:
    """The largest film of a profile, and its predicted peak in GiB."""
    words = [f"model={MODELS[version]}", f"model.source={folder}", f"memory_profile={name}", "hardware=cpu", "prompt=x"]
    cfg = compose_config([*words, "width=3840", "height=2176", "num_frames=201", "num_inference_steps=1"])
    profile = cast(MemoryProfileConfig, OmegaConf.to_object(cfg.memory_profile))
    checkpoints = find_configurations(cfg, component_names(cfg)).checkpoints
    request = complete_request(cfg, draft_requests(cfg)[0], CARD, checkpoints)
    limits = size_limits(cfg, profile, CARD, checkpoints)
    longer, shorter = (side // limits.multiple * limits.multiple for side in limits.sides or (request.width,) * 2)
    request = limits.largest(replace(request, width=longer, height=shorter, num_inference_steps=1))
    guess = predict(cfg, request, profile, hw=CARD, checkpoints=checkpoints)
    size = f"{request.width} x {request.height}, {request.num_frames} frames"
    return size, (guess.device_bytes + reserved_bytes(CARD)) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", nargs="+", default=["high", "medium", "low", "very_low"])
    names = parser.parse_args().profiles
    with tempfile.TemporaryDirectory() as root:
        for version in MODELS:
            folder = write_settings(Path(root) / version, version)
            for name in names:
                size, gib = peak(version, folder, name)
                print(f"LTX-{version}  {name:9} {size:24} {gib:5.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
